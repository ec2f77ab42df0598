"""Finds the files of runs and sorts them into methods (runs that differ in their seed) and trainings."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_rec.columns import USER_ID
from hf_rec.evaluation.run_files import METRICS_FILE, RunPath, mean_row_values, read_metrics, read_predictions
from hf_rec.metrics.significance import cluster_bootstrap


STATE_FILE = "trainer_state.json"
_SECTION_KEYS = ("split", "split_rule", "seen", "candidates", "rows_sha256", "catalog_sha256")


@dataclass(frozen=True)
class Training:
    """
    What `trainer_state.json` logged.

    Attributes:
        label (`str`): Name in legends, unique where seeds or folders are.
        method (`str`): Name of the method, shared by its seeds.
        path (`Path`): The file.
        log_history (`list[dict]`): One entry a logging or evaluation step.
    """

    label: str
    method: str
    path: Path
    log_history: list[dict[str, Any]]

    def series(self, key: str, x: str = "step") -> tuple[np.ndarray, np.ndarray]:
        """Finite logged values of `key` against `x` (`"step"` or `"epoch"`); empty arrays where there are none."""
        points = [(entry[x], entry[key]) for entry in self.log_history if key in entry and x in entry]
        points = [point for point in points if all(isinstance(value, int | float) for value in point)]
        table = np.array(points, dtype=np.float64).reshape(-1, 2)
        table = table[np.isfinite(table).all(axis=1)]
        return table[:, 0], table[:, 1]


@dataclass(frozen=True)
class Method:
    """One row of a table: the measured runs of one method, which differ in their seed."""

    name: str
    paths: list[Path]
    runs: list[dict[str, Any]]

    @property
    def seeds(self) -> list:
        return [run["cost"].get("seed") for run in self.runs]

    def intervals(self, names: Sequence[str]) -> list[tuple[float, float, float]]:
        """Mean, low, high of metrics such as `"ndcg@10"`; over several seeds, of the mean over seeds of each row."""
        if len(self.runs) == 1:
            values = [self.runs[0]["metrics"][f"{self.runs[0]['protocol']}/{name}"] for name in names]
            return [(value["mean"], value["low"], value["high"]) for value in values]
        users = read_predictions(self.paths[0])[USER_ID].to_pylist()
        return list(zip(*cluster_bootstrap(mean_row_values(self.paths, names), users), strict=True))

    def means(self, name: str) -> list[float]:
        """Mean of a metric in each run."""
        return [run["metrics"][f"{run['protocol']}/{name}"]["mean"] for run in self.runs]

    def slice_mean(self, label: str, name: str) -> float | None:
        """Mean of a metric over a slice (`"warm"`, `"cold"`) and over seeds; `None` where a run has no such slice."""
        if any(label not in run["slices"] for run in self.runs):
            return None
        return float(
            np.mean([run["slices"][label]["metrics"][f"{run['protocol']}/{name}"]["mean"] for run in self.runs])
        )


@dataclass(frozen=True)
class Section:
    """Methods measured on the same rows in the same way, so that one table may hold their numbers."""

    methods: list[Method]

    @property
    def example(self) -> dict[str, Any]:
        return self.methods[0].runs[0]


def collect(run_dirs: Sequence[RunPath]) -> tuple[list[Section], list[Training]]:
    """
    Reads every measured run and training log in the given folders and up to two folders below.

    Args:
        run_dirs (`Sequence[str]`):
            Folders of runs. The training log of a measured run is the nearest `trainer_state.json` at or above it, or
            else that of the last checkpoint there.

    Returns:
        `tuple`: `list[Section]` and `list[Training]`, in the order given.
    """
    if isinstance(run_dirs, str | os.PathLike) or not run_dirs:
        raise ValueError(f"`run_dirs` must be a list of folders, got {run_dirs!r}.")
    measured: dict[Path, dict] = {}
    runs_of_state: dict[Path, list[dict]] = {}
    for run_dir in map(Path, run_dirs):
        if not run_dir.is_dir():
            raise FileNotFoundError(f"{run_dir} is no folder.")
        found = [run_dir, *sorted(run_dir.glob("*/")), *sorted(run_dir.glob("*/*/"))]
        found = [path for path in found if (path / METRICS_FILE).is_file()]
        for path in found:
            measured[path.resolve()] = run = read_metrics(path)
            state = _nearest_state(path, run_dir)
            if state is not None:
                runs_of_state.setdefault(state.resolve(), []).append(run)
        if not found:
            state = _nearest_state(run_dir, run_dir)
            if state is None:
                raise FileNotFoundError(
                    f"{run_dir} holds neither {METRICS_FILE} nor {STATE_FILE}: give a measured or a trained run."
                )
            runs_of_state.setdefault(state.resolve(), [])
    return _sections(measured), _trainings(runs_of_state)


def _nearest_state(path: Path, top: Path) -> Path | None:
    while True:
        if (path / STATE_FILE).is_file():
            return path / STATE_FILE
        steps = [state for state in path.glob(f"checkpoint-*/{STATE_FILE}") if state.parent.name[11:].isdecimal()]
        if steps:
            return max(steps, key=lambda state: int(state.parent.name[11:]))
        if path == top:
            return None
        path = path.parent


def _sections(measured: dict[Path, dict]) -> list[Section]:
    sections: dict[tuple, dict[tuple, list[Path]]] = {}
    for path, run in measured.items():
        section = sections.setdefault(tuple(run[key] for key in _SECTION_KEYS) + tuple(run["ks"]), {})
        section.setdefault((run["name"], run["search"]), []).append(path)
    found = []
    for methods in sections.values():
        names = [name for name, _ in methods]
        listed = []
        for (name, search), paths in methods.items():
            runs = [measured[path] for path in paths]
            method = Method(name if names.count(name) == 1 else f"{name} ({search})", paths, runs)
            if len(set(map(str, method.seeds))) < len(runs):
                seeds = ", ".join(map(str, method.seeds))
                raise ValueError(
                    f"The runs {', '.join(map(str, paths))} share the name {name!r}, and their seeds ({seeds}) do not "
                    f"tell them apart. Measure one again under a name of its own, `hf-rec evaluate --name ...`. Runs "
                    f"of one name are taken for seeds of one method; the seed of a run is under `cost` in its "
                    f"{METRICS_FILE}."
                )
            listed.append(method)
        found.append(Section(listed))
    return found


def _trainings(runs_of_state: dict[Path, list[dict]]) -> list[Training]:
    trainings: list[Training] = []
    for state, runs in runs_of_state.items():
        names, seeds = {run["name"] for run in runs}, {str(run["cost"].get("seed")) for run in runs}
        folder = _folder_name(state)
        method = names.pop() if len(names) == 1 else folder
        others = [other for other in runs_of_state.items() if other[0] != state]
        shared = any(run["name"] == method for _, other in others for run in other)
        label = method
        if shared:
            label = f"{method} ({folder})" if len(seeds) > 1 or "None" in seeds else f"{method}, seed {seeds.pop()}"
        try:
            log_history = json.loads(state.read_text(encoding="utf-8"))["log_history"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{state} is not the log of a Trainer ({error!r}): remove it or train again.") from error
        trainings.append(Training(label, method, state, log_history))
    return trainings


def _folder_name(state: Path) -> str:
    return state.parent.parent.name if state.parent.name.startswith("checkpoint-") else state.parent.name
