"""
Recommenders that judge together: the score of an item is a weighted sum of the logs of their probabilities.

Shapes: U users · P recommenders that are fused · B buckets of history lengths · N items of the catalog.
"""

import os
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_rec.recommenders.allowed_items import AllowedItems
from hf_rec.recommenders.contract import RankedRows, Recommender, Times
from hf_rec.recommenders.exact import ranked
from hf_rec.recommenders.language_model import LanguageModelRecommender, rounding_margin
from hf_rec.search.priors import ItemPrior


_SCORES_AT_ONCE = 2**24  # of items, 64 MiB in float32
_NODES_AT_ONCE = 2**26  # of the trie of the searched model, 256 MiB


class FusedRecommender(Recommender):
    """
    `score(i | u) = w_0 log P_valid(i | u) + sum_m w_m log q_m(i | u)`.

    The first language model among the recommenders is searched, and its `P_valid` is that of the search. Every other
    recommender gives the softmax `q` of its scores of all items (controls: of the logs of their counts, where every
    item counts once more). With a language model the search itself looks for the best items by the fused score, as
    exactly as without priors: `certified` says where the list is sure to be the best. Without one all items are
    scored. `exclude` and `allow` change no score.

    Attributes:
        recommenders (`list` of [`Recommender`]): As given.
        weights (`np.ndarray` of shape `(B, P)`): Weights of each bucket.
        place (`int` or `None`): Which of the recommenders is searched.

    Args:
        recommenders (`list` of [`Recommender`]): At least two, over the same items; some may know these without
            titles. A language model beside the one that is searched reads the path of every item for every user,
            which takes long.
        weights (`list[float]` or `list[list[float]]`): One weight for each recommender, or such a list for each bucket
            of history lengths. Not all 0; that of the searched language model is at least 0.
        lengths (`list[int]`, *optional*): Shortest history of each bucket, ascending from 0: `[0, 5]` are the
            histories of 0 to 4 items and those of 5 and more.
        batch_size (`int`, *optional*): Histories worked on at a time; defaults to that of the language model, or to
            the smallest of the recommenders.
        fit (`dict`, *optional*): How the weights were chosen, JSON values; kept in the folder.
    """

    kind = "fused"

    def __init__(
        self,
        recommenders: Sequence[Recommender],
        weights: Sequence[float] | Sequence[Sequence[float]],
        lengths: Sequence[int] | None = None,
        batch_size: int | None = None,
        fit: dict[str, Any] | None = None,
    ):
        recommenders = list(recommenders)
        _check_recommenders(recommenders)
        self.weights = _checked_weights(weights, len(recommenders), lengths)
        self.lengths = None if lengths is None else list(lengths)
        self.recommenders = recommenders
        self.fit = fit
        languages = [place for place, part in enumerate(recommenders) if isinstance(part, LanguageModelRecommender)]
        self.place = languages[0] if languages else None  # of the language model that is searched
        if self.place is not None and self.weights[:, self.place].min() < 0:
            raise ValueError(
                f"`weights` must be at least 0 for the language model that is searched, got {self.weights.tolist()}. "
                "Only the others may be held against an item."
            )
        self.is_exact = self.place is None
        sizes = [recommenders[place].batch_size for place in languages[:1] or range(len(recommenders))]
        with_titles = [part.catalog for part in recommenders if part.catalog.titles is not None]
        catalog = (with_titles or [recommenders[0].catalog])[0]
        super().__init__(catalog, min(sizes) if batch_size is None else batch_size)

    @property
    def searched(self) -> LanguageModelRecommender | None:
        """The language model that is searched."""
        part = None if self.place is None else self.recommenders[self.place]
        return part if isinstance(part, LanguageModelRecommender) else None

    @property
    def scoring(self) -> str | None:
        """That of the searched language model."""
        return None if self.searched is None else self.searched.scoring

    @property
    def tau(self) -> float | None:
        """Temperature of the searched language model."""
        return None if self.searched is None else self.searched.tau

    def save(self, folder: str | os.PathLike) -> None:
        """
        Write a folder that [`~hf_rec.hub.load_recommender`] reads, with each recommender in a folder inside it.

        Args:
            folder (`str` or `os.PathLike`): New or empty.
        """
        from hf_rec.recommenders.folders import save

        save(folder, self)

    def _recommend_rows(
        self,
        histories: list[list[int]],
        k: int,
        allowed: AllowedItems | None,
        timestamps: Times | None,
        num_beams: int | None,
    ) -> RankedRows:
        weights = self._weights_of(histories)
        prior, own, searched = self._prior(histories, timestamps, weights), *self._searched_by(weights)
        if searched is None:
            return ranked(prior, k, allowed)
        if allowed is not None:
            allowed.forbid(prior)
        rounding = torch.tensor([_rounding(part) for part in self.recommenders])
        rounding[self.place] = 0  # the search knows its own
        return searched.search_rows(histories, k, allowed, num_beams, ItemPrior(prior, own, weights.abs() @ rounding))

    def _score_rows(
        self, histories: list[list[int]], candidates: list[list[int]], timestamps: Times | None
    ) -> list[np.ndarray]:
        weights = self._weights_of(histories)
        prior, own, searched = self._prior(histories, timestamps, weights), *self._searched_by(weights)
        scores = [values[rows] for values, rows in zip(prior.numpy(), candidates, strict=True)]
        if searched is None:
            return scores
        found = searched._score_rows(histories, candidates, timestamps)
        return [weight * log_p + rest for weight, log_p, rest in zip(own.numpy(), found, scores, strict=True)]

    def _score_all_rows(self, histories: list[list[int]], timestamps: Times | None) -> np.ndarray:
        weights = self._weights_of(histories)
        prior, own, searched = self._prior(histories, timestamps, weights), *self._searched_by(weights)
        if searched is not None:
            prior += own[:, None] * torch.from_numpy(searched._score_all_rows(histories, timestamps))
        return prior.numpy()

    def _weights_of(self, histories: list[list[int]]) -> Tensor:
        """Weights of the recommenders for each user: float32 of shape `(U, P)`."""
        if self.lengths is None:
            bucket = np.zeros(len(histories), dtype=np.int64)
        else:
            bucket = np.searchsorted(self.lengths, list(map(len, histories)), side="right") - 1
        return torch.from_numpy(self.weights[bucket].astype(np.float32))

    def _searched_by(self, weights: Tensor) -> tuple[Tensor, LanguageModelRecommender | None]:
        """Weight of the searched language model for each user, and the model; `None` where it has no say for any."""
        own = torch.zeros(len(weights)) if self.place is None else weights[:, self.place]
        return own, self.searched if own.any() else None

    def _prior(self, histories: list[list[int]], timestamps: Times | None, weights: Tensor) -> Tensor:
        """Weighted sum of the log-probabilities of all but the searched language model: float32 of shape `(U, N)`."""
        total = torch.zeros(len(histories), len(self.catalog))
        for place, part in enumerate(self.recommenders):
            if place != self.place and weights[:, place].any():
                total.addcmul_(weights[:, place, None], checked_log_probabilities(part, histories, timestamps))
        return total

    def _cost(self, history: list[int]) -> int:
        return len(history) if self.searched is None else self.searched._cost(history)

    def _users_at_once(self, batch_size: int | None, k: int, num_beams: int | None) -> int:
        size = super()._users_at_once(batch_size, k, num_beams)
        if self.searched is not None:
            size = self.searched._users_at_once(size, k, num_beams)
            size = min(size, _NODES_AT_ONCE // len(self.searched.trie.depth))
        return max(1, min(size, _SCORES_AT_ONCE // len(self.catalog)))


def checked_log_probabilities(part: Recommender, histories: list[list[int]], timestamps: Times | None) -> Tensor:
    """[`~Recommender.log_probabilities`], refused where one is NaN or infinite: nothing could be added to it."""
    values = part.log_probabilities(histories, timestamps)
    if not values.sum().isfinite() and not values.isfinite().all():  # one sum is far faster than to look at each
        raise ValueError(
            f"`recommenders` hold a {type(part).__name__} that gives {int((~values.isfinite()).sum())} scores that "
            "are NaN or infinite, so it cannot be fused. Its weights are damaged: train it again."
        )
    return values


def _rounding(part: Recommender) -> float:
    """What the batch that it is computed in may change in a log-probability of a recommender, in nats."""
    if isinstance(part, FusedRecommender):
        inner = np.abs(part.weights).max(axis=0)
        return sum(weight * _rounding(other) for weight, other in zip(inner.tolist(), part.recommenders, strict=True))
    model = getattr(part, "model", None)
    return 0.0 if model is None else rounding_margin(model, "full_vocab")


def _check_recommenders(recommenders: list[Recommender]) -> None:
    if len(recommenders) < 2:
        raise ValueError(f"`recommenders` must hold at least two to fuse, got {len(recommenders)}.")
    for part in recommenders:
        if not isinstance(part, Recommender):
            raise ValueError(
                f"`recommenders` must hold recommenders, got {part!r}. Load a folder with load_recommender(folder)."
            )
    first = recommenders[0].catalog
    for place, part in enumerate(recommenders):
        if not all(part.catalog.has_items_of(other.catalog) for other in recommenders[:place]):
            raise ValueError(
                f"`recommenders` are over different catalogs: number 0, a {type(recommenders[0]).__name__}, has "
                f"{len(first)} items (hash {first.sha256[:12]}) and number {place}, a {type(part).__name__}, "
                f"{len(part.catalog)} ({part.catalog.sha256[:12]}). Train them on the same prepared data."
            )


def _checked_weights(
    weights: Sequence[float] | Sequence[Sequence[float]], num_parts: int, lengths: Sequence[int] | None
) -> np.ndarray:
    """Float64 of shape `(B, P)`."""
    rows: list[Any] = [weights] if lengths is None else list(weights)
    first = [0] if lengths is None else list(lengths)
    if first[:1] != [0] or any(after <= before for before, after in pairwise(first)):
        raise ValueError(f"`lengths` must ascend from 0, got {lengths}.")
    if len(rows) != len(first) or any(np.shape(row) != (num_parts,) for row in rows):
        buckets = "" if lengths is None else f" in each of {len(first)} lists"
        raise ValueError(
            f"`weights` must hold one weight for each of the {num_parts} recommenders{buckets}, got {weights}."
        )
    values = np.array(rows, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"`weights` must be finite numbers, got {weights}.")
    if not values.any(axis=1).all():
        raise ValueError(f"`weights` must not all be 0, got {weights}: there would be nothing to rank by.")
    return values
