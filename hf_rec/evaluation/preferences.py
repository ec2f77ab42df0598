"""
Does a recommender know what a user will like? AUC over all rows, and by user, on rows with ratings.

`preferences.json` holds the metrics, with intervals over users, and `preferences.parquet` the score of each row.
"""

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hf_rec.columns import DISLIKED, HISTORY, LIKED, TARGET, TARGET_ROW, USER_ID, column_values
from hf_rec.evaluation.run_files import rows_sha256
from hf_rec.files import file_sha256, replacing_folder
from hf_rec.metrics.preference import preference_intervals
from hf_rec.processes import process_state
from hf_rec.recommenders.reranker import Reranker


if TYPE_CHECKING:
    from datasets import Dataset

    from hf_rec.recommenders.contract import Recommender

FORMAT, FORMAT_VERSION = "hf_rec.evaluation.preferences", 1
PREFERENCES_FILE, SCORES_FILE = "preferences.json", "preferences.parquet"


def evaluate_preferences(
    recommender: "Recommender",
    dataset: "Dataset",
    out_dir: str | os.PathLike,
    *,
    split: str = "test",
    split_rule: str = "rated",
    name: str,
    cost: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """
    Score the target of each row, and say how well scores tell likes from dislikes.

    Args:
        recommender ([`~hf_rec.recommenders.contract.Recommender`]): What to measure. A re-ranker is told what the user
            disliked before, too; any other scores the target from the history alone.
        dataset (`datasets.Dataset`): Rows `{user_id, history, target, liked}`, and `disliked` where there is any.
        out_dir (`str` or `os.PathLike`): Folder of the two files; an existing one keeps its other files.
        split, split_rule (`str`, *optional*): Name of the split and how it was made, part of every key.
        name (`str`): Name of the method in tables.
        cost (`dict`, *optional*): What the model took; stored as it is.

    Returns:
        `dict`: The content of `preferences.json`: `metrics` maps `rated/split=.../auc` and `.../user_auc` to `{"mean",
        "low", "high"}`, beside counts and hashes.
    """
    from accelerate.utils import broadcast_object_list, gather_object

    columns = {column: column_values(dataset, column).to_pylist() for column in _columns(dataset)}
    liked = columns[LIKED]
    if len(set(liked)) < 2:
        raise ValueError(
            f"All {len(liked)} rows have `{LIKED}` = {liked[0] if liked else 'nothing'}: there is nothing to tell "
            "apart. Choose another threshold of ratings (`hf-rec prepare --like`)."
        )
    state, start = process_state(), time.perf_counter()
    indices = range(state.process_index, len(liked), state.num_processes)
    shards = gather_object([_scores(recommender, columns, indices)])
    result: list[Any] = [None]
    if state.is_main_process:
        scores = np.empty(len(liked), dtype=np.float32)
        for rank, shard in enumerate(shards):
            scores[rank :: state.num_processes] = shard
        users = columns[USER_ID]
        key = f"{split_rule}/split={split}"
        found = preference_intervals(scores, liked, users)
        result[0] = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "name": name,
            "split": split,
            "split_rule": split_rule,
            "rows": len(liked),
            "liked_share": float(np.mean(liked)),
            "users": len(set(users)),
            "rows_sha256": rows_sha256(users, columns[TARGET]),
            "catalog_sha256": recommender.catalog.sha256,
            "metrics": {f"{key}/{metric}": values for metric, values in found.items()},
            "nan_scores": int(np.isnan(scores).sum()),
            "cost": dict(cost or {}),
            "evaluation": {"seconds": time.perf_counter() - start, "processes": state.num_processes},
        }
        table = pa.table({USER_ID: users, TARGET_ROW: columns[TARGET], LIKED: liked, "score": scores})
        _write(Path(out_dir).resolve(), result[0], table)
    return broadcast_object_list(result)[0]


def _columns(dataset: "Dataset") -> list[str]:
    needed = [USER_ID, HISTORY, TARGET, LIKED]
    if missing := [column for column in needed if column not in dataset.column_names]:
        raise ValueError(
            f"Rows with ratings have the columns {', '.join(needed)}; the data set lacks {missing}. `hf-rec prepare "
            "--like` makes them."
        )
    return needed + [DISLIKED] * (DISLIKED in dataset.column_names)


def _scores(recommender: "Recommender", columns: dict[str, list], indices: range) -> list[float]:
    """Score of the target of each of some rows."""
    histories, targets = ([columns[name][row] for row in indices] for name in (HISTORY, TARGET))
    if not isinstance(recommender, Reranker):
        ids = recommender.catalog.ids
        raw = [[ids[item] for item in history] for history in histories]
        found = recommender.score(raw, [[ids[target]] for target in targets]) if raw else []
        return [float(values[0]) for values in found]
    disliked = [columns[DISLIKED][row] for row in indices] if DISLIKED in columns else [[] for _ in indices]
    scores: list[float] = []
    for start in range(0, len(targets), recommender.batch_size):
        part = slice(start, start + recommender.batch_size)
        judged = recommender.judge(histories[part], [[target] for target in targets[part]], disliked[part])
        scores += [float(values[0]) for values in judged]
    return scores


def _write(directory: Path, metrics: dict[str, Any], table: pa.Table) -> None:
    with replacing_folder(directory, last=PREFERENCES_FILE) as partial:
        pq.write_table(table, partial / SCORES_FILE)
        metrics["scores_sha256"] = file_sha256(partial / SCORES_FILE)
        text = json.dumps(metrics, indent=2, ensure_ascii=False) + "\n"
        (partial / PREFERENCES_FILE).write_text(text, encoding="utf-8")
