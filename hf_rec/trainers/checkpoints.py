"""Which checkpoint a run can go on from exactly, and how one appears whole or not at all."""

import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import Trainer, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints
from transformers.utils import logging

from hf_rec.hub.files import RECOMMENDER_FILE, check_folder, read_index
from hf_rec.trainers.changed_settings import changed_settings


logger = logging.get_logger(__name__)

_ADVICE = "Give a whole checkpoint, or `last` for the newest whole one."


def unfinished_folder(run_dir: str, step: int) -> Path:
    """The hidden folder inside `run_dir` in which the checkpoint of a step is written."""
    return Path(run_dir, f".{PREFIX_CHECKPOINT_DIR}-{step}.partial")


def remove_unfinished(run_dir: str) -> None:
    """Remove what runs that were killed while they wrote a checkpoint have left in `run_dir`."""
    for folder in Path(run_dir).glob(f".{PREFIX_CHECKPOINT_DIR}-*.partial"):
        shutil.rmtree(folder, ignore_errors=True)


def steps_of_checkpoints(run_dir: str) -> list[int]:
    """The steps of the checkpoints in `run_dir`, whole or not, the newest first."""
    names = [path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-") for path in Path(run_dir).glob("checkpoint-*")]
    return sorted((int(name) for name in names if name.isdecimal()), reverse=True)


def newest_whole_checkpoint(run_dir: str, processes: int = 1) -> str | None:
    """The newest checkpoint in `run_dir` that training can go on from exactly; those passed over are named."""
    for step in steps_of_checkpoints(run_dir):
        folder = os.path.join(run_dir, f"{PREFIX_CHECKPOINT_DIR}-{step}")
        problem = what_is_missing(folder, processes)
        if problem is None:
            return folder
        logger.warning(f"{folder} is passed over: {problem}.")
    return None


def checkpoint_to_resume(args: TrainingArguments) -> str | None:
    """
    What `--resume_from_checkpoint` stands for: a folder, or with `"last"` the newest whole checkpoint in `output_dir`,
    if there is one; so the same command line starts a run and goes on with it.

    Raises:
        `ValueError`: Where the folder is not a whole checkpoint, or `"last"` cannot find one that
            `save_only_model` would have written.
    """
    value = args.resume_from_checkpoint
    if value is None:
        return None
    if value != "last":
        check_checkpoint(value, args.world_size)
        return value
    if args.save_only_model:
        raise ValueError(
            "`resume_from_checkpoint` is 'last', but with `save_only_model` no checkpoint holds what training needs "
            "to go on. Leave one of the two out."
        )
    found = newest_whole_checkpoint(args.output_dir, args.world_size)
    if args.process_index == 0:
        where = f"goes on from {found}" if found else f"starts from scratch: {args.output_dir} has no whole checkpoint"
        logger.warning(f"Training {where}.")
    return found


def check_checkpoint(folder: str, processes: int = 1) -> None:
    """Refuse to go on from a folder that is not a whole checkpoint; the message says what it lacks."""
    if (problem := what_is_missing(folder, processes)) is not None:
        raise ValueError(f"`resume_from_checkpoint` is {folder!r}, but {problem}. {_ADVICE}")


def what_is_missing(folder: str, processes: int = 1) -> str | None:
    """
    Why training cannot go on exactly from a checkpoint, in words; `None` where it can.

    Args:
        folder (`str`): The checkpoint.
        processes (`int`, *optional*, defaults to `1`): Processes of the run that would go on; each has a random state.
    """
    root = Path(folder)
    if not root.is_dir():
        return "there is no such folder"
    problems = (_unreadable(path) for path in sorted(root.iterdir()) if path.is_file())
    found = (problem for problem in (*_absent(root, processes), *problems, _changed(root)) if problem is not None)
    return next(found, None)


def _absent(root: Path, processes: int) -> Iterator[str]:
    sharded = (root / "latest").is_file() or any(root.glob("pytorch_model_fsdp*"))  # DeepSpeed, FSDP: own files
    names = [TRAINER_STATE_NAME] if sharded else [TRAINER_STATE_NAME, OPTIMIZER_NAME, SCHEDULER_NAME]
    yield from (f"`{name}` is missing" for name in names if not (root / name).is_file())
    if not sharded and not any((*root.glob("*model*.safetensors"), *root.glob("*/adapter_model.safetensors"))):
        yield "the weights are missing"
    for index in root.glob("*.safetensors.index.json"):
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError):
            continue  # named with the unreadable files
        yield from (f"`{name}` is missing" for name in sorted(shards) if not (root / name).is_file())
    states = ["rng_state.pth"] if processes == 1 else [f"rng_state_{rank}.pth" for rank in range(processes)]
    if missing := [name for name in states if not (root / name).is_file()]:
        found = len(list(root.glob("rng_state*.pth")))
        hint = f" ({found} processes wrote it, {processes} would go on)" if found not in (0, processes) else ""
        yield f"`{missing[0]}` is missing{hint}"


def _changed(root: Path) -> str | None:
    """What `recommender.json` finds wrong with its files."""
    if not (root / RECOMMENDER_FILE).is_file():
        return None
    try:
        check_folder(root, read_index(root))
    except (OSError, ValueError) as error:
        return str(error)
    return None


def _unreadable(path: Path) -> str | None:
    try:
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".safetensors":
            with safe_open(path, framework="pt"):  # holds the size of the file against its header
                pass
        elif path.suffix in (".pt", ".pth"):
            zipfile.ZipFile(path).close()  # its directory stands at the end of the file
    except (ValueError, OSError, SafetensorError, zipfile.BadZipFile):
        return f"`{path.name}` cannot be read"
    return None


class WholeCheckpoints(Trainer):
    """Trainer whose checkpoints appear when they are whole, and which goes on from whole ones alone."""

    _writing: Path | None = None  # hidden folder of the checkpoint that is being written

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """
        As in [`~transformers.Trainer`]; `True` stands for the newest whole checkpoint, and one that training cannot go
        on from exactly is refused, by its files or by settings that have changed.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = newest_whole_checkpoint(self.args.output_dir, self.args.world_size)
            if resume_from_checkpoint is None:
                raise ValueError(
                    f"`resume_from_checkpoint` is True, but {self.args.output_dir} has no whole checkpoint."
                )
        elif resume_from_checkpoint:
            check_checkpoint(resume_from_checkpoint, self.args.world_size)
        if resume_from_checkpoint and (changed := changed_settings(resume_from_checkpoint, self.args, self)):
            what = f"{resume_from_checkpoint} was written by a run with other settings: {', '.join(changed)}"
            if not self.args.allow_changed:
                raise ValueError(
                    f"{what}. Go on with those, start anew in another `output_dir`, or give `--allow_changed`."
                )
            logger.warning(f"{what}. Training goes on as `allow_changed` asks.")
        if self.args.should_save:
            remove_unfinished(self.args.output_dir)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # A run that has ended, and is started again from its last checkpoint, takes no further step
        if self.state.global_step < self.state.max_steps and not self.control.should_training_stop:
            return super()._run_epoch(*args, **kwargs)
        if self.is_world_process_zero():
            logger.warning(
                f"Nothing is left to train: step {self.state.global_step} of {self.state.max_steps} is done"
                + (", and the run had stopped early." if self.control.should_training_stop else ".")
            )
        self.control.should_training_stop = True

    def last_checkpoint(self) -> str:
        """Where to go back to after a failure, as a sentence."""
        if (folder := self.state.best_model_checkpoint) is not None:
            return f"The best checkpoint so far is {folder}."
        folder = newest_whole_checkpoint(self.args.output_dir, self.args.world_size)
        return f"The last checkpoint is {folder}." if folder else "There is no checkpoint yet."

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._writing is None else str(self._writing)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """
        As in [`~transformers.Trainer`], in a hidden folder that takes its name when all processes have written their
        part.
        """
        run_dir, step = super()._get_output_dir(trial), self.state.global_step
        name = f"{PREFIX_CHECKPOINT_DIR}-{step}"
        self._writing = unfinished_folder(run_dir, step)
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            best = os.path.join(run_dir, f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}")
            if self.state.best_global_step == step or os.path.isdir(best):
                self.state.best_model_checkpoint = best  # every process will load it
                if self.args.should_save:
                    self.state.save_to_json(str(self._writing / name / TRAINER_STATE_NAME))
            if self.args.process_index == 0 or self.args.save_on_each_node and self.is_local_process_zero():
                shutil.rmtree(os.path.join(run_dir, name), ignore_errors=True)  # a torn one of an earlier run
                (self._writing / name).rename(os.path.join(run_dir, name))
        finally:
            if self.is_local_process_zero():
                shutil.rmtree(self._writing, ignore_errors=True)
            self._writing = None
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(os.path.join(run_dir, name))
        if self.args.should_save:
            rotate_checkpoints(run_dir, self.args.save_total_limit, self.state.best_model_checkpoint, use_mtime=True)
