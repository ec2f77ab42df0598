"""
Ranked lists for the rows of a split: what one recommender says, for another to learn from.

A folder holds `lists.parquet`, one row a list (user, history and items as raw ids, best item first, with scores), and
`lists.json`, which says how it was made and names the hash of the other. It is written last.

Shapes: L lists · k places of a list.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hf_rec.columns import HISTORY, ITEM_IDS, SUPERVISE_FROM, USER_ID, column_values
from hf_rec.evaluation.predictions import histories_and_times
from hf_rec.files import file_sha256, replacing_folder
from hf_rec.processes import process_state


if TYPE_CHECKING:
    from datasets import Dataset

    from hf_rec.data.catalog import Catalog
    from hf_rec.recommenders.contract import Recommender

FORMAT, FORMAT_VERSION = "hf_rec.ranked_lists", 1
LISTS_FILE, INDEX_FILE = "lists.parquet", "lists.json"
SCORES = "scores"


@dataclass(frozen=True)
class RankedLists:
    """
    Lists as they were read.

    Attributes:
        users (`list[str]`): User of each list.
        histories (`list[list[int]]`): What each list follows, in catalog rows.
        items (`np.ndarray` of shape `[L, k]`): Catalog rows, best first; -1 behind the last.
        scores (`np.ndarray` of shape `[L, k]`): Score of each, float32; `-inf` behind the last.
        index (`dict`): Content of `lists.json`.
    """

    users: list[str]
    histories: list[list[int]]
    items: np.ndarray
    scores: np.ndarray
    index: dict[str, Any]


def write_lists(
    recommender: "Recommender",
    dataset: "Dataset",
    out_dir: str | os.PathLike,
    *,
    split: str,
    name: str,
    k: int = 10,
    every_label: bool = False,
    exclude_history: bool = False,
    num_beams: int | None = None,
    batch_size: int | None = None,
) -> dict[str, Any]:
    """
    Write the list of a recommender for each row of a split. Under several processes each ranks its share of the rows
    and the main one writes.

    Args:
        recommender ([`~hf_rec.recommenders.contract.Recommender`]): Any one.
        dataset (`datasets.Dataset`): Split rows in catalog rows of the recommender.
        out_dir (`str` or `os.PathLike`): Folder of the two files. It appears complete or not at all.
        split (`str`), name (`str`): Of the rows and of the recommender, for `lists.json`.
        k (`int`, *optional*, defaults to `10`): Items of a list.
        every_label (`bool`, *optional*, defaults to `False`): A list before each event that may be a label (from
            `supervise_from` on), not before the target alone.
        exclude_history (`bool`, *optional*, defaults to `False`): List nothing that is in the history.
        num_beams (`int`, *optional*), batch_size (`int`, *optional*): Passed on to `recommend`.

    Returns:
        `dict`: Content of `lists.json`; on other processes than the main one, what the file would say of their share.
    """
    from accelerate.utils import gather_object

    from hf_rec.hub.files import RECOMMENDER_FILE

    users, histories, times = _wanted(dataset, recommender.catalog, every_label)
    if not users:
        raise ValueError(f"The split {split!r} has no row to make a list for.")
    if split == "train":
        check_finds_no_label(recommender, times)
    state = process_state()
    mine = range(state.process_index, len(users), state.num_processes)
    own = [histories[row] for row in mine]
    found = recommender.recommend(
        own,
        k=k,
        exclude=own if exclude_history else None,
        timestamps=None if times is None else [times[row] for row in mine],
        num_beams=num_beams,
        batch_size=batch_size,
    )
    shares = gather_object([(list(mine), found.item_ids, [row.tolist() for row in found.scores])])
    lists: list[tuple] = [()] * len(users)
    for rows, item_ids, scores in shares:
        for row, items, values in zip(rows, item_ids, scores, strict=True):
            lists[row] = (users[row], histories[row], items, values[: len(items)])
    index = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "name": name,
        "split": split,
        "lists": len(users),
        "k": k,
        "every_label": every_label,
        "exclude_history": exclude_history,
        "num_beams": num_beams,
        "catalog_sha256": recommender.catalog.sha256,
    }
    if recommender.folder is not None and (recommender.folder / RECOMMENDER_FILE).is_file():
        index["recommender_sha256"] = file_sha256(recommender.folder / RECOMMENDER_FILE)
    if state.is_main_process:
        with replacing_folder(out_dir, last=INDEX_FILE) as partial:
            columns = zip(*lists, strict=True)
            table = pa.table(dict(zip((USER_ID, HISTORY, ITEM_IDS, SCORES), map(list, columns), strict=True)))
            pq.write_table(table, partial / LISTS_FILE)
            index["lists_sha256"] = file_sha256(partial / LISTS_FILE)
            (partial / INDEX_FILE).write_text(json.dumps(index, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return index


def check_finds_no_label(recommender: "Recommender", times: list[list[int]] | None) -> None:
    """
    Refuse lists for training rows without times from a model that looks training rows up: it would find the row
    itself, whose label it then tells.

    Raises:
        `ValueError`: Where `recommender` is one and `times` is `None`.
    """
    model = getattr(recommender, "model", None)
    if getattr(model, "reads_times", False) and times is None:
        raise ValueError(
            f"The rows have no times, and a {type(model).__name__} looks training rows up: for each of these it would "
            "find the row itself, and tell its label. Give a model that reads histories alone, such as SASRec."
        )


def read_lists(folder: str | os.PathLike, catalog: "Catalog") -> RankedLists:
    """
    Read a folder that `write_lists` wrote.

    Args:
        folder (`str` or `os.PathLike`): The folder.
        catalog ([`~hf_rec.data.catalog.Catalog`]): Items; the lists may come from another catalog with these ids.

    Raises:
        `FileNotFoundError`, `ValueError`: Where a file is missing or has changed, or an item is not in the catalog.
    """
    folder = Path(folder)
    index = read_index_of_lists(folder)
    table = pq.read_table(folder / LISTS_FILE)
    lists = table[ITEM_IDS].to_pylist()
    items = np.full((len(lists), index["k"]), -1, dtype=np.int64)
    scores = np.full(items.shape, -np.inf, dtype=np.float32)
    filled = np.arange(index["k"]) < np.array([len(entry) for entry in lists], dtype=np.int64)[:, None]
    try:
        items[filled] = catalog.rows(item for entry in lists for item in entry)
        histories = [catalog.rows(history) for history in table[HISTORY].to_pylist()]
    except ValueError as error:
        raise ValueError(f"{folder} names an item that the catalog does not have: {error}") from error
    scores[filled] = table[SCORES].combine_chunks().flatten().to_numpy()
    return RankedLists(table[USER_ID].to_pylist(), histories, items, scores, index)


def read_index_of_lists(folder: str | os.PathLike) -> dict[str, Any]:
    """Content of `lists.json`, once the lists are known to be as they were written."""
    path = Path(folder) / INDEX_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: write lists with `hf-rec recommend --model MODEL --data DATA --split train "
            f"--out {folder}`."
        )
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        found = index["format"], index["version"]
        sha256, length = index["lists_sha256"], index["k"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}): write the lists again.") from error
    if found != (FORMAT, FORMAT_VERSION) or not isinstance(length, int):
        raise ValueError(f"{path} must be {(FORMAT, FORMAT_VERSION)}, found {found}: write the lists again.")
    lists = Path(folder) / LISTS_FILE
    if not lists.is_file() or file_sha256(lists) != sha256:
        raise ValueError(f"{lists} is not as it was written, or missing: write the lists again.")
    return index


def _wanted(
    dataset: "Dataset", catalog: "Catalog", every_label: bool
) -> tuple[list[str], list[list[Any]], list[list[int]] | None]:
    """User, history and times of each list. Nothing is predicted from an empty history, so there is none after it."""
    users = list(map(str, column_values(dataset, USER_ID).to_pylist()))
    histories, times = histories_and_times(dataset, catalog.ids)
    starts = column_values(dataset, SUPERVISE_FROM).to_pylist() if SUPERVISE_FROM in dataset.column_names else None
    cuts = [
        (row, length)
        for row, history in enumerate(histories)
        for length in range(max(starts[row] if starts and every_label else 1, 1), len(history) + 1)
        if every_label or length == len(history)
    ]
    return (
        [users[row] for row, _ in cuts],
        [histories[row][:length] for row, length in cuts],
        None if times is None else [times[row][:length] for row, length in cuts],
    )
