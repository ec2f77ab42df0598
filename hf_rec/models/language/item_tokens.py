"""
Collaborative tokens: what a frozen sequence model knows, as input tokens of a language model
(LLaRA, https://huggingface.co/papers/2312.02445).

The input embedding is wrapped, and nothing else: an id behind the vocabulary ([`hf_rec.item_token_ids`]) embeds as a
projection of the item's vector, of the user's state after the event, or of both. A state is computed from the ids of
its own row, up to its own place: it is what the sequence model gives for the history that far, whatever follows,
however rows are padded, and however many are packed end to end.

Shapes: B rows · T tokens of each · K collaborative tokens, I of items and U of users · E events · N items · d width of
a vector · H hidden size of the language model.
"""

import copy
import math
from dataclasses import dataclass
from threading import Lock
from typing import Any, Literal, Protocol, cast

import torch
from peft import PeftConfig
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_rec.columns import PADDING_ITEM
from hf_rec.item_token_ids import CANDIDATE, FIRST, UNKNOWN_ROW, USER
from hf_rec.models.sequence.base import SequencePreTrainedModel
from hf_rec.models.sequence.loading import check_reads_history_alone
from hf_rec.models.sequence.ragged import reads_are_free


Features = Literal["item", "state", "both", "joint"]

MODULE = "item_tokens"  # name of the projector in the language model
INPUT_DEVIATION = 0.1  # of the entries of what is projected
_SAMPLED_STATES = 4096  # states that their deviation is measured on, at most
_REMEMBERED_STATES = 1 << 18  # about; 64 MiB at width 64
_UNKNOWN_ITEM, _UNKNOWN_USER = 0, 1
_UNKNOWN_DEVIATION = 0.02  # of the vectors of what is unknown, before training


class HasJointVectors(Protocol):
    """A model that has a vector of its own for each item, such as the text-aligned ones of A-LLMRec."""

    def joint_vectors(self) -> Tensor:
        """`torch.FloatTensor` of shape `(N, d)`, in row order."""
        ...


@dataclass(frozen=True)
class ReadTokens:
    """
    What stands in a batch of token ids.

    Attributes:
        places (`torch.LongTensor` of shape `(K,)`): Where collaborative tokens are among the `B * T`.
        is_user (`torch.BoolTensor` of shape `(K,)`): Users; the others are items.
        known_items, known_users (`torch.LongTensor`): Which of the K there is a vector for.
        items (`torch.FloatTensor` of shape `(I, d)`), users (`torch.FloatTensor` of shape `(U, d)`): Those vectors.
    """

    places: Tensor
    is_user: Tensor
    known_items: Tensor
    known_users: Tensor
    items: Tensor
    users: Tensor


class ItemProjector(nn.Module):
    """
    The trained part: from the vectors of a sequence model to embeddings.

    Args:
        item_size (`int`): Width of what is known of an item.
        user_size (`int`, *optional*): Width of what is known of a user; `None` without user tokens.
        hidden_size (`int`): H.
    """

    def __init__(self, item_size: int, user_size: int | None, hidden_size: int):
        super().__init__()
        self.items = _projection(item_size, hidden_size)
        self.users = None if user_size is None else _projection(user_size, hidden_size)
        self.unknown = nn.Parameter(torch.empty(2, hidden_size).normal_(std=_UNKNOWN_DEVIATION))

    def forward(self, read: ReadTokens) -> Tensor:
        """Embeddings of all collaborative tokens, `(K, H)`; each weight has a part in them, even if there are none."""
        found = self.unknown[read.is_user.long()]
        items = self.items(read.items.to(found.dtype))
        found = found.index_put((read.known_items,), items.to(found.dtype))
        if self.users is not None:
            users = self.users(read.users.to(found.dtype))
            found = found.index_put((read.known_users,), users.to(found.dtype))
        return found


class SequenceKnowledge:
    """
    A frozen sequence model, and what of it collaborative tokens show.

    Args:
        model ([`~hf_rec.models.sequence.base.SequencePreTrainedModel`]): Copied; the copy stays in eval mode. Under
            `"joint"` also any model with `joint_vectors()`.
        features (`str`): `"item"`: the vector of the item. `"state"`: the user after this event. `"both"`: these two,
            side by side. `"joint"`: what `joint_vectors()` says of the item.
        user_token (`bool`, *optional*, defaults to `False`): Whether there are tokens of users: the state after the
            last event.
        known (`torch.BoolTensor` of shape `(N,)`, *optional*): Items that the sequence model was trained on; all by
            default. Another one has a learned vector of its own, and is no event for the states.
        scales (`dict[str, float]`, *optional*): What vectors are multiplied by; measured where not given.

    Raises:
        `ValueError`: Where the model lacks what `features` asks for, or its vectors are no numbers.
    """

    def __init__(
        self,
        model: SequencePreTrainedModel,
        features: Features,
        user_token: bool = False,
        known: Tensor | None = None,
        scales: dict[str, float] | None = None,
    ):
        _check_model(model, features, user_token)
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.features, self.user_token = features, user_token
        self.num_items: int = model.config.num_items
        self.known = torch.ones(self.num_items, dtype=torch.bool) if known is None else known[: self.num_items].cpu()
        if not self.known.any():
            raise ValueError("`sequence_model` knows no item of the catalog: nothing could be told about a history.")
        self._moving = Lock()
        self._remembered: dict[bytes, Tensor] = {}  # history -> state; the sequence model never changes
        self.table = self._item_table().cpu()
        self.state_size = self._state_size() if self.has_states else 0
        self.scales = self._measured_scales() if scales is None else scales

    @property
    def has_states(self) -> bool:
        """Whether the sequence model is run, and not looked up alone."""
        return self.user_token or self.features in ("state", "both")

    @property
    def item_size(self) -> int:
        """Width of what is known of an item."""
        sizes = {"state": self.state_size, "both": self.table.shape[1] + self.state_size}
        return sizes.get(self.features, self.table.shape[1])

    def __deepcopy__(self, memo: dict) -> "SequenceKnowledge":
        return self  # it never changes, so copies of a language model share it

    @property
    def user_size(self) -> int | None:
        """Width of what is known of a user; `None` without user tokens."""
        return self.state_size if self.user_token else None

    @torch.no_grad()
    def read(self, input_ids: Tensor, vocab_size: int) -> ReadTokens:
        """
        Find the collaborative tokens of a batch, and what the sequence model knows about each.

        Args:
            input_ids (`torch.LongTensor` of shape `(B, T)`): Tokens. A row of the batch, and each token with the mark
                of a first event, begins a history.
            vocab_size (`int`): Ids from this on are collaborative tokens.
        """
        self._move(input_ids.device)
        flat = input_ids.flatten()
        places = (flat >= vocab_size).nonzero().squeeze(1)
        codes, batch_rows = flat[places] - vocab_size, places // input_ids.shape[-1]
        is_user, is_candidate = (codes & USER) != 0, (codes & CANDIDATE) != 0
        rows = (codes & UNKNOWN_ROW).masked_fill(is_user, UNKNOWN_ROW)
        is_known = rows < self.num_items
        is_known = is_known & self.known[rows.where(is_known, 0)]
        begins = (codes & FIRST) != 0
        begins[1:] |= batch_rows[1:] != batch_rows[:-1]
        history = begins.cumsum(0)
        known_items = is_known.nonzero().squeeze(1)
        parts = []
        if self.features != "state":
            parts.append(self.table[rows[known_items]] * self.scales["item"])
        known_users, users = places[:0], self.table.new_zeros(0, self.user_size or 1)
        if self.has_states:
            events = Events.among(rows, is_known & ~is_candidate, history, self.model.config.max_length)
            if self.features in ("state", "both"):
                parts.append(self._states(events.windows(known_items, is_candidate, rows)))
            if self.user_token:
                known_users = (is_user & (events.lengths > 0)).nonzero().squeeze(1)
                users = self._states(events.windows(known_users, is_candidate, rows))
        return ReadTokens(places, is_user, known_items, known_users, torch.cat(parts, dim=1), users)

    def _states(self, windows: Tensor) -> Tensor:
        """States after windows of events, `(windows, d)`; those of earlier calls are remembered on a CPU."""
        if not len(windows):
            return self.table.new_zeros(0, self.state_size)
        if not reads_are_free(windows):  # an accelerator is faster than a look-up on the host
            return self._computed_states(windows)
        lengths = (windows != PADDING_ITEM).sum(dim=1).tolist()
        keys = [row[len(row) - length :].tobytes() for row, length in zip(windows.numpy(), lengths, strict=True)]
        found = {key: self._remembered.get(key) for key in keys}
        missing = {key: place for place, key in enumerate(keys) if found[key] is None}
        if missing:
            computed = self._computed_states(windows[list(missing.values())])
            found |= dict(zip(missing, computed, strict=True))
            if len(self._remembered) < _REMEMBERED_STATES:
                self._remembered |= dict(zip(missing, computed, strict=True))
        return torch.stack([cast(Tensor, found[key]) for key in keys])

    def _computed_states(self, windows: Tensor) -> Tensor:
        with torch.autocast(windows.device.type, enabled=False):
            return self.model.user_vectors(windows).float() * self.scales["state"]

    def _move(self, device: torch.device) -> None:
        if self.table.device == device:
            return
        with self._moving:
            self.model.to(device)
            self.known = self.known.to(device)
            self.table = self.table.to(device)  # last, as it is what other threads look at

    @torch.no_grad()
    def _state_size(self) -> int:
        """Width of a state."""
        anyone = torch.zeros(1, 1, dtype=torch.long, device=self.model.device)
        return int(self.model.user_vectors(anyone).shape[1])

    @torch.no_grad()
    def _item_table(self) -> Tensor:
        """Vectors of all items, float32 of shape `(N, d)`."""
        if self.features == "joint":
            vectors = self.model.joint_vectors()
        else:
            vectors = self.model.item_vectors()
        vectors = vectors.detach().float().clone()
        if vectors.dim() != 2 or len(vectors) != self.num_items or not vectors.isfinite().all():
            raise ValueError(
                f"`sequence_model` must give one vector of finite numbers for each of its {self.num_items} items, got "
                f"shape {tuple(vectors.shape)}" + ("." if vectors.isfinite().all() else " with NaN or infinity.")
            )
        return vectors

    @torch.no_grad()
    def _measured_scales(self) -> dict[str, float]:
        """Factors that bring the entries of vectors to one deviation; states are sampled after single events."""
        rows = self.known.nonzero().squeeze(1)
        scales = {"item": _scale(self.table[rows])}
        if self.has_states:
            sample = rows[:: math.ceil(len(rows) / _SAMPLED_STATES)]
            scales["state"] = _scale(self.model.user_vectors(sample[:, None].to(self.model.device)))
        return scales


@dataclass(frozen=True)
class Events:
    """
    The events of all histories of a batch, end to end.

    Attributes:
        rows (`torch.LongTensor` of shape `(E,)`): Catalog rows.
        last (`torch.LongTensor` of shape `(K,)`): The latest event of any history up to each token.
        lengths (`torch.LongTensor` of shape `(K,)`): Events of its own history up to each token.
        limit (`int`): Events that the sequence model reads.
    """

    rows: Tensor
    last: Tensor
    lengths: Tensor
    limit: int

    @classmethod
    def among(cls, rows: Tensor, is_event: Tensor, history: Tensor, limit: int) -> "Events":
        """Of K tokens with a row and a history each, those that are events."""
        count = is_event.cumsum(0)
        before = torch.zeros_like(count)  # events before the history of each token
        starts = torch.ones_like(is_event)
        starts[1:] = history[1:] != history[:-1]
        before = torch.where(starts, count - is_event.long(), before).cummax(0).values
        return cls(rows[is_event], count - 1, count - before, limit)

    def windows(self, tokens: Tensor, is_candidate: Tensor, rows: Tensor) -> Tensor:
        """
        What the sequence model reads for some tokens: the newest events up to each, and itself where it is a
        candidate.

        Returns:
            `torch.LongTensor` of shape `(tokens, S)`: Padded with -1 on the left.
        """
        lengths, candidate = self.lengths[tokens], is_candidate[tokens]
        width = min(self.limit, int((lengths + candidate.long()).max()) if len(tokens) else 1)
        age = torch.arange(width - 1, -1, -1, device=tokens.device) - candidate.long()[:, None]
        real = (age >= 0) & (age < lengths[:, None])
        if not len(self.rows):
            found = torch.full_like(age, PADDING_ITEM)
        else:
            place = (self.last[tokens][:, None] - age).clamp(min=0, max=len(self.rows) - 1)
            found = self.rows[place].masked_fill(~real, PADDING_ITEM)
        return torch.where(age < 0, rows[tokens][:, None], found)


class ItemTokens:
    """
    Collaborative tokens of one language model: what is known, the projector, and the wrapped input embedding.

    [`~ItemTokens.attach`] gives a plain model its projector, before weights are loaded into it or an adapter is put
    around it; [`~ItemTokens.wrap`] wraps the embedding as it is then.

    Attributes:
        knowledge ([`SequenceKnowledge`]): What is frozen.
        vocab_size (`int`): Ids from this on are collaborative tokens.
    """

    def __init__(self, knowledge: SequenceKnowledge, vocab_size: int):
        self.knowledge, self.vocab_size = knowledge, vocab_size

    @staticmethod
    def of(model: nn.Module) -> "ItemTokens | None":
        """Those of a model, or of the base of a `PeftModel`; `None` where it has none."""
        return base_model(model).__dict__.get(_ATTRIBUTE)

    def attach(self, model: PreTrainedModel, seed: int = 0) -> None:
        """Give a model that is no adapter a projector; the global random state is left as it was."""
        words = model.get_input_embeddings().weight
        hidden_size = getattr(words, "ds_shape", words.shape)[
            1
        ]  # the first is of a weight that ZeRO-3 keeps in pieces
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            projector = ItemProjector(self.knowledge.item_size, self.knowledge.user_size, hidden_size)
        dtype = words.dtype if words.dtype.is_floating_point else torch.float32
        model.add_module(MODULE, projector.to(words.device, dtype))
        object.__setattr__(model, _ATTRIBUTE, self)

    def wrap(self, model: nn.Module) -> None:
        """Wrap the input embedding of the model, whatever an adapter has put in its place; once."""
        embedding, name = _embedding(model)
        if not isinstance(getattr(embedding, name), _Embed):
            setattr(embedding, name, _Embed(base_model(model), getattr(embedding, name)))

    def unwrap(self, model: nn.Module) -> None:
        """Leave the input embedding as it was."""
        embedding, name = _embedding(model)
        if isinstance(wrapped := getattr(embedding, name), _Embed):
            setattr(embedding, name, wrapped.words)


_ATTRIBUTE = "_hf_rec_item_tokens"


@dataclass(frozen=True)
class _Embed:
    """The forward of a wrapped embedding; a copy of the model has one of its own."""

    model: Any
    words: Any  # the forward of the embedding as it was

    def __call__(self, input_ids: Tensor) -> Tensor:
        item_tokens: ItemTokens = self.model.__dict__[_ATTRIBUTE]
        is_word = input_ids < item_tokens.vocab_size
        if not torch.is_grad_enabled() and is_word.all():  # as in each step of a search behind its prompts
            return self.words(input_ids)
        words = self.words(input_ids.where(is_word, 0))
        read = item_tokens.knowledge.read(input_ids, item_tokens.vocab_size)
        vectors = getattr(self.model, MODULE)(read).to(words.dtype)
        return words.flatten(0, -2).index_put((read.places,), vectors).view(words.shape)


def base_model(model: nn.Module) -> Any:
    """The language model itself; `model` may be a `PeftModel` over it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def give_item_tokens(model: nn.Module, knowledge: SequenceKnowledge, vocab_size: int, seed: int) -> None:
    """
    Give a language model collaborative tokens that it does not have. [`~ItemTokens.wrap`] has yet to be called.

    Args:
        model ([`~transformers.PreTrainedModel`]): Not an adapter.
        knowledge ([`SequenceKnowledge`]): What the tokens show.
        vocab_size (`int`): Tokens that the model has, or will have, embeddings for.
        seed (`int`): Of the projector.
    """
    if ItemTokens.of(model) is not None:
        raise ValueError(
            "`collaborative` asks for new collaborative tokens, but `model` has them already, with a sequence model "
            "of their own. Leave `collaborative` and `sequence_model` out to train it further."
        )
    if not isinstance(model, PreTrainedModel):
        raise ValueError(
            "`collaborative` asks for new collaborative tokens, but `model` is an adapter. Merge it first "
            "(`merge_and_unload`), and give the merged model, with a new `peft_config` if need be."
        )
    ItemTokens(knowledge, vocab_size).attach(model, seed)


def check_item_tokens(item_tokens: ItemTokens | None, start: int | None, user_token: bool) -> None:
    """Refuse a prompt whose collaborative tokens are not those of the model; both may have none."""
    has = (None, False) if item_tokens is None else (item_tokens.vocab_size, item_tokens.knowledge.user_token)
    if (start, user_token) != has:
        raise ValueError(
            f"`prompt` has `item_token_start` {start} and `user_token` {user_token}, the collaborative tokens of "
            f"`model` ask for {has[0]} and {has[1]}. Make the prompt with these, or leave it out."
        )


def train_projector(peft_config: PeftConfig, model: PreTrainedModel) -> PeftConfig:
    """A copy of an adapter's configuration under which the projector is trained as a whole, and saved too."""
    config: Any = copy.copy(peft_config)
    if not hasattr(config, "modules_to_save"):
        raise ValueError(
            f"`peft_config` is a {type(config).__name__}, which cannot train the projector of collaborative tokens. "
            "Use LoRA."
        )
    config.modules_to_save = [*(config.modules_to_save or []), MODULE]
    excluded = getattr(config, "exclude_modules", None)
    if not isinstance(excluded, str):  # else the user has said it all
        layers = [name for name, _ in model.get_submodule(MODULE).named_modules() if name]
        config.exclude_modules = [*(excluded or []), *(f"{MODULE}.{name}" for name in layers)]
    return config


def _embedding(model: nn.Module) -> tuple[Any, str]:
    """The layer that embeds prompts, and the name of its forward."""
    base = base_model(model)
    reader = base.get_encoder() if getattr(base.config, "is_encoder_decoder", False) else base
    embedding = reader.get_input_embeddings()
    # accelerate's device hooks keep the layer's own forward as `_old_forward` and call it from theirs
    return embedding, "_old_forward" if hasattr(embedding, "_hf_hook") else "forward"


def _projection(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs), nn.GELU(), nn.Linear(outputs, outputs))


def _scale(vectors: Tensor) -> float:
    deviation = float(vectors.float().std(correction=0))
    if not (math.isfinite(deviation) and deviation > 0):
        raise ValueError(
            f"The vectors of `sequence_model` have the deviation {deviation}, so they tell nothing apart. Train it "
            "first."
        )
    return INPUT_DEVIATION / deviation


def _check_model(model: object, features: Features, user_token: bool) -> None:
    if user_token or features in ("state", "both"):
        check_reads_history_alone(model, "sequence_model")
    if features == "joint" and not hasattr(model, "joint_vectors"):
        raise ValueError(
            f"`collaborative` is 'joint', but `sequence_model` is a {type(model).__name__}, which has no "
            "`joint_vectors()`. Give a model that aligns items with their texts, or use 'item', 'state' or 'both'."
        )
    if user_token and not hasattr(model, "user_vectors"):
        raise ValueError(
            f"`user_token` is True, but `sequence_model` is a {type(model).__name__}, which has no `user_vectors()`."
        )
    if features != "joint" and not isinstance(model, SequencePreTrainedModel):
        raise ValueError(f"`sequence_model` must be a sequence model of `hf_rec.models`, got {type(model).__name__}.")
