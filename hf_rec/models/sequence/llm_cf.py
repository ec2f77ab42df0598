"""
SASRec that reads what others did after a like history (LLM-CF, https://huggingface.co/papers/2403.17688).

A few rows of other users (in-context examples) are found for each history; a small decoder reads them for the user
vector, and what it makes of them is added to it.

Shapes: B rows · S positions of a row · P positions that read examples · M examples of a position · K parts of them · U
different examples of a batch · T width of a text vector · d hidden size.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from transformers import initialization as init

from hf_rec.models.sequence.base import SequenceModelOutput
from hf_rec.models.sequence.dropout import Dropout
from hf_rec.models.sequence.examples import ExampleIndex
from hf_rec.models.sequence.sasrec import SASRecConfig, SASRecModel


PARTS = 3  # of an example that the decoder reads: what the other user had, what came next, the text


class LLMCFModelConfig(SASRecConfig):
    """
    Settings of [`LLMCFModel`], on top of those of [`SASRecConfig`].

    Parameters:
        num_examples (`int`, *optional*, defaults to `4`):
            Examples of a history.
        example_length (`int`, *optional*, defaults to `20`):
            Newest events of each stored row.
        num_decoder_layers (`int`, *optional*, defaults to `1`):
            Layers of the decoder.
        num_decoder_heads (`int`, *optional*, defaults to `2`):
            Its attention heads; divides `hidden_size`.
        feature_weight (`float`, *optional*, defaults to `0.1`):
            Weight of what the decoder makes of the examples, beside the user vector.
        num_stored_rows (`int`, *optional*, defaults to `0`):
            Rows that examples are taken from. They are part of the weights.
        example_text_size (`int`, *optional*, defaults to `0`):
            Width of the text vectors of the stored rows; 0 for none.
        reconstructs_text (`bool`, *optional*, defaults to `False`):
            Whether what the decoder makes is also projected back to a text vector.
    """

    model_type = "llm_cf"

    num_examples: int = 4
    example_length: int = 20
    num_decoder_layers: int = 1
    num_decoder_heads: int = 2
    feature_weight: float = 0.1
    num_stored_rows: int = 0
    example_text_size: int = 0
    reconstructs_text: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        for name in ("num_examples", "example_length", "num_decoder_layers", "num_decoder_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.hidden_size % self.num_decoder_heads:
            raise ValueError(
                f"`num_decoder_heads` must divide `hidden_size` = {self.hidden_size}, got {self.num_decoder_heads}."
            )


@dataclass
class LLMCFOutput(SequenceModelOutput):
    """
    Output of [`LLMCFModel`].

    Args:
        feature (`torch.FloatTensor` of shape `(P, d)`, *optional*):
            What the decoder made of the examples, before its weight; zero where there is none.
    """

    feature: torch.FloatTensor | None = None


class DecoderLayer(nn.Module):
    """A query reads the parts of its examples, then a feed-forward layer; layer norm before each."""

    def __init__(self, config: LLMCFModelConfig):
        super().__init__()
        size = config.hidden_size
        self.num_heads = config.num_decoder_heads
        self.query_norm, self.inner_norm = nn.LayerNorm(size), nn.LayerNorm(size)
        self.query, self.value = nn.Linear(size, size), nn.Linear(size, size)
        self.key = nn.Linear(size, size, bias=False)  # a bias would shift all scores of a query alike
        self.output = nn.Linear(size, size)
        self.inner, self.outer = nn.Linear(size, 2 * size), nn.Linear(2 * size, size)
        self.dropout = Dropout(config.dropout)

    def forward(self, states: Tensor, memory: Tensor, places: Tensor, visible: Tensor) -> Tensor:
        """
        Args:
            states (`torch.Tensor` of shape `(P, d)`): Queries.
            memory (`torch.Tensor` of shape `(U, d)`): Parts of the examples; projected once for all that read them.
            places (`torch.Tensor` of shape `(P, K)`): Rows of `memory` that each query reads.
            visible (`torch.Tensor` of shape `(P, K)`): Where they are none, `False`; one is always visible.
        """
        query = self.query(self.query_norm(states)).unflatten(1, (self.num_heads, 1, -1))  # (P, h, 1, e)
        key, value = (
            projection(memory)[places].unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # (P, h, K, e)
            for projection in (self.key, self.value)
        )
        read = F.scaled_dot_product_attention(query, key, value, attn_mask=visible[:, None, None])
        states = states + self.dropout(self.output(read.flatten(1)))
        return states + self.dropout(self.outer(F.relu(self.inner(self.inner_norm(states)))))


class LLMCFModel(SASRecModel):
    """
    SASRec with in-context examples.

    Args:
        config ([`LLMCFModelConfig`]): Settings.
    """

    config_class = LLMCFModelConfig
    reads_times = True
    config: LLMCFModelConfig

    def __init__(self, config: LLMCFModelConfig):
        super().__init__(config)
        size = config.hidden_size
        self.examples = ExampleIndex(
            config.num_stored_rows, config.example_length, config.example_text_size, config.num_items
        )
        self.part_vectors = nn.Parameter(torch.zeros(PARTS + 1, size))  # and what is read where there is no example
        self.text_input = nn.Linear(config.example_text_size, size, bias=False) if config.example_text_size else None
        self.memory_norm = nn.LayerNorm(size)
        self.decoder = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_decoder_layers))
        self.feature_norm = nn.LayerNorm(size)
        self.feature_output = nn.Linear(size, size)
        self.text_output = nn.Linear(size, config.example_text_size) if config.reconstructs_text else None
        self.post_init()

    def set_examples(
        self,
        histories: Tensor,
        targets: Tensor,
        times: Tensor,
        texts: Tensor | None = None,
        reconstructs_text: bool = False,
    ) -> None:
        """
        Store the rows that examples are taken from.

        Args:
            histories (`torch.Tensor` of shape `(R, E)`): Newest events of each, padded with -1 on the left.
            targets (`torch.Tensor` of shape `(R,)`): What came next.
            times (`torch.Tensor` of shape `(R,)`): When.
            texts (`torch.Tensor` of shape `(R, T)`, *optional*): Vectors of a text about each.
            reconstructs_text (`bool`, *optional*, defaults to `False`): Whether to have a layer that gives them back.
        """
        config = self.config
        size = 0 if texts is None else texts.shape[1]
        if (len(self.examples), config.example_text_size) != (len(targets), size):
            config.num_stored_rows = len(targets)
            self.examples = ExampleIndex(len(targets), config.example_length, size, config.num_items).to(self.device)
        if config.example_text_size != size:
            config.example_text_size = size
            self.text_input = self._new_layer(size, config.hidden_size, bias=False) if size else None
        if not reconstructs_text or self.text_output is None or self.text_output.out_features != size:
            config.reconstructs_text = reconstructs_text
            self.text_output = self._new_layer(config.hidden_size, size) if reconstructs_text else None
        self.examples.fill(histories, targets, times, texts)

    def _new_layer(self, *sizes: int, bias: bool = True) -> nn.Linear:
        layer = nn.Linear(*sizes, bias=bias).to(self.device, self.dtype)
        init.xavier_normal_(layer.weight)
        if bias:
            init.zeros_(layer.bias)
        return layer

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        examples: Tensor | None = None,
        places: Tensor | None = None,
        before: Tensor | None = None,
        **kwargs: Any,
    ) -> LLMCFOutput:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(B, S)`): Histories as catalog rows, oldest event first, padded
                with -1 on any side. Of more than `max_length` events the newest are read.
            attention_mask (`torch.Tensor` of shape `(B, S)`, *optional*): 1 at events, 0 at padding. Default: wherever
                `input_ids` is not -1.
            examples (`torch.LongTensor` of shape `(P, M)`, *optional*): Numbers of stored rows, -1 for none. Default:
                those that are found for each whole history.
            places (`torch.LongTensor` of shape `(P,)`, *optional*): Positions of the flattened `B * S` that read the
                examples; the other ones of `last_hidden_state` read none. Default: the user vectors read them.
            before (`torch.LongTensor` of shape `(B,)`, *optional*): Only rows stored before this time are found.

        Returns:
            [`LLMCFOutput`]
        """
        output = super().forward(input_ids, attention_mask)
        user: Any = output.user_vector
        states: Any = output.last_hidden_state
        if places is not None:
            flat = states.flatten(0, 1)
            feature = self._feature(flat[places], examples)
            added = flat.index_add(0, places, self.config.feature_weight * feature.to(flat.dtype))
            return LLMCFOutput(user_vector=user, last_hidden_state=added.view_as(states), feature=feature)
        if examples is None:
            histories = input_ids if attention_mask is None else input_ids.masked_fill(attention_mask == 0, -1)
            examples = self.examples.find(histories, self.config.num_examples, before)
        feature = self._feature(user, examples)
        user = user + self.config.feature_weight * feature
        return LLMCFOutput(user_vector=user, last_hidden_state=states, feature=feature)

    def _feature(self, users: Tensor, examples: Tensor) -> Tensor:
        """What the decoder makes of the examples `(P, M)` of users `(P, d)`; zero where there is none."""
        used, number = examples.clamp(min=0).unique(return_inverse=True)
        memory = self._memory(used)  # parts of each example, and one row for no example
        places = number[:, :, None] * PARTS + torch.arange(PARTS, device=number.device)
        visible = (examples >= 0)[:, :, None].expand_as(places)
        if self.text_input is None:
            places, visible = places[:, :, : PARTS - 1], visible[:, :, : PARTS - 1]
        places, visible = places.flatten(1), visible.flatten(1)
        none = torch.full_like(places[:, :1], len(memory) - 1)
        places, visible = torch.cat([places, none], dim=1), F.pad(visible, (0, 1), value=True)
        states = users
        for layer in self.decoder:
            states = layer(states, memory, places, visible)
        feature = self.feature_output(self.feature_norm(states))
        return feature * (examples >= 0).any(dim=1, keepdim=True)

    def _memory(self, rows: Tensor) -> Tensor:
        """Parts of stored rows `(U,)`, and what is read where there is none: `(U * 3 + 1, d)`."""
        index = self.examples
        parts = torch.zeros(len(rows), PARTS, self.config.hidden_size, dtype=self.dtype, device=rows.device)
        if len(index):
            histories = index.histories[rows].long()
            real = histories >= 0
            items = self.item_embedding(histories[real] + 1)
            row = real.nonzero()[:, 0]
            had = parts[:, 0].to(items.dtype).index_add(0, row, items) / real.sum(dim=1, keepdim=True).clamp(min=1)
            read = [had, self.item_embedding(index.targets[rows].long() + 1)]
            if self.text_input is not None:
                read.append(self.text_input(index.texts[rows]))
            parts = torch.cat([torch.stack(read, dim=1), parts[:, len(read) :]], dim=1)
        parts = (parts + self.part_vectors[:PARTS]).flatten(0, 1)
        return self.memory_norm(torch.cat([parts, self.part_vectors[PARTS:]]))

    def user_vectors(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        examples: Tensor | None = None,
        before: Tensor | None = None,
    ) -> Tensor:
        """The user after the whole history, shape `(B, d)`. Arguments as those of `forward`."""
        return self(input_ids=input_ids, attention_mask=attention_mask, examples=examples, before=before).user_vector

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        own = [getattr(self, name, None) for name in ("text_input", "text_output", "feature_output")]
        if any(module is part for part in own):
            init.xavier_normal_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, DecoderLayer):
            for linear in (part for part in module.children() if isinstance(part, nn.Linear)):
                init.xavier_normal_(linear.weight)
                if linear.bias is not None:
                    init.zeros_(linear.bias)
        elif module is self:
            init.normal_(self.part_vectors, std=0.02)
        else:
            super()._init_weights(module)


AutoConfig.register(LLMCFModelConfig.model_type, LLMCFModelConfig)
AutoModel.register(LLMCFModelConfig, LLMCFModel)
