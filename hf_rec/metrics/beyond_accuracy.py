"""
What recommendation lists look like beside how often they hit: coverage, concentration, popularity, certified share.

Lists are rows of catalog items, best first, of any length (`-1` is fill). `U` lists, `N` items in the catalog.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


def recommendation_counts(item_ids: Sequence[Sequence[int]], num_items: int, k: int) -> np.ndarray:
    """
    How often each item is among the first `k` of a list: `int64` of shape `[N]`.

    Args:
        item_ids (`Sequence` of `U` sequences of `int`):
            Catalog rows, best first; `-1` is fill.
        num_items (`int`):
            Size of the catalog.
        k (`int`):
            Cut-off.
    """
    if k < 1:
        raise ValueError(f"`k` must be at least 1, got {k}.")
    listed = np.array([item for items in item_ids for item in items[:k] if item != -1], dtype=np.int64)
    if listed.size and (listed.min() < 0 or listed.max() >= num_items):
        raise ValueError(f"`item_ids` must lie in 0..{num_items - 1}, got {listed.min()}..{listed.max()}.")
    return np.bincount(listed, minlength=num_items)


def catalog_coverage(counts: ArrayLike) -> float:
    """Share of the catalog that is recommended to anyone, 0-1, from [`recommendation_counts`]."""
    counts = np.asarray(counts)
    return float(np.count_nonzero(counts) / len(counts)) if len(counts) else float("nan")


def gini(counts: ArrayLike) -> float:
    """
    Gini index of the recommendations over the whole catalog, from [`recommendation_counts`]: 0 where all items are
    recommended equally often, `1 - 1 / N` where one item takes every place, `nan` where nothing is recommended.
    """
    counts = np.sort(np.asarray(counts, dtype=np.float64))
    if not counts.sum() > 0:
        return float("nan")
    place = np.arange(1, len(counts) + 1)
    return float(((2 * place - len(counts) - 1) * counts).sum() / (len(counts) * counts.sum()))


def popularity_percentile(counts: ArrayLike, popularity: ArrayLike) -> float:
    """
    Mean popularity percentile of the recommended items, 0-1: the share of the catalog that is less popular, items as
    popular counted half. Uniformly random lists have 0.5.

    Args:
        counts (`np.ndarray` of shape `[N]`):
            How often each item is recommended, from [`recommendation_counts`].
        popularity (`np.ndarray` of shape `[N]`):
            How often each item occurs in the log that popularity is counted in.
    """
    counts, popularity = _checked(counts, popularity)
    if not counts.sum() > 0:
        return float("nan")
    ordered = np.sort(popularity)
    below, upto = np.searchsorted(ordered, popularity, "left"), np.searchsorted(ordered, popularity, "right")
    return float(((below + upto) / (2 * len(popularity)) * counts).sum() / counts.sum())


def popularity_lift(counts: ArrayLike, popularity: ArrayLike) -> float:
    """
    Mean popularity of the recommended items over the mean popularity of the items in the log itself: 1 where lists are
    as popular as what users take, above 1 where they favour the head. Arguments as in [`popularity_percentile`].
    """
    counts, popularity = _checked(counts, popularity)
    if not (counts.sum() > 0 and popularity.sum() > 0):
        return float("nan")
    return float((popularity * counts).sum() / counts.sum() / ((popularity**2).sum() / popularity.sum()))


class ListMetric(NamedTuple):
    """What lists look like: the name of a metric in tables, and its value from counts and popularity."""

    label: str
    value: Callable[[np.ndarray, np.ndarray], float]


LIST_METRICS = {
    "coverage": ListMetric("Coverage", lambda counts, popularity: catalog_coverage(counts)),
    "gini": ListMetric("Gini", lambda counts, popularity: gini(counts)),
    "popularity_percentile": ListMetric("Popularity percentile", popularity_percentile),
    "popularity_lift": ListMetric("Popularity lift", popularity_lift),
}


def certified_share(certified: Sequence[bool] | np.ndarray) -> float:
    """Share of lists that are proven to be the exact top k of the computed scores, 0-1."""
    return float(np.mean(np.asarray(certified, dtype=bool))) if len(certified) else float("nan")


def _checked(counts: ArrayLike, popularity: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    counts, popularity = np.asarray(counts, dtype=np.float64), np.asarray(popularity, dtype=np.float64)
    if counts.shape != popularity.shape:
        raise ValueError(f"`popularity` must have one count an item, {counts.shape}, got {popularity.shape}.")
    return counts, popularity
