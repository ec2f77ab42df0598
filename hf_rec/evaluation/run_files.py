"""
The two files of a measured run, and paired comparison of runs.

`metrics.json` holds what was measured and how, `predictions.parquet` one row an example. `metrics.json` is written
last and names the hash of the other, so a folder that has one is complete. Nothing here loads a model.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hf_rec.columns import USER_ID
from hf_rec.files import file_sha256, replacing_folder
from hf_rec.metrics.ranking import metric_values
from hf_rec.metrics.significance import NUM_FLIPS, cluster_bootstrap, holm, sign_flip_test


FORMAT, FORMAT_VERSION = "hf_rec.evaluation.full", 2
METRICS_FILE, PREDICTIONS_FILE = "metrics.json", "predictions.parquet"
TRAINING_ARGS_FILE = "training_args.json"  # of a trainer, beside the weights
TITLE_LEVEL = "level=title/"  # before the metric in a key; item level is not marked

RunPath = str | os.PathLike


@dataclass(frozen=True)
class Comparison:
    """
    One method against the baseline on the same rows, in one metric.

    Attributes:
        name, baseline (`str`): The two methods.
        metric (`str`): Such as `"ndcg@10"`, or `"level=title/ndcg@10"`.
        mean, baseline_mean (`float`): Means over rows, averaged over the runs (seeds) of each method.
        difference, low, high (`float`): `mean - baseline_mean` and its 95 % bootstrap interval over users.
        p_value (`float`): Two-sided sign-flip test over users.
        p_holm (`float`): The same after Holm's correction over the metrics of this pair.
    """

    name: str
    baseline: str
    metric: str
    mean: float
    baseline_mean: float
    difference: float
    low: float
    high: float
    p_value: float
    p_holm: float


def rows_sha256(user_ids: Sequence[str], targets: Sequence[int]) -> str:
    """Hash of the (user, target) rows in their order: runs may be paired row by row where it is the same."""
    digest = hashlib.sha256()
    for user_id, target in zip(user_ids, targets, strict=True):
        digest.update(json.dumps([str(user_id), int(target)]).encode("ascii") + b"\n")
    return digest.hexdigest()


def write_run(directory: RunPath, metrics: dict[str, Any], predictions: pa.Table) -> dict[str, Any]:
    """
    Write both files into `directory`, which appears complete or not at all.

    An existing folder keeps its other files (a training run may be measured in place); its old `metrics.json` goes
    first. Returns what `metrics.json` holds.
    """
    directory = Path(directory).resolve()
    with replacing_folder(directory, last=METRICS_FILE) as partial:
        pq.write_table(predictions, partial / PREDICTIONS_FILE)
        metrics = metrics | {"predictions_sha256": file_sha256(partial / PREDICTIONS_FILE)}
        text = json.dumps(metrics, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        (partial / METRICS_FILE).write_text(text, encoding="utf-8")
        (directory / METRICS_FILE).unlink(missing_ok=True)
    return metrics


def read_metrics(directory: RunPath) -> dict[str, Any]:
    """`metrics.json` of a measured run, as [`~hf_rec.evaluation.full.evaluate_recommender`] returned it."""
    path = Path(directory) / METRICS_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: measure the model first, with `hf-rec evaluate`.")
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}): measure the model again.") from error
    found = (metrics.get("format"), metrics.get("version")) if isinstance(metrics, dict) else None
    if found != (FORMAT, FORMAT_VERSION):
        raise ValueError(f"{path} must be {(FORMAT, FORMAT_VERSION)}, found {found}: measure the model again.")
    return metrics


def read_predictions(directory: RunPath) -> pa.Table:
    """`predictions.parquet` of a measured run, checked against the hash in its `metrics.json`."""
    path, expected = Path(directory) / PREDICTIONS_FILE, read_metrics(directory)["predictions_sha256"]
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist, though its {METRICS_FILE} does: measure the model again.")
    if file_sha256(path) != expected:
        raise ValueError(f"{path} has changed since its {METRICS_FILE} was written: measure the model again.")
    return pq.read_table(path)


def method_name(model: RunPath) -> str:
    """
    What the method in a model folder is called in tables: as it was measured before below the folder, else by
    `run_name` of its training, else by the folder.
    """
    folder = Path(model)
    names = set()
    for path in folder.glob(f"*/{METRICS_FILE}"):
        with suppress(ValueError):  # a file that cannot be read names nothing
            names.add(read_metrics(path.parent)["name"])
    if len(names) == 1:
        return names.pop()
    arguments = folder / TRAINING_ARGS_FILE
    run_name = json.loads(arguments.read_text(encoding="utf-8")).get("run_name") if arguments.is_file() else None
    return run_name or folder.resolve().name


def row_values(predictions: pa.Table, metric: str) -> np.ndarray:
    """Values by row, shape `[R]`, of a metric such as `"ndcg@10"` or `"level=title/ndcg@10"`."""
    title = metric.startswith(TITLE_LEVEL)
    better, tied = ("title_better", "title_tied") if title else ("better", "tied")
    name = metric.removeprefix(TITLE_LEVEL)
    return metric_values(predictions[better].to_numpy(), predictions[tied].to_numpy(), name)


def mean_row_values(directories: Sequence[RunPath], metrics: Sequence[str]) -> np.ndarray:
    """Values by row, `[R, M]`, averaged over the runs (seeds) of one method."""
    return np.mean(
        [
            np.stack([row_values(predictions, metric) for metric in metrics], axis=1)
            for predictions in map(read_predictions, directories)
        ],
        axis=0,
    )


def compare_runs(
    dirs: Sequence[RunPath | Sequence[RunPath]],
    metric: str | Sequence[str] = "ndcg@10",
    *,
    num_samples: int = NUM_FLIPS,
    seed: int = 0,
) -> list[Comparison]:
    """
    Paired comparison of methods with the first one, on the same rows.

    Args:
        dirs (`Sequence`):
            Folders of measured runs. The first is the baseline. Instead of a folder, a list holds the runs (seeds) of
            one method, whose values are averaged row by row before the comparison.
        metric (`str` or `Sequence[str]`, *optional*, defaults to `"ndcg@10"`):
            Metrics. P-values are corrected by Holm's method over the metrics of each pair.
        num_samples (`int`, *optional*, defaults to 10,000):
            Sign patterns of the test; the bootstrap draws 2,000 samples.
        seed (`int`, *optional*, defaults to 0):
            Seed of both.

    Returns:
        `list[Comparison]`: One for each other method and metric.

    Raises:
        `ValueError`: Where rows, catalog, split rule, treatment of seen items, or list length do not allow a pairing.
    """
    groups = [[entry] if isinstance(entry, str | os.PathLike) else list(entry) for entry in dirs]
    if len(groups) < 2 or not all(groups):
        raise ValueError(f"`dirs` must name a baseline and at least one other run, got {dirs}.")
    metrics = [metric] if isinstance(metric, str) else list(metric)
    runs = [[read_metrics(path) for path in group] for group in groups]
    _check_comparable([path for group in groups for path in group], [run for group in runs for run in group], metrics)
    users = read_predictions(groups[0][0])[USER_ID].to_pylist()
    baseline, found = mean_row_values(groups[0], metrics), []
    for group, (run, *_) in zip(groups[1:], runs[1:], strict=True):
        values = mean_row_values(group, metrics)
        p_values = sign_flip_test(values - baseline, users, num_samples=num_samples, seed=seed)
        difference, low, high = cluster_bootstrap(values - baseline, users, seed=seed)
        corrected = holm(p_values)
        for column, key in enumerate(metrics):
            found.append(
                Comparison(
                    name=run["name"],
                    baseline=runs[0][0]["name"],
                    metric=key,
                    mean=float(values[:, column].mean()),
                    baseline_mean=float(baseline[:, column].mean()),
                    difference=float(difference[column]),
                    low=float(low[column]),
                    high=float(high[column]),
                    p_value=float(p_values[column]),
                    p_holm=float(corrected[column]),
                )
            )
    return found


def _check_comparable(paths: list[RunPath], runs: list[dict], metrics: list[str]) -> None:
    for key, what in (
        ("rows_sha256", "other (user, target) rows"),
        ("catalog_sha256", "another catalog"),
        ("split_rule", "another split rule"),
        ("seen", "another treatment of seen items"),
        ("candidates", "other candidates"),
    ):
        for path, run in zip(paths, runs, strict=True):
            if run[key] != runs[0][key]:
                raise ValueError(
                    f"{path} was measured with {what} than {paths[0]} (`{key}` {run[key]!r} against "
                    f"{runs[0][key]!r}), so they cannot be paired: measure both on the same split, the same way."
                )
    for name in metrics:
        k = name.rpartition("@")[2]
        for path, run in zip(paths, runs, strict=True):
            if k.isdecimal() and int(k) > max(run["ks"]):
                raise ValueError(f"`metric` {name!r} needs lists of {k} items, but {path} holds {max(run['ks'])}.")
