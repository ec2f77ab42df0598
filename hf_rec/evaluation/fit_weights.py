"""
Choose the weights of a fused recommender on validation rows, from a grid.

Shapes: R rows · W weights of the grid · P recommenders.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_rec.columns import TARGET, column_values
from hf_rec.evaluation.predictions import histories_and_times
from hf_rec.evaluation.protocol import Seen
from hf_rec.metrics.ranking import metric_values
from hf_rec.recommenders.contract import Recommender
from hf_rec.recommenders.fused import FusedRecommender
from hf_rec.recommenders.ranks_by_weight import ranks_by_weight


if TYPE_CHECKING:
    from datasets import Dataset

FORMAT, FORMAT_VERSION = "hf_rec.fused_weights", 1
_STEPS = {2: 20, 3: 10, 4: 10}  # of a weight from 0 to 1, by the number of recommenders
_FEWEST_STEPS = 5


@dataclass(frozen=True)
class WeightFit:
    """
    What each weight of a grid gives.

    Attributes:
        metric (`str`): Such as `"ndcg@10"`.
        grid (`np.ndarray` of shape `(W, P)`): Weights; each row sums to 1.
        values (`np.ndarray` of shape `(W, R)`): The metric by row.
        lengths (`np.ndarray` of shape `(R,)`): Items in the history of each row.
    """

    metric: str
    grid: np.ndarray
    values: np.ndarray
    lengths: np.ndarray

    def best(self, chosen: np.ndarray | None = None) -> int:
        """The weight with the highest mean over chosen rows; of equal ones the first, which trusts the model most."""
        values = self.values if chosen is None else self.values[:, chosen]
        return int(values.mean(axis=1).argmax())

    def buckets(self, first: Sequence[int]) -> list[np.ndarray]:
        """Which rows are in each bucket of history lengths, boolean `(R,)`."""
        bucket = np.searchsorted(first, self.lengths, side="right") - 1
        return [bucket == number for number in range(len(first))]

    def quartiles(self) -> list[int]:
        """Buckets of about equally many rows: the shortest history of each, from 0."""
        first = np.quantile(self.lengths, [0.25, 0.5, 0.75], method="higher").astype(int).tolist()
        return [0, *sorted({length for length in first if length > self.lengths.min()})]

    def summary(self, recommenders: Sequence[str], first: Sequence[int] | None = None) -> dict[str, Any]:
        """
        Everything as JSON values.

        Args:
            recommenders (`Sequence[str]`): What they are called.
            first (`Sequence[int]`, *optional*): Shortest history of each bucket, from 0.
        """
        best = self.best()
        result: dict[str, Any] = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "metric": self.metric,
            "recommenders": list(recommenders),
            "rows": self.values.shape[1],
            "best": {"weights": self.grid[best].tolist(), "value": float(self.values[best].mean())},
            "grid": self._points(np.ones(self.values.shape[1], dtype=bool)),
            "by_length": None,
        }
        if first is not None:
            result["by_length"] = []
            names = [f"{low} to {high - 1}" if low < high - 1 else str(low) for low, high in pairwise(first)]
            names.append(f"{first[-1]} and more")
            for length, name, chosen in zip(first, names, self.buckets(first), strict=True):
                own = self.best(chosen) if chosen.any() else best
                entry: dict[str, Any] = {"from": int(length), "lengths": name}
                entry["rows"] = int(chosen.sum())
                entry["weights"] = self.grid[own].tolist()
                if chosen.any():
                    entry |= {"value": float(self.values[own, chosen].mean()), "grid": self._points(chosen)}
                    entry["value_at_best"] = float(self.values[best, chosen].mean())
                result["by_length"].append(entry)
        return result

    def _points(self, chosen: np.ndarray) -> list[dict[str, Any]]:
        means = self.values[:, chosen].mean(axis=1)
        return [{"weights": w.tolist(), "value": float(value)} for w, value in zip(self.grid, means, strict=True)]


def weight_grid(num_parts: int) -> np.ndarray:
    """
    All weights from 0 to 1 in equal steps that sum to 1, `(W, P)`, as only their ratios matter. The first row trusts
    the first recommender alone.
    """
    steps = _STEPS.get(num_parts, _FEWEST_STEPS)
    bars = combinations(range(steps + num_parts - 1), num_parts - 1)
    cuts = np.array([(-1, *places, steps + num_parts - 1) for places in bars])
    return (np.diff(cuts, axis=1)[::-1] - 1) / steps


def fit_weights(
    recommenders: Sequence[Recommender],
    dataset: "Dataset",
    metric: str = "ndcg@10",
    *,
    seen: Seen = "keep",
    batch_size: int | None = None,
) -> WeightFit:
    """
    Rank the targets of a split under every weight of a grid.

    Args:
        recommenders (`Sequence` of [`~hf_rec.recommenders.contract.Recommender`]): What is to be fused.
        dataset (`datasets.Dataset`): Validation rows; the test rows must not take part.
        metric (`str`, *optional*, defaults to `"ndcg@10"`): `"ndcg@k"`, `"hit_rate@k"` or `"mrr@k"`.
        seen (`str`, *optional*, defaults to `"keep"`): `"mask"` keeps the items of a history out of its list.
        batch_size (`int`, *optional*): Rows at a time.

    Returns:
        [`WeightFit`]
    """
    metric_values([0], [0], metric)  # refuses what is no metric
    if not len(dataset):
        raise ValueError("`dataset` has no rows: weights cannot be chosen.")
    k, grid = int(metric.partition("@")[2]), weight_grid(len(recommenders))
    fused = FusedRecommender(recommenders, [1.0] * len(recommenders))
    raw, times = histories_and_times(dataset, fused.catalog.ids)
    histories = [fused.catalog.rows(history) for history in raw]
    targets = column_values(dataset, TARGET).to_pylist()
    better, tied = ranks_by_weight(fused, histories, targets, grid, k, seen == "mask", times, batch_size)
    values = np.stack([metric_values(*bounds, metric) for bounds in zip(better, tied, strict=True)])
    return WeightFit(metric, grid, values, np.array(list(map(len, histories))))
