"""
How well a model ranks by what it is given: the length of the history, and whether target and user occur in training.
"""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset

from hf_rec.columns import HISTORY, HISTORY_TIMESTAMPS, TARGET, column_values
from hf_rec.diagnostics.ranked_targets import RankedTargets, RankSettings, mean_interval, rank_rows


if TYPE_CHECKING:
    from hf_rec.recommenders.contract import Recommender

LENGTH_BOUNDS = (0, 1, 2, 5, 10, 20, 50)  # lower ends of the ranges of history lengths


def by_history_length(ranked: RankedTargets, rows: Dataset, k: int) -> list[dict[str, Any]]:
    """
    NDCG and hit rate of rows by the length of their history.

    Returns:
        `list[dict]`: For each range that occurs: `from` and `to` (events; `to` is `None` for the last), `rows`,
        `ndcg`, `hit_rate`.
    """
    lengths = np.array([len(history) for history in column_values(rows, HISTORY).to_pylist()])
    found = []
    for start, stop in zip(LENGTH_BOUNDS, (*LENGTH_BOUNDS[1:], None), strict=True):
        chosen = (lengths >= start) & (lengths < (stop or np.inf))
        if chosen.any():
            found.append({"from": start, "to": None if stop is None else stop - 1} | _metrics(ranked, chosen, k))
    return found


def by_events_given(
    recommender: "Recommender", rows: Dataset, lengths: Sequence[int], settings: RankSettings
) -> list[dict[str, Any]]:
    """
    NDCG and hit rate of the same rows when only the newest events of each history are given.

    Args:
        recommender ([`~hf_rec.recommenders.contract.Recommender`]): Any recommender.
        rows (`datasets.Dataset`): Split rows.
        lengths (`list[int]`): Numbers of events; each is one pass over the rows. 0 gives none.
        settings ([`RankSettings`]): How targets are ranked. With `seen="mask"` the events given are masked.

    Returns:
        `list[dict]`: For each: `events`, `rows`, `ndcg`, `hit_rate`.
    """
    if any(length < 0 for length in lengths):
        raise ValueError(f"`lengths` must be at least 0, got {list(lengths)}.")
    everyone = np.ones(len(rows), dtype=bool)
    return [
        {"events": length}
        | _metrics(rank_rows(recommender, newest_events(rows, length), settings), everyone, settings.k)
        for length in lengths
    ]


def newest_events(rows: Dataset, length: int) -> Dataset:
    """Rows with the newest `length` events of their histories."""
    columns = rows.to_dict()
    for name in (HISTORY, HISTORY_TIMESTAMPS):
        if name in columns:
            columns[name] = [values[-length:] if length else [] for values in columns[name]]
    return Dataset.from_dict(columns, features=rows.features)


def by_warmth(
    ranked: RankedTargets, rows: Dataset, warm_items: Collection[int], warm_users: Collection[str], k: int
) -> dict[str, dict[str, Any]]:
    """
    NDCG and hit rate of rows whose target, or user, occurs in training or does not.

    Returns:
        `dict`: `warm_items`, `cold_items`, `warm_users`, `cold_users`; a slice without rows is left out.
    """
    warm_items, warm_users = set(warm_items), set(warm_users)
    item = np.array([target in warm_items for target in column_values(rows, TARGET).to_pylist()])
    user = np.array([name in warm_users for name in ranked.users])
    slices = {"warm_items": item, "cold_items": ~item, "warm_users": user, "cold_users": ~user}
    return {name: _metrics(ranked, chosen, k) for name, chosen in slices.items() if chosen.any()}


def _metrics(ranked: RankedTargets, chosen: np.ndarray, k: int) -> dict[str, Any]:
    users = [user for user, wanted in zip(ranked.users, chosen, strict=True) if wanted]
    metrics = {name: mean_interval(ranked.values(f"{name}@{k}")[chosen], users) for name in ("ndcg", "hit_rate")}
    return {"rows": int(chosen.sum())} | metrics
