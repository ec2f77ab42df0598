"""
As many batches, and as many rows in each, for every process, where the rows do not come out even.

Two processes with batches of 4 take these steps from 11 rows:

    rows         0 1 2 3 4 5 6 7    8 9 10
    process 0    0 1 2 3            8 9 10 -
    process 1    4 5 6 7            - - - -

`-` is a row without labels. It weighs nothing in a sum over labels, or a mean over rows with a weight, so that the
steps are those of one process with batches of 8.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from accelerate.data_loader import BatchSamplerShard
from datasets import Dataset
from torch.utils.data import BatchSampler, DataLoader, IterableDataset
from torch.utils.data import Dataset as TorchDataset
from transformers import Trainer

from hf_rec.columns import HISTORY, IGNORE_INDEX, LABELS, SUPERVISE_FROM
from hf_rec.data.preference_collator import CHOSEN_IDS, WEIGHT


BLANK = -1  # index of a row without labels


class FilledBatches(BatchSampler):
    """
    The batches of another sampler, and blanks after them: all batches are full, and their number is a multiple.

    Args:
        batches (`torch.utils.data.BatchSampler`): With a last batch that may be smaller.
        multiple (`int`): Of the number of batches.
    """

    def __init__(self, batches: BatchSampler, multiple: int):
        self.batches = batches
        self.multiple = multiple
        self.sampler, self.batch_size, self.drop_last = batches.sampler, batches.batch_size, False

    def __len__(self) -> int:
        return len(self.batches) + -len(self.batches) % self.multiple

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            yield batch + [BLANK] * (self.batch_size - len(batch))
        for _ in range(len(self) - len(self.batches)):
            yield [BLANK] * self.batch_size


class WithBlanks(TorchDataset):
    """
    A data set of N rows that has a row without labels at the index [`BLANK`], beside its own.

    Args:
        dataset (`datasets.Dataset` or a data set whose `__getitems__` gives arrays of a whole batch): Of which
            [`without_labels`] knows the rows.
    """

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row: dict[str, Any] = self.dataset[max(index, 0)]
        return without_labels(row) if index == BLANK else row

    def __getitems__(self, indices: Sequence[int]) -> Any:
        rows = self.dataset.__getitems__([max(index, 0) for index in indices])
        for place, index in enumerate(indices):
            if index != BLANK:
                continue
            if isinstance(rows, dict):
                rows[LABELS][place] = IGNORE_INDEX
            else:
                rows[place] = without_labels(rows[place])
        return rows


class WholeStream(IterableDataset):
    """
    A stream that each process reads as a whole, to keep its own rows of every batch. A stream cut by files may give
    one process fewer batches than the others, which would then wait for it.

    Args:
        stream (`datasets.IterableDataset`): Rows.
        multiple (`int`): Of the number of rows, which rows without labels fill up; 1 for none.
    """

    def __init__(self, stream: Any, multiple: int):
        self.stream = stream
        self.multiple = multiple

    def __iter__(self) -> Iterator[dict[str, Any]]:
        count, row = 0, {}
        for row in self.stream:
            count += 1
            yield row
        for _ in range(-count % self.multiple):
            yield without_labels(row)

    def set_epoch(self, epoch: int) -> None:
        self.stream.set_epoch(epoch)


def without_labels(row: dict[str, Any]) -> dict[str, Any]:
    """A row of which nothing is trained: one with `labels`, of answers, or of a split with `history` and `target`."""
    if LABELS in row:
        return row | {LABELS: [IGNORE_INDEX] * len(row[LABELS])}
    if CHOSEN_IDS in row:
        return row | {WEIGHT: 0.0}
    return row | {SUPERVISE_FROM: len(row[HISTORY]) + 1}


class EvenBatches(Trainer):
    """Trainer of which several processes have equally many batches, from data sets and from streams."""

    _fills_with_blanks = False  # whether the loss leaves rows without labels out; rows are repeated otherwise

    def _get_dataloader(
        self,
        dataset: Any,
        description: str,
        batch_size: int,
        sampler_fn: Callable[[Any], Any] | None = None,
        is_training: bool = False,
        dataloader_key: str | None = None,
    ) -> DataLoader:
        if not is_training:
            return self._evaluation_loader(dataset, description, batch_size, sampler_fn, dataloader_key)
        rows, sampler, processes = dataset, sampler_fn, self.args.world_size
        fills = self._fills_with_blanks and not self.args.dataloader_drop_last
        if processes > 1 and isinstance(dataset, IterableDataset):
            rows = WholeStream(dataset, batch_size * processes if fills else 1)
        elif processes > 1 and fills:
            if isinstance(dataset, Dataset):
                dataset = self._remove_unused_columns(dataset, description=description)
            rows = WithBlanks(dataset)
            sampler = sampler_fn and (lambda _: sampler_fn(dataset))
        loader = super()._get_dataloader(rows, description, batch_size, sampler, is_training, dataloader_key)
        shard = getattr(loader, "batch_sampler", None)
        if isinstance(rows, WithBlanks) and isinstance(shard, BatchSamplerShard) and shard.num_processes > 1:
            shard.batch_sampler = FilledBatches(shard.batch_sampler, 1 if shard.split_batches else shard.num_processes)
        return loader

    def _evaluation_loader(
        self,
        dataset: Any,
        description: str,
        batch_size: int,
        sampler_fn: Callable[[Any], Any] | None,
        dataloader_key: str | None,
    ) -> DataLoader:
        """Batches with all rows, also where those of training leave out the last ones."""
        if self.args.world_size > 1 and isinstance(dataset, IterableDataset):
            # accelerate takes the rows that it repeats out of the results where it can count rows
            dataset = Dataset.from_list(list(dataset))
        drops, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super()._get_dataloader(dataset, description, batch_size, sampler_fn, False, dataloader_key)
        finally:
            self.args.dataloader_drop_last = drops
