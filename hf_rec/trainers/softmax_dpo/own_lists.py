"""
The lists that a model gives for its own training rows, from which self-play draws what it rejects (SPRec,
https://huggingface.co/papers/2412.09243).

They are made once, with the weights that training starts from, and kept in the output folder with their hash: a run
that goes on from a checkpoint draws from the same lists.
"""

import os
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.integrations.fsdp import is_fsdp_enabled

from hf_rec.columns import HISTORY, REJECTED, TARGET
from hf_rec.recommenders.language_model import LanguageModelRecommender
from hf_rec.search.cache_probe import check_searchable
from hf_rec.trainers.item_rows import check_catalog_rows
from hf_rec.trainers.softmax_dpo.config import SoftmaxDPOConfig
from hf_rec.trainers.softmax_dpo.reference import describe_reference
from hf_rec.trainers.starting_point import StartingPoint
from hf_rec.trainers.stored_lists import StoredLists, stored_lists


LIST_FOLDER = "own_lists"


def own_lists_of(start: StartingPoint, args: SoftmaxDPOConfig, train_dataset: Any) -> StoredLists:
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
) -> StoredLists:
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
    made_from = {
        "model": model_sha256,
        "catalog": recommender.catalog.sha256,
        "prompt": recommender.prompt.sha256,
        "tau": recommender.tau,
        "scoring": recommender.scoring,
    }
    return stored_lists(Path(output_dir, LIST_FOLDER), recommender, dataset, length, made_from, seen="mask")


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
