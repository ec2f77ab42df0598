"""
The lists that a model gives for its own training rows, from which self-play draws what it rejects (SPRec,
https://huggingface.co/papers/2412.09243).

They are made once, with the weights that training starts from, and kept in the output folder with their hash: a run
that goes on from a checkpoint draws from the same lists. Every process searches for its share of the rows.
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
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.integrations.fsdp import is_fsdp_enabled
from transformers.utils import logging

from hf_rec.columns import HISTORY, ITEM_ROWS, REJECTED, TARGET, column_values
from hf_rec.files import file_sha256, replacing
from hf_rec.processes import process_state
from hf_rec.recommenders.language_model import LanguageModelRecommender
from hf_rec.search.cache_probe import check_searchable
from hf_rec.trainers.item_rows import check_catalog_rows
from hf_rec.trainers.softmax_dpo.config import SoftmaxDPOConfig
from hf_rec.trainers.softmax_dpo.reference import describe_reference
from hf_rec.trainers.starting_point import StartingPoint


logger = logging.get_logger(__name__)

LIST_FOLDER = "own_lists"
TABLE_FILE, INDEX_FILE = "lists.parquet", "lists.json"
_FORMAT = 1


@dataclass(frozen=True)
class OwnLists:
    """
    Lists of a model for the rows of a data set.

    Attributes:
        lists (`list[list[int]]`): Catalog rows for each row, best first, without the items of its history.
        target_share (`float`): Share of the rows whose target is in their list.
        mean_length (`float`): Items of a list.
    """

    lists: list[list[int]]
    target_share: float
    mean_length: float

    @classmethod
    def of(cls, lists: list[list[int]], dataset: Dataset) -> "OwnLists":
        """Lists for the rows of a data set, with what there is to say about them."""
        targets = column_values(dataset, TARGET).to_pylist()
        listed = [target in items for target, items in zip(targets, lists, strict=True)]
        return cls(lists, float(np.mean(listed)), float(np.mean([len(items) for items in lists])))


def own_lists_of(start: StartingPoint, args: SoftmaxDPOConfig, train_dataset: Any) -> OwnLists:
    """
    The lists that the model of a starting point gives for the training rows: those that `args.output_dir` keeps, or
    new ones. Called on all processes.
    """
    _check_rows(train_dataset)
    if is_deepspeed_zero3_enabled() or is_fsdp_enabled():
        raise ValueError(
            "`negatives='own_lists'` needs whole weights to search with, which ZeRO-3 and FSDP share out. Rank the "
            "training rows with `hf-rec evaluate`, and take `negatives='hard'`."
        )
    if start.catalog is None or start.prompt is None or start.trie is None:
        raise ValueError(f"Rows with `{HISTORY}` and `{TARGET}` need `catalog`, whose rows they are.")
    check_catalog_rows(train_dataset, len(start.prompt))
    model = start.model
    if not (getattr(model, "hf_device_map", None) or getattr(model, "is_quantized", False)):  # these have their place
        model = model.to(args.device)
    trie = start.trie.csr().to(args.device)
    check_searchable(model, trie)
    recommender = LanguageModelRecommender(
        model,
        start.tokenizer,
        start.catalog,
        start.prompt,
        trie,
        tau=start.tau,
        scoring=args.scoring,
        batch_size=args.per_device_eval_batch_size,
    )
    sha256 = describe_reference(model, None, has_new_adapter=False)["sha256"]
    return find_or_make_lists(
        args.output_dir, recommender, train_dataset, length=args.list_length, model_sha256=sha256
    )


def find_or_make_lists(
    output_dir: str | os.PathLike,
    recommender: LanguageModelRecommender,
    dataset: Dataset,
    *,
    length: int,
    model_sha256: str,
) -> OwnLists:
    """
    The lists that `output_dir` keeps, or new ones, which it keeps from then on. Called on all processes.

    Args:
        output_dir (`str` or `os.PathLike`): Folder of the run.
        recommender ([`LanguageModelRecommender`]): The model before its first step.
        dataset (`datasets.Dataset`): Training rows, `history` and `target` in catalog rows.
        length (`int`): Items of each list; fewer where the catalog has no more outside a history.
        model_sha256 (`str`): Hash of the weights.

    Raises:
        `ValueError`: Where the lists that are kept are damaged, or of other rows, weights or settings.
    """
    state, folder = process_state(), Path(output_dir, LIST_FOLDER)
    made_from = {
        "format": _FORMAT,
        "rows": _rows_sha256(dataset),
        "model": model_sha256,
        "catalog": recommender.catalog.sha256,
        "prompt": recommender.prompt.sha256,
        "tau": recommender.tau,
        "scoring": recommender.scoring,
        "list_length": length,
    }
    kept: list[Any] = [None, None]  # lists, and what speaks against them
    if state.is_main_process:
        try:
            kept[0] = _read(folder, made_from)
        except ValueError as error:
            kept[1] = str(error)
    lists, problem = broadcast_object_list(kept)
    if problem is not None:
        raise ValueError(problem)
    if lists is not None:
        found = OwnLists.of(lists, dataset)
    else:
        if state.is_main_process:
            logger.warning(f"Making the model's own lists for {len(dataset):,} rows.")
        found = OwnLists.of(_make(recommender, dataset, length, state.process_index, state.num_processes), dataset)
        if state.is_main_process:
            _write(folder, found, made_from)
    if state.is_main_process:
        logger.warning(
            f"Own lists in {folder}: {found.mean_length:.1f} items on average; {found.target_share:.1%} of the "
            f"{len(dataset):,} rows have their target in the list."
        )
    return found


def _check_rows(dataset: Any) -> None:
    """Refuse training rows for which lists cannot be made, or would not be used."""
    columns = dataset.column_names if isinstance(dataset, Dataset) else None
    if columns is None or not {HISTORY, TARGET} <= set(columns):
        raise ValueError(
            f"`negatives='own_lists'` needs a `train_dataset` that is a `datasets.Dataset` with `{HISTORY}` and "
            f"`{TARGET}`, as every row gets a list, got {columns or type(dataset).__name__}."
        )
    if REJECTED in columns:
        raise ValueError(
            f"`negatives='own_lists'` cannot go with a column `{REJECTED}` in `train_dataset`, which comes first. "
            "Remove the column."
        )
    if not len(dataset):
        raise ValueError("`train_dataset` has no rows: there is nothing to make lists for.")


def _make(
    recommender: LanguageModelRecommender, dataset: Dataset, length: int, process: int, processes: int
) -> list[list[int]]:
    """Lists of all rows, each made by one process."""
    ids = recommender.catalog.ids
    own = column_values(dataset, HISTORY).to_pylist()[process::processes]
    histories = [[ids[row] for row in history] for history in own]
    found = recommender.recommend(histories, k=min(length, len(ids)), exclude=histories) if histories else None
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


def _write(folder: Path, found: OwnLists, made_from: dict[str, Any]) -> None:
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
