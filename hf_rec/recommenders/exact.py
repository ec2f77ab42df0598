"""
Recommenders that score every item of the catalog, so that their lists are exact.

Shapes: U users · N items of the catalog.
"""

from collections.abc import Sequence

import numpy as np

from hf_rec.recommenders.contract import RankedRows, RawId, Recommender


_SCORES_AT_ONCE = 2**24  # 64 MiB in float32


class ExactRecommender(Recommender):
    """
    Base of recommenders without a search. A subclass gives `_score_all_rows(histories, timestamps)`, which returns a
    float32 array of shape `(U, N)` that may be written to; `-inf` keeps an item out of every list.
    """

    def score_all(
        self, histories: Sequence[Sequence[RawId]], timestamps: Sequence[Sequence[int]] | None = None
    ) -> np.ndarray:
        """
        Scores of all items.

        Args:
            histories, timestamps: As in [`~Recommender.recommend`].

        Returns:
            `np.ndarray` of shape `(U, N)`: float32, items in catalog order.
        """
        rows = self._history_rows(histories, timestamps)
        scores = np.empty((len(rows), len(self.catalog)), dtype=np.float32)
        for users in self._batches(rows, self._users_at_once(None, 1, None), "Scoring"):
            times = None if timestamps is None else [timestamps[user] for user in users]
            scores[users] = self._score_all_rows([rows[user] for user in users], times)
        return scores

    def _score_all_rows(self, histories, timestamps) -> np.ndarray:
        raise NotImplementedError(f"{type(self).__name__} must define _score_all_rows.")

    def _recommend_rows(self, histories, k, allowed, timestamps, num_beams) -> RankedRows:
        scores = self._score_all_rows(histories, timestamps)
        scores[np.isnan(scores)] = -np.inf
        if allowed is not None:
            scores[np.broadcast_to(~allowed, scores.shape)] = -np.inf
        listed = [best_rows(values, k) for values in scores]
        pairs = [
            list(zip(rows.tolist(), values[rows].tolist(), strict=True))
            for rows, values in zip(listed, scores, strict=True)
        ]
        return RankedRows.from_pairs(pairs, k, np.ones(len(histories), dtype=bool))

    def _score_rows(self, histories, candidates, timestamps) -> list[np.ndarray]:
        scores = self._score_all_rows(histories, timestamps)
        return [values[rows] for values, rows in zip(scores, candidates, strict=True)]

    def _users_at_once(self, batch_size: int | None, k: int, num_beams: int | None) -> int:
        size = super()._users_at_once(batch_size, k, num_beams)
        return max(1, min(size, _SCORES_AT_ONCE // len(self.catalog)))


def best_rows(scores: np.ndarray, k: int) -> np.ndarray:
    """Indices of the `k` highest of `(N,)` scores, best first, ties in row order; none that is `-inf`."""
    k = min(k, len(scores))
    threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
    above, tied = np.flatnonzero(scores > threshold), np.flatnonzero(scores == threshold)
    rows = np.sort(np.concatenate([above, tied[: k - len(above)]]))
    rows = rows[scores[rows] > -np.inf]
    return rows[np.argsort(-scores[rows], kind="stable")]
