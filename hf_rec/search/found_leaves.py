"""
What a search has found so far, and what it gave up.

Shapes: U users · W places kept for each.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SearchResult:
    """
    What a trie search found.

    Attributes:
        leaves (`torch.LongTensor` of shape `(U, W)`): Leaf ids, best first, `-1` where there are no more.
        scores (`torch.FloatTensor` of shape `(U, W)`): Score of each leaf, `-inf` where there are no more: its
            log-probability, or with a prior that of its best item.
        pruned_bound (`torch.FloatTensor` of shape `(U,)`):
            Highest score of any pruned prefix that holds an allowed leaf, `-inf` if none was pruned. No leaf that is
            missing from `leaves` can score higher, as scores never rise along a path.
        nan_scores (`torch.LongTensor` of shape `(U,)`):
            Prefixes with an allowed leaf whose score is NaN. They are given up, and nothing is known of what is below.
        steps (`int`): Forward passes of the model.
    """

    leaves: Tensor
    scores: Tensor
    pruned_bound: Tensor
    nan_scores: Tensor
    steps: int


@dataclass
class FoundLeaves:
    """Leaves found so far, best first, and the best score among everything given up; shapes as in [`SearchResult`]."""

    leaves: Tensor
    scores: Tensor
    pruned_bound: Tensor
    nan_scores: Tensor

    @classmethod
    def empty(cls, num_users: int, size: int, device: torch.device) -> "FoundLeaves":
        """Nothing yet."""
        return cls(
            torch.full((num_users, size), -1, device=device),
            torch.full((num_users, size), -torch.inf, device=device),
            torch.full((num_users,), -torch.inf, device=device),
            torch.zeros(num_users, dtype=torch.long, device=device),
        )

    def add(self, leaves: Tensor, scores: Tensor) -> None:
        """Merge `(U, n)` leaves; what no longer fits counts as pruned."""
        size = self.leaves.shape[1]
        scores, order = torch.cat([self.scores, scores], dim=1).sort(dim=1, descending=True, stable=True)
        leaves = torch.cat([self.leaves, leaves], dim=1).gather(1, order)
        self.prune(scores[:, size:])
        self.scores = scores[:, :size].contiguous()
        self.leaves = leaves[:, :size].masked_fill(self.scores == -torch.inf, -1)

    def prune(self, scores: Tensor) -> None:
        """Note that prefixes with these scores, `(U, n)`, were given up."""
        if scores.shape[1]:
            self.pruned_bound = torch.maximum(self.pruned_bound, scores.amax(dim=1))

    def result(self, steps: int) -> SearchResult:
        """What a search ends with."""
        return SearchResult(self.leaves, self.scores, self.pruned_bound, self.nan_scores, steps)
