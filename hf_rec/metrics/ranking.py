"""
Hit rate, NDCG and MRR of one target item a row, averaged over tied places.

A rank is kept as two counts: `better`, the other items with a higher score, and `tied`, the other items with the same
score. The target is then equally likely at each of the places `better .. better + tied`, and every metric is its
expected value under such a random order: a scorer that gives 100 items the same score has HR@10 = 0.10, not 1 or 0.

Shapes: `U` rows (users), `N` items, `K` listed items. Places count from 0.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


NOT_LISTED = 2**31 - 1  # `better` of a target that is not in its list: a miss for every k (still exact in int64 sums)


def rank_bounds(scores: ArrayLike, target: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """
    Counts the items that rank before a target and those that share its score, from the scores of all items.

    Args:
        scores (`np.ndarray` of shape `[U, N]`):
            One score an item, higher is better. `-inf` is a score like any other. `NaN` ranks last: it never beats the
            target, and a target that scores `NaN` ranks behind all other items, tied with none ([`count_nan`] counts
            them).
        target (`np.ndarray` of shape `[U]`):
            Column of the target of each row, in `0 .. N-1`.

    Returns:
        `tuple` of two `int64` arrays of shape `[U]`: `better` and `tied`.
    """
    scores, target = np.asarray(scores), np.asarray(target)
    if scores.ndim != 2:
        raise ValueError(f"`scores` must have the shape [rows, items], got {scores.shape}.")
    if target.shape != scores.shape[:1]:
        raise ValueError(
            f"`target` must hold one column for each of the {len(scores)} rows, got the shape {target.shape}."
        )
    if not np.issubdtype(target.dtype, np.integer) and len(target):
        raise ValueError(f"`target` must hold integer columns of `scores`, got the type {target.dtype}.")
    if len(target) and (target.min() < 0 or target.max() >= scores.shape[1]):
        wrong = target[(target < 0) | (target >= scores.shape[1])][0]
        raise ValueError(f"`target` must lie in 0..{scores.shape[1] - 1}, the columns of `scores`, got {wrong}.")
    own = scores[np.arange(len(scores)), target.astype(np.int64)][:, None]
    better = np.count_nonzero(scores > own, axis=1)
    tied = np.count_nonzero(scores == own, axis=1) - 1
    undefined = np.isnan(own[:, 0])
    return np.where(undefined, scores.shape[1] - 1, better), np.where(undefined, 0, tied)


def list_bounds(
    item_ids: Sequence[Sequence[Hashable]],
    scores: "Sequence[Sequence[float] | np.ndarray] | np.ndarray",
    target: Sequence[Hashable],
) -> tuple[np.ndarray, np.ndarray]:
    """
    The bounds of [`rank_bounds`] where only the best items of each row are known.

    A target that is not in its list has `better = NOT_LISTED` (2**31 - 1) and `tied = 0`, a miss for every k; so has a
    target whose score is `NaN` or `-inf`. Ties are seen inside the list alone: where the list ends within a tie,
    extend it before the call.

    Args:
        item_ids (`Sequence` of `U` sequences):
            Ids of the listed items of each row, any hashable type. Lists may be shorter than `K`.
        scores (`np.ndarray` of shape `[U, K]`, or `U` sequences):
            Their scores; entries beyond the end of a list are ignored. The order comes from them, not from the list.
        target (`Sequence` of `U` ids):
            The id to find in each list.

    Returns:
        `tuple` of two `int64` arrays of shape `[U]`: `better` and `tied`.
    """
    if not len(item_ids) == len(scores) == len(target):
        raise ValueError(
            "`item_ids`, `scores` and `target` must have one entry a row, "
            f"got {len(item_ids)}, {len(scores)} and {len(target)}."
        )
    better = np.full(len(target), NOT_LISTED, dtype=np.int64)
    tied = np.zeros(len(target), dtype=np.int64)
    for row, (listed, listed_scores, wanted) in enumerate(zip(item_ids, scores, target, strict=True)):
        if len(listed_scores) < len(listed):
            raise ValueError(f"`scores` of row {row} has {len(listed_scores)} entries for {len(listed)} listed items.")
        place = next((place for place, item in enumerate(listed) if item == wanted), None)
        if place is None:
            continue
        values = np.asarray(listed_scores[: len(listed)])
        if np.isnan(values[place]) or values[place] == -np.inf:
            continue
        better[row] = np.count_nonzero(values > values[place])
        tied[row] = np.count_nonzero(values == values[place]) - 1
    return better, tied


def count_nan(scores: ArrayLike) -> int:
    """Number of `NaN` scores, each of which was ranked last."""
    return int(np.isnan(np.asarray(scores)).sum())


def hit_rate(better: ArrayLike, tied: ArrayLike, k: int) -> np.ndarray:
    """
    Probability that the target is among the first `k` items: `float64` of shape `[U]`, 0-1. As a row has one target,
    this is recall@k too.
    """
    return _mean_gain(np.ones(_check_k(k)), better, tied)


def ndcg(better: ArrayLike, tied: ArrayLike, k: int) -> np.ndarray:
    """
    Expected `1 / log2(place + 2)`, 0 beyond the first `k` places: `float64` of shape `[U]`, 0-1. The ideal gain of one
    target is 1, so this is normalised.
    """
    return _mean_gain(1.0 / np.log2(np.arange(_check_k(k)) + 2.0), better, tied)


def mrr(better: ArrayLike, tied: ArrayLike, k: int) -> np.ndarray:
    """Expected `1 / (place + 1)`, 0 beyond the first `k` places: `float64` of shape `[U]`, 0-1."""
    return _mean_gain(1.0 / (np.arange(_check_k(k)) + 1.0), better, tied)


class RankMetric(NamedTuple):
    """A metric of one target a row: its value by row, its name in tables, whether tables show it."""

    values: Callable[[ArrayLike, ArrayLike, int], np.ndarray]
    short: str
    in_tables: bool = True


METRICS = {
    "ndcg": RankMetric(ndcg, "N"),
    "hit_rate": RankMetric(hit_rate, "H"),
    "mrr": RankMetric(mrr, "MRR", in_tables=False),
}


def ranking_metrics(better: ArrayLike, tied: ArrayLike, ks: Sequence[int] = (5, 10)) -> dict[str, float]:
    """
    Means over rows of NDCG, hit rate and MRR at each k: `{"ndcg@5": ..., "hit_rate@5": ..., "mrr@5": ..., ...}`.

    Args:
        better, tied (`np.ndarray` of shape `[U]`):
            Bounds from [`rank_bounds`] or [`list_bounds`].
        ks (`Sequence[int]`, *optional*, defaults to `(5, 10)`):
            Cut-offs.
    """
    if not np.size(better):
        raise ValueError("`better` is empty: there is no row to average over.")
    return {
        f"{name}@{k}": float(metric.values(better, tied, k).mean()) for k in ks for name, metric in METRICS.items()
    }


def metric_values(better: ArrayLike, tied: ArrayLike, name: str) -> np.ndarray:
    """Values by row, shape `[U]`, of a metric written as in tables, such as `"ndcg@10"`."""
    metric, _, k = name.partition("@")
    if metric not in METRICS or not k.isdecimal():
        raise ValueError(f"`name` must be one of {', '.join(f'{known}@k' for known in METRICS)}, got {name!r}.")
    return METRICS[metric].values(better, tied, int(k))


def _check_k(k: int) -> int:
    if isinstance(k, bool) or int(k) != k or k < 1:
        raise ValueError(f"`k` must be a whole number of at least 1, got {k!r}.")
    return int(k)


def _mean_gain(gains: np.ndarray, better: ArrayLike, tied: ArrayLike) -> np.ndarray:
    """Mean of `gains` (0 past their end) over places `better .. better + tied`: a difference of their running sum."""
    better, tied = np.asarray(better, dtype=np.int64), np.asarray(tied, dtype=np.int64)
    if better.size and (better.min() < 0 or tied.min() < 0):
        raise ValueError(
            f"`better` and `tied` are counts and cannot be negative, got {better.min()} and {tied.min()}."
        )
    total = np.concatenate([[0.0], np.cumsum(gains)])
    first, last = np.minimum(better, len(gains)), np.minimum(better + tied + 1, len(gains))
    return (total[last] - total[first]) / (tied + 1)
