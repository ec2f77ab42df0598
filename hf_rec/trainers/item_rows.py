"""Rows `{history, target}` as a trainer is given them: are they catalog rows, and which items occur in them."""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset
from torch import Tensor

from hf_rec.columns import HISTORY, TARGET
from hf_rec.data.splits import seen_items
from hf_rec.trie.csr import TrieCSR


def check_catalog_rows(dataset: Any, num_items: int) -> None:
    """
    Refuse raw ids, and rows of another catalog.

    Args:
        dataset (`datasets.Dataset` or `IterableDataset`): With `history` and `target`. Of a stream, which must not be
            used up, the first row is looked at.
        num_items (`int`): Items of the catalog.
    """
    if isinstance(dataset, Dataset):
        table = dataset.select_columns([HISTORY, TARGET]).with_format("arrow")[:]
    else:
        first = next(iter(dataset))
        table = pa.table({HISTORY: [first[HISTORY]], TARGET: [first[TARGET]]})
    for column, values in ((HISTORY, pc.list_flatten(table[HISTORY])), (TARGET, table[TARGET])):
        if not len(values):
            continue
        ends = pc.min_max(values).as_py()
        if not pa.types.is_integer(values.type) or ends["min"] < 0 or ends["max"] >= num_items:
            raise ValueError(
                f"`{column}` must hold catalog rows, whole numbers from 0 to {num_items - 1}, got values from "
                f"{ends['min']!r} to {ends['max']!r}. Turn raw ids into rows with `catalog.rows(ids)`, or make the "
                "data set with `hf_rec.data.splits.leave_one_out`, and give the catalog that belongs to it."
            )


def warm_leaves(train_dataset: Any, trie: TrieCSR | None, num_items: int) -> Tensor | None:
    """
    Which of the L leaves hold an item that occurs in the training rows.

    Returns:
        `torch.BoolTensor` of shape `(L + 1,)`, on the CPU: The last entry, for what is no leaf, is `False`. `None`
        where the rows do not tell items.
    """
    if trie is None or not isinstance(train_dataset, Dataset):
        return None
    if not {HISTORY, TARGET} <= set(train_dataset.column_names):
        return None
    warm = torch.zeros(len(trie) + 1, dtype=torch.bool)
    warm[trie.row_leaf(num_items).cpu()[sorted(seen_items(train_dataset))]] = True
    return warm
