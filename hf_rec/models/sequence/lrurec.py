"""
LRURec: linear recurrent units over the history (https://huggingface.co/papers/2310.02367), the retriever of LlamaRec.

A unit holds a complex state `h_t = lambda * h_{t-1} + gamma * (B x_t + b)` and gives `Re(C h_t + c)`; lambda, a number
below 1 in absolute value for each channel, is the same at all events. So the states of all events come from about
log2 S rounds of products and sums, and, once they are there, the next event costs one step.

Shapes: B rows · S positions of a row · T real positions of the batch · N items · d hidden size · 2d channels.
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
from hf_rec.models.sequence.ragged import RaggedBatch


class LRURecConfig(SequenceModelConfig):
    """
    Settings of [`LRURecModel`], on top of those of [`SequenceModelConfig`].

    Parameters:
        num_hidden_layers (`int`, *optional*, defaults to `2`):
            Blocks of a recurrent unit and a feed-forward layer.
        smallest_radius (`float`, *optional*, defaults to `0.8`):
            Least absolute value of lambda before training, at least 0: how much of a state an event leaves.
        largest_radius (`float`, *optional*, defaults to `0.99`):
            Largest absolute value of lambda before training, less than 1.
        initializer_range (`float`, *optional*, defaults to `0.02`):
            Standard deviation of the other initial weights, cut off at twice its value.
    """

    model_type = "lrurec"

    num_hidden_layers: int = 2
    smallest_radius: float = 0.8
    largest_radius: float = 0.99
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if not 0 <= self.smallest_radius < self.largest_radius < 1:
            raise ValueError(
                "`smallest_radius` must be at least 0 and less than `largest_radius`, which must be less than 1, got "
                f"{self.smallest_radius} and {self.largest_radius}."
            )


class LinearRecurrentUnit(nn.Module):
    """
    The recurrence alone. Complex numbers are kept as real and imaginary parts, since safetensors and most optimizers
    take no complex weights; `Re(C h + c)` is one real layer over both parts of h.
    """

    def __init__(self, config: LRURecConfig):
        super().__init__()
        size, channels = config.hidden_size, 2 * config.hidden_size
        self.radii = config.smallest_radius, config.largest_radius
        # lambda = exp(-exp(decay_log) + i exp(angle_log)), so it stays below 1 whatever training does
        self.decay_log = nn.Parameter(torch.empty(channels))
        self.angle_log = nn.Parameter(torch.empty(channels))
        self.scale_log = nn.Parameter(torch.empty(channels))  # of gamma
        self.input = nn.Linear(size, 2 * channels)
        self.output = nn.Linear(2 * channels, size)

    def factors(self) -> Tensor:
        """lambda: complex, of shape `(2d,)`."""
        return torch.exp(torch.complex(-self.decay_log.float().exp(), self.angle_log.float().exp()))

    def scaled_inputs(self, states: Tensor) -> Tensor:
        """`gamma * (B x + b)`: complex, of shape `(T, 2d)`."""
        parts = self.input(states).float().unflatten(-1, (-1, 2))
        return torch.view_as_complex(parts * self.scale_log.float().exp()[:, None])

    def forward(self, states: Tensor, batch: RaggedBatch) -> Tensor:
        recurrent = batch.linear_recurrence(self.scaled_inputs(states), self.factors())
        return self.output(torch.view_as_real(recurrent).flatten(-2).to(states.dtype))

    def reset(self) -> None:
        """Draws lambda evenly from the ring between the two radii; gamma gives each channel a state of like size."""
        low, high = (radius**2 for radius in self.radii)
        squares = low + (high - low) * torch.rand(self.decay_log.shape, device=self.decay_log.device)
        init.copy_(self.decay_log, (-squares.log() / 2).log())
        angles = 2 * math.pi * torch.rand(self.angle_log.shape, device=self.angle_log.device)
        init.copy_(self.angle_log, angles.clamp(min=torch.finfo(angles.dtype).tiny).log())
        init.copy_(self.scale_log, (1 - squares).log() / 2)


class LRURecBlock(nn.Module):
    """A recurrent unit, then a feed-forward layer, each added to its input, with a layer norm behind it."""

    def __init__(self, config: LRURecConfig):
        super().__init__()
        size = config.hidden_size
        self.unit = LinearRecurrentUnit(config)
        self.unit_norm = nn.LayerNorm(size)
        self.inner = nn.Linear(size, 4 * size)
        self.outer = nn.Linear(4 * size, size)
        self.feed_forward_norm = nn.LayerNorm(size)
        self.dropout = Dropout(config.dropout)

    def forward(self, states: Tensor, batch: RaggedBatch) -> Tensor:
        states = self.unit_norm(states + self.dropout(self.unit(states, batch)))
        added = self.dropout(self.outer(self.dropout(F.gelu(self.inner(states)))))
        return self.feed_forward_norm(states + added)


class LRURecModel(SequencePreTrainedModel):
    """
    Linear recurrent units. Scores are dot products with the item vectors of the input (tied), plus a bias of the item.

    Args:
        config ([`LRURecConfig`]): Settings.
    """

    config_class = LRURecConfig

    def __init__(self, config: LRURecConfig):
        super().__init__(config)
        self.embedding_dropout = Dropout(config.dropout)
        self.embedding_norm = nn.LayerNorm(config.hidden_size)
        self.blocks = nn.ModuleList(LRURecBlock(config) for _ in range(config.num_hidden_layers))
        self.output_bias = nn.Embedding(config.num_items + 1, 1, padding_idx=0)
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
        states = self.read_items(input_ids.flatten()[batch.cells] + 1)
        states = self.embedding_norm(self.embedding_dropout(states))
        for block in self.blocks:
            states = block(states, batch)
        return SequenceModelOutput(user_vector=batch.last(states), last_hidden_state=batch.pad(states))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, nn.Embedding):
            init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
            self._clear_padding(module)
        elif isinstance(module, nn.Linear):
            for weight in (module.weight, module.bias):
                init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
        elif isinstance(module, LinearRecurrentUnit):
            module.reset()
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)


AutoConfig.register(LRURecConfig.model_type, LRURecConfig)
AutoModel.register(LRURecConfig, LRURecModel)
