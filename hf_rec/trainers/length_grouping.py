"""The order in which a training run reads rows of unlike length, so that a batch holds rows of about one length."""

from collections.abc import Callable, Iterator, Sequence, Sized
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from torch.utils.data import Sampler, SequentialSampler
from transformers import Trainer

from hf_rec.columns import INPUT_IDS


_STEPS_AT_ONCE = 50  # of which the rows are sorted together: more gives less padding, and less chance
_ROWS_AT_ONCE = 10_000  # of a data set that are in memory while they are measured


class LengthGroups(Sampler[int]):
    """
    A permutation of the rows, a function of seed and epoch alone, in which the rows of a step are of about one length.

    All rows are shuffled, those of every 50 steps are sorted by length and cut into steps, and all steps are shuffled.
    A step holds the same rows however it is cut into micro-batches and processes.

    Args:
        lengths (`np.ndarray` of shape `(N,)`): Tokens or events of each row.
        step_rows (`int`): Rows of an optimizer step, those of all micro-batches and processes.
        seed (`int`): Of the run.
        epoch (`Callable[[], int]`): Tells the epoch that begins. (`set_epoch`, which torch's samplers have for this,
            is not called on a sampler inside a resumed data loader of several processes: accelerate 1.15.)
    """

    def __init__(self, lengths: np.ndarray, step_rows: int, seed: int, epoch: Callable[[], int]):
        self.lengths = lengths
        self.step_rows = step_rows
        self.seed = seed
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng((self.seed, self.epoch()))
        order = generator.permutation(len(self.lengths))
        pool = _STEPS_AT_ONCE * self.step_rows
        for start in range(0, len(order), pool):
            rows = order[start : start + pool]
            order[start : start + pool] = rows[np.argsort(self.lengths[rows], kind="stable")]
        whole = len(order) // self.step_rows * self.step_rows
        steps = order[:whole].reshape(-1, self.step_rows)
        yield from generator.permutation(steps).ravel().tolist()
        yield from order[whole:].tolist()  # a step of fewer rows is the last one


def row_lengths(dataset: Dataset, columns: Sequence[str]) -> np.ndarray:
    """
    Number of values that each row has in some columns of lists, or of lists of lists, together.

    Args:
        dataset (`datasets.Dataset`): N rows.
        columns (`Sequence[str]`): Names.

    Returns:
        `np.ndarray` of shape `(N,)`, int64.
    """
    parts = dataset.select_columns(list(columns)).with_format("arrow").iter(batch_size=_ROWS_AT_ONCE)
    return np.concatenate([sum(_list_lengths(part.column(name)) for name in columns) for part in parts])


def _list_lengths(column: pa.ChunkedArray) -> np.ndarray:
    lengths = pc.list_value_length(column).to_numpy().astype(np.int64)
    if not pa.types.is_list(column.type.value_type):
        return lengths
    inner = pc.list_value_length(pc.list_flatten(column)).to_numpy().astype(np.int64)
    ends = np.concatenate([[0], np.cumsum(inner)])[np.cumsum(lengths)]
    return np.diff(ends, prepend=0)


class GroupsByLength(Trainer):
    """Trainer whose `train_sampling_strategy="group_by_length"` reads rows in the order of [`LengthGroups`]."""

    _length_columns: tuple[str, ...] = (INPUT_IDS,)  # of lists, which together are the length of a training row

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length" or not isinstance(dataset, Dataset):
            return super()._get_train_sampler(train_dataset)
        args, column = self.args, self.args.length_column_name
        known = column in dataset.column_names
        return LengthGroups(
            np.asarray(dataset[column]) if known else row_lengths(dataset, self._length_columns),
            args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
            args.seed if args.data_seed is None else args.data_seed,
            epoch=lambda: int(self.state.epoch or 0),
        )

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler[int] | None:
        # In the order of the rows, as predictions are expected to be, whatever the order of training
        return SequentialSampler(eval_dataset) if isinstance(eval_dataset, Sized) else None
