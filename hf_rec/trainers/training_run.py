"""What a run needs around `trainer.train`: where it goes on, what it cost, when it stops early, its test rows."""

import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import PartialState
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_rec.evaluation.candidates import draw_candidates, evaluate_candidates
from hf_rec.evaluation.cost import measured_cost, read_cost, write_cost
from hf_rec.evaluation.full import evaluate_recommender
from hf_rec.evaluation.protocol import Seen
from hf_rec.trainers.checkpoints import checkpoint_to_resume


if TYPE_CHECKING:
    from datasets import Dataset

    from hf_rec.recommenders.contract import Recommender


def train_and_save(trainer: Trainer, *, seconds_before: float = 0.0, **known: Any) -> dict[str, Any]:
    """
    Train, going on from where `args.resume_from_checkpoint` says, and leave in `args.output_dir` the model, the
    trainer's state and what the training cost.

    Args:
        trainer (`transformers.Trainer`): Ready to train.
        seconds_before (`float`, *optional*, defaults to `0.0`): Time already spent for this training.
        known: Entries of the cost that are known before, such as `training_rows` and `distinct_labels`.

    Returns:
        `dict`: `known`, `seed`, `seconds` (those of earlier parts of the run too) and `peak_memory` (bytes).
    """
    args = trainer.args
    checkpoint = checkpoint_to_resume(args)
    clock = TrainingClock(checkpoint)
    trainer.add_callback(clock)
    with measured_cost(**known, seed=args.seed) as cost:
        trainer.train(resume_from_checkpoint=checkpoint)
    cost["seconds"] += clock.earlier + seconds_before
    trainer.save_model()
    trainer.save_state()
    if args.should_save:
        write_cost(args.output_dir, cost)
    return cost


def rank_test_rows(
    recommender: "Recommender",
    rows: "Dataset",
    run_dir: str,
    *,
    split: str,
    split_rule: str,
    seen: Seen,
    name: str,
    warm_items: Collection[int],
    cost: dict[str, Any],
    num_candidates: Sequence[int] = (),
) -> None:
    """
    Rank the test rows of a run among all items, into `{run_dir}/{split}`, and print the result.

    Args:
        recommender ([`~hf_rec.recommenders.contract.Recommender`]): What the run has trained.
        rows (`datasets.Dataset`): Rows of the split.
        run_dir (`str`): Folder of the trained model.
        split, split_rule, seen, name, warm_items, cost: As in [`~hf_rec.evaluation.full.evaluate_recommender`].
        num_candidates (`Sequence[int]`, *optional*): Also rank among so many drawn items beside the target, into
            `{run_dir}/{split}_1+{number}`.
    """
    out = f"{run_dir}/{split}"
    described: dict[str, Any] = {"split_rule": split_rule, "name": name, "warm_items": warm_items, "cost": cost}
    result = evaluate_recommender(recommender, rows, out, split=split, seen=seen, **described)
    for number in num_candidates:
        candidates = draw_candidates(rows, recommender.catalog, number, split=split)
        evaluate_candidates(recommender, rows, candidates, f"{out}_1+{number}", **described)
    print_result(result, run_dir, out)


def print_result(result: dict[str, Any], run_dir: str, out_dir: str, reports: bool = True) -> None:
    """
    Print the test metrics of a run, where they are, and the command that comes next; on the main process.

    Args:
        result (`dict`): What an evaluation returned.
        run_dir (`str`): Folder of the trained model.
        out_dir (`str`): Folder of the evaluation's files.
        reports (`bool`, *optional*, defaults to `True`): Whether `hf-rec report` reads these files.
    """
    if not PartialState().is_main_process:
        return
    for key, value in result["metrics"].items():
        print(f"{key}: {value['mean']:.4f} [{value['low']:.4f}, {value['high']:.4f}]")
    following = f" Next: hf-rec report {run_dir} --out {run_dir}-report" if reports else ""
    print(f"{out_dir}: {result['rows']:,} rows.{following}")


class StopEarly(EarlyStoppingCallback):
    """
    Early stopping that a run which has stopped, and is started again from its last checkpoint, still obeys. Goes with
    `restore_callback_states_from_checkpoint=True`, or a resumed run counts anew.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        self._stop(control)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._stop(control)

    def _stop(self, control: Any) -> None:
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            control.should_training_stop = True


class TrainingClock(TrainerCallback):
    """
    Keeps the seconds of training so far beside each checkpoint, for a run that goes on from it.

    Args:
        checkpoint (`str`, *optional*): Folder that training goes on from.

    Attributes:
        earlier (`float`): Seconds of training before that checkpoint; 0 where there is none, or it does not say.
    """

    def __init__(self, checkpoint: str | None = None):
        self.earlier = float(read_cost(checkpoint).get("seconds", 0.0)) if checkpoint else 0.0
        self._start = time.perf_counter()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._start = time.perf_counter()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = Path(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
        if state.is_world_process_zero and folder.is_dir():
            write_cost(str(folder), {"seconds": self.earlier + time.perf_counter() - self._start})
