"""
Measure a recommender on a split: a predictions file and a metrics file, under a protocol that every key spells out.

`full/search=beam20/seen=keep/split=loo/ndcg@10` says: all items of the catalog compete, the list came from a beam
search of width 20 (`exact` where every item was scored), items of the history may be recommended, the split is
leave-one-out. A hit there is the target itself; under `.../level=title/ndcg@10` it is any item with the target's
title. docs/evaluation.md has the rules.
"""

import logging
import time
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from hf_rec.columns import HISTORY, ITEM_ROWS, TARGET, TARGET_ROW, USER_ID, column_values
from hf_rec.evaluation.predictions import predictions_table, users_and_targets
from hf_rec.evaluation.protocol import Seen, protocol_key
from hf_rec.evaluation.run_files import Comparison, RunPath, compare_runs, write_run
from hf_rec.evaluation.summary import summarize
from hf_rec.evaluation.target_ranks import RANK_COLUMNS, TargetRanker
from hf_rec.metrics.beyond_accuracy import LIST_METRICS, recommendation_counts
from hf_rec.processes import process_state


if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from hf_rec.data.catalog import Catalog
    from hf_rec.recommenders.contract import Recommender

__all__ = ["Comparison", "compare_runs", "evaluate_recommender"]

logger = logging.getLogger(__name__)


def evaluate_recommender(
    recommender: "Recommender",
    dataset: "Dataset | DatasetDict",
    out_dir: RunPath,
    *,
    split: str = "test",
    ks: Sequence[int] = (5, 10),
    seen: Seen = "keep",
    split_rule: str = "loo",
    name: str,
    num_beams: int | None = None,
    warm_items: Collection[int] | None = None,
    cost: dict[str, Any] | None = None,
    batch_size: int | None = None,
) -> dict[str, Any]:
    """
    Rank the targets of a split with a recommender and write `predictions.parquet` and `metrics.json`.

    Under several processes (`accelerate launch`), each ranks its share of the rows, the main one writes, and all
    return the same.

    Args:
        recommender ([`~hf_rec.recommenders.contract.Recommender`]):
            What to measure. Where it `is_exact`, ranks are those over all items, by `score_all(histories,
            timestamps=None) -> [U, N]`; otherwise they come from the lists of `recommend`.
        dataset (`datasets.Dataset` or `datasets.DatasetDict`):
            Split rows (catalog rows in `history` and `target`); of a `DatasetDict` the entry `split` is taken.
        out_dir (`str` or `os.PathLike`):
            Folder of the two files. It appears complete or not at all; an existing one keeps its other files.
        split (`str`, *optional*, defaults to `"test"`):
            Name of the split in the files.
        ks (`Sequence[int]`, *optional*, defaults to `(5, 10)`):
            Cut-offs. Lists hold `max(ks)` items.
        seen (`str`, *optional*, defaults to `"keep"`):
            `"mask"` keeps every item of the history out of the list. A target that is in its own history is then a
            miss, and counted.
        split_rule (`str`, *optional*, defaults to `"loo"`):
            How the split was made, part of every key: `"loo"`, `"time"`, `"ready"`, ...
        name (`str`):
            Name of the method in tables. Runs that differ in `cost["seed"]` alone share it.
        num_beams (`int`, *optional*):
            Width of the beam search; twice `max(ks)` but at least 20 unless given.
        warm_items (`Collection[int]`, *optional*):
            Catalog rows that occur in training. With it, warm and cold targets are reported apart.
        cost (`dict`, *optional*):
            What the model took, in any of `training_rows`, `distinct_labels`, `seconds`, `peak_memory` (bytes),
            `seed`; stored as it is.
        batch_size (`int`, *optional*):
            Histories ranked at a time.

    Returns:
        `dict`: The content of `metrics.json`: `metrics` and `slices` map full protocol keys to `{"mean", "low",
        "high"}` (95 % bootstrap interval over users), beside settings, counts, hashes and cost.
    """
    from accelerate.utils import broadcast_object_list, gather_object

    if isinstance(dataset, dict) and split not in dataset:
        raise ValueError(f"`split` must be one of {sorted(dataset)}, got {split!r}.")
    rows = dataset[split] if isinstance(dataset, dict) else dataset
    ks = tuple(sorted(set(ks)))
    _check_arguments(rows, recommender.catalog, ks, seen, split_rule, name, num_beams, batch_size)
    state, start = process_state(), time.perf_counter()
    ranker = TargetRanker(recommender, max(ks), seen, num_beams, batch_size)
    shard = ranker.rank(rows, range(state.process_index, len(rows), state.num_processes), state.is_main_process)
    shards = gather_object([shard])
    result: list[Any] = [None]
    if state.is_main_process:
        predictions = predictions_table(*users_and_targets(rows), _joined(shards), recommender.catalog, warm_items)
        settings = {
            "name": name,
            "split": split,
            "split_rule": split_rule,
            "search": ranker.search,
            "seen": seen,
            "candidates": None,
            "ks": list(ks),
            "scoring": getattr(recommender, "scoring", None),
            "tau": getattr(recommender, "tau", None),
            "protocol": protocol_key(num_beams=ranker.num_beams, seen=seen, split_rule=split_rule),
        }
        metrics = _summary(settings, rows, predictions, recommender.catalog)
        metrics["counts"]["nan_scores"] = num_nan = sum(shard["nan_scores"] for shard in shards)
        metrics["cost"] = dict(cost or {})
        metrics["evaluation"] = {"seconds": time.perf_counter() - start, "processes": state.num_processes}
        if num_nan:
            logger.warning("%s gave %d NaN scores; they rank last.", name, num_nan)
        result = [write_run(out_dir, metrics, predictions)]
    return broadcast_object_list(result)[0]


def _joined(shards: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """The ranks of all processes, in the order of the rows."""
    order = np.argsort(np.concatenate([shard["index"] for shard in shards]), kind="stable")
    joined = {key: [value for shard in shards for value in shard[key]] for key in RANK_COLUMNS}
    return {key: [values[place] for place in order] for key, values in joined.items()}


def _summary(settings: dict, rows: "Dataset", predictions: pa.Table, catalog: "Catalog") -> dict[str, Any]:
    """Everything in `metrics.json` that follows from the predictions."""
    targets, lists = predictions[TARGET_ROW].to_pylist(), predictions[ITEM_ROWS].to_pylist()
    histories, ks, protocol = column_values(rows, HISTORY).to_pylist(), settings["ks"], settings["protocol"]
    popularity = np.bincount(np.concatenate([*histories, []]).astype(np.int64), minlength=len(catalog))
    lists_by_k = {k: recommendation_counts(lists, len(catalog), k) for k in ks}
    values = {
        f"{protocol}/{key}@{k}": metric.value(counts, popularity)
        for k, counts in lists_by_k.items()
        for key, metric in LIST_METRICS.items()
    }
    beyond = {key: None if np.isnan(value) else value for key, value in values.items()}
    summary = summarize(settings, predictions, catalog) | {"beyond_accuracy": beyond}
    summary["counts"] |= {
        "short_lists": sum(len(items) < max(ks) for items in lists),
        "empty_histories": sum(not history for history in histories),
        "targets_in_history": sum(target in history for target, history in zip(targets, histories, strict=True)),
    }
    return summary


def _check_arguments(
    rows: "Dataset",
    catalog: "Catalog",
    ks: Sequence[int],
    seen: str,
    split_rule: str,
    name: str,
    num_beams: int | None,
    batch_size: int | None,
) -> None:
    if not ks or any(isinstance(k, bool) or not isinstance(k, int) or k < 1 for k in ks):
        raise ValueError(f"`ks` must hold whole numbers of at least 1, got {ks}.")
    protocol_key(seen=seen, split_rule=split_rule)  # refuses what it cannot name
    if not isinstance(name, str) or not name:
        raise ValueError(f"`name` must be the name of the method, got {name!r}.")
    for argument, value in (("num_beams", num_beams), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise ValueError(f"`{argument}` must be at least 1, got {value}.")
    missing = [column for column in (USER_ID, HISTORY, TARGET) if column not in rows.column_names]
    if missing:
        raise ValueError(f"`dataset` lacks the columns {missing}; it has {rows.column_names}.")
    if not len(rows):
        raise ValueError("`dataset` has no rows: there is nothing to measure.")
    targets = column_values(rows, TARGET).to_numpy()
    if targets.min() < 0 or targets.max() >= len(catalog):
        raise ValueError(
            f"`dataset` has targets {targets.min()}..{targets.max()}, but the catalog of the recommender has "
            f"{len(catalog)} items: they do not belong together."
        )
