"""
Does a model use the order of the history at all? (LLM-SRec, https://huggingface.co/papers/2502.13909)

A model that reads a history as a bag of items gives the same list whatever its order.

Shapes: R rows · d width of a user vector.
"""

import inspect
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_rec.columns import HISTORY, column_values
from hf_rec.data.shuffling import shuffle_histories
from hf_rec.diagnostics.ranked_targets import RankedTargets, RankSettings, mean_interval, paired_change, rank_rows
from hf_rec.evaluation.predictions import histories_and_times


if TYPE_CHECKING:
    from datasets import Dataset

    from hf_rec.recommenders.contract import Recommender


def order_sensitivity(
    recommender: "Recommender",
    rows: "Dataset",
    settings: RankSettings,
    seed: int = 0,
    ranked: RankedTargets | None = None,
) -> dict[str, Any]:
    """
    Rank the same rows with their histories as they are and in random order.

    Args:
        recommender ([`~hf_rec.recommenders.contract.Recommender`]): Any recommender.
        rows (`datasets.Dataset`): Split rows.
        settings ([`RankSettings`]): How targets are ranked.
        seed (`int`, *optional*, defaults to `0`): Seed of the order.
        ranked ([`RankedTargets`], *optional*): Ranks of the rows as they are, where they are known already.

    Returns:
        `dict`: `ndcg` and `hit_rate` (as [`~hf_rec.diagnostics.ranked_targets.paired_change`]), `overlap` (mean share
        of items that both lists have), `cosine` (mean over users of that between their two vectors, where the model
        has them), `can_change` (share of rows whose history has an order: at least two different items), and the same
        values over these rows alone under `of_these`.
    """
    k = settings.k
    shuffled = shuffle_histories(rows, seed)
    before = rank_rows(recommender, rows, settings) if ranked is None else ranked
    after = rank_rows(recommender, shuffled, settings)
    values = {"overlap": _overlap(before, after)}
    first, second = user_vectors(recommender, rows), user_vectors(recommender, shuffled)
    if first is not None and second is not None:
        values["cosine"] = _cosine(first, second)
    can_change = np.array([len(set(history)) > 1 for history in column_values(rows, HISTORY).to_pylist()])

    def summary(chosen: np.ndarray) -> dict[str, Any]:
        users = [user for user, wanted in zip(before.users, chosen, strict=True) if wanted]
        found = {
            metric: paired_change(before.values(f"{metric}@{k}")[chosen], after.values(f"{metric}@{k}")[chosen], users)
            for metric in ("ndcg", "hit_rate")
        }
        return found | {name: mean_interval(value[chosen], users) for name, value in values.items()}

    result: dict[str, Any] = {"rows": len(rows), "seed": seed, "can_change": float(can_change.mean())}
    result |= summary(np.ones(len(rows), dtype=bool))
    if can_change.any():
        result["of_these"] = summary(can_change)
    return result


def shuffled_training(
    ranked: RankedTargets, recommender: "Recommender", rows: "Dataset", settings: RankSettings
) -> dict[str, Any]:
    """
    The change in NDCG and hit rate from a model to one that was trained on shuffled histories (`hf-rec shuffle`), on
    the same rows with their histories in order, and the overlap of their lists. Their vectors lie in different spaces.

    Args:
        ranked ([`RankedTargets`]): Of the model that was trained on histories in order.
        recommender ([`~hf_rec.recommenders.contract.Recommender`]): The model that was trained on shuffled histories.
        rows (`datasets.Dataset`), settings ([`RankSettings`]): As `ranked` was made with.
    """
    after = rank_rows(recommender, rows, settings)
    changes = {
        metric: paired_change(
            ranked.values(f"{metric}@{settings.k}"), after.values(f"{metric}@{settings.k}"), ranked.users
        )
        for metric in ("ndcg", "hit_rate")
    }
    return changes | {"overlap": mean_interval(_overlap(ranked, after), ranked.users)}


def user_vectors(recommender: "Recommender", rows: "Dataset") -> np.ndarray | None:
    """Vectors of the users of some rows, `(R, d)`; `None` where the model has none."""
    method = getattr(recommender, "user_vectors", None)
    if method is None:
        return None
    histories, times = histories_and_times(rows, recommender.catalog.ids)
    if times is not None and "timestamps" in inspect.signature(method).parameters:
        return method(histories, timestamps=times)
    return method(histories)


def _overlap(first: RankedTargets, second: RankedTargets) -> np.ndarray:
    """Share of items that the two lists of each row have in common, `(R,)`."""
    lists = zip(first.item_rows, second.item_rows, strict=True)
    return np.array([len({*one} & {*other}) / max(len(one), len(other), 1) for one, other in lists])


def _cosine(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosine of each row; 1 where both are zero, as for an empty history."""
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return np.where(lengths > 0, (first * second).sum(axis=1) / np.where(lengths > 0, lengths, 1), 1.0)
