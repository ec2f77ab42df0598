"""NDCG, hit rate and MRR with tied places averaged, as a module of the `evaluate` library."""

from collections.abc import Sequence

import datasets
import evaluate

from hf_rec.metrics.ranking import list_bounds, rank_bounds, ranking_metrics


_DESCRIPTION = """ Ranks one target item a row and averages NDCG@k, hit rate@k and MRR@k over tied places: a constant
scorer over 100 items has a hit rate@10 of 0.10. `NaN` scores rank last.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: configuration "scores" (the default): the scores of all items, one list of floats a row.
        Configuration "lists": the ids of the recommended items, best first, one list of integers a row (no ties).
    references: the target of each row: its column in the scores, or its id.
    ks: the cut-offs, (5, 10) unless given.

Returns:
    ndcg@k, hit_rate@k and mrr@k for each k.

Examples:
    >>> metric = evaluate.load("hf_rec/metrics/rec_ranking")
    >>> metric.compute(predictions=[[0.1, 0.9, 0.4]], references=[2], ks=[1, 2])
    {'ndcg@1': 0.0, 'hit_rate@1': 0.0, 'mrr@1': 0.0, 'ndcg@2': 0.6309297535714575, 'hit_rate@2': 1.0, 'mrr@2': 0.5}
"""


class RecRanking(evaluate.Metric):
    """Tie-aware ranking metrics of one target item a row; see [`hf_rec.metrics.ranking`]."""

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in ("default", "scores", "lists"):
            raise ValueError(f"`config_name` must be 'scores' or 'lists', got {self.config_name!r}.")
        value = datasets.Value("int64" if self.config_name == "lists" else "float64")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": datasets.List(value), "references": datasets.Value("int64")}),
        )

    def _compute(
        self, predictions: list[list[float]], references: list[int], ks: Sequence[int] = (5, 10)
    ) -> dict[str, float]:
        if self.config_name == "lists":
            places = [list(range(0, -len(items), -1)) for items in predictions]
            return ranking_metrics(*list_bounds(predictions, places, references), ks)
        return ranking_metrics(*rank_bounds(predictions, references), ks)
