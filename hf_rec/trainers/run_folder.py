"""What a run finds in its folder: nothing, a run that was cut off, or a finished one that is not to be lost."""

import json
import shutil
from pathlib import Path

from transformers import TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from hf_rec.evaluation.cost import COST_FILE
from hf_rec.evaluation.run_files import METRICS_FILE, TRAINING_ARGS_FILE
from hf_rec.hub.files import RECOMMENDER_FILE
from hf_rec.trainers.changed_settings import changed_settings
from hf_rec.trainers.checkpoints import steps_of_checkpoints


logger = logging.get_logger(__name__)


def claim_run_folder(args: TrainingArguments, overwrite: bool = False) -> bool:
    """
    Whether a run has anything to do in `args.output_dir`; called before anything is read.

    A finished run that is started again with `resume_from_checkpoint` and the settings it had is left as it is. With
    `overwrite` and without `resume_from_checkpoint`, what the earlier run left is removed.

    Args:
        args ([`~transformers.TrainingArguments`]): Of the run.
        overwrite (`bool`, *optional*, defaults to `False`): Results of an earlier run may be replaced.

    Returns:
        `bool`: `False` where the run is finished.

    Raises:
        `FileExistsError`: Where the folder holds a run, and the arguments do not say what is to become of it.
    """
    folder = Path(args.output_dir)
    checkpoints = [folder / f"{PREFIX_CHECKPOINT_DIR}-{step}" for step in steps_of_checkpoints(str(folder))]
    trained, results = (folder / COST_FILE).is_file(), sorted(folder.glob(f"*/{METRICS_FILE}"))
    if args.resume_from_checkpoint is not None:
        return not trained or _goes_on(args, results, overwrite)
    if not (trained or checkpoints or results):
        return True
    if not overwrite:
        what = "a finished run" if trained else "a run that was cut off" if checkpoints else "results"
        raise FileExistsError(
            f"`output_dir` {args.output_dir} holds {what}. `--resume_from_checkpoint last` goes on with it, "
            "`--overwrite` starts anew in its place."
        )
    if args.process_index == 0:
        for checkpoint in checkpoints:
            shutil.rmtree(checkpoint)
        for path in (folder / COST_FILE, folder / RECOMMENDER_FILE, *results):
            path.unlink(missing_ok=True)
    return True


def _goes_on(args: TrainingArguments, results: list[Path], overwrite: bool) -> bool:
    """Whether a trained run has anything left to do."""
    changed = _length(args) + changed_settings(args.output_dir, args, None)
    if not changed and (results or not args.do_predict):
        if args.process_index == 0:
            logger.warning(f"Nothing is left to do: {args.output_dir} holds the finished run of these settings.")
        return False
    if changed and results and not overwrite:
        raise FileExistsError(
            f"`output_dir` {args.output_dir} holds a finished run with other settings: {', '.join(changed)}. "
            f"Going on would replace {results[0]}: give `--overwrite` for that, or choose another folder."
        )
    return True


def _length(args: TrainingArguments) -> list[str]:
    """How much longer or shorter the run is than the one in its folder, in words."""
    path = Path(args.output_dir, TRAINING_ARGS_FILE)
    there = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return [
        f"`{name}` ({there[name]!r} there, {getattr(args, name)!r} here)"
        for name in ("num_train_epochs", "max_steps")
        if name in there and there[name] != getattr(args, name)
    ]
