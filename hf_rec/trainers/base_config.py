"""What the arguments of every trainer here share."""

from dataclasses import dataclass, field

import torch
from accelerate.utils import parse_flag_from_env
from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy

from hf_rec.fields import check_field_types
from hf_rec.trainers.selection_metric import smaller_is_better


@dataclass
class RecommenderConfig(TrainingArguments):
    """
    [`~transformers.TrainingArguments`] with strict types for our own fields, and without arguments that our losses
    would ignore.

    Parameters:
        early_stopping_patience (`int`, *optional*):
            Evaluations without a better `metric_for_best_model` after which training ends. Default: never.
        allow_changed (`bool`, *optional*, defaults to `False`):
            Go on from a checkpoint although settings, catalog, prompt or training rows are no longer those it was
            written with. What has changed is said.
        logging_nan_inf_filter (`bool`, *optional*, defaults to `False`):
            Leave losses that are not finite out of the log. Training stops at them in any case.
    """

    early_stopping_patience: int | None = field(default=None, metadata={"help": "Evaluations without progress."})
    allow_changed: bool = field(default=False, metadata={"help": "Resume with other settings than the checkpoint's."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Leave NaN and inf losses out of the log."})

    def __post_init__(self) -> None:
        for owner in type(self).__mro__:
            if owner is RecommenderConfig:
                break
            check_field_types(self, owner)
        if self.early_stopping_patience is not None and self.early_stopping_patience < 1:
            raise ValueError(
                f"`early_stopping_patience` must be at least 1, got {self.early_stopping_patience}. Leave it out for "
                "none."
            )
        if self.greater_is_better is None and smaller_is_better(self.metric_for_best_model or ""):
            self.greater_is_better: bool | None = False
        # accelerate 1.15 sees several CPU processes only where `use_cpu` says so; each would otherwise train its own
        # model, under `accelerate launch` with `use_cpu: true` too
        if parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available():
            self.use_cpu = True
        super().__post_init__()
        if self.accelerator_config.dispatch_batches is None:
            # Of a stream accelerate would else cut every tensor of a batch, index tensors too, into one part a process
            self.accelerator_config.dispatch_batches = False
        if self.label_smoothing_factor != 0:
            raise ValueError(
                f"`label_smoothing_factor` must be 0, got {self.label_smoothing_factor}: the loss of this trainer has "
                "no label smoothing and would ignore it."
            )
        if self.use_liger_kernel:
            raise ValueError(
                "`use_liger_kernel` must be False: it replaces the loss inside the model, which is not used here."
            )
        if self.batch_eval_metrics:
            raise ValueError(
                "`batch_eval_metrics` must be False: the metrics of this trainer are means over all rows, not over "
                "batches. Set `eval_accumulation_steps` where predictions do not fit on the device."
            )
        if getattr(self, "trust_remote_code", False) or "trust_remote_code" in (
            getattr(self, "model_init_kwargs", None) or {}
        ):
            raise ValueError(
                "`trust_remote_code` is never set here: no code of a model's folder is run. Load such a model "
                "yourself and hand it over."
            )
        if self.push_to_hub and self.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            raise ValueError(
                f"`hub_strategy` must be 'end' or 'every_save', got {self.hub_strategy.value!r}: checkpoints hold "
                "pickles and paths of this machine, which are not uploaded."
            )
