"""
Splits: an ordered interaction log, or ready-made sequences, become rows of a history and its target.

Every split is a [`~datasets.Dataset`] with the features of [`~hf_rec.columns.sequence_features`]. A user's *events*
are catalog rows, oldest first; a *window* is a run of them, its last event the target. `supervise_from` says from
which event of a window on events are new, so that under `supervise="all"` each event of a user is a label once.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

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
    ITEM_ID,
    LIKED,
    SUPERVISE_FROM,
    TARGET,
    TIMESTAMP,
    UNKNOWN_TIME,
    USER_ID,
    column_values,
    interaction_features,
    sequence_features,
)


SPLITS = ("train", "validation", "test")


def user_events(interactions: Dataset) -> Dataset:
    """
    Group an interaction log by user.

    Args:
        interactions (`datasets.Dataset`): As [`~hf_rec.data.interactions.clean_interactions`] returns it: items are
            catalog rows, rows are ordered.

    Returns:
        `datasets.Dataset`: One row a user, by first event: `user_id`, `events` (`list[int]`), `event_timestamps`.
    """
    table = _clean_columns(interactions)
    encoded = table[USER_ID].combine_chunks().dictionary_encode()
    users = encoded.indices.to_numpy(zero_copy_only=False)
    order = pa.array(np.argsort(users, kind="stable"))
    offsets = pa.array(np.concatenate([[0], np.cumsum(np.bincount(users))]).astype(np.int32))
    columns = {
        USER_ID: encoded.dictionary,
        EVENTS: pa.ListArray.from_arrays(offsets, table[ITEM_ID].combine_chunks().take(order)),
        EVENT_TIMESTAMPS: pa.ListArray.from_arrays(offsets, table[TIMESTAMP].combine_chunks().take(order)),
    }
    features = Features(
        {USER_ID: Value("string"), EVENTS: List(Value("int64")), EVENT_TIMESTAMPS: List(Value("int64"))}
    )
    return Dataset(pa.table(columns).cast(features.arrow_schema))


def _clean_columns(interactions: Dataset) -> pa.Table:
    """The columns of a cleaned log, further ones left out."""
    wanted = interaction_features().arrow_schema
    way_out = "Clean it first: `prepare_interactions` (hf_rec.data.in_memory) takes a raw log."
    missing = [name for name in wanted.names if name not in interactions.column_names]
    if missing:
        raise ValueError(f"The log has no column {missing[0]!r}; it has {interactions.column_names}. {way_out}")
    table = interactions.select_columns(wanted.names).with_format("arrow")[:]
    for name in (ITEM_ID, TIMESTAMP):
        if not pa.types.is_integer(table[name].type):
            raise ValueError(f"The log is not cleaned: its {name!r} holds {table[name].type}, not numbers. {way_out}")
    return table.cast(wanted)


def window_ends(num_events: int, window: int | None, stride: int, min_events: int = 2) -> list[int]:
    """
    Where the windows of a sequence end, counted back from its last event so that only the first one can be short.

    Args:
        num_events (`int`): Length of the sequence.
        window (`int` or `None`): Events in a window, target included; `None` means one window over everything.
        stride (`int`): Events from one end to the next, `1 <= stride < window`.
        min_events (`int`, *optional*, defaults to `2`): Windows that hold fewer are left out, unless the sequence
            itself is shorter.

    Returns:
        `list[int]`: Ends (exclusive), ascending; empty for a sequence of fewer than 2 events.
    """
    if num_events < 2:
        return []
    if window is None:
        return [num_events]
    return list(range(num_events, max(2, min(min_events, num_events)) - 1, -stride))[::-1]


def leave_one_out(
    interactions: Dataset, *, window: int | None = None, stride: int | None = None, num_proc: int | None = None
) -> DatasetDict:
    """
    Hold out the last event of each user as test and the one before as validation; cut the rest into windows.

    Users with fewer than 3 events have nothing held out: what they have is training data.

    Args:
        interactions (`datasets.Dataset`): A cleaned log.
        window (`int`, *optional*): Most events in a row, target included; older ones are dropped from held-out rows.
            Without it every row holds the user's whole past.
        stride (`int`, *optional*, defaults to `window - 1`): New events from one training window to the next.
            The default makes the fewest windows in which each event is a label.
        num_proc (`int`, *optional*): Processes of [`~datasets.Dataset.map`].

    Returns:
        `datasets.DatasetDict` with `train`, `validation` and `test`.
    """
    stride = _check_window(window, stride)
    users = user_events(interactions)
    return DatasetDict(
        {
            split: users.map(
                _leave_one_out_rows,
                batched=True,
                fn_kwargs={"split": split, "window": window, "stride": stride},
                remove_columns=users.column_names,
                features=sequence_features(),
                num_proc=num_proc,
                desc=f"Windows of {split}",
            )
            for split in SPLITS
        }
    )


def global_time(
    interactions: Dataset,
    *,
    window: int = 11,
    stride: int = 1,
    min_events: int | None = None,
    ratios: tuple[float, float, float] = (8, 1, 1),
    num_proc: int | None = None,
) -> DatasetDict:
    """
    Cut every user's events into windows, order all windows by the time of their target, split them by share.

    This is the protocol of BIGRec and MSL: a user's windows may lie in several splits, but no training window ends
    after the first test window, which is checked.

    Args:
        interactions (`datasets.Dataset`): A cleaned log with times.
        window (`int`, *optional*, defaults to `11`): Events in a window, target included.
        stride (`int`, *optional*, defaults to `1`): New events from one window of a user to the next.
        min_events (`int`, *optional*, defaults to `window`): Shorter windows only of users who have no more events.
        ratios (`tuple`, *optional*, defaults to `(8, 1, 1)`): Shares of train, validation and test.
        num_proc (`int`, *optional*): Processes of [`~datasets.Dataset.map`].

    Returns:
        `datasets.DatasetDict` with `train`, `validation` and `test`, each in order of time.
    """
    if window is None:
        raise ValueError("`window` is None, but a global time split is made of windows. Give their length, e.g. 11.")
    stride = _check_window(window, stride)
    if len(ratios) != 3 or min(ratios) < 0 or not sum(ratios) > 0:
        raise ValueError(f"`ratios` must be three shares of at least 0, got {ratios}. Use e.g. (8, 1, 1).")
    users = user_events(interactions)
    windows = users.map(
        _window_rows,
        batched=True,
        fn_kwargs={"window": window, "stride": stride, "min_events": window if min_events is None else min_events},
        remove_columns=users.column_names,
        features=sequence_features(),
        num_proc=num_proc,
        desc="Windows",
    )
    times = column_values(windows, TIMESTAMP).to_numpy()
    if len(times) and times.min() == UNKNOWN_TIME:
        raise ValueError("A global time split needs the time of every interaction. Use leave-one-out without times.")
    order = np.argsort(times, kind="stable")
    first, second = (round(len(times) * share) for share in np.cumsum(ratios)[:2] / sum(ratios))
    pieces = (order[:first], order[first:second], order[second:])
    # Rows are moved: behind a list of indices each column would be read row by row, again and again.
    table = windows.with_format("arrow")[:].combine_chunks()
    splits = DatasetDict(
        {name: Dataset(table.take(pa.array(piece))) for name, piece in zip(SPLITS, pieces, strict=True)}
    )
    check_no_leak(splits)
    return splits


def ready_made(splits: Mapping[str, Dataset]) -> DatasetDict:
    """
    Turn rows that someone else cut and split into ours, in the order given.

    A row that continues its user's previous row (a window slid on) repeats most of its events. The longest suffix of
    the previous row that begins this one is taken as that repetition, and `supervise_from` set after it, over all
    splits in order of time; each row has at least its target as new. Where a user has several rows of one time, they
    are taken in the order in which they continue each other.

    Args:
        splits (mapping of `str` to `datasets.Dataset`): From train to test. Columns `user_id`, `events`
            (`list[int]`, catalog rows, the target last) and `timestamp` (of the target, -1 where unknown).

    Returns:
        `datasets.DatasetDict`: The same splits and rows.
    """
    rows = []  # (user, time, split number, row number, events)
    for number, (name, dataset) in enumerate(splits.items()):
        columns = dataset[:]
        for row, events in enumerate(columns[EVENTS]):
            if not events:
                raise ValueError(f"Row {row} of split {name!r} has no events. Drop it, or give at least the target.")
            rows.append((columns[USER_ID][row], columns[TIMESTAMP][row], number, row, events))
    rows.sort(key=lambda row: row[:4])

    supervise_from = [np.zeros(len(dataset), dtype=np.int32) for dataset in splits.values()]
    for _, by_user in groupby(rows, key=lambda row: row[0]):
        previous: list[int] = []
        for _, tied in groupby(by_user, key=lambda row: row[1:3]):
            for _, _, number, row, events in _in_order_of_continuation(tied, previous):
                supervise_from[number][row] = min(max(1, overlap(previous, events)), len(events) - 1)
                previous = events

    made = {}
    for starts, (name, dataset) in zip(supervise_from, splits.items(), strict=True):
        columns = dataset[:]
        made_columns = {
            USER_ID: columns[USER_ID],
            HISTORY: [events[:-1] for events in columns[EVENTS]],
            HISTORY_TIMESTAMPS: [[] for _ in starts],
            TARGET: [events[-1] for events in columns[EVENTS]],
            TIMESTAMP: columns[TIMESTAMP],
            SUPERVISE_FROM: starts,
        }
        made[name] = Dataset(pa.table(made_columns, schema=sequence_features().arrow_schema))
    return DatasetDict(made)


def overlap(previous: list[int], events: list[int]) -> int:
    """Length of the longest suffix of `previous` that begins `events` and leaves at least its last event new."""
    for length in range(min(len(previous), len(events) - 1), 0, -1):
        if previous[-length:] == events[:length]:
            return length
    return 0


def check_no_leak(splits: Mapping[str, Dataset]) -> None:
    """Raise a `ValueError` if a training row ends after the first test row."""
    if "train" not in splits or "test" not in splits or not len(splits["train"]) or not len(splits["test"]):
        return
    last, first = (
        pc.max(column_values(splits["train"], TIMESTAMP)).as_py(),
        pc.min(column_values(splits["test"], TIMESTAMP)).as_py(),
    )
    if last > first:
        raise ValueError(
            f"The last training row ends at {last}, after the first test row at {first} (seconds). A model trained on "
            "it would know the future: split by time, or cut the later rows from train."
        )


def distinct_labels(dataset: Dataset, supervise: str = "all") -> int:
    """
    How many labels a split gives a model.

    Args:
        dataset (`datasets.Dataset`): A split.
        supervise (`str`, *optional*, defaults to `"all"`): `"all"` counts the labelled (user, event) pairs, each of
            which stands in one row; `"last"` counts the targets, one a row.
    """
    if supervise not in ("last", "all"):
        raise ValueError(f"`supervise` must be 'last' or 'all', got {supervise!r}.")
    if supervise == "last" or not len(dataset):
        return len(dataset)
    num_history = pc.sum(pc.list_value_length(column_values(dataset, HISTORY))).as_py()
    return num_history + len(dataset) - pc.sum(column_values(dataset, SUPERVISE_FROM)).as_py()


def seen_items(dataset: Dataset) -> set[int]:
    """Catalog rows that occur in a split, in a history or as a target: the warm items, if it is the training split."""
    history = pc.list_flatten(column_values(dataset, HISTORY)).unique().to_pylist()
    return {*history, *column_values(dataset, TARGET).unique().to_pylist()}


def sequence_hash(dataset: Dataset) -> str:
    """SHA-256 over users, histories, targets and times of a split, in row order; the same on every machine."""
    digest = hashlib.sha256()
    table = dataset.with_format("arrow")[:]
    for users in table[USER_ID].chunks:
        digest.update("".join(f"{user}\n" for user in users.to_pylist()).encode("utf-8", "surrogatepass"))
    for column in (HISTORY, HISTORY_TIMESTAMPS):
        for part in (pc.list_value_length(table[column]), pc.list_flatten(table[column])):
            digest.update(part.to_numpy().astype("<i8").tobytes())
    for column in (TARGET, TIMESTAMP, SUPERVISE_FROM):
        digest.update(table[column].to_numpy().astype("<i8").tobytes())
    if LIKED in table.column_names:
        disliked = table[DISLIKED]
        for part in (pc.list_value_length(disliked), pc.list_flatten(disliked), table[LIKED]):
            digest.update(part.to_numpy().astype("<i8").tobytes())
    return digest.hexdigest()


def _check_window(window: int | None, stride: int | None) -> int:
    if window is None:
        if stride is not None:
            raise ValueError(f"`stride` is {stride}, but without a `window` there is one row a user. Give both.")
        return 1
    if window < 2:
        raise ValueError(f"`window` must be at least 2 (one event of history and the target), got {window}.")
    stride = window - 1 if stride is None else stride
    if not 1 <= stride < window:
        raise ValueError(
            f"`stride` must be between 1 and `window` - 1 = {window - 1}, got {stride}: a longer one skips labels."
        )
    return stride


def check_split_columns(present: Sequence[str], needed: Sequence[str]) -> None:
    """Refuse a data set that lacks columns of a split, naming those that it has."""
    missing = [name for name in needed if name not in present]
    if missing:
        raise ValueError(
            f"The data set lacks {', '.join(f'`{name}`' for name in missing)}; it has {', '.join(sorted(present))}. "
            "Make splits with `hf-rec prepare`, or of a log in memory with `prepare_interactions`."
        )


def _new_rows() -> dict[str, list]:
    return {name: [] for name in sequence_features()}


def _add_row(rows: dict[str, list], user: str, events: list[int], times: list[int], supervise_from: int) -> None:
    rows[USER_ID].append(user)
    rows[HISTORY].append(events[:-1])
    rows[HISTORY_TIMESTAMPS].append([] if UNKNOWN_TIME in times[:-1] else times[:-1])
    rows[TARGET].append(events[-1])
    rows[TIMESTAMP].append(times[-1])
    rows[SUPERVISE_FROM].append(supervise_from)


def _add_windows(
    rows: dict[str, list],
    user: str,
    events: list[int],
    times: list[int],
    window: int | None,
    stride: int,
    min_events: int = 2,
) -> None:
    previous_end = None
    for end in window_ends(len(events), window, stride, min_events):
        start = 0 if window is None else max(0, end - window)
        new_from = 1 if previous_end is None else previous_end - start
        _add_row(rows, user, events[start:end], times[start:end], new_from)
        previous_end = end


def _window_rows(batch: dict[str, list], window: int, stride: int, min_events: int) -> dict[str, list]:
    rows = _new_rows()
    for user, events, times in zip(batch[USER_ID], batch[EVENTS], batch[EVENT_TIMESTAMPS], strict=True):
        _add_windows(rows, user, events, times, window, stride, min_events)
    return rows


def _leave_one_out_rows(batch: dict[str, list], split: str, window: int | None, stride: int) -> dict[str, list]:
    rows = _new_rows()
    for user, events, times in zip(batch[USER_ID], batch[EVENTS], batch[EVENT_TIMESTAMPS], strict=True):
        held_out = 2 if len(events) >= 3 else 0
        if split == "train":
            end = len(events) - held_out
            _add_windows(rows, user, events[:end], times[:end], window, stride)
        elif held_out:
            end = len(events) if split == "test" else len(events) - 1
            start = 0 if window is None else max(0, end - window)
            _add_row(rows, user, events[start:end], times[start:end], end - start - 1)
    return rows


def _in_order_of_continuation(rows: Iterable[tuple], previous: list[int]) -> list[tuple]:
    """Rows of one user and time, each after the one that it continues."""
    rows, ordered = list(rows), []
    while len(rows) > 1:
        # Next comes the row that continues the rows before best and the rows still to come least.
        scores = [
            max(overlap(other[-1], row[-1]) for other in rows if other is not row) - overlap(previous, row[-1])
            for row in rows
        ]
        ordered.append(rows.pop(scores.index(min(scores))))
        previous = ordered[-1][-1]
    return ordered + rows
