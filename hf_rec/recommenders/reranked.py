"""
A recommender whose first places a re-ranker puts in order.

Shapes: U users · k places of a list · N items of the catalog.
"""

import os
from collections.abc import Sequence

import numpy as np

from hf_rec.recommenders.allowed_items import AllowedItems
from hf_rec.recommenders.contract import RankedRows, Recommender, Times
from hf_rec.recommenders.reranker import Reranker


_BELOW = 1.0  # between the last item that is re-ranked and the first that is not


class RerankedRecommender(Recommender):
    """
    The lists of a retriever, the first `n` of each in the order of a re-ranker; the rest stays behind, as it was.

    The score of an item among the first `n` is that of the re-ranker. Those of all other items are the retriever's,
    moved as a whole so that they lie below. `exclude` and `allow` say what the retriever may list, and so who is
    compared: with letters, whose scores belong to a set of candidates, they change the scores of the first `n`.

    Args:
        retriever ([`Recommender`]): Lists the candidates.
        reranker ([`Reranker`]): Puts them in order; over the same items.
        n (`int`): Candidates, at least 2; with letters, no more than there are letters. A user for whom the retriever
            lists fewer has fewer.
        batch_size (`int`, *optional*): Histories worked on at a time; defaults to that of the re-ranker.
    """

    kind = "reranked"

    def __init__(self, retriever: Recommender, reranker: Reranker, n: int, batch_size: int | None = None):
        for name, part, wanted in (("retriever", retriever, Recommender), ("reranker", reranker, Reranker)):
            if not isinstance(part, wanted):
                raise ValueError(
                    f"`{name}` must be a {wanted.__name__}, got {type(part).__name__}. Load a folder with "
                    "load_recommender(folder)."
                )
        if isinstance(n, bool) or not isinstance(n, int) or n < 2:
            raise ValueError(f"`n` must be a whole number of at least 2, got {n!r}.")
        if reranker.form == "letters" and n > reranker.prompt.num_candidates:
            raise ValueError(
                f"`n` is {n}, but the re-ranker has {reranker.prompt.num_candidates} letters. Give at most that many."
            )
        if not retriever.catalog.has_items_of(reranker.catalog):
            raise ValueError(
                f"`retriever` and `reranker` are over different catalogs, of {len(retriever.catalog)} items (hash "
                f"{retriever.catalog.sha256[:12]}) and {len(reranker.catalog)} ({reranker.catalog.sha256[:12]}). "
                "Train them on the same prepared data."
            )
        super().__init__(reranker.catalog, reranker.batch_size if batch_size is None else batch_size)
        self.retriever, self.reranker, self.n = retriever, reranker, n

    @property
    def is_searched(self) -> bool:
        """Whether candidates come from a search."""
        return not self.retriever.is_exact

    def save(self, folder: str | os.PathLike) -> None:
        """
        Write a folder that [`~hf_rec.hub.load_recommender`] reads, with both parts in folders inside it.

        Args:
            folder (`str` or `os.PathLike`): New or empty.
        """
        from hf_rec.recommenders.folders import save_reranked

        save_reranked(folder, self)

    def candidates(
        self,
        histories: list[list[int]],
        allowed: AllowedItems | None = None,
        timestamps: Times | None = None,
    ) -> list[list[int]]:
        """What is re-ranked for each user: catalog rows, in the order of the retriever."""
        return self._retrieved(histories, self.n, allowed, timestamps, None).rows

    def _retrieved(
        self,
        histories: list[list[int]],
        k: int,
        allowed: AllowedItems | None,
        timestamps: Times | None,
        num_beams: int | None,
    ) -> RankedRows:
        wanted = min(max(k, self.n), len(self.catalog))
        beams = None if num_beams is None else max(num_beams, wanted)
        return self.retriever._recommend_rows(histories, wanted, allowed, timestamps, beams)

    def _recommend_rows(
        self,
        histories: list[list[int]],
        k: int,
        allowed: AllowedItems | None,
        timestamps: Times | None,
        num_beams: int | None,
    ) -> RankedRows:
        found = self._retrieved(histories, k, allowed, timestamps, num_beams)
        judged = self.reranker.judge(histories, [rows[: self.n] for rows in found.rows])
        pairs, nan_scores = [], found.nan_scores.copy()
        for user, (rows, own, scores) in enumerate(zip(found.rows, found.scores, judged, strict=True)):
            known = ~np.isnan(scores)
            nan_scores[user] += int((~known).sum())
            first = [
                (rows[place], float(scores[place])) for place in np.argsort(-scores, kind="stable") if known[place]
            ]
            behind = _behind(own[self.n : len(rows)], scores, own[: len(scores)])
            pairs.append([*first, *zip(rows[self.n :], behind.tolist(), strict=True)][:k])
        return RankedRows.from_pairs(pairs, k, found.certified & (nan_scores == 0), nan_scores)

    def _score_rows(
        self, histories: list[list[int]], candidates: list[list[int]], timestamps: Times | None
    ) -> list[np.ndarray]:
        found = self._retrieved(histories, self.n, None, timestamps, None)
        judged = self.reranker.judge(histories, found.rows)
        plain = self.retriever._score_rows(histories, candidates, timestamps)
        scores = []
        for user, wanted in enumerate(candidates):
            first = dict(zip(found.rows[user], judged[user].tolist(), strict=True))
            behind = _behind(plain[user], judged[user], found.scores[user][: len(first)])
            pairs = zip(wanted, behind.tolist(), strict=True)
            scores.append(np.array([first.get(row, value) for row, value in pairs], dtype=np.float32))
        return scores

    def _cost(self, history: list[int]) -> int:
        return self.retriever._cost(history)

    def _users_at_once(self, batch_size: int | None, k: int, num_beams: int | None) -> int:
        size = super()._users_at_once(batch_size, k, num_beams)
        return self.retriever._users_at_once(size, max(k, self.n), None)


def _behind(scores: np.ndarray, first: np.ndarray, retrieved: Sequence[float] | np.ndarray) -> np.ndarray:
    """Scores of the retriever, moved below those of the first places; `retrieved` are the retriever's of these."""
    if not len(first):
        return np.asarray(scores, dtype=np.float32)
    lowest = np.nanmin(first) if not np.isnan(first).all() else 0.0
    return (lowest - _BELOW + np.minimum(scores - retrieved[-1], 0.0)).astype(np.float32)
