"""Arguments of `MSLTrainer`."""

from dataclasses import dataclass, field

from hf_rec.trainers.base_config import RecommenderConfig


@dataclass
class MSLConfig(RecommenderConfig):
    """
    Arguments of [`MSLTrainer`], on top of those of [`~transformers.TrainingArguments`]. Defaults of the temperature
    are those of the released code of MSL (https://huggingface.co/papers/2504.04178).

    Parameters:
        loss_type (`str`, *optional*, defaults to `"msl"`):
            `"msl"`: softmax over the tokens that continue a real item. `"lml"`: plain SFT, softmax over the
            vocabulary.
        tau (`float`, *optional*, defaults to `1.0`):
            Temperature of the softmax, greater than 0. With `adaptive_tau` the value before the first step, brought
            into `[tau_min, tau_max]`.
        adaptive_tau (`bool`, *optional*, defaults to `False`):
            Move the temperature once per optimizer step so that the first token of the target gets a probability of
            about `eta` among the tokens that start an item.
        eta (`float`, *optional*, defaults to `0.25`):
            Wanted probability of the first token, between 0 and 1.
        tau_min (`float`, *optional*, defaults to `1.5`), tau_max (`float`, *optional*, defaults to `5.0`):
            Limits of the adaptive temperature.
        supervise (`str`, *optional*, defaults to `"last"`):
            `"last"`: the target is the only label of a row, as in the paper. `"all"`: so is every item of the history
            from `supervise_from` on that the prompt keeps.
        scoring (`str`, *optional*, defaults to `"valid"`):
            Score of evaluation and serving: `"valid"` sums log P over the tokens the trie allows, which is what MSL
            trains; `"full_vocab"` sums log P over the vocabulary.
        prompt_form (`str`, *optional*, defaults to `"plain"`):
            `"plain"`, `"alpaca"` or `"chat"`; used where the trainer is given no `prompt`.
        max_length (`int`, *optional*, defaults to `512`):
            Tokens of prompt and answer; the oldest items of a history are dropped to fit. Used where the trainer is
            given no `prompt`.
        max_history (`int` or `None`, *optional*, defaults to `None`):
            Most items of a history; `None` for as many as fit. Used where the trainer is given no `prompt`.
        eval_num_beams (`int` or `None`, *optional*, defaults to `None`):
            Beams of the constrained ranking during evaluation; `None` for 20, twice the 10 places that are measured.
            `0` leaves the ranking out: only the loss and `nll` are measured.
        dataset_num_proc (`int` or `None`, *optional*, defaults to `None`):
            Processes that tokenise the data set.
        model_init_kwargs (`dict` or `None`, *optional*, defaults to `None`):
            Keyword arguments of `AutoModelForCausalLM.from_pretrained` where the model is given by name: `dtype`,
            `attn_implementation`, `quantization_config`, ...
    """

    learning_rate: float = field(default=1e-4, metadata={"help": "Initial learning rate of AdamW."})
    loss_type: str = field(default="msl", metadata={"help": "'msl', or 'lml' for plain SFT."})
    tau: float = field(default=1.0, metadata={"help": "Temperature of the softmax, greater than 0."})
    adaptive_tau: bool = field(default=False, metadata={"help": "Adapt the temperature once per optimizer step."})
    eta: float = field(default=0.25, metadata={"help": "Wanted probability of an item's first token, in (0, 1)."})
    tau_min: float = field(default=1.5, metadata={"help": "Lower limit of the adaptive temperature."})
    tau_max: float = field(default=5.0, metadata={"help": "Upper limit of the adaptive temperature."})
    supervise: str = field(
        default="last", metadata={"help": "'last': the target is the label; 'all': the history too."}
    )
    scoring: str = field(default="valid", metadata={"help": "'valid' or 'full_vocab'."})
    prompt_form: str = field(default="plain", metadata={"help": "'plain', 'alpaca' or 'chat'."})
    max_length: int = field(default=512, metadata={"help": "Tokens of prompt and answer."})
    max_history: int | None = field(default=None, metadata={"help": "Most items of a history."})
    eval_num_beams: int | None = field(
        default=None, metadata={"help": "Beams of the ranking in evaluation: None for 20, 0 for no ranking."}
    )
    dataset_num_proc: int | None = field(default=None, metadata={"help": "Processes that tokenise the data set."})
    model_init_kwargs: dict | str | None = field(
        default=None, metadata={"help": "Keyword arguments of from_pretrained, where the model is given by name."}
    )

    _VALID_DICT_FIELDS = RecommenderConfig._VALID_DICT_FIELDS + ["model_init_kwargs"]

    def __post_init__(self):
        super().__post_init__()
        for name, choices in {
            "loss_type": ("msl", "lml"),
            "supervise": ("last", "all"),
            "scoring": ("valid", "full_vocab"),
            "prompt_form": ("plain", "alpaca", "chat"),
        }.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` must be one of {choices}, got {getattr(self, name)!r}.")
        if not self.tau > 0:
            raise ValueError(f"`tau` must be greater than 0, got {self.tau}. Use 1.0 for a plain softmax.")
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
        if self.eval_num_beams is not None and self.eval_num_beams < 0:
            raise ValueError(f"`eval_num_beams` must be at least 0, got {self.eval_num_beams}. Use 0 for no ranking.")
