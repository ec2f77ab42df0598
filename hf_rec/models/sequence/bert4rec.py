"""
BERT4Rec: a bidirectional Transformer that fills in hidden events (https://huggingface.co/papers/1904.06690).

To recommend, a hidden event is put behind the history and filled in.

Shapes: B rows · S positions of a row · T real positions of the batch · d hidden size · N items.
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


class BERT4RecConfig(SequenceModelConfig):
    """
    Settings of [`BERT4RecModel`], on top of those of [`SequenceModelConfig`].

    Parameters:
        num_hidden_layers (`int`, *optional*, defaults to `2`):
            Transformer blocks.
        num_attention_heads (`int`, *optional*, defaults to `2`):
            Attention heads; divides `hidden_size`.
        intermediate_size (`int`, *optional*):
            Width of the feed-forward layers. Default: 4 times `hidden_size`.
        initializer_range (`float`, *optional*, defaults to `0.02`):
            Bound of the truncated normal distribution of the initial weights, and its standard deviation.
        layer_norm_eps (`float`, *optional*, defaults to `1e-12`):
            Epsilon of the layer norms.
    """

    model_type = "bert4rec"

    num_hidden_layers: int = 2
    num_attention_heads: int = 2
    intermediate_size: int | None = None
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12


class BERT4RecBlock(nn.Module):
    """Attention in both directions, then a feed-forward layer, layer norm behind each."""

    def __init__(self, config: BERT4RecConfig):
        super().__init__()
        size, inner = config.hidden_size, config.intermediate_size or 4 * config.hidden_size
        self.num_heads = config.num_attention_heads
        self.attention_dropout = config.dropout
        self.query, self.key, self.value = nn.Linear(size, size), nn.Linear(size, size), nn.Linear(size, size)
        self.output = nn.Linear(size, size)
        self.attention_norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.inner, self.outer = nn.Linear(size, inner), nn.Linear(inner, size)
        self.feed_forward_norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.dropout)

    def forward(self, states: Tensor, attend: RaggedAttention) -> Tensor:
        projections = (self.query(states), self.key(states), self.value(states))
        query, key, value = (part.unflatten(-1, (self.num_heads, -1)) for part in projections)
        dropout = self.attention_dropout if self.training else 0.0
        attended = attend(query, key, value, dropout).flatten(-2)
        states = self.attention_norm(states + self.dropout(self.output(attended)))
        return self.feed_forward_norm(states + self.dropout(self.outer(F.gelu(self.inner(states)))))


class BERT4RecModel(SequencePreTrainedModel):
    """
    Bidirectional encoder, then a dense layer. Scores are dot products with the item vectors of the input (tied), plus
    a bias of the item.

    Args:
        config ([`BERT4RecConfig`]): Settings.
    """

    config_class = BERT4RecConfig
    causal = False
    masked = True
    num_special_items = 1

    def __init__(self, config: BERT4RecConfig):
        super().__init__(config)
        size = config.hidden_size
        self.position_embedding = nn.Embedding(config.max_length, size)
        self.embedding_norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.embedding_dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(BERT4RecBlock(config) for _ in range(config.num_hidden_layers))
        self.head = nn.Linear(size, size)
        self.head_norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.output_bias = nn.Parameter(torch.zeros(config.num_items))
        self.post_init()

    @property
    def mask_item(self) -> int:
        """What stands in `input_ids` in place of a hidden event."""
        return self.config.num_items

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> SequenceModelOutput:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(B, S)`): Rows of events as catalog rows, oldest first, hidden ones
                as `mask_item`, padded with -1 on any side. Of more than `max_length` events the newest are read.
            attention_mask (`torch.Tensor` of shape `(B, S)`, *optional*): 1 at events, 0 at padding. Default: wherever
                `input_ids` is not -1.

        Returns:
            [`SequenceModelOutput`]: `user_vector` is the vector at the newest event: the user, where that one is
            hidden ([`~BERT4RecModel.user_vectors`] sees to it).
        """
        batch = RaggedBatch(self.read_positions(input_ids, attention_mask))
        positions = self.position_embedding(self.config.max_length - 1 - batch.age)
        states = self.read_items(input_ids.flatten()[batch.cells] + 1) + positions
        states = self.embedding_dropout(self.embedding_norm(states))
        if len(states):
            attend = batch.attention(causal=False)
            for block in self.blocks:
                states = block(states, attend)
        states = self.head_norm(F.gelu(self.head(states)))
        return SequenceModelOutput(user_vector=batch.last(states), last_hidden_state=batch.pad(states))

    def user_vectors(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The user after the history, shape `(B, d)`: a hidden event is put behind it, so one event fewer is read."""
        input_ids = F.pad(input_ids, (0, 1), value=self.mask_item)
        attention_mask = None if attention_mask is None else F.pad(attention_mask, (0, 1), value=1)
        return self(input_ids=input_ids, attention_mask=attention_mask).user_vector

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        bound = self.config.initializer_range
        if isinstance(module, nn.Embedding):
            init.trunc_normal_(module.weight, std=bound, a=-bound, b=bound)
            self._clear_padding(module)
        elif isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=bound, a=-bound, b=bound)
            init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif module is self:
            init.zeros_(self.output_bias)


AutoConfig.register(BERT4RecConfig.model_type, BERT4RecConfig)
AutoModel.register(BERT4RecConfig, BERT4RecModel)
