"""The serving temperature that fits a validation split best."""

import math
from typing import TYPE_CHECKING

import numpy as np

from hf_rec.columns import TARGET, column_values
from hf_rec.evaluation.predictions import histories_and_times


if TYPE_CHECKING:
    from datasets import Dataset

    from hf_rec.recommenders.language_model import LanguageModelRecommender

_GOLDEN = (math.sqrt(5) - 1) / 2


def target_nll(recommender: "LanguageModelRecommender", dataset: "Dataset", batch_size: int = 64) -> float:
    """
    Mean of minus the score of the target: of `-log P(target)` in nats.

    Args:
        recommender ([`LanguageModelRecommender`]): Its `tau` and `scoring` define P.
        dataset (`datasets.Dataset`): Split rows.
        batch_size (`int`, *optional*, defaults to `64`): Histories scored at a time.
    """
    ids = recommender.catalog.ids
    histories, times = histories_and_times(dataset, ids)
    targets = [[ids[row]] for row in column_values(dataset, TARGET).to_pylist()]
    return -float(np.mean(np.concatenate(recommender.score(histories, targets, times, batch_size))))


def fit_temperature(
    recommender: "LanguageModelRecommender",
    dataset: "Dataset",
    low: float = 0.25,
    high: float = 8.0,
    tolerance: float = 0.05,
) -> float:
    """
    Find the temperature with the smallest mean `-log P(target)`, by golden-section search over its logarithm.

    The ranking is served at that temperature afterwards: `recommender.tau` is set to it. Choose it on validation rows;
    the test rows must not take part.

    Args:
        recommender ([`LanguageModelRecommender`]): Changed in place.
        dataset (`datasets.Dataset`): Validation rows; a thousand of them do.
        low (`float`, *optional*, defaults to `0.25`), high (`float`, *optional*, defaults to `8.0`): Where to search.
        tolerance (`float`, *optional*, defaults to `0.05`): Relative width of the last bracket.

    Returns:
        `float`: The temperature found.
    """
    if not 0 < low < high:
        raise ValueError(f"`low` and `high` must satisfy 0 < low < high, got {low} and {high}.")
    if not len(dataset):
        raise ValueError("`dataset` has no rows: a temperature cannot be fitted.")

    def loss(position: float) -> float:
        recommender.tau = math.exp(position)
        return target_nll(recommender, dataset)

    left, right = math.log(low), math.log(high)
    inner = [right - _GOLDEN * (right - left), left + _GOLDEN * (right - left)]
    values = [loss(position) for position in inner]
    while right - left > tolerance:
        if values[0] <= values[1]:
            right = inner[1]
            inner = [right - _GOLDEN * (right - left), inner[0]]
            values = [loss(inner[0]), values[0]]
        else:
            left = inner[0]
            inner = [inner[1], left + _GOLDEN * (right - left)]
            values = [values[1], loss(inner[1])]
    recommender.tau = math.exp(inner[0] if values[0] <= values[1] else inner[1])
    return recommender.tau
