"""
Controls: what every measured model must beat. They count events of the train split and keep the same contract.

Shapes: U users · N items of the catalog · P different pairs of an item and its successor.
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_rec.columns import HISTORY, SUPERVISE_FROM, TARGET, TIMESTAMP
from hf_rec.data.catalog import Catalog
from hf_rec.recommenders.contract import Times
from hf_rec.recommenders.control_list import CONTROLS
from hf_rec.recommenders.exact import ExactRecommender


class Control(ExactRecommender):
    """Base of the controls: what a folder keeps of them."""

    kind: str

    @classmethod
    def from_state(cls, catalog: Catalog, settings: dict[str, Any], arrays: dict[str, np.ndarray]) -> "Control":
        """The control whose `state()` this was."""
        raise NotImplementedError

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Settings (JSON) and arrays from which `from_state` makes this control again."""
        raise NotImplementedError


class PopularityRecommender(Control):
    """
    The most frequent items, the same for everyone. The score is the count.

    Args:
        catalog ([`Catalog`]): Items.
        rows (`datasets.Dataset` or `list[dict]`):
            Split rows with `history` and `target` in catalog rows and, where windows overlap, `supervise_from`; each
            event from there on counts, so that none counts twice. Without it the targets alone count.
        window (`int`, *optional*):
            Count only the targets of the newest `window` rows by `timestamp` (by order where there is none).
    """

    kind = "popularity"

    def __init__(self, catalog: Catalog, rows: Iterable[dict[str, Any]], window: int | None = None):
        if window is not None and window < 1:
            raise ValueError(f"`window` must be at least 1, or None to count everything, got {window}.")
        super().__init__(catalog, batch_size=256)
        rows = list(rows)
        if window is not None:
            rows = sorted(rows, key=lambda row: row.get(TIMESTAMP, 0))[-window:]  # stable: ties keep their order
            rows = [{HISTORY: [], TARGET: row[TARGET], SUPERVISE_FROM: 0} for row in rows]
        items = np.array([item for row in rows for item in _events(row)[_first(row) :]], dtype=np.int64)
        self.window = window
        self.counts = _count(items, catalog)

    @classmethod
    def from_state(cls, catalog: Catalog, settings: dict[str, Any], arrays: dict[str, np.ndarray]) -> "Control":
        recommender = cls(catalog, [], settings.get("window"))
        recommender.counts = _checked(arrays["counts"], catalog)
        return recommender

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        return {"window": self.window}, {"counts": self.counts}

    def _score_all_rows(self, histories: list[list[int]], timestamps: Times | None) -> np.ndarray:
        return np.tile(self.counts.astype(np.float32), (len(histories), 1))

    def log_probabilities(self, histories: list[list[int]], timestamps: Times | None) -> Tensor:
        """Log of each item's share of all events, where every item counts one event more than it has."""
        return torch.from_numpy(np.log(_shares(self.counts + 1))).float().repeat(len(histories), 1)


class LastItemRecommender(Control):
    """
    The items that most often came right after the last item of the history; behind them all others by popularity.

    The score is a probability: `(c + q) / (n + 1)`, where `c` of the last item's `n` successors are the item and `q`
    is the item's share of all events.

    Args:
        catalog ([`Catalog`]): Items.
        rows (`datasets.Dataset` or `list[dict]`): Split rows, as for [`PopularityRecommender`].
    """

    kind = "last_item"

    def __init__(self, catalog: Catalog, rows: Iterable[dict[str, Any]]):
        super().__init__(catalog, batch_size=256)
        events, keys = [], []
        for row in rows:
            items, first = _events(row), _first(row)
            events += items[first:]
            keys += [last * len(catalog) + item for last, item in list(pairwise(items))[max(first, 1) - 1 :]]
        self.counts = _count(np.array(events, dtype=np.int64), catalog)
        self.pairs, self.pair_counts = np.unique(np.array(keys, dtype=np.int64), return_counts=True)

    @classmethod
    def from_state(cls, catalog: Catalog, settings: dict[str, Any], arrays: dict[str, np.ndarray]) -> "Control":
        recommender = cls(catalog, [])
        recommender.counts = _checked(arrays["counts"], catalog)
        recommender.pairs, recommender.pair_counts = arrays["pairs"], arrays["pair_counts"]
        return recommender

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        return {}, {"counts": self.counts, "pairs": self.pairs, "pair_counts": self.pair_counts}

    def _score_all_rows(self, histories: list[list[int]], timestamps: Times | None) -> np.ndarray:
        return self._probabilities(histories, _shares(self.counts)).astype(np.float32)

    def log_probabilities(self, histories: list[list[int]], timestamps: Times | None) -> Tensor:
        """Log of the score, with `q` the share where every item counts one event more than it has."""
        return torch.from_numpy(np.log(self._probabilities(histories, _shares(self.counts + 1)))).float()

    def _probabilities(self, histories: list[list[int]], shares: np.ndarray) -> np.ndarray:
        num_items = len(self.catalog)
        scores = np.tile(shares, (len(histories), 1))
        for user, history in enumerate(histories):
            if not history:
                continue
            start, stop = np.searchsorted(self.pairs, [history[-1] * num_items, (history[-1] + 1) * num_items])
            scores[user, self.pairs[start:stop] % num_items] += self.pair_counts[start:stop]
            scores[user] /= self.pair_counts[start:stop].sum() + 1
        return scores


# By the kind that stands in a folder. Two controls of the list may share a class
CONTROL_KINDS: dict[str, type[Control]] = {
    make.kind: make for make in (globals()[entry.class_name] for entry in CONTROLS.values())
}


def _events(row: dict[str, Any]) -> list[int]:
    return [*row[HISTORY], row[TARGET]]


def _first(row: dict[str, Any]) -> int:
    """Index of the first event of a row that no other row counts."""
    return row.get(SUPERVISE_FROM, len(row[HISTORY]))


def _count(items: np.ndarray, catalog: Catalog) -> np.ndarray:
    if len(items) and not 0 <= items.min() <= items.max() < len(catalog):
        raise ValueError(
            f"`rows` hold items {items.min()} .. {items.max()}, but the catalog has rows 0 .. {len(catalog) - 1}. "
            "Give split rows, whose items are catalog rows."
        )
    return np.bincount(items, minlength=len(catalog))


def _shares(counts: np.ndarray) -> np.ndarray:
    return counts / max(counts.sum(), 1)


def _checked(counts: np.ndarray, catalog: Catalog) -> np.ndarray:
    if counts.shape != (len(catalog),):
        raise ValueError(f"The counts are those of {len(counts)} items, the catalog has {len(catalog)}.")
    return counts
