"""
Scores of all items for user vectors, a block of users at a time: never a [users, items] matrix.

Shapes: B users · N items · H longest history. The model is a
[`~hf_rec.models.sequence.base.SequencePreTrainedModel`].
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor


if TYPE_CHECKING:
    from hf_rec.models.sequence.base import SequencePreTrainedModel

CPU_BLOCK_ELEMENTS = 2**22  # scores held at once: 16 MiB
ACCELERATOR_BLOCK_ELEMENTS = 2**27


def user_blocks(user_vectors: Tensor, num_items: int) -> Iterator[slice]:
    """Slices of users whose scores of all items fit into a block."""
    on_cpu = user_vectors.device.type == "cpu"
    size = max((CPU_BLOCK_ELEMENTS if on_cpu else ACCELERATOR_BLOCK_ELEMENTS) // num_items, 1)
    for start in range(0, len(user_vectors), size):
        yield slice(start, min(start + size, len(user_vectors)))


@torch.no_grad()
def rank_targets(
    model: "SequencePreTrainedModel", user_vectors: Tensor, targets: Tensor, seen: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """
    Exact ranks of the targets among all items.

    Args:
        model ([`~hf_rec.models.sequence.base.SequencePreTrainedModel`]): Gives the scores.
        user_vectors (`torch.Tensor` of shape `(B, d)`): Users.
        targets (`torch.Tensor` of shape `(B,)`): Catalog row of each target.
        seen (`torch.Tensor` of shape `(B, H)`, *optional*): Items that are not ranked, padded with -1. A target among
            them ranks with them, behind all others.

    Returns:
        `tuple`: `better` and `tied` (`int64`, the items with a higher and with the same score) and `nll` (minus log of
        the target's share in a softmax over all items, seen or not, nats), each of shape `(B,)`. A target with the
        score NaN ranks last.
    """
    better, tied = torch.empty_like(targets), torch.empty_like(targets)
    nll = torch.empty(targets.shape, dtype=torch.float32, device=targets.device)
    for users in user_blocks(user_vectors, model.config.num_items):
        scores = model.score_items(user_vectors[users]).float()
        goals = targets[users, None]
        nll[users] = scores.logsumexp(dim=1) - scores.gather(1, goals).squeeze(1)
        if seen is not None:
            mask_items(scores, seen[users])
        own = scores.gather(1, goals)
        # int32 sums of booleans are 3x faster than the int64 default
        better[users] = (scores > own).sum(dim=1, dtype=torch.int32).long()
        tied[users] = (scores == own).sum(dim=1, dtype=torch.int32).long() - 1
        undefined = own.squeeze(1).isnan()
        better[users] = better[users].masked_fill(undefined, scores.shape[1] - 1)
        tied[users] = tied[users].masked_fill(undefined, 0)
    return better, tied, nll


def mask_items(scores: Tensor, items: Tensor) -> None:
    """Writes `-inf` over the scores, shape `(B, N)`, of items, shape `(B, H)`, padded with -1."""
    rows, columns = (items >= 0).nonzero(as_tuple=True)
    scores[rows, items[rows, columns]] = -torch.inf
