"""
The contract that every recommender keeps: raw item ids go in and come out; inside, items are catalog rows.

Shapes: U users · k places of a list · N items of the catalog.
"""

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers.utils import logging

from hf_rec.data.catalog import Catalog
from hf_rec.recommenders.allowed_items import AllowedItems, ItemRules


if TYPE_CHECKING:
    import pandas as pd

RawId = str | int
Times = Sequence[Sequence[int]]  # Unix seconds of the events of each history
ItemLists = Collection[RawId] | Sequence[Collection[RawId]]  # one list for all histories, or one for each
_PROGRESS_DELAY = 3.0  # seconds before a progress bar appears
_MOST_PLACES = 2**20  # that may be asked for beyond the items of a catalog, as each costs memory for every user


def default_num_beams(k: int) -> int:
    """Width of a search for lists of `k` items. With fewer than 20 the head of a list would depend on its length."""
    return max(2 * k, 20)


@dataclass(frozen=True)
class Recommendations:
    """
    Ranked items for some users.

    Attributes:
        item_ids (`list[list[str | int]]`): Raw ids for each user, best first; fewer than `k` if no more are allowed.
        scores (`np.ndarray` of shape `(U, k)`): Score of each, float32, `-inf` behind the last.
        certified (`np.ndarray` of shape `(U,)`): `True` where the list is sure to hold the best items of all by the
            scores that the model computes (what `score` returns), up to ties: no part of the catalog that the search
            gave up can score as high, and no score was NaN.
        nan_scores (`np.ndarray` of shape `(U,)`): How many scores were NaN, int64. Such items are in no list.
        catalog ([`Catalog`], *optional*): The items, for their titles.
    """

    item_ids: list[list[RawId]]
    scores: np.ndarray
    certified: np.ndarray
    nan_scores: np.ndarray
    catalog: Catalog | None = field(default=None, repr=False, compare=False)

    def to_pandas(self, users: Sequence[Any] | None = None) -> "pd.DataFrame":
        """
        One row an item of a list.

        Args:
            users (`list`, *optional*): What to call the users; by default their numbers.

        Returns:
            `pandas.DataFrame`: `user`, `place` (from 1), `item_id`, `title`, `score`, `certified` (of the list).
        """
        import pandas as pd

        users = range(len(self.item_ids)) if users is None else users
        if len(users) != len(self.item_ids):
            raise ValueError(f"`users` has {len(users)} names for {len(self.item_ids)} lists.")
        rows = [
            (
                users[user],
                place,
                item_id,
                None if self.catalog is None else self.catalog.title(item_id),
                score,
                certain,
            )
            for user, (ids, certain) in enumerate(zip(self.item_ids, self.certified.tolist(), strict=True))
            for place, (item_id, score) in enumerate(zip(ids, self.scores[user].tolist(), strict=False), start=1)
        ]
        return pd.DataFrame(rows, columns=["user", "place", "item_id", "title", "score", "certified"])


@dataclass(frozen=True)
class RankedRows:
    """[`Recommendations`] of a batch in catalog rows: `rows` is a list of lists, the rest as there."""

    rows: list[list[int]]
    scores: np.ndarray
    certified: np.ndarray
    nan_scores: np.ndarray

    @classmethod
    def from_pairs(
        cls, pairs: list[list[tuple[int, float]]], k: int, certified: np.ndarray, nan_scores: np.ndarray
    ) -> "RankedRows":
        """From a list of at most `k` pairs (row, score) for each user."""
        scores = np.full((len(pairs), k), -np.inf, dtype=np.float32)
        for user, listed in enumerate(pairs):
            scores[user, : len(listed)] = [score for _, score in listed]
        rows = [[row for row, _ in listed] for listed in pairs]
        return cls(rows, scores, np.asarray(certified, dtype=bool), nan_scores)

    @classmethod
    def from_best(
        cls, values: Tensor, rows: Tensor, k: int, certified: np.ndarray, nan_scores: Tensor
    ) -> "RankedRows":
        """From scores and rows `(U, n)`, best first, `n` at most `k`; what scores `-inf` is in no list."""
        found, listed = values.cpu().numpy(), rows.cpu().numpy()
        scores = np.full((len(found), k), -np.inf, dtype=np.float32)
        scores[:, : found.shape[1]] = found
        counts = (found > -np.inf).sum(axis=1)
        lists = [row[:count].tolist() for row, count in zip(listed, counts, strict=True)]
        return cls(lists, scores, certified, nan_scores.cpu().numpy())


class Recommender:
    """
    Base of all recommenders: ids, checks and batches. A subclass gives two methods that speak of catalog rows:

    - `_recommend_rows(histories, k, allowed, timestamps, num_beams) -> RankedRows`, where `allowed` is
      [`AllowedItems`], or `None` where everything is;
    - `_score_rows(histories, candidates, timestamps) -> list[np.ndarray]`, one float32 score for each candidate.

    Attributes:
        is_exact (`bool`): Whether lists are made from the scores of all items. Otherwise they come from a search, and
            ranks are known inside them alone.
        folder (`Path` or `None`): Where [`~hf_rec.hub.load_recommender`] read it from.

    Args:
        catalog ([`Catalog`]): Items.
        batch_size (`int`, *optional*, defaults to `32`): Histories worked on at a time.
    """

    is_exact = False
    folder: Path | None = None

    def __init__(self, catalog: Catalog, batch_size: int = 32):
        self.catalog = catalog
        self.batch_size = _checked_size(batch_size)

    def recommend(
        self,
        histories: Sequence[Sequence[RawId]],
        k: int = 10,
        exclude: ItemLists | None = None,
        allow: ItemLists | None = None,
        timestamps: Times | None = None,
        num_beams: int | None = None,
        batch_size: int | None = None,
    ) -> Recommendations:
        """
        The best next items for each history.

        Args:
            histories (`list[list[str | int]]`): Raw item ids of each user, oldest first; a history may be empty.
            k (`int`, *optional*, defaults to `10`): Items wanted for each user.
            exclude (`list`, *optional*): Raw ids that must not be listed: one list for all users, or one for each.
            allow (`list`, *optional*): Raw ids of which alone the lists are made, given likewise. Neither of the two
                changes the score of an item that remains.
            timestamps (`list[list[int]]`, *optional*): Unix seconds of the events, for models that use them.
            num_beams (`int`, *optional*): Width of the search, for models that search; at least `k`, by default twice
                that, and no fewer than 20.
            batch_size (`int`, *optional*): Histories worked on at a time; defaults to that of the recommender.

        Returns:
            [`Recommendations`]: Lists, scores, and which lists are certainly the best.
        """
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
            raise ValueError(f"`k` must be a whole number of at least 1, got {k!r}.")
        if k > max(len(self.catalog), _MOST_PLACES):
            raise ValueError(f"`k` is {k}, but the catalog has {len(self.catalog)} items. Ask for at most that many.")
        rows = self._history_rows(histories, timestamps)
        rules = ItemRules(
            len(self.catalog),
            exclude=None if exclude is None else self._item_lists(exclude, "exclude", len(rows)),
            allow=None if allow is None else self._item_lists(allow, "allow", len(rows)),
        )
        item_ids: list[list[RawId]] = [[] for _ in rows]
        scores = np.full((len(rows), k), -np.inf, dtype=np.float32)
        certified = np.zeros(len(rows), dtype=bool)
        nan_scores = np.zeros(len(rows), dtype=np.int64)
        wanted = min(k, len(self.catalog))
        size = self._users_at_once(batch_size, wanted, num_beams)
        for users in self._batches(rows, size, "Recommending"):
            times = None if timestamps is None else [timestamps[user] for user in users]
            found = self._recommend_rows([rows[user] for user in users], wanted, rules.of(users), times, num_beams)
            scores[users, :wanted], certified[users], nan_scores[users] = (
                found.scores,
                found.certified,
                found.nan_scores,
            )
            for user, listed in zip(users, found.rows, strict=True):
                item_ids[user] = [self.catalog.ids[row] for row in listed]
        return Recommendations(item_ids, scores, certified, nan_scores, self.catalog)

    def score(
        self,
        histories: Sequence[Sequence[RawId]],
        candidates: ItemLists,
        timestamps: Times | None = None,
        batch_size: int | None = None,
    ) -> list[np.ndarray]:
        """
        Exact scores of given items, the same numbers that `recommend` ranks by.

        Args:
            histories, timestamps, batch_size: As in [`~Recommender.recommend`].
            candidates (`list`): Raw ids to score: one list for all users, or one for each.

        Returns:
            `list[np.ndarray]`: For each user a float32 array with one score for each candidate, in their order.
        """
        rows = self._history_rows(histories, timestamps)
        wanted = self._item_lists(candidates, "candidates", len(rows))
        scores = [np.empty(0, dtype=np.float32) for _ in rows]
        for users in self._batches(rows, self._users_at_once(batch_size, 1, None), "Scoring"):
            times = None if timestamps is None else [timestamps[user] for user in users]
            lists = [wanted[user if len(wanted) > 1 else 0] for user in users]
            for user, values in zip(
                users, self._score_rows([rows[user] for user in users], lists, times), strict=True
            ):
                scores[user] = values
        return scores

    def score_all(
        self, histories: Sequence[Sequence[RawId]], timestamps: Times | None = None, batch_size: int | None = None
    ) -> np.ndarray:
        """
        Scores of all items, those of `score`. A model that searches reads every path for this, which takes it far
        longer than a list.

        Args:
            histories, timestamps, batch_size: As in [`~Recommender.recommend`].

        Returns:
            `np.ndarray` of shape `(U, N)`: float32, items in catalog order.
        """
        rows = self._history_rows(histories, timestamps)
        scores = np.empty((len(rows), len(self.catalog)), dtype=np.float32)
        for users in self._batches(rows, self._users_at_once(batch_size, 1, None), "Scoring"):
            times = None if timestamps is None else [timestamps[user] for user in users]
            scores[users] = self._score_all_rows([rows[user] for user in users], times)
        return scores

    def _score_all_rows(self, histories: list[list[int]], timestamps: Times | None) -> np.ndarray:
        everything = list(range(len(self.catalog)))
        return np.stack(self._score_rows(histories, [everything] * len(histories), timestamps))

    def log_probabilities(self, histories: list[list[int]], timestamps: Times | None) -> Tensor:
        """
        What the recommender thinks of the whole catalog, as logs of probabilities: a softmax of its scores.

        Args:
            histories (`list[list[int]]`): Catalog rows.
            timestamps (`list[list[int]]`, *optional*): Unix seconds of the events.

        Returns:
            `torch.FloatTensor` of shape `(U, N)`: In catalog order, on the CPU.
        """
        return torch.from_numpy(self._score_all_rows(histories, timestamps)).log_softmax(dim=1)

    def _recommend_rows(
        self,
        histories: list[list[int]],
        k: int,
        allowed: AllowedItems | None,
        timestamps: Times | None,
        num_beams: int | None,
    ) -> RankedRows:
        raise NotImplementedError(f"{type(self).__name__} must define _recommend_rows.")

    def _score_rows(
        self, histories: list[list[int]], candidates: list[list[int]], timestamps: Times | None
    ) -> list[np.ndarray]:
        raise NotImplementedError(f"{type(self).__name__} must define _score_rows.")

    def _cost(self, history: list[int]) -> int:
        """What users of a batch should have in common; its biggest one sets the time of a batch."""
        return len(history)

    def _users_at_once(self, batch_size: int | None, k: int, num_beams: int | None) -> int:
        """Histories worked on at a time: those asked for (`None`: the default), or fewer where memory bounds them."""
        return self.batch_size if batch_size is None else _checked_size(batch_size)

    def _batches(self, rows: list[list[int]], size: int, description: str) -> Iterator[list[int]]:
        """Indices of users of about the same cost, the most expensive first, so that lack of memory shows at once."""
        order = sorted(range(len(rows)), key=lambda user: self._cost(rows[user]), reverse=True)
        with logging.tqdm(
            total=len(order),
            desc=description,
            unit="user",
            delay=_PROGRESS_DELAY,
            leave=False,
            disable=os.environ.get("RANK", "0") != "0",
        ) as progress:
            for start in range(0, len(order), size):
                users = order[start : start + size]
                yield users
                progress.update(len(users))

    def _history_rows(self, histories: Sequence[Sequence[RawId]], timestamps: Times | None) -> list[list[int]]:
        if isinstance(histories, str) or any(isinstance(history, (str, int)) for history in histories):
            raise ValueError("`histories` must hold one list of item ids a user: for one user, wrap it: [[...]].")
        if timestamps is not None and list(map(len, timestamps)) != list(map(len, histories)):
            raise ValueError("`timestamps` must hold one list a history, with one time for each of its items.")
        return [self._rows(history, f"histories[{user}]") for user, history in enumerate(histories)]

    def _item_lists(self, lists: ItemLists, argument: str, num_users: int) -> list[list[int]]:
        """Catalog rows: one list for all users (of length 1), or one for each."""
        if isinstance(lists, (str, bytes)) or not isinstance(lists, Collection):
            raise ValueError(f"`{argument}` must be a list of item ids, or one such list a history, got {lists!r}.")
        flat = [entry for entry in lists if isinstance(entry, (str, int, np.integer))]
        nested = [entry for entry in lists if not isinstance(entry, (str, int, np.integer))]
        if not nested:
            return [self._rows(flat, argument)]
        if flat or len(lists) != num_users:
            raise ValueError(
                f"`{argument}` must be a list of item ids, or one such list for each of the {num_users} histories, "
                f"got {len(lists)} entries, {len(nested)} of them lists."
            )
        return [self._rows(entry, f"{argument}[{user}]") for user, entry in enumerate(nested)]

    def _rows(self, item_ids: Collection[RawId], argument: str) -> list[int]:
        try:
            return self.catalog.rows(item_ids)
        except ValueError as error:
            raise ValueError(f"`{argument}`: {error}") from error


def _checked_size(batch_size: int) -> int:
    if isinstance(batch_size, bool) or not isinstance(batch_size, (int, np.integer)) or batch_size < 1:
        raise ValueError(f"`batch_size` must be a whole number of at least 1, got {batch_size!r}.")
    return int(batch_size)
