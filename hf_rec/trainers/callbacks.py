"""Callbacks of runs that are interrupted: early stopping and the time taken, both over the parts of a run."""

import time
from pathlib import Path

from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_rec.cost import read_cost, write_cost


class StopEarly(EarlyStoppingCallback):
    """
    Early stopping that a run which has stopped, and is started again from its last checkpoint, still obeys. Goes with
    `restore_callback_states_from_checkpoint=True`, or a resumed run counts anew.
    """

    def on_step_end(self, args, state, control, **kwargs):
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

    def on_train_begin(self, args, state, control, **kwargs):
        self._start = time.perf_counter()

    def on_save(self, args, state, control, **kwargs):
        folder = Path(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
        if state.is_world_process_zero and folder.is_dir():
            write_cost(str(folder), {"seconds": self.earlier + time.perf_counter() - self._start})
