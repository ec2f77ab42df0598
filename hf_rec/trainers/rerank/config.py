"""Arguments of `RerankTrainer`."""

from dataclasses import dataclass, field
from typing import Any, Literal

from hf_rec.data.prompts.rerank import PromptForm, RerankForm, check_template
from hf_rec.data.prompts.verbalizers import default_verbalizers
from hf_rec.evaluation.protocol import Seen
from hf_rec.recommenders.reranker import CandidateOrder
from hf_rec.trainers.base_config import RecommenderConfig


@dataclass
class RerankConfig(RecommenderConfig):
    """
    Arguments of [`RerankTrainer`], on top of those of [`~transformers.TrainingArguments`].

    Parameters:
        form (`str`, *optional*, defaults to `"letters"`):
            `"yes_no"`: one candidate a prompt, does the user like it? `"letters"`: candidates behind letters, which
            one does the user choose next?
        verbalizers (`list[str]`, *optional*):
            The answers: yes and no, or one for each candidate. Each must be one token of the tokenizer. `Yes` and
            `No`, or the letters from `A` on, without them.
        num_candidates (`int`, *optional*, defaults to `20`):
            Candidates of a prompt of letters, the first of the retriever's list; as many as the prompt has where the
            trainer or the folder of the model has one.
        not_retrieved (`str`, *optional*, defaults to `"include"`):
            What a training row becomes whose target the retriever does not list: `"include"` puts the target in the
            place of the last candidate, `"skip"` leaves the row out. Both are counted. In evaluation such a row is a
            miss.
        candidate_order (`str`, *optional*, defaults to `"shuffled"`):
            `"shuffled"`: candidates of a training row stand in an order drawn from seed, row and epoch. `"retrieved"`:
            as the retriever lists them, which tells the model to trust the first place.
        permutations (`int`, *optional*, defaults to `1`):
            Orders of the candidates over which evaluation and serving average, with letters.
        seen (`str`, *optional*, defaults to `"keep"`):
            Whether candidates may be items of a row's own history: `"keep"`, or `"mask"` to leave them out.
        prompt_form (`str`, *optional*, defaults to `"plain"`), max_length (`int`, *optional*, defaults to `1024`),
        max_history (`int`, *optional*), max_item_tokens (`int`, *optional*, defaults to `64`), item_attributes
        (`list[str]`, *optional*), template (`str`, *optional*):
            As in [`~hf_rec.data.prompts.rerank.RerankPrompt`]; used where neither the trainer nor the folder of the
            model has a prompt.
        collaborative (`str`, *optional*):
            `"item"`: each item of the history and each candidate is followed by a collaborative token, the projected
            vector that the `sequence_model` of the trainer has for it (CoLLM,
            https://huggingface.co/papers/2310.19488). An adapter that training starts from is merged first.
        user_token (`bool`, *optional*, defaults to `False`):
            Whether the history ends with a collaborative token of the user.
        freeze_language_model (`bool`, *optional*, defaults to `False`):
            Train the projector of collaborative tokens alone.
        shared_prefix (`bool`, *optional*, defaults to `True`):
            In evaluation, read what the candidates of a row share once, where the model can.
        model_init_kwargs (`dict`, *optional*):
            Keyword arguments of `from_pretrained` of the model where it is given by name.
    """

    learning_rate: float = field(default=1e-4, metadata={"help": "Initial learning rate of AdamW."})
    form: RerankForm = field(
        default="letters", metadata={"help": "One candidate with yes or no, or several with letters."}
    )
    verbalizers: list[str] | None = field(
        default=None, metadata={"help": "The answers, one token each: yes and no, or one for each candidate."}
    )
    num_candidates: int = field(default=20, metadata={"help": "Candidates of a prompt of letters."})
    not_retrieved: Literal["include", "skip"] = field(
        default="include", metadata={"help": "Training rows whose target is not retrieved: put it in, or skip them."}
    )
    candidate_order: CandidateOrder = field(
        default="shuffled", metadata={"help": "Order of candidates in a prompt: drawn, or as they are retrieved."}
    )
    permutations: int = field(default=1, metadata={"help": "Orders that evaluation and serving average over."})
    seen: Seen = field(default="keep", metadata={"help": "May candidates be items of a row's own history?"})
    prompt_form: PromptForm = field(default="plain", metadata={"help": "Form of a new prompt."})
    max_length: int = field(default=1024, metadata={"help": "Tokens of prompt and answer."})
    max_history: int | None = field(default=None, metadata={"help": "Most items of a history."})
    max_item_tokens: int = field(default=64, metadata={"help": "Most tokens of an item."})
    item_attributes: list[str] | None = field(default=None, metadata={"help": "Attributes that follow each item."})
    template: str | None = field(
        default=None, metadata={"help": "The whole prompt, with {history} and {candidate} or {candidates}."}
    )
    collaborative: Literal["item"] | None = field(
        default=None, metadata={"help": "What collaborative tokens show of the sequence model."}
    )
    user_token: bool = field(
        default=False, metadata={"help": "End the history with a collaborative token of the user."}
    )
    freeze_language_model: bool = field(
        default=False, metadata={"help": "Train the projector of collaborative tokens alone."}
    )
    shared_prefix: bool = field(
        default=True, metadata={"help": "Read what the candidates of a row share once, in evaluation."}
    )
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
        if self.form == "letters" and self.num_candidates < 2:
            raise ValueError(f"`num_candidates` must be at least 2, got {self.num_candidates}: one is no choice.")
        if self.verbalizers is None:
            default_verbalizers(self.form, self.num_candidates)  # refuses more candidates than letters
        if self.template is not None:
            check_template(self.template, self.form, self.prompt_form)
        if not 1 <= self.permutations <= self.num_candidates:
            raise ValueError(
                f"`permutations` must be from 1 to `num_candidates`, {self.num_candidates}, got {self.permutations}: "
                "the orders are rotations, of which there are no more."
            )
        if self.form == "yes_no":
            self._refuse_letters()
        if self.user_token and self.collaborative is None:
            raise ValueError("`user_token` needs `collaborative`: the user is known by the tokens of the items.")
        if self.dataloader_persistent_workers:
            raise ValueError(
                "`dataloader_persistent_workers` must be False: candidates are shuffled anew in each epoch, of which "
                "lasting workers do not hear."
            )

    def _refuse_letters(self) -> None:
        """Refuse settings that the form `"yes_no"` has no place for."""
        for name in ("num_candidates", "not_retrieved", "candidate_order", "permutations", "seen"):
            default = type(self).__dataclass_fields__[name].default
            if getattr(self, name) != default:
                raise ValueError(
                    f"`{name}` is {getattr(self, name)!r}, which `form='yes_no'` has no use for: a prompt has one "
                    "candidate. Leave it out, or set `form='letters'`."
                )
