"""
What a model is asked to do, one request at a time or several in one batch.

Requests go into one batch where their `key` is equal. Their answers are those of a call of their own, up to the
rounding of a batch.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from hf_rec.recommenders.contract import RawId, Recommender
from hf_rec.recommenders.language_model import LanguageModelRecommender
from hf_rec.recommenders.token_path import PathStep, token_path


class Work(Protocol):
    """One request to one recommender."""

    @property
    def key(self) -> Hashable: ...

    @staticmethod
    def answers(batch: Sequence[Any]) -> list[Any]:
        """One answer for each of some requests with equal keys, in their order."""
        ...


@dataclass(frozen=True)
class RankedList:
    """The answer to [`RecommendWork`]: ids and scores, best first, and how sure they are."""

    item_ids: list[RawId]
    scores: list[float]
    certified: bool
    nan_scores: int


@dataclass(frozen=True, eq=False)
class RecommendWork:
    """The next items of a history; arguments as of [`~hf_rec.recommenders.contract.Recommender.recommend`]."""

    recommender: Recommender
    history: list[RawId]
    k: int = 10
    exclude: list[RawId] | None = None
    allow: list[RawId] | None = None
    timestamps: list[int] | None = None
    num_beams: int | None = None

    @property
    def key(self) -> Hashable:
        times, rules = self.timestamps is not None, (bool(self.exclude), self.allow is not None)
        return ("recommend", id(self.recommender), self.k, self.num_beams, times, rules)

    @staticmethod
    def answers(batch: "Sequence[RecommendWork]") -> list[RankedList]:
        first = batch[0]
        found = first.recommender.recommend(
            [work.history for work in batch],
            k=first.k,
            exclude=[work.exclude or [] for work in batch] if first.exclude else None,
            allow=None if first.allow is None else [work.allow or [] for work in batch],
            timestamps=None if first.timestamps is None else [work.timestamps or [] for work in batch],
            num_beams=first.num_beams,
            batch_size=len(batch),
        )
        return [
            RankedList(ids, scores[: len(ids)].tolist(), bool(certified), int(nan_scores))
            for ids, scores, certified, nan_scores in zip(
                found.item_ids, found.scores, found.certified, found.nan_scores, strict=True
            )
        ]


@dataclass(frozen=True, eq=False)
class ScoreWork:
    """Scores of given items; arguments as of [`~hf_rec.recommenders.contract.Recommender.score`]."""

    recommender: Recommender
    history: list[RawId]
    candidates: list[RawId]
    timestamps: list[int] | None = None

    @property
    def key(self) -> Hashable:
        return ("score", id(self.recommender), self.timestamps is not None)

    @staticmethod
    def answers(batch: "Sequence[ScoreWork]") -> list[np.ndarray]:
        first = batch[0]
        return first.recommender.score(
            [work.history for work in batch],
            [work.candidates for work in batch],
            timestamps=None if first.timestamps is None else [work.timestamps or [] for work in batch],
            batch_size=len(batch),
        )


@dataclass(frozen=True, eq=False)
class PathWork:
    """How a language model spells one item; see [`~hf_rec.recommenders.token_path.token_path`]."""

    recommender: LanguageModelRecommender
    history: list[RawId]
    item_id: RawId

    @property
    def key(self) -> Hashable:
        return ("path", id(self))

    @staticmethod
    def answers(batch: "Sequence[PathWork]") -> list[list[PathStep]]:
        return [token_path(work.recommender, work.history, work.item_id) for work in batch]
