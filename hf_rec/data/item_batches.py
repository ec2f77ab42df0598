"""
Split rows as padded batches of catalog rows, for models that read item ids.

The events of all rows stand end to end in one array; a batch is cut out of it by index arithmetic, with no Python loop
over rows. Padding is on the left and as short as the batch allows.

Shapes: B rows of a batch · S longest history of the batch. Padding is -1 in items and -100 in labels.
"""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from hf_rec.columns import (
    HISTORY,
    IGNORE_INDEX,
    INPUT_IDS,
    LABEL_PLACES,
    LABELS,
    PADDING_ITEM,
    SEEN,
    SUPERVISE_FROM,
    TARGET,
)
from hf_rec.data.splits import check_split_columns


if TYPE_CHECKING:
    from datasets import Dataset

LabelLayout = Literal["sequences", "prefixes", "masked"]
BatchLayout = LabelLayout | Literal["ranking"]
# A batch to stand for rows none of which has a label: models cannot read no rows at all
_NO_LABEL = {INPUT_IDS: np.array([[0]]), LABELS: np.array([[IGNORE_INDEX]])}


class ItemRows:
    """
    The events of split rows: history, then target.

    Two rows, 7 after 5 6 and 9 after 8, with all but the first events as labels:

        events        5 6 7 8 9
        starts, ends  0 3, 3 5
        label_starts  1, 4

    Args:
        histories (`list[np.ndarray]` or `tuple[np.ndarray, np.ndarray]`): Catalog rows, one array a row; or all of
            them end to end and the number of each row.
        targets (`np.ndarray` of shape `[R]`): Catalog row of each target.
        supervise_from (`np.ndarray` of shape `[R]`, *optional*): Index of the first event that may be a label.
            Default: 1.
        num_items (`int`, *optional*): Checks that all events lie in `0 .. num_items-1`.

    Attributes:
        events (`np.ndarray`): All events, row after row.
        ends (`np.ndarray` of shape `[R]`): End of each row in `events`; its last event is the target.
    """

    def __init__(
        self,
        histories: list[np.ndarray] | tuple[np.ndarray, np.ndarray],
        targets: np.ndarray,
        supervise_from: np.ndarray | list[int] | None = None,
        num_items: int | None = None,
    ):
        if isinstance(histories, list):
            lengths = np.array([len(history) for history in histories], dtype=np.int64)
            values = np.concatenate([*histories, np.empty(0, np.int64)]).astype(np.int64)
        else:
            values, lengths = histories
        self.ends = np.cumsum(lengths + 1)
        self.starts = self.ends - lengths - 1
        is_target = np.zeros(len(values) + len(lengths), dtype=bool)
        is_target[self.ends - 1] = True
        self.events = np.empty(len(is_target), dtype=np.int64)
        self.events[is_target] = targets
        self.events[~is_target] = values
        # The first event of a row has nothing to be predicted from
        first = 1 if supervise_from is None else np.asarray(supervise_from, np.int64).clip(min=1)
        self.label_starts = self.starts + first
        if num_items is not None:
            self._check_items(num_items)

    @classmethod
    def from_dataset(cls, dataset: "Dataset", num_items: int | None = None) -> "ItemRows":
        """Reads `history`, `target` and, where present, `supervise_from` of a split, without Python lists."""
        check_split_columns(dataset.column_names, (HISTORY, TARGET))
        names = [HISTORY, TARGET] + [SUPERVISE_FROM] * (SUPERVISE_FROM in dataset.column_names)
        table = dataset.select_columns(names).with_format("arrow")[:]
        histories = table[HISTORY].combine_chunks()
        supervise_from = table[SUPERVISE_FROM].to_numpy() if SUPERVISE_FROM in names else None
        values, lengths = histories.flatten().to_numpy(), histories.value_lengths().to_numpy()
        return cls((values, lengths.astype(np.int64)), table[TARGET].to_numpy(), supervise_from, num_items)

    @classmethod
    def from_rows(cls, rows: list[dict], num_items: int | None = None) -> "ItemRows":
        """The same from a list of rows, as a stream gives them."""
        histories = [np.asarray(row[HISTORY], dtype=np.int64) for row in rows]
        supervise_from = [row.get(SUPERVISE_FROM, 1) for row in rows]
        return cls(histories, np.array([row[TARGET] for row in rows], dtype=np.int64), supervise_from, num_items)

    def __len__(self) -> int:
        return len(self.ends)

    def item_counts(self, num_items: int) -> np.ndarray:
        """How often each item occurs as an event, shape `[num_items]`."""
        return np.bincount(self.events, minlength=num_items)

    def _check_items(self, num_items: int) -> None:
        wrong = np.flatnonzero((self.events < 0) | (self.events >= num_items))
        if len(wrong):
            row = int(np.searchsorted(self.ends, wrong[0], side="right"))
            raise ValueError(
                f"Row {row} of the dataset has the item {self.events[wrong[0]]}, but the model knows the items "
                f"0..{num_items - 1}. Were the splits made with another catalog?"
            )


class TrainingBatches:
    """
    Batches of a training split; a map-style dataset whose `__getitems__` gives a whole batch.

    Args:
        rows ([`ItemRows`]): The split.
        max_length (`int`): Events that the model reads.
        layout (`str`): What a sample is. `"sequences"`: a row, each of whose events is predicted from those before it.
            `"prefixes"`: a label, predicted from all before it. `"masked"`: a row with its target, to be masked later.
        last_only (`bool`, *optional*, defaults to `False`): Only the target of a row is a label.
        shortest_prefix (`int`, *optional*, defaults to `1`): Fewest events before the label of a prefix; where a row
            has no prefix of that length, its longest is the sample.

    Attributes:
        num_labels (`int`): Labels of the split.
        num_dropped_events (`int`): Events older than the newest that fit, summed over the samples.
        num_dropped_rows (`int`): Rows without a label: a single event and nothing to predict it from.
        of_labels (`dict[str, np.ndarray]`): Further numbers of each event as a label, `[events, ...]`; batches have
            them beside `labels`, -1 where there is no label.
    """

    def __init__(
        self, rows: ItemRows, max_length: int, layout: str, last_only: bool = False, shortest_prefix: int = 1
    ):
        if layout not in get_args(LabelLayout):
            raise ValueError(f"`layout` must be one of {', '.join(get_args(LabelLayout))}, got {layout!r}.")
        self.events = rows.events
        self.of_labels: dict[str, np.ndarray] = {}
        self.max_length = max_length
        self.layout = layout
        label_starts = np.maximum(rows.label_starts, rows.ends - 1) if last_only else rows.label_starts
        window = max_length if layout == "masked" else max_length + 1
        starts = np.maximum(rows.starts, rows.ends - window)
        self.num_dropped_events = int((starts - rows.starts).sum())
        if layout == "prefixes":
            long_enough = np.minimum(rows.starts + shortest_prefix, rows.ends - 1)
            label_starts = np.maximum(label_starts, long_enough)
            counts = (rows.ends - label_starts).clip(min=0)
            first = np.repeat(label_starts - (counts.cumsum() - counts), counts)
            self.ends = first + np.arange(counts.sum()) + 1  # one past the label
            self.starts = np.maximum(np.repeat(rows.starts, counts), self.ends - window)
            self.label_starts = self.ends - 1
            self.num_labels = len(self.ends)
            self.num_dropped_rows = int((counts == 0).sum())
            self.num_dropped_events = int((self.starts - np.repeat(rows.starts, counts)).sum())
            return
        label_starts = np.maximum(label_starts, starts + (layout != "masked"))
        kept = label_starts < rows.ends
        self.starts, self.ends, self.label_starts = starts[kept], rows.ends[kept], label_starts[kept]
        self.num_labels = int((self.ends - self.label_starts).sum())
        self.num_dropped_rows = int((~kept).sum())

    def __len__(self) -> int:
        return len(self.ends)

    def sha256(self) -> str:
        """Hash of all events and of which of them each sample reads and learns."""
        digest = hashlib.sha256()
        for values in (self.events, self.starts, self.ends, self.label_starts):
            digest.update(values.tobytes())
        return digest.hexdigest()

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {name: values[0] for name, values in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """
        `input_ids` `[B, S]` and `labels`: `[B, S]`, or `[B, 1]` for prefixes.

        The rows 5 6 7 and 8 9 as `"sequences"` are read from these places of the events 5 6 7 8 9, and labelled one
        further on:

            place   0 1    input_ids   5 6    labels   6 7
                    2 3               -1 8          -100 9
        """
        indices = np.asarray(indices, dtype=np.int64)
        starts, ends, label_starts = self.starts[indices], self.ends[indices], self.label_starts[indices]
        shift = 0 if self.layout == "masked" else 1
        place = _left_padded(starts, ends - shift)
        input_ids = np.where(place >= starts[:, None], self.events[place.clip(min=0)], PADDING_ITEM)
        if self.layout == "prefixes":
            more = {name: values[ends - 1][:, None] for name, values in self.of_labels.items()}
            return {INPUT_IDS: input_ids, LABELS: self.events[ends - 1][:, None]} | more
        place += shift
        labelled = place >= label_starts[:, None]
        place = place.clip(min=0)
        more = {name: values[place] for name, values in self.of_labels.items()}
        for values in more.values():
            values[~labelled] = -1
        return {INPUT_IDS: input_ids, LABELS: np.where(labelled, self.events[place], IGNORE_INDEX)} | more


class EvaluationBatches:
    """
    Batches of a split to rank: a map-style dataset whose `__getitems__` gives a whole batch.

    Args:
        rows ([`ItemRows`]): The split.
        max_length (`int`): Events that the model reads; the newest of each history are given.

    Attributes:
        of_rows (`dict[str, np.ndarray]`): Further numbers of each row, `[rows, ...]`; batches have them too.
    """

    def __init__(self, rows: ItemRows, max_length: int):
        self.rows = rows
        self.max_length = max_length
        self.of_rows: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {name: values[0] for name, values in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """`input_ids` `[B, S]`, `target` `[B]`, and `seen` `[B, H]`: the whole histories, left padded with -1."""
        indices = np.asarray(indices, dtype=np.int64)
        starts, ends = self.rows.starts[indices], self.rows.ends[indices]
        place = _left_padded(starts, ends - 1)
        seen = np.where(place >= starts[:, None], self.rows.events[place.clip(min=0)], PADDING_ITEM)
        more = {name: values[indices] for name, values in self.of_rows.items()}
        return {INPUT_IDS: seen[:, -self.max_length :], TARGET: self.rows.events[ends - 1], SEEN: seen} | more


def events_before(rows: ItemRows, events: np.ndarray, max_length: int) -> np.ndarray:
    """
    What stands before some events in their rows: the newest `max_length`, `[len(events), S]`, left padded with -1.

    Args:
        rows ([`ItemRows`]): The split.
        events (`np.ndarray`): Places in `rows.events`.
        max_length (`int`): Events that are given.
    """
    row = np.searchsorted(rows.ends, events, side="right")
    starts = np.maximum(rows.starts[row], events - max_length)
    place = _left_padded(starts, events)
    return np.where(place >= starts[:, None], rows.events[place.clip(min=0)], PADDING_ITEM)


def _left_padded(starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Indices `[B, S]` whose last column is the one before `ends`; indices below `starts` are padding."""
    longest = max(int((ends - starts).max(initial=0)), 1)
    return ends[:, None] - np.arange(longest, 0, -1)


class ItemCollator:
    """
    Batches of [`TrainingBatches`] and [`EvaluationBatches`] as tensors. Also takes a list of split rows, as a stream
    gives them.

    Args:
        max_length (`int`): Events that the model reads.
        num_items (`int`): Items of the catalog.
        layout (`str`): `"ranking"`, or one of the layouts of [`TrainingBatches`].
        last_only (`bool`, *optional*, defaults to `False`): Only the target of a row is a label.
        shortest_prefix (`int`, *optional*, defaults to `1`): As in [`TrainingBatches`].
    """

    def __init__(
        self, max_length: int, num_items: int, layout: str, last_only: bool = False, shortest_prefix: int = 1
    ):
        self.max_length = max_length
        self.num_items = num_items
        self.layout = layout
        self.last_only = last_only
        self.shortest_prefix = shortest_prefix

    def batches(self, rows: ItemRows) -> TrainingBatches | EvaluationBatches:
        """The map-style data set of some rows."""
        if self.layout == "ranking":
            return EvaluationBatches(rows, self.max_length)
        return self.training_batches(rows)

    def training_batches(self, rows: ItemRows) -> TrainingBatches:
        """The same for a layout of training."""
        return TrainingBatches(rows, self.max_length, self.layout, self.last_only, self.shortest_prefix)

    def __call__(self, features: dict[str, np.ndarray] | list[dict]) -> dict[str, Tensor]:
        """`features` as tensors, with `label_places` `[P]`, so that a training step need not look for its labels."""
        if not isinstance(features, dict):
            batches = self.batches(ItemRows.from_rows(features, self.num_items))
            features = batches.__getitems__(np.arange(len(batches))) if len(batches) else _NO_LABEL
        if LABELS in features:
            features = features | {LABEL_PLACES: np.flatnonzero(features[LABELS] != IGNORE_INDEX)}
        return {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in features.items()}
