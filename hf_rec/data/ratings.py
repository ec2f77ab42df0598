"""
Rows with ratings: what a user liked and did not like before, an item, and whether the user liked it.

Each is a row of a split ([`hf_rec.data.splits`]) with two columns more: `history` holds what was liked alone,
`disliked` the rest, and `liked` is 1 or 0.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, Features, List, Value

from hf_rec.columns import (
    DISLIKED,
    EVENT_TIMESTAMPS,
    EVENTS,
    HISTORY,
    HISTORY_TIMESTAMPS,
    LIKED,
    SUPERVISE_FROM,
    TARGET,
    TIMESTAMP,
    UNKNOWN_TIME,
    USER_ID,
    column_values,
    sequence_features,
)
from hf_rec.data.splits import SPLITS, user_events


def rated_time(
    interactions: Dataset,
    ratings: np.ndarray,
    *,
    like: float,
    window: int = 11,
    min_events: int | None = None,
    ratios: tuple[float, float, float] = (8, 1, 1),
) -> DatasetDict:
    """
    Make a row of each event that enough others of its user come before, and split the rows by the time of their
    target, so that no training row ends after the first test row.

    Args:
        interactions (`datasets.Dataset`): A cleaned log with times.
        ratings (`np.ndarray` of shape `(M,)`): The rating of each of its rows.
        like (`float`): The user likes what has at least this rating.
        window (`int`, *optional*, defaults to `11`): Most events of a row, target included.
        min_events (`int`, *optional*, defaults to `window`): Fewest events of a row.
        ratios (`tuple`, *optional*, defaults to `(8, 1, 1)`): Shares of train, validation and test.

    Returns:
        `datasets.DatasetDict` with `train`, `validation` and `test`, each in order of time.

    Raises:
        `ValueError`: Where the rows of a split are all likes, or none: nothing could be learned or measured.
    """
    fewest = window if min_events is None else min_events
    if not 2 <= fewest <= window:
        raise ValueError(f"`min_events` must be from 2 to `window`, {window}, got {fewest}.")
    times = column_values(interactions, TIMESTAMP).to_numpy()
    if len(times) and times.min() == UNKNOWN_TIME:
        raise ValueError("Rows with ratings are split by time, which is unknown for some interactions.")
    liked_of_user = _by_user(interactions, ratings >= like)
    rows: dict[str, list[Any]] = {name: [] for name in (*sequence_features(), DISLIKED, LIKED)}
    for user, liked in zip(user_events(interactions), liked_of_user, strict=True):
        for target in range(fewest - 1, len(liked)):
            _add_row(rows, user, liked, range(max(0, target - window + 1), target), target)
    order = np.argsort(np.array(rows[TIMESTAMP], dtype=np.int64), kind="stable")
    first, second = (round(len(order) * share) for share in np.cumsum(ratios)[:2] / sum(ratios))
    features = Features({**sequence_features(), DISLIKED: List(Value("int64")), LIKED: Value("int64")})
    table = pa.table(rows).select(list(features))
    pieces = zip(SPLITS, (order[:first], order[first:second], order[second:]), strict=True)
    splits = DatasetDict({name: Dataset(table.take(pa.array(piece))).cast(features) for name, piece in pieces})
    for name, dataset in splits.items():
        check_both_kinds(dataset, f"split {name!r}", like)
    return splits


def check_both_kinds(dataset: Dataset, what: str, like: float | None = None) -> None:
    """Refuse rows that are all likes, or none."""
    counts = np.bincount(column_values(dataset, LIKED).to_numpy(), minlength=2)
    if len(dataset) and not counts.all():
        hint = "Take more rows." if like is None else f"`like` is {like:g}; choose another threshold."
        raise ValueError(
            f"All {len(dataset)} rows of {what} have `{LIKED}` = {int(counts[1] > 0)}: there is nothing to tell "
            f"apart. {hint}"
        )


def few_shot(dataset: Dataset, num_rows: int, seed: int) -> Dataset:
    """
    Rows of a split, drawn by a seed and in their order. The rows of a smaller number are among those of a larger one.

    Args:
        dataset (`datasets.Dataset`): Rows with `liked`.
        num_rows (`int`): At least 2, and no more than there are.
        seed (`int`): Of the draw.
    """
    if LIKED not in dataset.column_names:
        raise ValueError(f"`num_shots` draws among rows with `{LIKED}`; these have {dataset.column_names}.")
    if not 2 <= num_rows <= len(dataset):
        raise ValueError(f"`num_shots` must be from 2 to the {len(dataset)} rows of the split, got {num_rows}.")
    drawn = dataset.select(sorted(np.random.default_rng(seed).permutation(len(dataset))[:num_rows].tolist()))
    check_both_kinds(drawn, f"the {num_rows} shots of seed {seed}")
    return drawn


def liked_share(dataset: Dataset) -> float:
    """Share of the rows whose target was liked."""
    return float(pc.mean(column_values(dataset, LIKED)).as_py() or 0.0)


def _by_user(interactions: Dataset, liked: np.ndarray) -> list[np.ndarray]:
    """`liked` in the order of [`~hf_rec.data.splits.user_events`]: users by first event, events by time."""
    users = column_values(interactions, USER_ID).combine_chunks().dictionary_encode().indices.to_numpy()
    ordered = liked[np.argsort(users, kind="stable")].astype(bool)
    return np.split(ordered, np.cumsum(np.bincount(users))[:-1]) if len(users) else []


def _add_row(rows: dict[str, list], user: dict[str, Any], liked: np.ndarray, before: range, target: int) -> None:
    events, times = user[EVENTS], user[EVENT_TIMESTAMPS]
    good = [place for place in before if liked[place]]
    rows[USER_ID].append(user[USER_ID])
    rows[HISTORY].append([events[place] for place in good])
    rows[HISTORY_TIMESTAMPS].append([times[place] for place in good])
    rows[TARGET].append(events[target])
    rows[TIMESTAMP].append(times[target])
    rows[SUPERVISE_FROM].append(len(good))
    rows[DISLIKED].append([events[place] for place in before if not liked[place]])
    rows[LIKED].append(int(liked[target]))
