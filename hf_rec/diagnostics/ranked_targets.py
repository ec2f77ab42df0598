"""
Ranks of targets, and paired differences between two ways of ranking the same rows.

Shapes: R rows · k places of a list.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_rec.columns import ITEM_ROWS, USER_ID, column_values
from hf_rec.evaluation.protocol import Seen, protocol_key
from hf_rec.evaluation.target_ranks import TargetRanker
from hf_rec.metrics.ranking import metric_values
from hf_rec.metrics.significance import cluster_bootstrap, sign_flip_test


if TYPE_CHECKING:
    from datasets import Dataset

    from hf_rec.recommenders.contract import Recommender


@dataclass(frozen=True)
class RankSettings:
    """
    How targets are ranked.

    Attributes:
        k (`int`): Length of the lists, and cut-off of NDCG and hit rate.
        seen (`str`): `"keep"`, or `"mask"` to keep the items of a history out of its list.
        num_beams (`int` or `None`): Width of a search; `None` for `2 * k`, but at least 20.
        batch_size (`int` or `None`): Histories ranked at a time.
    """

    k: int = 10
    seen: Seen = "keep"
    num_beams: int | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"`k` must be at least 1, got {self.k}.")
        protocol_key(seen=self.seen)  # refuses what it cannot name


@dataclass(frozen=True)
class RankedTargets:
    """
    Attributes:
        users (`list[str]`): User of each row.
        better, tied (`np.ndarray` of shape `(R,)`): As in [`~hf_rec.metrics.ranking.rank_bounds`].
        item_rows (`list[list[int]]`): The list of each row, catalog rows.
        num_beams (`int` or `None`): Width of the search; `None` where every item was scored.
    """

    users: list[str]
    better: np.ndarray
    tied: np.ndarray
    item_rows: list[list[int]]
    num_beams: int | None

    def values(self, metric: str) -> np.ndarray:
        """Values by row of a metric such as `"ndcg@10"`."""
        return metric_values(self.better, self.tied, metric)


def rank_rows(recommender: "Recommender", rows: "Dataset", settings: RankSettings) -> RankedTargets:
    """Rank the targets of some rows."""
    ranker = TargetRanker(recommender, settings.k, settings.seen, settings.num_beams, settings.batch_size)
    found = ranker.rank(rows, range(len(rows)), show_progress=True)
    numbers = column_values(rows, USER_ID).to_pylist() if USER_ID in rows.column_names else range(len(rows))
    users = list(map(str, numbers))
    return RankedTargets(users, np.array(found["better"]), np.array(found["tied"]), found[ITEM_ROWS], ranker.num_beams)


def mean_interval(values: np.ndarray, users: list[str]) -> dict[str, float]:
    """Mean of values by row, with its 95 % bootstrap interval over users."""
    mean, low, high = cluster_bootstrap(values, users)
    return {"mean": float(mean), "low": float(low), "high": float(high)}


def paired_change(before: np.ndarray, after: np.ndarray, users: list[str]) -> dict[str, Any]:
    """
    The change from one way of ranking to another on the same rows.

    Returns:
        `dict`: `before` and `after` (means), `change` with its 95 % bootstrap interval over users, `relative_change`
        (`None` where `before` is 0), and the `p_value` of a two-sided sign-flip test over users.
    """
    start, end = float(before.mean()), float(after.mean())
    return {
        "before": start,
        "after": end,
        "change": mean_interval(after - before, users),
        "relative_change": (end - start) / start if start else None,
        "p_value": float(sign_flip_test(after - before, users)),
    }
