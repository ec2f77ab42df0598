"""
Numbers for items that no held-out event has a say in.

Published ids often count items in the order in which users chose them, those of the test split too, and so does the
order of a catalog made from such a file: its rows would tell which items were chosen one after the other. The order of
the hashes of ids tells nothing. In the order in which the training rows name them, items that one user chose one after
the other get neighbouring numbers, which share digits (P5's sequential indexing,
https://huggingface.co/papers/2203.13366); these become one more text column of a catalog.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from hf_rec.columns import HISTORY, TARGET
from hf_rec.data.catalog import Catalog
from hf_rec.data.data_card import data_card_markdown
from hf_rec.files import replacing_folder


def numbers_in_hashed_order(ids: Sequence[int | str]) -> np.ndarray:
    """
    Number each item by its place, from 0, in the order of the SHA-256 of the raw ids.

    Args:
        ids (sequence of `int` or `str`): Raw ids of the items, N.

    Returns:
        `np.ndarray` of `int64`, shape `(N,)`: A number of `0 .. N - 1` for each item.
    """
    keys = [hashlib.sha256(json.dumps(item_id).encode()).digest() for item_id in ids]
    numbers = np.empty(len(keys), dtype=np.int64)
    numbers[sorted(range(len(keys)), key=keys.__getitem__)] = np.arange(len(keys))
    return numbers


def numbers_in_training_order(train: Dataset, num_items: int, seed: int = 0) -> np.ndarray:
    """
    Number each item by its first place in the training rows, row after row, oldest event first.

    Args:
        train (`datasets.Dataset`): Rows with `history` and `target`.
        num_items (`int`): Items of the catalog, N.
        seed (`int`, *optional*, defaults to `0`): Of the order of items that no training row names; they come last.

    Returns:
        `np.ndarray` of `int64`, shape `(N,)`: A number of `0 .. N - 1` for each catalog row.
    """
    numbers = np.full(num_items, -1, dtype=np.int64)
    count = 0
    for rows in train.select_columns([HISTORY, TARGET]).iter(batch_size=10_000):
        for history, target in zip(rows[HISTORY], rows[TARGET], strict=True):
            for item in (*history, target):
                if numbers[item] < 0:
                    numbers[item] = count
                    count += 1
    others = np.flatnonzero(numbers < 0)
    numbers[others] = count + np.random.default_rng(seed).permutation(len(others))
    return numbers


def add_number_column(
    folder: Path, catalog: Catalog, card: dict[str, Any], column: str, numbers: np.ndarray, settings: dict[str, Any]
) -> None:
    """
    Give the catalog of a prepared folder a text column with the numbers, and its card an entry in `numbers`.

    Args:
        folder (`Path`): Written by `hf-rec prepare`; its splits stay as they are.
        catalog ([`Catalog`]), card (`dict`): Of the folder.
        column (`str`): Name of the new column.
        numbers (`np.ndarray` of `int`, shape `(N,)`): Of the catalog's rows.
        settings (`dict`): How they were made, JSON values.
    """
    attributes = [
        old | {column: str(number)} for old, number in zip(catalog.attributes, numbers.tolist(), strict=True)
    ]
    catalog = Catalog(catalog.ids, catalog.original_titles, attributes, titles=catalog.titles)
    digest = hashlib.sha256(np.ascontiguousarray(numbers, dtype="<i8").tobytes()).hexdigest()
    card = card | {"numbers": card.get("numbers", {}) | {column: settings | {"sha256": digest}}}
    with replacing_folder(folder, last="data.json") as partial:
        catalog.save(partial)
        (partial / "README.md").write_text(data_card_markdown(card), encoding="utf-8")
        (partial / "data.json").write_text(json.dumps(card, indent=2, default=str) + "\n", encoding="utf-8")
