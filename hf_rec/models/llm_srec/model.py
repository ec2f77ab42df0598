"""
LLM-SRec: a frozen language model that retrieves items, taught by a frozen sequence model
(https://huggingface.co/papers/2502.13909).

The vectors of the sequence model's items are projected into slots of the prompts; the hidden state at a query at the
end of a prompt, through a small head, is the vector of the user or of the item. A third head brings the sequence
model's user vectors into the same space, to be matched in training.

Shapes: B prompts · T tokens of the longest, prefix apart · P tokens of the prefix · H hidden size of the language
model · d width of the sequence model's vectors · v width of the retrieval vectors.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from hf_rec.models.language.prompt_states import Prefix, is_checkpointed, last_states, length_groups
from hf_rec.models.llm_srec.config import LLMSRecModelConfig
from hf_rec.models.llm_srec.references import WeightsReference
from hf_rec.models.loading import check_stored_kwargs, load_weights
from hf_rec.models.sequence.base import SequencePreTrainedModel
from hf_rec.models.sequence.loading import check_reads_history_alone, load_sequence_model
from hf_rec.models.sharded_weights import has_sharded_weights
from hf_rec.models.weight_files import check_weight_files


if TYPE_CHECKING:
    from peft import PeftConfig

FROZEN = ("language_model.", "sequence_model.")


@dataclass
class LLMSRecOutput(ModelOutput):
    """
    Output of [`LLMSRecModel`].

    Args:
        user_vectors (`torch.FloatTensor` of shape `(B, v)`): Users; the dot product with an item vector is its score.
        item_vectors (`torch.FloatTensor` of shape `(items, v)`, *optional*): Items.
        teacher_vectors (`torch.FloatTensor` of shape `(B, v)`, *optional*): The sequence model's users, through the
            teacher head.
    """

    user_vectors: torch.FloatTensor | None = None
    item_vectors: torch.FloatTensor | None = None
    teacher_vectors: torch.FloatTensor | None = None


class LLMSRecModel(PreTrainedModel):
    """
    Two frozen models and the small ones between them. Make one with [`LLMSRecModel.from_frozen`].

    Both frozen models stay in eval mode whatever is called, so that no dropout noise enters their vectors; with an
    adapter the language model follows the mode. Only what is trained is saved, beside references to the two.

    Args:
        config ([`LLMSRecModelConfig`]): Settings.
        language_model ([`~transformers.PreTrainedModel`]): A causal LM; its head, which is not used, is dropped.
        sequence_model ([`~hf_rec.models.sequence.base.SequencePreTrainedModel`]): The teacher.

    Attributes:
        item_seen (`torch.BoolTensor` of shape `(num_items,)`): Items that the teacher was trained on. A zero vector
            stands in the slot of any other.
        item_scale (`torch.FloatTensor` of shape `()`): Factor that brings the teacher's item vectors to a mean square
            of 1. As they are, they are so small that the biases of the projection drown them.
    """

    config_class = LLMSRecModelConfig
    base_model_prefix = "llm_srec"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(
        self,
        config: LLMSRecModelConfig,
        language_model: PreTrainedModel,
        sequence_model: SequencePreTrainedModel,
    ):
        super().__init__(config)
        hidden, vector, head = config.hidden_size, config.vector_size, config.head_size
        self.item_projection = nn.Sequential(
            nn.Linear(config.sequence_size, hidden), nn.LayerNorm(hidden), nn.LeakyReLU(), nn.Linear(hidden, hidden)
        )
        self.user_head = _head(hidden, head, vector, nn.LeakyReLU())
        self.item_head = _head(hidden, head, vector, nn.LeakyReLU())
        self.teacher_head = _head(config.sequence_size, vector, vector, nn.GELU())
        self.user_query = nn.Embedding(1, hidden)
        self.item_query = nn.Embedding(1, hidden)
        self.register_buffer("item_seen", torch.ones(config.num_items, dtype=torch.bool))
        self.register_buffer("item_scale", torch.ones(()))
        self.post_init()
        language_model = language_model.base_model  # without the LM head
        if config.adapter is not None:
            language_model = _with_adapter(language_model, config.adapter)
        else:
            language_model.requires_grad_(False)
        self.language_model = language_model
        self.sequence_model = sequence_model.requires_grad_(False)
        with torch.no_grad():
            self.item_scale.copy_(sequence_model.item_vectors().float().square().mean().clamp(min=1e-12).rsqrt())
            # The published initialisation: as if drawn from the word embeddings
            words = language_model.get_input_embeddings().weight.float()
            for query in (self.user_query, self.item_query):
                query.weight.normal_(words.mean().item(), words.std().item())
        trained = {name for name, param in self.named_parameters() if param.requires_grad}
        frozen = {name for name in self.state_dict() if name.startswith(FROZEN)}
        self._keys_to_ignore_on_save = frozen - trained
        self.eval()

    # Making, saving, loading

    @classmethod
    def from_frozen(
        cls,
        language_model: str | os.PathLike | PreTrainedModel,
        sequence_model: str | os.PathLike | SequencePreTrainedModel,
        *,
        vector_size: int = 128,
        head_size: int = 2048,
        seen_items: Iterable[int] | None = None,
        language_model_kwargs: dict | None = None,
        peft_config: "PeftConfig | None" = None,
    ) -> "LLMSRecModel":
        """
        Put a new model together from two frozen ones; its own weights are drawn from the global random state.

        Args:
            language_model (`str` or [`~transformers.PreTrainedModel`]): Causal LM: a folder, a Hub id, or a model that
                was loaded from one of these.
            sequence_model (`str` or [`~hf_rec.models.sequence.base.SequencePreTrainedModel`]): The teacher, likewise.
            vector_size (`int`, *optional*, defaults to `128`): Width of the retrieval vectors.
            head_size (`int`, *optional*, defaults to `2048`): Inner width of the user and item heads.
            seen_items (`Iterable[int]`, *optional*): Items that the teacher was trained on; all by default.
            language_model_kwargs (`dict`, *optional*): Keyword arguments of `from_pretrained` of the language model,
                JSON values: `dtype`, `revision`, `attn_implementation`, `quantization_config`. They are saved too.
            peft_config (`peft.PeftConfig`, *optional*): Train an adapter on the language model too.
        """
        options = language_model_kwargs or {}
        check_stored_kwargs(options, "`language_model_kwargs`")
        references: dict[str, str | None] = {}
        for role, model in (("language_model", language_model), ("sequence_model", sequence_model)):
            name = model if isinstance(model, str | os.PathLike) else model.config.name_or_path
            if name:
                revision = options.get("revision") if role == "language_model" else None
                reference = WeightsReference.of(name, revision)
                references |= {role: reference.name, f"{role}_revision": reference.revision}
                references[f"{role}_sha256"] = reference.sha256
        if isinstance(language_model, str | os.PathLike):
            language_model = load_weights(AutoModelForCausalLM, language_model, **options)
        if isinstance(sequence_model, str | os.PathLike):
            sequence_model = _load_teacher(sequence_model)
        _check_teacher(sequence_model)
        config = LLMSRecModelConfig(
            **references,
            language_model_kwargs=language_model_kwargs,
            adapter=None if peft_config is None else _plain(peft_config.to_dict()),
            hidden_size=language_model.get_input_embeddings().weight.shape[1],
            sequence_size=sequence_model.item_vectors().shape[1],
            vector_size=vector_size,
            head_size=head_size,
            num_items=sequence_model.config.num_items,
            catalog_sha256=sequence_model.config.catalog_sha256,
        )
        model = cls(config, language_model, sequence_model)
        if seen_items is not None:
            model.mark_seen(seen_items)
        return model

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike, *, dtype: str | torch.dtype | None = None, check: bool = True, **kwargs: Any
    ) -> "LLMSRecModel":
        """
        Load what [`~LLMSRecModel.save_pretrained`] wrote, and the two frozen models that it names.

        Args:
            folder (`str` or `os.PathLike`): The folder.
            dtype (`str` or `torch.dtype`, *optional*): Of the language model, in place of the one it was trained with.
            check (`bool`, *optional*, defaults to `True`): Refuse frozen weights whose hash is not the saved one.

        Raises:
            `ValueError`: Where weights are missing, damaged or other ones, or the folder asks for code.
        """
        if kwargs.get("trust_remote_code"):
            raise ValueError("`trust_remote_code` must be False: no code of a model's folder is run.")
        config = kwargs.pop("config", None) or LLMSRecModelConfig.from_pretrained(folder, trust_remote_code=False)
        options = dict(config.language_model_kwargs or {})
        check_stored_kwargs(options, f"`language_model_kwargs` of {folder}/config.json")
        options.pop("revision", None)  # the folder below is that of `language_model_revision`
        if dtype is not None:
            options["dtype"] = dtype
        language_model = _frozen_folder(config, "language_model", folder, check)
        sequence_model = _frozen_folder(config, "sequence_model", folder, check)
        model = cls(
            config,
            load_weights(AutoModelForCausalLM, language_model, **options),
            _load_teacher(sequence_model),
        )
        model._load_trained(folder)
        return model

    def _load_trained(self, folder: str | os.PathLike) -> None:
        """Read the weights that were trained; each of them must be in the file."""
        check_weight_files(folder)
        try:
            found = self.load_state_dict(load_file(Path(folder) / "model.safetensors"), strict=False)
        except RuntimeError as error:  # another shape
            raise ValueError(f"The weights in {folder} do not fit their config.json: {error}") from error
        missing = set(found.missing_keys) - self._keys_to_ignore_on_save
        if missing or found.unexpected_keys:
            raise ValueError(
                f"The weights in {folder} do not fit their config.json: missing {sorted(missing)}, unexpected "
                f"{found.unexpected_keys}. Copy the folder again."
            )

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Write config and safetensors with what was trained; the frozen models must be on disk or on the Hub."""
        for role in ("language_model", "sequence_model"):
            if getattr(self.config, role) is None:
                raise ValueError(
                    f"`{role}` was made in memory, so there is nothing to refer to. Save it with `save_pretrained`, "
                    "and give its folder to `LLMSRecModel.from_frozen`."
                )
        names = {role: getattr(self.config, role) for role in ("language_model", "sequence_model")}
        for role, name in names.items():
            place, folder = Path(name).resolve(), Path(save_directory).resolve()
            if place.is_dir():  # what lies in the folder itself moves with it; other folders are found from everywhere
                is_inside = place.is_relative_to(folder)
                setattr(self.config, role, str(place.relative_to(folder) if is_inside else place))
        try:
            super().save_pretrained(save_directory, **kwargs)
        finally:
            for role, name in names.items():
                setattr(self.config, role, name)

    def mark_seen(self, items: Iterable[int]) -> None:
        """Say which items the teacher was trained on; a zero vector stands in the slots of all others."""
        items = torch.tensor(sorted(items), dtype=torch.long, device=self.item_seen.device)
        self.item_seen.zero_()
        self.item_seen[items] = True

    # Vectors

    def forward(
        self,
        user_inputs: dict[str, Tensor] | None = None,
        item_inputs: dict[str, Tensor] | None = None,
        teacher_vectors: Tensor | None = None,
        **kwargs: Any,
    ) -> LLMSRecOutput:
        """
        Vectors of whatever is given. Where an engine shards the weights call this, not [`~LLMSRecModel.encode`]: it
        gathers them when the model is called.

        Args:
            user_inputs, item_inputs (`dict`, *optional*): Arguments of [`~LLMSRecModel.encode`], `query` apart.
            teacher_vectors (`torch.Tensor` of shape `(B, d)`, *optional*): The teacher's user vectors.

        Returns:
            [`LLMSRecOutput`]
        """
        return LLMSRecOutput(
            user_vectors=None if user_inputs is None else self.encode(query="user", **user_inputs),
            item_vectors=None if item_inputs is None else self.encode(query="item", **item_inputs),
            teacher_vectors=None if teacher_vectors is None else self.teacher_head(teacher_vectors),
        )

    def encode(
        self, input_ids: Tensor, attention_mask: Tensor, slot_items: Tensor, prefix_ids: Tensor, query: str
    ) -> Tensor:
        """
        Vectors of users or items.

        Prompts of about equal length are read together; the prefix is read once for all of them. With sharded weights
        all prompts are read together, so that each process calls the language model equally often.

        Args:
            input_ids (`torch.LongTensor` of shape `(B, T)`): Prompts, right-padded, without the prefix. The last real
                token of each is its query.
            attention_mask (`torch.LongTensor` of shape `(B, T)`): 1 at real tokens.
            slot_items (`torch.LongTensor` of shape `(B, T)`): Item of each slot, -1 at other tokens.
            prefix_ids (`torch.LongTensor` of shape `(P,)`): Tokens before each prompt, at least one.
            query (`str`): `"user"` or `"item"`.

        Returns:
            `torch.Tensor` of shape `(B, v)`.
        """
        query_embedding, head = {
            "user": (self.user_query, self.user_head),
            "item": (self.item_query, self.item_head),
        }[query]
        # Called, not read: engines that shard weights gather those of a module when it is called
        query_vector = query_embedding(torch.zeros_like(prefix_ids[:1]))[0]
        prefix = Prefix.read(self.language_model, prefix_ids)
        words = self._words(input_ids, attention_mask, slot_items, query_vector)
        lengths, constant = _lengths(attention_mask, slot_items)
        groups = length_groups(lengths, on_cpu=input_ids.device.type == "cpu")
        if sharded := has_sharded_weights(self):
            groups = [sum(groups, [])]
        states, order = [], []
        for group in groups:
            rows, width = torch.tensor(group, device=input_ids.device), lengths[group[0]]
            shared = min(constant[row] for row in group)
            worth_a_pass = 2 * shared >= width and self.config.adapter is None and not sharded
            states.append(
                last_states(
                    self.language_model,
                    words[rows, :width],
                    attention_mask[rows, :width],
                    prefix,
                    shared if worth_a_pass else 0,
                )
            )
            order.append(rows)
        states = torch.cat(states)[torch.cat(order).argsort()]
        return head(states.to(head[0].weight.dtype))

    def _words(self, input_ids: Tensor, attention_mask: Tensor, slot_items: Tensor, query_vector: Tensor) -> Tensor:
        """Embeddings of prompts, with item vectors in the slots and the query at the end: `(B, T, H)`."""
        words = self.language_model.get_input_embeddings()(input_ids)
        rows, columns = (slot_items >= 0).nonzero(as_tuple=True)
        words = words.index_put((rows, columns), self._slot_vectors(slot_items[rows, columns]).to(words.dtype))
        everyone = torch.arange(len(words), device=words.device)
        return words.index_put((everyone, attention_mask.sum(dim=1) - 1), query_vector.to(words.dtype))

    def _slot_vectors(self, items: Tensor) -> Tensor:
        """What stands in a slot: the projected vector of the item, or zero where the teacher has not seen it."""
        known = items < self.config.num_items
        items = items.where(known, 0)
        known = known & self.item_seen[items]
        vectors = self.sequence_model.item_vectors(items) * self.item_scale
        return self.item_projection(vectors.to(self.item_projection[0].weight.dtype)) * known[:, None]

    # Modes

    def train(self, mode: bool = True) -> "LLMSRecModel":
        """Set the mode of what is trained; the frozen models stay in eval mode."""
        super().train(mode)
        if not hasattr(self, "sequence_model"):  # while it is made
            return self
        self.sequence_model.eval()
        if self.config.adapter is None:
            self.language_model.eval()
            for module in self.language_model.modules():
                # The mark that the layer's own wrapper asks for; what is inside stays in eval mode
                if is_checkpointed(module):
                    module.training = mode
        return self

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):  # biases as torch makes them
            init.xavier_normal_(module.weight)


def _lengths(attention_mask: Tensor, slot_items: Tensor) -> tuple[list[int], list[int]]:
    """Tokens of each prompt, and those before its first slot or query, in which no trained weight has a part."""
    width = slot_items.shape[1]
    lengths = attention_mask.sum(dim=1)
    first = torch.where(slot_items >= 0, torch.arange(width, device=slot_items.device), width).amin(dim=1)
    both = torch.stack([lengths, first.minimum(lengths - 1)]).tolist()  # one read from the device
    return both[0], both[1]


def _head(inputs: int, inner: int, outputs: int, activation: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, inner), nn.LayerNorm(inner), activation, nn.Linear(inner, outputs))


def _check_teacher(model: object) -> SequencePreTrainedModel:
    if not isinstance(model, SequencePreTrainedModel):
        raise ValueError(f"`sequence_model` must be a sequence model of `hf_rec.models`, got {type(model).__name__}.")
    check_reads_history_alone(model, "sequence_model")
    return model


def _load_teacher(folder: str | os.PathLike) -> SequencePreTrainedModel:
    return _check_teacher(load_sequence_model(folder))


def _frozen_folder(config: LLMSRecModelConfig, role: str, folder: str | os.PathLike, check: bool) -> Path:
    name, revision, sha256 = (getattr(config, f"{role}{part}") for part in ("", "_revision", "_sha256"))
    if name is None:
        raise ValueError(f"{folder}/config.json names no `{role}`. Write its folder or Hub id into it.")
    try:
        return WeightsReference(name, revision, sha256).folder(beside=folder, check=check)
    except OSError as error:
        raise OSError(
            f"{folder} needs its `{role}` {name!r}: {error} Put it there, or write its new place into `{role}` of "
            f"{folder}/config.json."
        ) from error


def _with_adapter(language_model: PreTrainedModel, settings: dict) -> PreTrainedModel:
    from peft import PeftConfig, inject_adapter_in_model

    config = PeftConfig.from_peft_type(**settings)
    if config.is_prompt_learning:
        raise ValueError(
            f"`peft_config` is of the type {settings['peft_type']}, whose virtual tokens have no place in these "
            "prompts. Use an adapter on the weights, such as LoRA."
        )
    return inject_adapter_in_model(config, language_model)


def _plain(value: Any) -> Any:
    """A PEFT configuration as JSON."""
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, set | list | tuple):
        return [_plain(entry) for entry in (sorted(value) if isinstance(value, set) else value)]
    return getattr(value, "value", value)


AutoModel.register(LLMSRecModelConfig, LLMSRecModel)
