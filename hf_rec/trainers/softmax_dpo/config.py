"""Arguments of `SoftmaxDPOTrainer`."""

from dataclasses import dataclass, field
from typing import Literal

from trl import DPOConfig

from hf_rec.trainers.language_config import LanguageConfig


# DPO's arguments that this trainer has no place for, and the values they may have: TRL's defaults
_UNUSED: dict[str, tuple] = {
    "loss_type": (["sigmoid"], "sigmoid"),
    "loss_weights": (None,),
    "ld_alpha": (None,),
    "f_divergence_type": ("reverse_kl",),
    "f_alpha_divergence_coef": (0.5,),
    "label_smoothing": (0.0,),
    "use_weighting": (False,),
    "discopop_tau": (0.05,),
    "truncation_mode": ("keep_start",),
    "padding_free": (False,),
    "pad_to_multiple_of": (None, "auto"),
    "pad_token": (None,),
}
# The reference stays as it is: a checkpoint keeps its hash, not its weights
_FIXED_REFERENCE = {"sync_ref_model": False, "ref_model_mixup_alpha": 0.6, "ref_model_sync_steps": 512}


@dataclass
class SoftmaxDPOConfig(LanguageConfig, DPOConfig):
    """
    Arguments of [`SoftmaxDPOTrainer`], on top of those of [`LanguageConfig`] and [`~trl.DPOConfig`]. Defaults are
    those of S-DPO (https://huggingface.co/papers/2406.09215), and those of [`~transformers.TrainingArguments`] where
    TRL has its own (`bf16` and `gradient_checkpointing` are off).

    Parameters:
        beta (`float`, *optional*, defaults to `1.0`):
            Strength of the pull towards the reference, greater than 0.
        shared_prefix (`bool`, *optional*, defaults to `True`):
            Compute the prompt once for all answers of a row, where the model can do so with the same result.
        negatives (`str`, *optional*, defaults to `"random"`):
            Rejected items of rows `{history, target}` without a column `rejected`: `"random"` (uniform),
            `"popularity"`, `"hard"` (from `ranked_lists`), `"in_batch"` (the targets of the other rows of a
            micro-batch on one process) or `"own_lists"` (self-play: from the lists that the model gives for the
            training rows before its first step). Evaluation rows get random ones under the last three.
        num_negatives (`int`, *optional*, defaults to `3`):
            How many are drawn for a row. Ignored where the rows bring their own, and by `"in_batch"`.
        ranked_lists (`str` or `None`, *optional*, defaults to `None`):
            For `"hard"`: the folder that `hf-rec evaluate` wrote for the training rows, or its `predictions.parquet`.
        list_length (`int`, *optional*, defaults to `10`):
            For `"own_lists"`: items of each list, more than `num_negatives`. Those of the history are left out of the
            search, the target is taken out of its result.
        self_play_round (`int`, *optional*, defaults to `1`):
            For `"own_lists"`: number of the round, which the draws depend on, beside `seed` and the row.
            [`~hf_rec.trainers.softmax_dpo.self_play.train_rounds`] counts it up.
        scoring (`str`, *optional*, defaults to `"valid"`):
            As in [`LanguageConfig`]: `"valid"` is the score that MSL trains; `"full_vocab"` is as published, and for
            rows without a catalog.
        tau (`float` or `None`, *optional*, defaults to `None`):
            As in [`LanguageConfig`]. It is fixed, and saved on.
        max_length (`int` or `None`, *optional*, defaults to `512`):
            Tokens of a prompt with one answer. Of items, the oldest of a history are dropped to fit (a prompt that
            comes with the model or is given to the trainer has its own limit); a text row that does not fit is dropped
            whole and counted. Answers are never cut.
        eval_num_beams (`int` or `None`, *optional*, defaults to `0`):
            As in [`LanguageConfig`]. A ranking needs item rows.
        prompt_form, max_history, item_path, history_path, item_attributes, instruction, template, path_token_init,
        seen, train_sampling_strategy, dataset_num_proc, model_init_kwargs:
            As in [`LanguageConfig`].
    """

    learning_rate: float = field(default=1e-5, metadata={"help": "Initial learning rate of AdamW."})
    beta: float = field(default=1.0, metadata={"help": "Strength of the pull towards the reference, greater than 0."})
    shared_prefix: bool = field(default=True, metadata={"help": "Compute the prompt once for all answers of a row."})
    negatives: Literal["random", "popularity", "hard", "in_batch", "own_lists"] = field(
        default="random", metadata={"help": "Where rejected items come from."}
    )
    num_negatives: int = field(default=3, metadata={"help": "Rejected items drawn for a row."})
    ranked_lists: str | None = field(default=None, metadata={"help": "For 'hard': folder of `hf-rec evaluate`."})
    list_length: int = field(default=10, metadata={"help": "For 'own_lists': items of each list."})
    self_play_round: int = field(default=1, metadata={"help": "For 'own_lists': number of the round, part of draws."})
    max_length: int | None = field(default=512, metadata={"help": "Tokens of a prompt with one answer."})
    eval_num_beams: int | None = field(
        default=0, metadata={"help": "Beams of the ranking in evaluation: None for 20, 0 for no ranking."}
    )
    logging_steps: float = field(default=10, metadata={"help": "Log every so many steps."})

    def __post_init__(self) -> None:
        for name, values in _UNUSED.items():
            if getattr(self, name) not in values:
                raise ValueError(
                    f"`{name}` must be {values[0]!r}, got {getattr(self, name)!r}: this trainer would ignore it. Use "
                    "trl.DPOTrainer for the other ways of DPO."
                )
        for name, value in _FIXED_REFERENCE.items():
            if getattr(self, name) != value:
                raise ValueError(
                    f"`{name}` must be {value!r}, got {getattr(self, name)!r}: the reference does not move, since a "
                    "resumed run could not find it again. Start a second run from the saved model instead."
                )
        if self.router_aux_loss_coef:
            raise ValueError(
                f"`router_aux_loss_coef` must be 0 or None, got {self.router_aux_loss_coef}: this trainer adds no "
                "load-balancing loss."
            )
        super().__post_init__()
        if not self.beta > 0:
            raise ValueError(f"`beta` must be greater than 0, got {self.beta}. The usual value is 1.0.")
        if self.num_negatives < 1:
            raise ValueError(f"`num_negatives` must be at least 1, got {self.num_negatives}. 1 is plain DPO.")
        if (self.negatives == "hard") != (self.ranked_lists is not None):
            raise ValueError(
                f"`ranked_lists` goes with `negatives='hard'` and no other, got {self.ranked_lists!r} with "
                f"{self.negatives!r}."
            )
        if self.negatives == "own_lists" and self.list_length <= self.num_negatives:
            raise ValueError(
                f"`list_length` must be greater than `num_negatives`, {self.num_negatives}, got {self.list_length}: "
                "the target may be in the list, and is not rejected."
            )
        if self.self_play_round < 1:
            raise ValueError(f"`self_play_round` must be at least 1, got {self.self_play_round}.")
        if self.negatives == "in_batch" and self.precompute_ref_log_probs:
            raise ValueError(
                "`precompute_ref_log_probs` cannot go with `negatives='in_batch'`: the answers of a row are not known "
                "before its batch is."
            )
