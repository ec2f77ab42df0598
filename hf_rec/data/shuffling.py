"""Histories in random order, to see what a model makes of the order it is given."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict

from hf_rec.columns import HISTORY, column_values
from hf_rec.data.prepare import load_prepared, write_prepared
from hf_rec.data.splits import sequence_hash


def shuffle_histories(dataset: Dataset, seed: int = 0) -> Dataset:
    """
    Put the items of each history in random order. Target and times stay as they are, so that the dates still ascend.

    Args:
        dataset (`datasets.Dataset`): Split rows.
        seed (`int`, *optional*, defaults to `0`): The order of a row depends on this and on its number alone.
    """
    histories = [
        np.random.default_rng((seed, row)).permutation(history).tolist()
        for row, history in enumerate(column_values(dataset, HISTORY).to_pylist())
    ]
    return Dataset.from_dict(dataset.to_dict() | {HISTORY: histories}, features=dataset.features)


def write_shuffled(directory: str | os.PathLike, out: str | os.PathLike, seed: int = 0) -> dict[str, Any]:
    """
    Copy a prepared folder with the histories of its train split shuffled, once. A model trained on the copy cannot
    have learnt order; validation and test are as they were.

    Args:
        directory (`str` or `os.PathLike`): Folder written by `hf-rec prepare`.
        out (`str` or `os.PathLike`): The folder to write. It must not exist, or be empty.
        seed (`int`, *optional*, defaults to `0`): Seed of the order.

    Returns:
        `dict`: The data card of the copy.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"`out` = {str(out)!r} exists and is not empty. Choose another folder, or remove it.")
    catalog, splits, card = load_prepared(directory)
    train = shuffle_histories(splits["train"], seed)
    card = card | {
        "shuffled": {"split": "train", "seed": seed},
        "sha256": card["sha256"] | {"train": sequence_hash(train)},
    }
    write_prepared(out, catalog, DatasetDict(splits | {"train": train}), card)
    return card
