"""
Losses that teach a language model to retrieve items and to keep a sequence model's sense of order
(LLM-SRec, https://huggingface.co/papers/2502.13909), and those that teach a sequence model the lists of another
recommender (DLLM2Rec, https://huggingface.co/papers/2405.00338).

Shapes: B users · K negatives of a user, or items of a list · M negatives shared by all users · d width of the vectors.
The losses of LLM-SRec are means over users, in nats or without unit; sums run in float32.
"""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor


MatchForm = Literal["mse", "infonce"]


def retrieval_loss(user: Tensor, positive: Tensor, negative: Tensor, keep: Tensor | None = None) -> Tensor:
    """
    Cross-entropy of each user's item against negatives, by raw dot products.

    Args:
        user (`torch.Tensor` of shape `(B, d)`): User vectors.
        positive (`torch.Tensor` of shape `(B, d)`): Vector of the item that each user chose.
        negative (`torch.Tensor` of shape `(B, K, d)` or `(M, d)`): Negatives of each user, or the same for all.
        keep (`torch.Tensor` of shape `(B, K)` or `(B, M)`, *optional*): False where a negative must not count for a
            user, as where it is the user's own item.

    Returns:
        `torch.Tensor`: Scalar, nats a user. 0 without negatives.
    """
    user, positive, negative = user.float(), positive.float(), negative.float()
    own = (user * positive).sum(dim=1, keepdim=True)
    others = user @ negative.t() if negative.dim() == 2 else (negative @ user[:, :, None]).squeeze(2)
    if keep is not None:
        others = others.masked_fill(~keep, -torch.inf)
    return (torch.cat([own, others], dim=1).logsumexp(dim=1) - own.squeeze(1)).mean()


def match_loss(user: Tensor, teacher: Tensor, form: MatchForm = "mse", temperature: float = 0.07) -> Tensor:
    """
    How far the user vectors are from those of the teacher, in direction.

    Args:
        user (`torch.Tensor` of shape `(B, d)`): User vectors of the language model.
        teacher (`torch.Tensor` of shape `(B, d)`): User vectors of the sequence model, in the same space.
        form (`str`, *optional*, defaults to `"mse"`): `"mse"`: mean over users and dimensions of the squared
            difference of the unit vectors, as published; between 0 and 4 / d. `"infonce"`: each user must find the
            teacher's vector of the same user among those of the batch, by cosine; 0 for a batch of one.
        temperature (`float`, *optional*, defaults to `0.07`): Temperature of `"infonce"`, greater than 0.

    Returns:
        `torch.Tensor`: Scalar.
    """
    if form not in get_args(MatchForm):
        raise ValueError(f"`form` must be one of {', '.join(get_args(MatchForm))}, got {form!r}.")
    user, teacher = F.normalize(user.float(), dim=1), F.normalize(teacher.float(), dim=1)
    if form == "mse":
        return F.mse_loss(user, teacher)
    if not temperature > 0:
        raise ValueError(f"`temperature` must be greater than 0, got {temperature}.")
    return F.cross_entropy(user @ teacher.t() / temperature, torch.arange(len(user), device=user.device))


def uniformity_loss(vectors: Tensor, scale: float = 2.0) -> Tensor:
    """
    Mean over pairs of `exp(-scale * squared distance)` of the unit vectors: 1 where all are equal, small where they
    spread over the sphere (https://huggingface.co/papers/2005.10242, without its logarithm, as LLM-SRec has it).

    Args:
        vectors (`torch.Tensor` of shape `(B, d)`): Vectors of any length.
        scale (`float`, *optional*, defaults to `2.0`): Sharpness, greater than 0.

    Returns:
        `torch.Tensor`: Scalar between 0 and 1; 0 for fewer than two vectors, which have no pair.
    """
    vectors = F.normalize(vectors.float(), dim=1)
    if len(vectors) < 2:
        return vectors.sum() * 0.0  # keeps the graph, so that a step of one user has a gradient of zero
    first, second = torch.triu_indices(len(vectors), len(vectors), 1, device=vectors.device)
    squared = 2.0 - 2.0 * (vectors @ vectors.t())[first, second]
    return squared.mul(-scale).exp().mean()


def list_weights(scores: Tensor, position: float, confidence: float) -> Tensor:
    """
    How much each item of a teacher's list counts.

    Args:
        scores (`torch.Tensor` of shape `(B, K)`): The teacher's, best first; `-inf` behind the last item.
        position (`float`): Weight of the place: `exp(-place)`, divided by its sum over the list.
        confidence (`float`): Weight of the softmax of the scores over the list. Where a score is minus a distance,
            this is the paper's confidence.

    Returns:
        `torch.Tensor` of shape `(B, K)`: float32; 0 behind the last item, and everywhere for an empty list.
    """
    scores = scores.float()
    real = scores > -torch.inf
    places = torch.arange(scores.shape[1], device=scores.device)
    by_place = torch.softmax((-places.float()).expand_as(scores).masked_fill(~real, -torch.inf), dim=1)
    by_score = torch.softmax(scores, dim=1)
    return (position * by_place + confidence * by_score).masked_fill(~real, 0.0)


def list_bce(listed: Tensor, negative: Tensor, weights: Tensor) -> Tensor:
    """
    Binary cross-entropy of each item of a list against one item outside it: `-log sigma(s) - log(1 - sigma(s-))`,
    weighted and summed over the list.

    Args:
        listed (`torch.Tensor` of shape `(B, K)`): The student's scores of the teacher's items.
        negative (`torch.Tensor` of shape `(B,)`): Its score of an item outside the list.
        weights (`torch.Tensor` of shape `(B, K)`): Of the items.

    Returns:
        `torch.Tensor` of shape `(B,)`: float32, nats.
    """
    per_item = F.softplus(-listed.float()) + F.softplus(negative.float())[:, None]
    return (per_item * weights).sum(dim=1)
