"""Arguments of `MSLTrainer`."""

from dataclasses import dataclass, field
from typing import Literal

from hf_rec.data.prompts.item_tasks import check_tasks
from hf_rec.data.prompts.path_forms import check_supervision
from hf_rec.trainers.language_config import LanguageConfig


@dataclass
class MSLConfig(LanguageConfig):
    """
    Arguments of [`MSLTrainer`], on top of those of [`LanguageConfig`] and [`~transformers.TrainingArguments`].
    Defaults of the temperature are those of the released code of MSL (https://huggingface.co/papers/2504.04178).

    Parameters:
        loss_type (`str`, *optional*, defaults to `"msl"`):
            `"msl"`: masked softmax loss, the softmax over the tokens that continue a real item. `"lml"`: language
            modelling loss (plain SFT), the softmax over the vocabulary.
        adaptive_tau (`bool`, *optional*, defaults to `False`):
            Move the temperature once per optimizer step so that the first token of the target gets a probability of
            about `eta` among the tokens that start an item. `tau`, brought into `[tau_min, tau_max]`, is then the
            value before the first step.
        eta (`float`, *optional*, defaults to `0.25`):
            Wanted probability of the first token, between 0 and 1.
        tau_min (`float`, *optional*, defaults to `1.5`), tau_max (`float`, *optional*, defaults to `5.0`):
            Limits of the adaptive temperature.
        supervise (`str`, *optional*, defaults to `"last"`):
            `"last"`: the target is the only label of a row, as in the paper. `"all"`: so is every item of the history
            from `supervise_from` on that the prompt keeps; not for encoder-decoder models, whose encoder sees the
            history as a whole.
        tasks (`dict[str, float]` or `None`, *optional*, defaults to `None`):
            Tasks beside the next item, whose rows are made from the catalog where `item_path` is one of codes: rows of
            `"title_to_code"` and `"code_to_title"` for every row of `"next_item"`, such as `{"next_item": 1,
            "title_to_code": 0.2}`. A code is an answer under `loss_type` as every item; a title is text, whose every
            token is a label with cross-entropy over the vocabulary. Labels of all tasks weigh the same. Not for
            encoder-decoder models and streams.
        packing (`bool`, *optional*, defaults to `False`):
            Lay the rows of a training batch end to end, kept apart by attention: same loss, and next to no padding.
            Needs a model whose attention takes a mask of one's own (`"sdpa"`, `"eager"`) or sequence lengths
            (FlashAttention), which is tried out at the first step; others are refused, encoder-decoder models too.
        collaborative (`str` or `None`, *optional*, defaults to `None`):
            What the collaborative token behind each item of the history shows of a frozen sequence model, the
            `sequence_model` of the trainer: `"item"`, its vector of the item; `"state"`, the user after this event;
            `"both"`; or `"joint"`, the text-aligned vector of the item of a model that has such. `None` for no tokens,
            or for those of the folder the model comes from.
        user_token (`bool`, *optional*, defaults to `False`):
            Whether the history ends with a collaborative token of the user: the state after the last event.
        cold_item_rate (`float`, *optional*, defaults to `0.0`):
            Share of items whose collaborative tokens tell nothing in a step, whatever row they stand in, so that the
            model learns to go by the title alone too; from 0 to below 1.
        curriculum (`bool`, *optional*, defaults to `False`):
            Show collaborative tokens in a growing share of the steps (LLaRA,
            https://huggingface.co/papers/2312.02445): in step s of S with probability s / S, else they all tell
            nothing. What a step does depends on `seed` and its number alone.
        freeze_language_model (`bool`, *optional*, defaults to `False`):
            Train the projector of collaborative tokens alone; the language model, or its adapter, stays as it is.
        scoring, tau, prompt_form, max_length, max_history, item_path, history_path, item_attributes, instruction,
        template, path_token_init, seen, eval_num_beams, train_sampling_strategy, dataset_num_proc, model_init_kwargs:
            As in [`LanguageConfig`].
    """

    learning_rate: float = field(default=1e-4, metadata={"help": "Initial learning rate of AdamW."})
    loss_type: Literal["msl", "lml"] = field(
        default="msl", metadata={"help": "Masked softmax loss, or language modelling loss (plain SFT)."}
    )
    max_length: int = field(default=512, metadata={"help": "Tokens of prompt and answer."})
    adaptive_tau: bool = field(default=False, metadata={"help": "Adapt the temperature once per optimizer step."})
    eta: float = field(default=0.25, metadata={"help": "Wanted probability of an item's first token, in (0, 1)."})
    tau_min: float = field(default=1.5, metadata={"help": "Lower limit of the adaptive temperature."})
    tau_max: float = field(default=5.0, metadata={"help": "Upper limit of the adaptive temperature."})
    supervise: Literal["last", "all"] = field(
        default="last", metadata={"help": "What is a label: the target alone, or the history too."}
    )
    tasks: dict[str, float] | str | None = field(
        default=None,
        metadata={"help": "Rows of next_item, title_to_code and code_to_title in relation to each other, as JSON."},
    )
    packing: bool = field(default=False, metadata={"help": "Lay the rows of a training batch end to end."})
    collaborative: Literal["item", "state", "both", "joint"] | None = field(
        default=None, metadata={"help": "What collaborative tokens show of the sequence model."}
    )
    user_token: bool = field(
        default=False, metadata={"help": "End the history with a collaborative token of the user."}
    )
    cold_item_rate: float = field(default=0.0, metadata={"help": "Share of items that are hidden in a step."})
    curriculum: bool = field(
        default=False, metadata={"help": "Show collaborative tokens in a growing share of the steps."}
    )
    freeze_language_model: bool = field(
        default=False, metadata={"help": "Train the projector of collaborative tokens alone."}
    )

    _VALID_DICT_FIELDS = LanguageConfig._VALID_DICT_FIELDS + ["tasks"]

    @property
    def task_shares(self) -> dict[str, float]:
        """`tasks` as a dictionary; empty for the next item alone."""
        return {} if isinstance(self.tasks, str) else dict(self.tasks or {})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tasks is not None:
            if not isinstance(self.tasks, dict):  # JSON is one by now
                raise ValueError(
                    f'`tasks` must name shares, such as {{"next_item": 1, "title_to_code": 0.2}}, got {self.tasks!r}.'
                )
            check_tasks(self.task_shares)
        check_supervision(self.supervise, self.item_path, self.history_path)
        if self.user_token and self.collaborative is None:
            raise ValueError(
                "`user_token` needs `collaborative`: the user is known by the collaborative tokens of the items. Set "
                "it to 'item', 'state', 'both' or 'joint'."
            )
        if self.curriculum and (self.max_steps in (0, 1) or (self.max_steps < 0 and self.num_train_epochs <= 0)):
            raise ValueError(
                f"`curriculum` needs at least 2 steps, got `max_steps` {self.max_steps} and `num_train_epochs` "
                f"{self.num_train_epochs}: collaborative tokens would never be shown. Leave it out for so short a run."
            )
        if not 0 <= self.cold_item_rate < 1:
            raise ValueError(f"`cold_item_rate` must be at least 0 and less than 1, got {self.cold_item_rate}.")
        if not 0 < self.eta < 1:
            raise ValueError(f"`eta` must be between 0 and 1, got {self.eta}.")
        if not 0 < self.tau_min <= self.tau_max:
            raise ValueError(
                f"`tau_min` and `tau_max` must satisfy 0 < tau_min <= tau_max, got {self.tau_min} and {self.tau_max}."
            )
        if self.adaptive_tau and self.loss_type == "lml":
            raise ValueError(
                "`adaptive_tau` goes with `loss_type='msl'` only: the temperature is fitted to the tokens the trie "
                "allows. Set `tau` for plain SFT."
            )
