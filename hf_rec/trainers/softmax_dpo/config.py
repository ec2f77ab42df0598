"""Arguments of `SoftmaxDPOTrainer`."""

from dataclasses import dataclass, field

from trl import DPOConfig

from hf_rec.trainers.base_config import RecommenderConfig


# DPO's arguments that the softmax loss has no place for, and the only value they may have
_UNUSED = {
    "loss_type": ["sigmoid"],
    "loss_weights": None,
    "ld_alpha": None,
    "f_divergence_type": "reverse_kl",
    "label_smoothing": 0.0,
    "use_weighting": False,
    "truncation_mode": "keep_start",
    "padding_free": False,
}


@dataclass
class SoftmaxDPOConfig(RecommenderConfig, DPOConfig):
    """
    Arguments of [`SoftmaxDPOTrainer`], on top of those of [`~trl.DPOConfig`]. Defaults are those of S-DPO
    (https://huggingface.co/papers/2406.09215), and those of [`~transformers.TrainingArguments`] where TRL has its own
    (`bf16` and `gradient_checkpointing` are off).

    Parameters:
        beta (`float`, *optional*, defaults to `1.0`):
            Strength of the pull towards the reference, greater than 0.
        scoring (`str`, *optional*, defaults to `"valid"`):
            `"valid"`: log-probabilities over the tokens that continue a real item, the score that MSL trains and that
            search ranks by. `"full_vocab"`: over the vocabulary, as published, and for rows without a catalog.
        tau (`float` or `None`, *optional*, defaults to `None`):
            Temperature of the softmax over tokens, greater than 0. It is fixed and saved on. `None` for that of the
            folder the model comes from, and 1.0 without one.
        shared_prefix (`bool`, *optional*, defaults to `True`):
            Compute the prompt once for all answers of a row, where the model can do so with the same result.
        negatives (`str`, *optional*, defaults to `"uniform"`):
            Rejected items of rows `{history, target}` without a column `rejected`: `"uniform"`, `"popularity"`,
            `"hard"` (from `ranked_lists`) or `"in_batch"` (the targets of the other rows of a micro-batch on one
            process). Evaluation rows get uniform ones under `"hard"` and `"in_batch"`.
        num_negatives (`int`, *optional*, defaults to `3`):
            How many are drawn for a row. Ignored where the rows bring their own, and by `"in_batch"`.
        ranked_lists (`str` or `None`, *optional*, defaults to `None`):
            For `"hard"`: the folder that `hf-rec evaluate` wrote for the training rows, or its `predictions.parquet`.
        prompt_form (`str`, *optional*, defaults to `"plain"`), max_history (`int`, *optional*):
            As in [`MSLConfig`], where neither the trainer nor the folder of the model has a prompt.
        max_length (`int` or `None`, *optional*, defaults to `512`):
            Tokens of a prompt with one answer. Of items, the oldest of a history are dropped to fit (a prompt that
            comes with the model or is given to the trainer has its own limit); a text row that does not fit is dropped
            whole and counted. Answers are never cut.
        eval_num_beams (`int` or `None`, *optional*, defaults to `0`):
            Beams of the constrained ranking during evaluation, which adds `ndcg@10` and the like: `None` for 20, 0 for
            no ranking. Needs item rows.
    """

    learning_rate: float = field(default=1e-5, metadata={"help": "Initial learning rate of AdamW."})
    beta: float = field(default=1.0, metadata={"help": "Strength of the pull towards the reference, greater than 0."})
    scoring: str = field(default="valid", metadata={"help": "'valid' or 'full_vocab'."})
    tau: float | None = field(default=None, metadata={"help": "Temperature; that of the model's folder if not given."})
    shared_prefix: bool = field(default=True, metadata={"help": "Compute the prompt once for all answers of a row."})
    negatives: str = field(default="uniform", metadata={"help": "'uniform', 'popularity', 'hard' or 'in_batch'."})
    num_negatives: int = field(default=3, metadata={"help": "Rejected items drawn for a row."})
    ranked_lists: str | None = field(default=None, metadata={"help": "For 'hard': folder of `hf-rec evaluate`."})
    prompt_form: str = field(default="plain", metadata={"help": "'plain', 'alpaca' or 'chat'."})
    max_history: int | None = field(default=None, metadata={"help": "Most items of a history."})
    max_length: int | None = field(default=512, metadata={"help": "Tokens of a prompt with one answer."})
    eval_num_beams: int | None = field(
        default=0, metadata={"help": "Beams of the ranking in evaluation: None for 20, 0 for no ranking."}
    )
    logging_steps: float = field(default=10, metadata={"help": "Log every so many steps."})

    def __post_init__(self):
        if isinstance(self.loss_type, str):
            self.loss_type = [self.loss_type]
        for name, value in _UNUSED.items():
            if getattr(self, name) != value:
                raise ValueError(
                    f"`{name}` must be {value!r}, got {getattr(self, name)!r}: the softmax loss would ignore it. Use "
                    "trl.DPOTrainer for the other losses of DPO."
                )
        if self.router_aux_loss_coef:
            raise ValueError(
                f"`router_aux_loss_coef` must be 0 or None, got {self.router_aux_loss_coef}: this trainer adds no "
                "load-balancing loss."
            )
        # Trainer takes a larger value for better unless the name ends in "loss"
        if self.greater_is_better is None and (self.metric_for_best_model or "").endswith("loss_warm"):
            self.greater_is_better = False
        super().__post_init__()
        for name, choices in {
            "scoring": ("valid", "full_vocab"),
            "negatives": ("uniform", "popularity", "hard", "in_batch"),
            "prompt_form": ("plain", "alpaca", "chat"),
        }.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` must be one of {choices}, got {getattr(self, name)!r}.")
        for name, value in {"beta": self.beta, "tau": 1.0 if self.tau is None else self.tau}.items():
            if not value > 0:
                raise ValueError(f"`{name}` must be greater than 0, got {value}. The usual value is 1.0.")
        if self.num_negatives < 1:
            raise ValueError(f"`num_negatives` must be at least 1, got {self.num_negatives}. 1 is plain DPO.")
        if (self.negatives == "hard") != (self.ranked_lists is not None):
            raise ValueError(
                f"`ranked_lists` goes with `negatives='hard'` and no other, got {self.ranked_lists!r} with "
                f"{self.negatives!r}."
            )
        if self.negatives == "in_batch" and self.precompute_ref_log_probs:
            raise ValueError(
                "`precompute_ref_log_probs` cannot go with `negatives='in_batch'`: the answers of a row are not known "
                "before its batch is."
            )
        if self.eval_num_beams is not None and self.eval_num_beams < 0:
            raise ValueError(f"`eval_num_beams` must be at least 0, got {self.eval_num_beams}. Use 0 for no ranking.")
