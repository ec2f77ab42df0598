"""
Recommenders that score every item of the catalog, so that their lists are exact.

Shapes: U users · N items of the catalog.
"""

import numpy as np
import torch
from torch import Tensor

from hf_rec.recommenders.allowed_items import AllowedItems
from hf_rec.recommenders.contract import RankedRows, Recommender, Times
from hf_rec.recommenders.ranks import best_scores


_SCORES_AT_ONCE = 2**24  # 64 MiB in float32


class ExactRecommender(Recommender):
    """
    Base of recommenders without a search. A subclass gives `_score_all_rows(histories, timestamps)`, which returns a
    float32 array of shape `(U, N)` that may be written to; `-inf` keeps an item out of every list.
    """

    is_exact = True

    def _score_all_rows(self, histories: list[list[int]], timestamps: Times | None) -> np.ndarray:
        raise NotImplementedError(f"{type(self).__name__} must define _score_all_rows.")

    def _recommend_rows(
        self,
        histories: list[list[int]],
        k: int,
        allowed: AllowedItems | None,
        timestamps: Times | None,
        num_beams: int | None,
    ) -> RankedRows:
        return ranked(torch.from_numpy(self._score_all_rows(histories, timestamps)), k, allowed)

    def _score_rows(
        self, histories: list[list[int]], candidates: list[list[int]], timestamps: Times | None
    ) -> list[np.ndarray]:
        scores = self._score_all_rows(histories, timestamps)
        return [values[rows] for values, rows in zip(scores, candidates, strict=True)]

    def _users_at_once(self, batch_size: int | None, k: int, num_beams: int | None) -> int:
        size = super()._users_at_once(batch_size, k, num_beams)
        return max(1, min(size, _SCORES_AT_ONCE // len(self.catalog)))


def ranked(scores: Tensor, k: int, allowed: AllowedItems | None) -> RankedRows:
    """Lists from the scores of all items, `(U, N)`, which are written to: exact, unless some are NaN."""
    if allowed is not None:
        allowed.forbid(scores)
    nan_scores = torch.zeros(len(scores), dtype=torch.long, device=scores.device)
    if scores.sum().isnan():  # one sum is far faster than to count them, and is NaN where any is
        nan_scores = scores.isnan().sum(dim=1)
    values, rows = best_scores(scores, min(k, scores.shape[1]))
    return RankedRows.from_best(values, rows, k, (nan_scores == 0).cpu().numpy(), nan_scores)
