"""
Rounds of self-play (SPRec, https://huggingface.co/papers/2412.09243): in each the model of the round before makes
lists for the training rows, and a new training, with that model as its reference, rejects items of these lists.
"""

import copy
import gc
import json
import os
from pathlib import Path
from typing import Any

from accelerate import PartialState
from peft import PeftConfig
from transformers.utils import logging

from hf_rec.evaluation.cost import measured_cost, read_cost, write_cost
from hf_rec.files import file_sha256, replacing
from hf_rec.hub.files import RECOMMENDER_FILE
from hf_rec.trainers.changed_settings import changed_settings
from hf_rec.trainers.softmax_dpo.config import SoftmaxDPOConfig
from hf_rec.trainers.softmax_dpo.trainer import SoftmaxDPOTrainer
from hf_rec.trainers.training_run import train_and_save


logger = logging.get_logger(__name__)

ROUND_FILE = "round.json"  # written last: the round is finished


def train_rounds(
    model: str | os.PathLike,
    args: SoftmaxDPOConfig,
    num_rounds: int,
    *,
    train_dataset: Any,
    eval_dataset: Any = None,
    peft_config: PeftConfig | None = None,
    known_cost: dict[str, Any] | None = None,
    **trainer_arguments: Any,
) -> tuple[SoftmaxDPOTrainer | None, dict[str, Any]]:
    """
    Train rounds of self-play, each by a [`SoftmaxDPOTrainer`] of its own in `round-1`, `round-2`, ... of
    `args.output_dir`, which itself holds the model of the last finished round.

    Started again, it goes on in the round that is not finished, with the same lists, and does nothing where all are.
    `args.resume_from_checkpoint="last"` goes on from the last checkpoint of that round too.

    Args:
        model (`str` or `os.PathLike`): Folder or Hub id of the model that the first round starts from.
        args ([`SoftmaxDPOConfig`]): Of each round, with `negatives="own_lists"`. Each reads the training rows in
            another order: `data_seed` (by default `seed`) and up.
        num_rounds (`int`): Rounds, those that are finished included.
        train_dataset, eval_dataset: As of [`SoftmaxDPOTrainer`].
        peft_config ([`~peft.PeftConfig`], *optional*): Of an adapter that the first round makes and all train.
        known_cost (`dict`, *optional*): As of [`~hf_rec.trainers.training_run.train_and_save`].
        trainer_arguments: Further arguments of [`SoftmaxDPOTrainer`].

    Returns:
        `tuple[SoftmaxDPOTrainer | None, dict]`: The trainer of the last round, `None` where nothing was left to train;
        and the cost of all rounds, which `args.output_dir` keeps.
    """
    _check_arguments(args, num_rounds)
    start, trainer = os.fspath(model), None
    costs = []
    for number in range(1, num_rounds + 1):
        round_args = _round_args(args, number)
        folder = Path(round_args.output_dir)
        if not _is_finished(folder, start, round_args):
            if trainer is not None:
                trainer.accelerator.free_memory()
            trainer = None
            gc.collect()  # before the next one takes memory
            if round_args.process_index == 0:
                logger.warning(f"Round {number} of {num_rounds} starts from {start}.")
            with measured_cost() as making:  # of the lists
                trainer = SoftmaxDPOTrainer(
                    start,
                    args=round_args,
                    train_dataset=train_dataset,
                    eval_dataset=eval_dataset,
                    peft_config=peft_config if number == 1 else None,
                    **trainer_arguments,
                )
            train_and_save(trainer, seconds_before=making["seconds"], **(known_cost or {}))
            trainer.save_model(args.output_dir)
            _finish(folder, start)
        costs.append(read_cost(str(folder)))
        start = str(folder)
    cost = costs[-1] | {
        "seconds": sum(cost["seconds"] for cost in costs),
        "peak_memory": max(cost["peak_memory"] for cost in costs),
    }
    if args.process_index == 0:
        write_cost(args.output_dir, cost)
        if trainer is None:
            logger.warning(f"Nothing is left to train: all {num_rounds} rounds in {args.output_dir} are finished.")
    return trainer, cost


def _check_arguments(args: SoftmaxDPOConfig, num_rounds: int) -> None:
    if num_rounds < 1:
        raise ValueError(f"`num_rounds` must be at least 1, got {num_rounds}.")
    if args.negatives != "own_lists":
        raise ValueError(
            f"Rounds of self-play need `negatives='own_lists'`, got {args.negatives!r}: other negatives do not change "
            "from round to round."
        )
    if args.self_play_round != 1:
        raise ValueError(
            f"`self_play_round` must be left out, got {args.self_play_round}: the rounds are counted here."
        )
    if args.resume_from_checkpoint not in (None, "last"):
        raise ValueError(
            f"`resume_from_checkpoint` must be 'last', got {args.resume_from_checkpoint!r}: every round has its own "
            "checkpoints, and finished rounds are not trained again."
        )
    if args.push_to_hub:
        raise ValueError(
            "`push_to_hub` must be False: every round would push. Run `hf-rec push` on the folder when the rounds are "
            "finished."
        )
    if (extra := _round_folder(args, num_rounds + 1)).exists():
        raise ValueError(
            f"`num_rounds` is {num_rounds}, but there is {extra}. Ask for at least as many rounds as there are, or "
            "start in another `output_dir`."
        )


def _round_folder(args: SoftmaxDPOConfig, number: int) -> Path:
    return Path(args.output_dir, f"round-{number}")


def _round_args(args: SoftmaxDPOConfig, number: int) -> SoftmaxDPOConfig:
    """The arguments of a round. What names the version of the start is none of the later rounds."""
    found = copy.copy(args)
    found.output_dir = str(_round_folder(args, number))
    found.self_play_round = number
    found.data_seed = (args.seed if args.data_seed is None else args.data_seed) + number - 1
    if number > 1:
        found.model_init_kwargs = {key: value for key, value in args.loading_options.items() if key != "revision"}
    return found


def _is_finished(folder: Path, start: str, args: SoftmaxDPOConfig) -> bool:
    """Whether a folder holds this very round; one of another start or of other settings is refused."""
    if not (folder / ROUND_FILE).is_file():
        return False
    stored = json.loads((folder / ROUND_FILE).read_text(encoding="utf-8"))
    advice = "Start in another `output_dir`."
    if stored["start"] != _sha256(start):
        raise ValueError(f"{folder} is a round that started from another model than {start}. {advice}")
    if stored["model"] != _sha256(folder):
        raise ValueError(f"{folder} holds another model than its round ended with. {advice}")
    if changed := changed_settings(str(folder), args, None):
        raise ValueError(f"{folder} is a round with other settings: {', '.join(changed)}. {advice}")
    return True


def _finish(folder: Path, start: str) -> None:
    state = PartialState()
    state.wait_for_everyone()
    if state.is_main_process:
        with replacing(folder / ROUND_FILE) as partial:
            content = {"start": _sha256(start), "model": _sha256(folder)}
            partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    state.wait_for_everyone()


def _sha256(model: str | os.PathLike) -> str:
    """Hash of the file that has the hashes of all others; the name of a model that has no such file here."""
    path = Path(model, RECOMMENDER_FILE)
    return file_sha256(path) if path.is_file() else os.fspath(model)
