"""Arguments that the trainers of language models share."""

from dataclasses import dataclass, field
from typing import Any, Literal

from hf_rec.data.prompts.frame import check_frame
from hf_rec.data.prompts.path_forms import PathForms
from hf_rec.evaluation.protocol import Seen
from hf_rec.trainers.base_config import RecommenderConfig


@dataclass
class LanguageConfig(RecommenderConfig):
    """
    Arguments of [`MSLTrainer`] and [`SoftmaxDPOTrainer`], on top of those of [`~transformers.TrainingArguments`].

    Parameters:
        scoring (`str`, *optional*, defaults to `"valid"`):
            Score of evaluation and serving: `"valid"` for log P over the tokens that continue a real item,
            `"full_vocab"` for log P over the vocabulary.
        tau (`float` or `None`, *optional*, defaults to `None`):
            Temperature of the softmax over tokens, greater than 0. `None` for that of the folder the model comes from,
            and 1.0 without one.
        prompt_form (`str`, *optional*, defaults to `"plain"`):
            `"plain"`, `"alpaca"` or `"chat"`. This and the next seven make a prompt where neither the trainer nor the
            folder of the model has one.
        max_length (`int` or `None`, *optional*, defaults to `512`):
            Tokens of prompt and answer; the oldest items of a history are dropped to fit.
        max_history (`int` or `None`, *optional*, defaults to `None`):
            Most items of a history; `None` for as many as fit.
        item_path (`str`, *optional*, defaults to `"title"`):
            What the model writes: `"title"`, the name of a text column of the catalog, `"codes:<column>"`, `"id"` or
            `"digits"`; see [`Prompt`]. The tokenizer and the model get the tokens of codes and items.
        history_path (`str` or `None`, *optional*, defaults to `None`):
            What stands for an item in the history: one of these forms, or several joined by `+`. `None` for
            `item_path`.
        item_attributes (`list[str]` or `None`, *optional*, defaults to `None`):
            Attributes of the catalog that follow each item of the history, where the item has them.
        instruction (`str` or `None`, *optional*, defaults to `None`):
            Task in words of your own, for the forms `"alpaca"` and `"chat"`.
        template (`str` or `None`, *optional*, defaults to `None`):
            The whole text around the history, with `{history}` in its place; for the forms `"plain"` and `"chat"`.
        path_token_init (`str`, *optional*, defaults to `"mean"`):
            Where the tokens of codes and items start: `"mean"`, around the mean of the vocabulary, or `"words"`, the
            mean of the words of the titles of the items under each.
        seen (`str`, *optional*, defaults to `"keep"`):
            Whether the ranking during evaluation may list items of a row's own history: `"keep"`, or `"mask"` to leave
            them out.
        eval_num_beams (`int` or `None`, *optional*, defaults to `None`):
            Beams of the constrained ranking during evaluation; `None` for 20, twice the 10 places that are measured.
            `0` leaves the ranking out.
        train_sampling_strategy (`str`, *optional*, defaults to `"random"`):
            As of [`~transformers.TrainingArguments`]. With `"group_by_length"` the rows of a step are of about one
            length, so that little of it is padding; steps then differ in what they teach, which can cost accuracy.
            `"batch_rebalance"` cuts the rows of each step into micro-batches by length: with accumulation or several
            processes little is padding, and steps stay random. A stream keeps its own order.
        dataset_num_proc (`int` or `None`, *optional*, defaults to `None`):
            Processes that tokenise the data set.
        model_init_kwargs (`dict` or `None`, *optional*, defaults to `None`):
            Keyword arguments of `from_pretrained` of the model where it is given by name: `dtype` (`"float32"`
            without it), `revision` (of the tokenizer too), `attn_implementation`, ...
    """

    scoring: Literal["valid", "full_vocab"] = field(
        default="valid", metadata={"help": "Log P over the tokens that continue an item, or over the vocabulary."}
    )
    tau: float | None = field(default=None, metadata={"help": "Temperature; that of the model's folder if not given."})
    prompt_form: Literal["plain", "alpaca", "chat"] = field(
        default="plain", metadata={"help": "Form of a new prompt."}
    )
    max_length: int | None = field(default=512, metadata={"help": "Tokens of prompt and answer."})
    max_history: int | None = field(default=None, metadata={"help": "Most items of a history."})
    item_path: str = field(
        default="title",
        metadata={"help": "What the model writes: title, a text column, codes:<column>, id or digits."},
    )
    history_path: str | None = field(
        default=None, metadata={"help": "Forms of an item in the history, joined by +; as item_path if not given."}
    )
    item_attributes: list[str] | None = field(
        default=None, metadata={"help": "Attributes that follow each item of the history."}
    )
    instruction: str | None = field(default=None, metadata={"help": "Task in words of your own, for alpaca and chat."})
    template: str | None = field(
        default=None, metadata={"help": "The whole text around the history, with {history} in its place."}
    )
    path_token_init: Literal["mean", "words"] = field(
        default="mean", metadata={"help": "Where the tokens of codes and items start."}
    )
    seen: Seen = field(
        default="keep", metadata={"help": "May the ranking in evaluation list items of a row's own history?"}
    )
    eval_num_beams: int | None = field(
        default=None, metadata={"help": "Beams of the ranking in evaluation: None for 20, 0 for no ranking."}
    )
    train_sampling_strategy: Literal["group_by_length", "random", "sequential", "batch_rebalance"] = field(
        default="random", metadata={"help": "Order in which training reads rows."}
    )
    dataset_num_proc: int | None = field(default=None, metadata={"help": "Processes that tokenise the data set."})
    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Keyword arguments of from_pretrained, where the model is given by name."}
    )

    _VALID_DICT_FIELDS = RecommenderConfig._VALID_DICT_FIELDS + ["model_init_kwargs"]

    @property
    def loading_options(self) -> dict[str, Any]:
        """`model_init_kwargs` as a dictionary of its own."""
        return {} if isinstance(self.model_init_kwargs, str) else dict(self.model_init_kwargs or {})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tau is not None and not self.tau > 0:
            raise ValueError(f"`tau` must be greater than 0, got {self.tau}. Use 1.0 for a plain softmax.")
        PathForms.parse(self.item_path, self.history_path, self.item_attributes)
        check_frame(self.prompt_form, self.instruction, self.template)
        if self.eval_num_beams is not None and (self.eval_num_beams < 0 or 0 < self.eval_num_beams < 10):
            raise ValueError(
                f"`eval_num_beams` must be 0 for no ranking, or at least 10 for the 10 places that are measured, got "
                f"{self.eval_num_beams}."
            )
        if self.seen == "mask" and self.eval_num_beams == 0:
            raise ValueError(
                "`seen='mask'` changes nothing while `eval_num_beams` is 0: nothing is ranked. Set `eval_num_beams` "
                "to None or at least 10, or leave `seen` out."
            )
