"""
The best items and the exact ranks, from scores of all items: one way for all who need them.

A block of users is scored at a time, so that there is never a [users, items] matrix of all of them.

Shapes: B users · N items · k places of a list · H longest history.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor


CPU_BLOCK_ELEMENTS = 2**22  # scores held at once: 16 MiB
ACCELERATOR_BLOCK_ELEMENTS = 2**27


def best_scores(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """
    The highest scores of each row, equal ones in column order.

    Args:
        scores (`torch.Tensor` of shape `(B, N)`): Higher is better; NaN counts as `-inf`.
        k (`int`): How many, from 1 to N.

    Returns:
        `tuple[torch.Tensor, torch.LongTensor]`: Scores, best first, and their columns, each of shape `(B, k)`.
    """
    values, columns = scores.topk(min(k + 1, scores.shape[1]), dim=1)
    if values[:, 0].isnan().any():  # topk takes NaN for the highest
        scores = scores.masked_fill(scores.isnan(), -torch.inf)
        values, columns = scores.topk(values.shape[1], dim=1)
    # topk breaks ties as it likes: first decide who is in the list, then who stands where
    crowded = (values[:, k - 1] == values[:, -1]).nonzero().squeeze(1) if values.shape[1] > k else columns.new_empty(0)
    values, columns = values[:, :k], columns[:, :k]
    if len(crowded):
        ordered = scores[crowded].sort(dim=1, descending=True, stable=True)
        values, columns = values.clone(), columns.clone()
        values[crowded], columns[crowded] = (part[:, :k] for part in ordered)
    columns, order = columns.sort(dim=1)
    values, places = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    return values, columns.gather(1, places)


def user_blocks(user_vectors: Tensor, num_items: int) -> Iterator[slice]:
    """Slices of users whose scores of all items fit into a block."""
    on_cpu = user_vectors.device.type == "cpu"
    size = max((CPU_BLOCK_ELEMENTS if on_cpu else ACCELERATOR_BLOCK_ELEMENTS) // num_items, 1)
    for start in range(0, len(user_vectors), size):
        yield slice(start, min(start + size, len(user_vectors)))


@torch.no_grad()
def exact_ranks(
    score_items: Callable[[Tensor], Tensor],
    num_items: int,
    user_vectors: Tensor,
    targets: Tensor,
    seen: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """
    Ranks of the targets among all items.

    Args:
        score_items (`Callable`): Scores `(b, N)` of all items for vectors `(b, d)`; they may be written to.
        num_items (`int`): N.
        user_vectors (`torch.Tensor` of shape `(B, d)`): Users.
        targets (`torch.LongTensor` of shape `(B,)`): Catalog row of each target.
        seen (`torch.LongTensor` of shape `(B, H)`, *optional*): Items that are not ranked, padded with -1. A target
            among them ranks with them, behind all others.

    Returns:
        `tuple`: `better` and `tied` (`int64`, the items with a higher and with the same score) and `nll` (minus log of
        the target's share in a softmax over all items, seen or not, nats), each of shape `(B,)`. A target with the
        score NaN ranks last.
    """
    better, tied = torch.empty_like(targets), torch.empty_like(targets)
    nll = torch.empty(targets.shape, dtype=torch.float32, device=targets.device)
    for users in user_blocks(user_vectors, num_items):
        scores = score_items(user_vectors[users]).float()
        goals = targets[users, None]
        nll[users] = scores.logsumexp(dim=1) - scores.gather(1, goals).squeeze(1)
        if seen is not None:
            forbid_items(scores, seen[users])
        own = scores.gather(1, goals)
        # Booleans are summed faster as int32 than as int64, the default
        better[users] = (scores > own).sum(dim=1, dtype=torch.int32).long()
        tied[users] = (scores == own).sum(dim=1, dtype=torch.int32).long() - 1
        undefined = own.squeeze(1).isnan()
        better[users] = better[users].masked_fill(undefined, num_items - 1)
        tied[users] = tied[users].masked_fill(undefined, 0)
    return better, tied, nll


def forbid_items(scores: Tensor, items: Tensor) -> None:
    """Write `-inf` over the scores, shape `(B, N)`, of items, shape `(B, H)`, padded with -1."""
    rows, columns = (items >= 0).nonzero(as_tuple=True)
    scores[rows, items[rows, columns]] = -torch.inf
