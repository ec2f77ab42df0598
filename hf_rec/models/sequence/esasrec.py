"""
eSASRec: SASRec's training objective with LiGR Transformer blocks (https://huggingface.co/papers/2508.06450).

A LiGR block (https://huggingface.co/papers/2502.03417) normalises its input, gates what attention and a SwiGLU
feed-forward layer add to the stream by a sigmoid of the un-normalised stream, and leaves the stream itself untouched.
Unlike in the published SASRec, attention does not see padding, item vectors are not scaled, and no norm comes last.

Shapes: B rows · S positions of a row · T real positions of the batch · d hidden size · h heads.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from transformers import initialization as init

from hf_rec.models.sequence.base import SequenceModelConfig, SequenceModelOutput, SequencePreTrainedModel
from hf_rec.models.sequence.dropout import Dropout
from hf_rec.models.sequence.ragged import RaggedAttention, RaggedBatch


class ESASRecConfig(SequenceModelConfig):
    """
    Settings of [`ESASRecModel`], on top of those of [`SequenceModelConfig`].

    Parameters:
        num_hidden_layers (`int`, *optional*, defaults to `2`):
            LiGR blocks.
        num_attention_heads (`int`, *optional*, defaults to `1`):
            Attention heads; divides `hidden_size`.
        intermediate_size (`int`, *optional*):
            Width of the feed-forward layers. Default: 4 times `hidden_size`.
    """

    model_type = "esasrec"

    num_hidden_layers: int = 2
    num_attention_heads: int = 1
    intermediate_size: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.intermediate_size is not None and self.intermediate_size < 1:
            raise ValueError(f"`intermediate_size` must be at least 1, got {self.intermediate_size}.")


class LiGRBlock(nn.Module):
    """Attention and SwiGLU, each added to its input through a gate that is computed from the input."""

    def __init__(self, config: ESASRecConfig):
        super().__init__()
        size, inner = config.hidden_size, config.intermediate_size or 4 * config.hidden_size
        self.num_heads = config.num_attention_heads
        self.attention_dropout = config.dropout
        self.attention_norm = nn.LayerNorm(size)
        self.query_key_value = nn.Linear(size, 3 * size)
        self.output = nn.Linear(size, size)
        self.attention_gate = nn.Linear(size, size)
        self.feed_forward_norm = nn.LayerNorm(size)
        self.gate_and_up = nn.Linear(size, 2 * inner, bias=False)
        self.down = nn.Linear(inner, size, bias=False)
        self.feed_forward_gate = nn.Linear(size, size)
        self.dropout = Dropout(config.dropout)

    def forward(self, states: Tensor, attend: RaggedAttention) -> Tensor:
        attended = self.dropout(self._attention(self.attention_norm(states), attend))
        states = states + self.attention_gate(states).sigmoid() * attended
        added = self.dropout(self._feed_forward(self.feed_forward_norm(states)))
        return states + self.feed_forward_gate(states).sigmoid() * added

    def _attention(self, states: Tensor, attend: RaggedAttention) -> Tensor:
        query, key, value = self.query_key_value(states).unflatten(-1, (3, self.num_heads, -1)).unbind(dim=1)
        return self.output(attend(query, key, value, self.attention_dropout if self.training else 0.0).flatten(-2))

    def _feed_forward(self, states: Tensor) -> Tensor:
        gate, up = self.gate_and_up(states).chunk(2, dim=-1)
        return self.down(self.dropout(F.silu(gate) * up))


class ESASRecModel(SequencePreTrainedModel):
    """
    SASRec with LiGR blocks. Scores are dot products with the item vectors of the input (tied).

    Args:
        config ([`ESASRecConfig`]): Settings.
    """

    config_class = ESASRecConfig

    def __init__(self, config: ESASRecConfig):
        super().__init__(config)
        self.position_embedding = nn.Embedding(config.max_length, config.hidden_size)
        self.embedding_dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(LiGRBlock(config) for _ in range(config.num_hidden_layers))
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
        batch = RaggedBatch(self.read_positions(input_ids, attention_mask))
        # Position 0 is the oldest of `max_length` events: a short row uses the last positions, as left padding does
        positions = self.position_embedding(self.config.max_length - 1 - batch.age)
        states = self.embedding_dropout(self.read_items(input_ids.flatten()[batch.cells] + 1) + positions)
        if len(states):
            attend = batch.attention(causal=True)
            for block in self.blocks:
                states = block(states, attend)
        return SequenceModelOutput(user_vector=batch.last(states), last_hidden_state=batch.pad(states))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            self._init_item_table(module)
        elif isinstance(module, nn.Linear):
            init.xavier_normal_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)


AutoConfig.register(ESASRecConfig.model_type, ESASRecConfig)
AutoModel.register(ESASRecConfig, ESASRecModel)
