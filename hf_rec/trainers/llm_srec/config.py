"""Arguments of `LLMSRecTrainer`."""

from dataclasses import dataclass, field
from typing import Literal

from hf_rec.evaluation.protocol import Seen
from hf_rec.losses.distillation import MatchForm
from hf_rec.trainers.base_config import RecommenderConfig


DEFAULT_NEGATIVES = {"random": 3, "in_batch": 16}


@dataclass
class LLMSRecConfig(RecommenderConfig):
    """
    Arguments of [`LLMSRecTrainer`], on top of those of [`~transformers.TrainingArguments`], some of which have other
    defaults here: those of the released code of LLM-SRec (https://huggingface.co/papers/2502.13909). That is 20 users
    a batch, Adam with betas 0.9 and 0.98 at 1e-4 without clipping, and selection by NDCG@10.

    Parameters:
        retrieval_weight, match_weight, uniformity_weight (`float`, *optional*, default to `1.0`):
            Weights of the three terms of the loss; a term of weight 0 is not computed.
        negatives (`str`, *optional*, defaults to `"random"`):
            `"random"`: for each user items of its own, outside its history, as published. `"in_batch"`: the targets of
            all other users of the micro-batch, and random items that all of them share.
        num_negatives (`int`, *optional*):
            Random negatives of each user, or shared by a micro-batch. Default: 3, or 16 shared ones. They are drawn
            evenly from the items that the teacher has seen.
        match_form (`str`, *optional*, defaults to `"mse"`):
            `"mse"` of unit vectors, as published, or `"infonce"`, the published ablation.
        match_temperature (`float`, *optional*, defaults to `0.07`):
            Temperature of `"infonce"`.
        uniformity_of (`str`, *optional*, defaults to `"teacher"`):
            Whose vectors are spread beside those of the users: the `"teacher"`'s, as in the released code, or those of
            the target `"items"`.
        cold_item_rate (`float`, *optional*, defaults to `0.0`):
            Share of the items whose slots are emptied in a step, so that the model learns to read items that the
            teacher has not seen. 0 as published.
        supervise (`str`, *optional*, defaults to `"last"`):
            `"last"`: a row is one sample, its target. `"all"`: each event from `supervise_from` on is one, with what
            came before.
        max_length (`int`, *optional*, defaults to `1024`), max_history (`int`, *optional*, defaults to `10`),
        max_item_tokens (`int`, *optional*, defaults to `64`), dates (`bool`, *optional*, defaults to `True`),
        item_attributes (`list[str]`, *optional*):
            As in [`~hf_rec.data.prompts.retrieval.RetrievalPrompt`]; used where the trainer is given no `prompt`.
        vector_size (`int`, *optional*, defaults to `128`), head_size (`int`, *optional*, defaults to `2048`):
            Widths of the retrieval vectors and of the inside of the heads; used where the trainer makes the model.
        evaluations_per_epoch (`int`, *optional*):
            Evaluate this many times an epoch (10 as published), and save as often where `save_strategy` is `"steps"`.
            An epoch of fewer steps is evaluated at each.
        lr_decay (`float`, *optional*, defaults to `1.0`):
            Factor of the learning rate at each evaluation; 0.95 as published.
        seen (`str`, *optional*, defaults to `"keep"`):
            `"keep"`: validation ranks all items, also those of the history. `"mask"`: it leaves these out.
        dataset_num_proc (`int`, *optional*):
            Processes that tokenise the data set.
        model_init_kwargs (`dict`, *optional*):
            Keyword arguments of `from_pretrained` of the language model, JSON values; used where the trainer makes the
            model.
    """

    per_device_train_batch_size: int = field(default=20, metadata={"help": "Users of a batch."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Learning rate of Adam."})
    lr_scheduler_type: str = field(default="constant", metadata={"help": "Schedule of the learning rate."})
    adam_beta2: float = field(default=0.98, metadata={"help": "Second beta of Adam."})
    num_train_epochs: float = field(default=10, metadata={"help": "Passes over the training rows."})
    max_grad_norm: float = field(default=0.0, metadata={"help": "Norm that gradients are clipped to; 0 for none."})
    metric_for_best_model: str | None = field(default="ndcg@10", metadata={"help": "Metric that selects the model."})

    retrieval_weight: float = field(default=1.0, metadata={"help": "Weight of the retrieval term."})
    match_weight: float = field(default=1.0, metadata={"help": "Weight of the match with the teacher."})
    uniformity_weight: float = field(default=1.0, metadata={"help": "Weight of the uniformity term."})
    negatives: Literal["random", "in_batch"] = field(
        default="random", metadata={"help": "Random items for each user, or other targets and shared random items."}
    )
    num_negatives: int | None = field(default=None, metadata={"help": "Random negatives; default 3, or 16 shared."})
    match_form: MatchForm = field(default="mse", metadata={"help": "Form of the match with the teacher."})
    match_temperature: float = field(default=0.07, metadata={"help": "Temperature of 'infonce'."})
    uniformity_of: Literal["teacher", "items"] = field(
        default="teacher", metadata={"help": "Whose vectors are spread beside those of the users."}
    )
    cold_item_rate: float = field(default=0.0, metadata={"help": "Share of items whose slots are emptied in a step."})
    supervise: Literal["last", "all"] = field(default="last", metadata={"help": "One sample a row, or one an event."})
    max_length: int = field(default=1024, metadata={"help": "Tokens of a prompt."})
    max_history: int = field(default=10, metadata={"help": "Most items of a history."})
    max_item_tokens: int = field(default=64, metadata={"help": "Most tokens of an item's text."})
    dates: bool = field(default=True, metadata={"help": "Write the dates of the history, where they are known."})
    item_attributes: list[str] | None = field(default=None, metadata={"help": "Attributes in the item prompt."})
    vector_size: int = field(default=128, metadata={"help": "Width of the retrieval vectors."})
    head_size: int = field(default=2048, metadata={"help": "Inner width of the heads."})
    evaluations_per_epoch: int | None = field(default=None, metadata={"help": "Evaluations an epoch."})
    lr_decay: float = field(default=1.0, metadata={"help": "Factor of the learning rate at each evaluation."})
    seen: Seen = field(default="keep", metadata={"help": "Validation: rank items of the history, or leave them out."})
    dataset_num_proc: int | None = field(default=None, metadata={"help": "Processes that tokenise the data set."})
    model_init_kwargs: dict | str | None = field(
        default=None, metadata={"help": "Keyword arguments of from_pretrained of the language model."}
    )

    _VALID_DICT_FIELDS = RecommenderConfig._VALID_DICT_FIELDS + ["model_init_kwargs"]

    def __post_init__(self) -> None:
        if self.evaluations_per_epoch is not None:
            self.eval_strategy, self.eval_steps = "steps", 1  # the trainer, which knows the epoch, sets the number
            if self.save_strategy == "steps":
                self.save_steps = 1
        super().__post_init__()
        for name in ("retrieval_weight", "match_weight", "uniformity_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"`{name}` must be at least 0, got {getattr(self, name)}.")
        if self.retrieval_weight == 0:
            raise ValueError("`retrieval_weight` must be greater than 0: nothing else teaches the item vectors.")
        for name in ("num_negatives", "evaluations_per_epoch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}. Leave it out for the default.")
        if not self.match_temperature > 0:
            raise ValueError(f"`match_temperature` must be greater than 0, got {self.match_temperature}.")
        if not 0 <= self.cold_item_rate < 1:
            raise ValueError(f"`cold_item_rate` must be at least 0 and less than 1, got {self.cold_item_rate}.")
        self._check_decay()

    def _check_decay(self) -> None:
        if not 0 < self.lr_decay <= 1:
            raise ValueError(f"`lr_decay` must be greater than 0 and at most 1, got {self.lr_decay}.")
        if self.lr_decay == 1:
            return
        if self.eval_strategy not in ("steps", "epoch"):
            raise ValueError(
                "`lr_decay` acts at evaluations, and there is none: set `evaluations_per_epoch` or `eval_strategy`."
            )
        if self.lr_scheduler_type != "constant":
            raise ValueError(
                "`lr_decay` is a schedule of its own: `lr_scheduler_type` must be 'constant', got "
                f"{self.lr_scheduler_type!r}."
            )

    @property
    def effective_num_negatives(self) -> int:
        """`num_negatives`, or its default."""
        return DEFAULT_NEGATIVES[self.negatives] if self.num_negatives is None else self.num_negatives
