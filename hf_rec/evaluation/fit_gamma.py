"""
Choose how far the second recommender of a grounded one counts, on validation rows: one number for all metrics.

Shapes: R rows · G values that are tried · U users of a batch · N items of the catalog.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hf_rec.columns import TARGET, column_values
from hf_rec.evaluation.predictions import histories_and_times
from hf_rec.evaluation.protocol import Seen
from hf_rec.metrics.ranking import NOT_LISTED, metric_values
from hf_rec.processes import process_state
from hf_rec.recommenders.allowed_items import ItemRules
from hf_rec.recommenders.grounded import GroundedRecommender, weighted


if TYPE_CHECKING:
    from datasets import Dataset

FORMAT, FORMAT_VERSION = "hf_rec.grounding_weight", 1
GAMMAS = (0.0, *(step / 100 for step in range(1, 101)), *map(float, range(2, 100)))  # of BIGRec, and none


@dataclass(frozen=True)
class GammaFit:
    """
    What each gamma gives.

    Attributes:
        metric (`str`): Such as `"ndcg@10"`.
        gammas (`np.ndarray` of shape `(G,)`): From 0 on, ascending.
        values (`np.ndarray` of shape `(G, R)`): The metric by row.
    """

    metric: str
    gammas: np.ndarray
    values: np.ndarray

    @property
    def best(self) -> int:
        """The gamma with the highest mean; of equal ones the smallest."""
        return int(self.values.mean(axis=1).argmax())

    def summary(self) -> dict[str, Any]:
        """Everything as JSON values."""
        means = self.values.mean(axis=1).tolist()
        grid = [{"gamma": gamma, "value": value} for gamma, value in zip(self.gammas.tolist(), means, strict=True)]
        return {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "metric": self.metric,
            "rows": self.values.shape[1],
            "best": grid[self.best],
            "grid": grid,
        }


def fit_gamma(
    recommender: GroundedRecommender,
    dataset: "Dataset",
    metric: str = "ndcg@10",
    *,
    seen: Seen = "keep",
    batch_size: int | None = None,
) -> GammaFit:
    """
    Rank the targets of a split under every gamma. Texts are written once for each row. Under several processes each
    takes its share of the rows, and all return the same.

    Args:
        recommender ([`GroundedRecommender`]): With a `weight`; its own gamma plays no part.
        dataset (`datasets.Dataset`): Validation rows; the test rows must not take part.
        metric (`str`, *optional*, defaults to `"ndcg@10"`): `"ndcg@k"`, `"hit_rate@k"` or `"mrr@k"`.
        seen (`str`, *optional*, defaults to `"keep"`): `"mask"` keeps the items of a history out of its list.
        batch_size (`int`, *optional*): Rows at a time.

    Returns:
        [`GammaFit`]
    """
    from accelerate.utils import gather_object

    metric_values([0], [0], metric)  # refuses what is no metric
    if recommender.weight is None:
        raise ValueError("`recommender` has no `weight`, so there is no gamma to choose. Give it one.")
    if not len(dataset):
        raise ValueError("`dataset` has no rows: gamma cannot be chosen.")
    state = process_state()
    rows = range(state.process_index, len(dataset), state.num_processes)
    own = _ranks(recommender, dataset.select(rows), seen == "mask", batch_size)
    bounds = np.empty((2, len(GAMMAS), len(dataset)), dtype=np.int64)
    for found_rows, found in gather_object([(rows, own)]):
        bounds[:, :, found_rows] = found
    values = np.stack([metric_values(*row, metric) for row in zip(bounds[0], bounds[1], strict=True)])
    return GammaFit(metric, np.array(GAMMAS), values)


def _ranks(
    recommender: GroundedRecommender, dataset: "Dataset", mask_seen: bool, batch_size: int | None
) -> np.ndarray:
    """`better` and `tied` of each target: `(2, G, rows)`."""
    raw, times = histories_and_times(dataset, recommender.catalog.ids)
    histories = [recommender.catalog.rows(history) for history in raw]
    targets = torch.tensor(column_values(dataset, TARGET).to_pylist(), dtype=torch.long)
    rules = ItemRules(len(recommender.catalog), exclude=histories if mask_seen else None, allow=None)
    bounds = np.zeros((2, len(GAMMAS), len(histories)), dtype=np.int64)
    size = recommender._users_at_once(batch_size, 1, None)
    for users in recommender._batches(histories, size, "Trying gammas"):
        distances, preferences = recommender.parts(
            [histories[user] for user in users], None if times is None else [times[user] for user in users]
        )
        forbidden, allowed = torch.zeros_like(distances), rules.of(users)
        if allowed is not None:
            allowed.forbid(forbidden)
        for number, gamma in enumerate(GAMMAS):
            scores = weighted(distances, preferences, gamma) + forbidden
            bounds[:, number, users] = _bounds(scores, targets[users, None]).numpy()
    return bounds


def _bounds(scores: Tensor, targets: Tensor) -> Tensor:
    """`better` and `tied`, `(2, U)`, of targets `(U, 1)`. One that may not be listed, or scores NaN, is in no list."""
    own = scores.gather(1, targets)
    better = (scores > own).sum(dim=1).where((own > -torch.inf).squeeze(1), NOT_LISTED)
    tied = ((scores == own).sum(dim=1) - 1).where((own > -torch.inf).squeeze(1), 0)
    return torch.stack([better, tied])
