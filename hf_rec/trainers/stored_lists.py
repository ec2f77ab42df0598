"""
Lists that a recommender gives for the rows of a data set, made once and kept in a folder with their hash, so that a
run that goes on from a checkpoint reads the same ones. Every process ranks its share of the rows.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset
from transformers.utils import logging

from hf_rec.columns import HISTORY, ITEM_ROWS, TARGET, column_values
from hf_rec.evaluation.predictions import histories_and_times
from hf_rec.evaluation.protocol import Seen
from hf_rec.evaluation.ranked_lists import check_finds_no_label
from hf_rec.files import file_sha256, replacing
from hf_rec.processes import process_state
from hf_rec.recommenders.contract import Recommender


logger = logging.get_logger(__name__)

TABLE_FILE, INDEX_FILE = "lists.parquet", "lists.json"
_FORMAT = 1


@dataclass(frozen=True)
class StoredLists:
    """
    Lists of a recommender for the rows of a data set.

    Attributes:
        lists (`list[list[int]]`): Catalog rows for each row, best first.
        target_share (`float`): Share of the rows whose target is in their list.
        mean_length (`float`): Items of a list.
    """

    lists: list[list[int]]
    target_share: float
    mean_length: float

    @classmethod
    def of(cls, lists: list[list[int]], dataset: Dataset) -> "StoredLists":
        """Lists for the rows of a data set, with what there is to say about them."""
        targets = column_values(dataset, TARGET).to_pylist()
        listed = [target in items for target, items in zip(targets, lists, strict=True)]
        return cls(lists, float(np.mean(listed)), float(np.mean([len(items) for items in lists])))


def stored_lists(
    folder: str | os.PathLike | None,
    recommender: Recommender,
    dataset: Dataset,
    length: int,
    made_from: dict[str, Any],
    seen: Seen,
) -> StoredLists:
    """
    The lists that a folder keeps, or new ones, which it keeps from then on. Called on all processes.

    Args:
        folder (`str` or `os.PathLike` or `None`): Of these lists alone; `None` to keep them nowhere.
        recommender ([`~hf_rec.recommenders.contract.Recommender`]): What ranks.
        dataset (`datasets.Dataset`): Rows with `history` and `target`, in catalog rows.
        length (`int`): Items of each list; fewer where the catalog has no more.
        made_from (`dict`): What else the lists depend on, JSON values: hashes of weights and catalog, settings.
        seen (`str`): `"mask"` leaves the items of a history out of its list.

    Raises:
        `ValueError`: Where the lists that are kept are damaged, or of other rows, weights or settings.
    """
    state, folder = process_state(), None if folder is None else Path(folder)
    made_from = {"format": _FORMAT, "rows": _rows_sha256(dataset)} | made_from | {"list_length": length, "seen": seen}
    kept: list[Any] = [None, None]  # lists, and what speaks against them
    if state.is_main_process and folder is not None:
        try:
            kept[0] = _read(folder, made_from)
        except ValueError as error:
            kept[1] = str(error)
    lists, problem = broadcast_object_list(kept)
    if problem is not None:
        raise ValueError(problem)
    if lists is not None:
        found = StoredLists.of(lists, dataset)
    else:
        if state.is_main_process:
            logger.warning(f"Making the lists of a {type(recommender).__name__} for {len(dataset):,} rows.")
        shard = (state.process_index, state.num_processes)
        found = StoredLists.of(_make(recommender, dataset, length, seen, *shard), dataset)
        if state.is_main_process and folder is not None:
            _write(folder, found, made_from)
    if state.is_main_process:
        logger.warning(
            f"Lists of a {type(recommender).__name__}: {found.mean_length:.1f} items on average; "
            f"{found.target_share:.1%} of the {len(dataset):,} rows have their target in the list."
        )
    return found


def _make(
    recommender: Recommender, dataset: Dataset, length: int, seen: Seen, process: int, processes: int
) -> list[list[int]]:
    """Lists of all rows, each made by one process."""
    ids = recommender.catalog.ids
    every, every_time = histories_and_times(dataset, ids)
    check_finds_no_label(recommender, every_time)
    histories, times = every[process::processes], every_time and every_time[process::processes]
    exclude = histories if seen == "mask" else None
    found = None
    if histories:
        found = recommender.recommend(histories, k=min(length, len(ids)), exclude=exclude, timestamps=times)
    shards = gather_object([[] if found is None else [recommender.catalog.rows(items) for items in found.item_ids]])
    lists: list[list[int]] = [[] for _ in range(len(dataset))]
    for rank, shard in enumerate(shards):
        lists[rank::processes] = shard
    return lists


def _read(folder: Path, made_from: dict[str, Any]) -> list[list[int]] | None:
    """The lists in a folder; `None` where it has none, or not yet all of them."""
    if not (folder / INDEX_FILE).is_file():
        return None
    advice = f"Delete {folder} for new lists, or start in another `output_dir`."
    try:
        index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
        whole = file_sha256(folder / TABLE_FILE) == index["sha256"]
        changed = [name for name, value in made_from.items() if index["made_from"].get(name) != value]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"The lists in {folder} are damaged ({error!r}). {advice}") from error
    if not whole:
        raise ValueError(f"{folder / TABLE_FILE} is not as it was saved. {advice}")
    if changed:
        names = ", ".join(f"`{name}`" for name in changed)
        raise ValueError(f"The lists in {folder} were made with others of these than the run has: {names}. {advice}")
    lists: list[list[int]] = pq.read_table(folder / TABLE_FILE)[ITEM_ROWS].to_pylist()
    return lists


def _write(folder: Path, found: StoredLists, made_from: dict[str, Any]) -> None:
    """The table, then the index that makes it count."""
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / TABLE_FILE) as partial:
        pq.write_table(pa.table({ITEM_ROWS: pa.array(found.lists, pa.list_(pa.int64()))}), partial)
    index = {
        "made_from": made_from,
        "target_share": found.target_share,
        "mean_length": found.mean_length,
        "sha256": file_sha256(folder / TABLE_FILE),
    }
    with replacing(folder / INDEX_FILE) as partial:
        partial.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _rows_sha256(dataset: Dataset) -> str:
    histories = column_values(dataset, HISTORY)
    digest = hashlib.sha256()
    for values in (pc.list_value_length(histories), pc.list_flatten(histories), column_values(dataset, TARGET)):
        digest.update(np.ascontiguousarray(values.to_numpy(), dtype=np.int64).tobytes())
    return digest.hexdigest()
