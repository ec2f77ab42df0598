"""
Distributionally robust loss over all items (DROS, https://doi.org/10.1145/3539618.3591624).

Shapes: P labelled positions · N items · K items of a list · d width of a user vector. Unit: nats; the exponents are
squared errors of scores, weighted and divided by the radius.
"""

from functools import partial

import torch
from torch import Tensor

from hf_rec.losses.all_scores import loss_of_all_scores


def item_shares(counts: Tensor, power: float) -> Tensor:
    """
    Weight of each item in the robust loss: its smoothed share of the training events, to a power.

    Args:
        counts (`torch.Tensor` of shape `(N,)`): How often each item occurs in training, and nowhere else.
        power (`float`): 0 weighs all items alike, 1 by their share. At least 0.

    Returns:
        `torch.Tensor` of shape `(N,)`: `((count + 1) / (events + N)) ** power`, float32, greater than 0.
    """
    smoothed = counts.double() + 1
    return (smoothed / smoothed.sum()).pow(power).float()


def robust_loss(scores: Tensor, targets: Tensor, shares: Tensor, radius: float) -> Tensor:
    """
    Log of the sum over items of `exp(share * squared error / radius)`. The error of the target is its distance from 1,
    that of any other item its distance from 0. The largest errors dominate the sum, so the loss guards against the
    worst of the distributions that are near the one of training.

    Args:
        scores (`torch.Tensor` of shape `(P, N)`): Scores of all items.
        targets (`torch.Tensor` of shape `(P,)`): Column of each target.
        shares (`torch.Tensor` of shape `(N,)`): From [`item_shares`].
        radius (`float`): Greater than 0. The smaller, the more the largest error counts.

    Returns:
        `torch.Tensor` of shape `(P,)`: Loss per position, float32.
    """
    scores = scores.float()
    wanted = torch.zeros_like(scores).scatter(1, targets[:, None], 1.0)
    return (_checked(radius, shares) * (scores - wanted).square()).logsumexp(dim=1)


def chunked_robust_loss(
    vectors: Tensor,
    items: Tensor,
    listed: Tensor,
    shares: Tensor,
    radius: float,
    bias: Tensor | None = None,
    weights: Tensor | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """
    Weighted sum of [`robust_loss`] over positions and over the targets of each, with the scores of a few positions in
    memory at a time.

    Args:
        vectors (`torch.Tensor` of shape `(P, d)`): User vectors at the labelled positions.
        items (`torch.Tensor` of shape `(N, d)`): Item vectors; a score is their dot product.
        listed (`torch.Tensor` of shape `(P, K)`): Different items, each the target of one loss of the position, at
            least one; -1 behind the last.
        shares (`torch.Tensor` of shape `(N,)`): From [`item_shares`].
        radius (`float`): As in [`robust_loss`].
        bias (`torch.Tensor` of shape `(N,)`, *optional*): Added to the scores of every position.
        weights (`torch.Tensor` of shape `(P, K)`, *optional*): Of each loss. Default: 1.
        chunk_size (`int`, *optional*): Positions scored at a time, as in [`loss_of_all_scores`].

    Returns:
        `torch.Tensor`: A scalar, float32.
    """
    weights = torch.ones(listed.shape, device=listed.device) if weights is None else weights
    real = listed >= 0
    listed = torch.where(real, listed, listed[:, :1])
    score_loss = partial(_robust_chunk, scale=_checked(radius, shares))
    return loss_of_all_scores(vectors, items, bias, score_loss, (listed, real, weights.float() * real), chunk_size)


def _robust_chunk(
    scores: Tensor, buffer: Tensor, listed: Tensor, real: Tensor, weights: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """
    Summed loss of a chunk and its gradient (in the buffer). Items outside the list have the same exponent in all
    losses of a position, so they are summed once; the listed ones are few. No sum is ever subtracted from another.
    """
    own = scores.gather(1, listed)
    torch.mul(scores, scores, out=buffer).mul_(scale).scatter_(1, listed, -torch.inf)
    top = buffer.amax(dim=1, keepdim=True).clamp(min=0)  # -inf where every item is listed
    total = buffer.sub_(top).exp_().sum(dim=1)
    with torch.enable_grad():
        others = (top.squeeze(1) + total.log()).requires_grad_()
        own.requires_grad_()
        losses = _losses_of_list(own, others, scale[listed], real)
        loss = (losses * weights).sum()
        others_grad, own_grad = torch.autograd.grad(loss, (others, own))
    share = others_grad / total.clamp(min=torch.finfo(total.dtype).tiny)
    buffer.mul_(share[:, None]).mul_(scores).mul_(2 * scale).scatter_add_(1, listed, own_grad)
    return loss.detach(), buffer


def _losses_of_list(own: Tensor, others: Tensor, scale: Tensor, real: Tensor) -> Tensor:
    """Losses `(P, K)` with each listed item as the target, from their scores `(P, K)` and the log sum of the rest."""
    as_other = (scale * own.square()).masked_fill(~real, -torch.inf)
    as_target = scale * (own - 1).square()
    is_target = torch.eye(own.shape[1], dtype=torch.bool, device=own.device)
    exponents = torch.where(is_target, as_target[:, :, None], as_other[:, None, :])  # (P, K targets, K items)
    rest = others[:, None, None].expand(-1, own.shape[1], 1)
    return torch.cat([exponents, rest], dim=2).logsumexp(dim=2)


def _checked(radius: float, shares: Tensor) -> Tensor:
    if not radius > 0:
        raise ValueError(f"`radius` must be greater than 0, got {radius}. A large value weighs all errors alike.")
    return shares / radius
