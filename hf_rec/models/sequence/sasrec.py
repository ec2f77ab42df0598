"""
SASRec: a causal Transformer over the history (https://huggingface.co/papers/1808.09781), as trained for the SCE paper.

Two published networks differ in one residual. `residual="input"` (the SCE paper's code) adds the attention to its
un-normalised input x; `residual="query"` (the widely copied PyTorch port) adds it to the query, LN(x). In both, keys
and values are the un-normalised x.

Shapes: B rows · S positions of a row · T real positions of the batch · d hidden size · h heads.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from transformers import initialization as init

from hf_rec.models.sequence.base import SequenceModelConfig, SequenceModelOutput, SequencePreTrainedModel
from hf_rec.models.sequence.dropout import Dropout
from hf_rec.models.sequence.ragged import RaggedAttention, RaggedBatch


class SASRecConfig(SequenceModelConfig):
    """
    Settings of [`SASRecModel`], on top of those of [`SequenceModelConfig`].

    Parameters:
        num_hidden_layers (`int`, *optional*, defaults to `2`):
            Transformer blocks.
        num_attention_heads (`int`, *optional*, defaults to `1`):
            Attention heads; divides `hidden_size`.
        residual (`str`, *optional*, defaults to `"input"`):
            What attention is added to: `"input"`, the input of the block, or `"query"`, its layer norm.
        layer_norm_eps (`float`, *optional*, defaults to `1e-8`):
            Epsilon of the layer norms.
    """

    model_type = "sasrec"

    num_hidden_layers: int = 2
    num_attention_heads: int = 1
    residual: str = "input"
    layer_norm_eps: float = 1e-8

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.residual not in ("input", "query"):
            raise ValueError(f"`residual` must be 'input' or 'query', got {self.residual!r}.")


class SASRecAttention(nn.Module):
    """
    Attention in which the padding takes part, as published: its vectors are zero, so each padded position has the key
    bias for a key and the value bias for a value. A key bias shifts all scores of a query alike and so changes
    nothing, and the weights sum to 1, so the value bias can be added afterwards: what remains of the padding is one
    column of score 0 and value 0, counted as often as there are padded positions. Only the noise that dropout puts on
    the value bias is lost.
    """

    def __init__(self, config: SASRecConfig):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.dropout = config.dropout
        size = config.hidden_size
        self.query = nn.Linear(size, size)
        self.key = nn.Linear(size, size, bias=False)
        self.value = nn.Linear(size, size, bias=False)
        self.value_bias = nn.Parameter(torch.zeros(size))
        self.output = nn.Linear(size, size)

    def forward(self, query: Tensor, states: Tensor, attend: RaggedAttention) -> Tensor:
        query, key, value = self.query(query), self.key(states), self.value(states)
        query, key, value = (part.unflatten(-1, (self.num_heads, -1)) for part in (query, key, value))
        dropout = self.dropout if self.training else 0.0
        return self.output(attend(query, key, value, dropout).flatten(-2) + self.value_bias)


class SASRecBlock(nn.Module):
    """Causal attention, then a feed-forward layer, layer norm before each (`residual` says what attention adds to)."""

    def __init__(self, config: SASRecConfig):
        super().__init__()
        self.residual = config.residual
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = SASRecAttention(config)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.inner = nn.Linear(config.hidden_size, config.hidden_size)
        self.outer = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = Dropout(config.dropout)

    def forward(self, states: Tensor, attend: RaggedAttention) -> Tensor:
        query = self.attention_norm(states)
        attended = self.attention(query, states, attend)
        states = self.feed_forward_norm(attended + (states if self.residual == "input" else query))
        return states + self.dropout(self.outer(F.relu(self.dropout(self.inner(states)))))


class SASRecModel(SequencePreTrainedModel):
    """
    Self-attentive sequential recommendation. Scores are dot products with the item vectors of the input (tied).

    Args:
        config ([`SASRecConfig`]): Settings.
    """

    config_class = SASRecConfig

    def __init__(self, config: SASRecConfig):
        super().__init__(config)
        self.position_embedding = nn.Embedding(config.max_length, config.hidden_size)
        self.embedding_dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(SASRecBlock(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> SequenceModelOutput:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(B, S)`): Histories as catalog rows, oldest event first, padded
                with -1 on any side. Of more than `max_length` events the newest are read.
            attention_mask (`torch.Tensor` of shape `(B, S)`, *optional*): 1 at events, 0 at padding. Default: wherever
                `input_ids` is not -1.

        Returns:
            [`SequenceModelOutput`]
        """
        length = self.config.max_length
        batch = RaggedBatch(self.read_positions(input_ids, attention_mask))
        # Position 0 is the oldest of `length` events: a short row uses the last positions, as left padding does
        positions = self.position_embedding(length - 1 - batch.age)
        states = self.read_items(input_ids.flatten()[batch.cells] + 1) * math.sqrt(self.config.hidden_size)
        states = self.embedding_dropout(states + positions)
        if len(states):
            attend = batch.attention(causal=True, padded_length=length)
            for block in self.blocks:
                states = block(states, attend)
        states = self.norm(states)
        return SequenceModelOutput(user_vector=batch.last(states), last_hidden_state=batch.pad(states))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            self._init_item_table(module)
        elif isinstance(module, SASRecAttention):
            # One [3d, d] matrix in the published code, drawn as a whole
            bound = math.sqrt(6 / (4 * self.config.hidden_size))
            for linear in (module.query, module.key, module.value):
                init.uniform_(linear.weight, -bound, bound)
            init.xavier_normal_(module.output.weight)
            for bias in (module.query.bias, module.value_bias, module.output.bias):
                init.zeros_(bias)
        elif isinstance(module, SASRecBlock):
            # Default of the convolutions of width 1 that these layers are
            bound = 1 / math.sqrt(self.config.hidden_size)
            for linear in (module.inner, module.outer):
                init.uniform_(linear.weight, -bound, bound)
                init.uniform_(linear.bias, -bound, bound)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)


AutoConfig.register(SASRecConfig.model_type, SASRecConfig)
AutoModel.register(SASRecConfig, SASRecModel)
