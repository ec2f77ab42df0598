"""
FMLP-Rec: learned filters in the frequency domain in place of attention (https://huggingface.co/papers/2202.13556).

A filter is a circular convolution over the whole padded history: every position sees the events after it. So the
network has a vector of the user after the whole history alone, and is trained on prefixes; trained at all positions at
once, it would copy its labels.

Shapes: B rows · S positions of a row · L `max_length` · d hidden size.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from transformers import initialization as init

from hf_rec.models.sequence.base import SequenceModelConfig, SequenceModelOutput, SequencePreTrainedModel
from hf_rec.models.sequence.dropout import Dropout


class FMLPRecConfig(SequenceModelConfig):
    """
    Settings of [`FMLPRecModel`], on top of those of [`SequenceModelConfig`].

    Parameters:
        num_hidden_layers (`int`, *optional*, defaults to `4`):
            Blocks of a filter and a feed-forward layer.
        initializer_range (`float`, *optional*, defaults to `0.02`):
            Standard deviation of the initial weights.
        layer_norm_eps (`float`, *optional*, defaults to `1e-12`):
            Epsilon of the layer norms.
    """

    model_type = "fmlprec"

    num_hidden_layers: int = 4
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12


class FMLPRecFilter(nn.Module):
    """Multiplies each frequency of each channel by a learned complex number."""

    def __init__(self, config: FMLPRecConfig):
        super().__init__()
        # Real and imaginary part, since safetensors and most optimizers take no complex weights
        self.weight = nn.Parameter(torch.empty(config.max_length // 2 + 1, config.hidden_size, 2))

    def forward(self, states: Tensor) -> Tensor:
        frequencies = torch.fft.rfft(states.float(), dim=1, norm="ortho") * torch.view_as_complex(self.weight.float())
        return torch.fft.irfft(frequencies, n=states.shape[1], dim=1, norm="ortho").to(states.dtype)

    def last(self, states: Tensor) -> Tensor:
        """`forward(states)[:, -1:]`, as the convolution at one position in place of two Fourier transforms."""
        kernel = torch.fft.irfft(torch.view_as_complex(self.weight.float()), n=states.shape[1], dim=0)
        return (states.float() * kernel.flip(0)).sum(dim=1, keepdim=True).to(states.dtype)


class FMLPRecBlock(nn.Module):
    """A learned filter of the frequencies of a row, then a feed-forward layer, each added to its input."""

    def __init__(self, config: FMLPRecConfig):
        super().__init__()
        size = config.hidden_size
        self.filter = FMLPRecFilter(config)
        self.filter_norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.inner = nn.Linear(size, 4 * size)
        self.outer = nn.Linear(4 * size, size)
        self.feed_forward_norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.dropout)

    def forward(self, states: Tensor, last_only: bool) -> Tensor:
        filtered = self.filter.last(states) if last_only else self.filter(states)
        states = states[:, -1:] if last_only else states
        states = self.filter_norm(self.dropout(filtered) + states)
        return self.feed_forward_norm(self.dropout(self.outer(F.gelu(self.inner(states)))) + states)


class FMLPRecModel(SequencePreTrainedModel):
    """
    Filter-enhanced MLP. Scores are dot products with the item vectors of the input (tied).

    Args:
        config ([`FMLPRecConfig`]): Settings.
    """

    config_class = FMLPRecConfig
    causal = False

    def __init__(self, config: FMLPRecConfig):
        super().__init__(config)
        self.position_embedding = nn.Embedding(config.max_length, config.hidden_size)
        self.embedding_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.embedding_dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(FMLPRecBlock(config) for _ in range(config.num_hidden_layers))
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> SequenceModelOutput:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(B, S)`): Histories as catalog rows, oldest event first, padded
                with -1 on any side. Of more than `max_length` events the newest are read; fewer are padded to that
                length, as in training.
            attention_mask (`torch.Tensor` of shape `(B, S)`, *optional*): 1 at events, 0 at padding. Default: wherever
                `input_ids` is not -1.

        Returns:
            [`SequenceModelOutput`]: With `user_vector` alone.
        """
        rows = self.padded_rows(input_ids, attention_mask)
        states = self.read_items(rows) + self.position_embedding.weight
        states = self.embedding_dropout(self.embedding_norm(states))
        for number, block in enumerate(self.blocks, start=1):
            states = block(states, last_only=number == len(self.blocks))
        return SequenceModelOutput(user_vector=self.clear_empty(states[:, -1], rows))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=std)
            self._clear_padding(module)
        elif isinstance(module, FMLPRecFilter):
            init.normal_(module.weight, std=std)
        elif isinstance(module, nn.Linear):
            init.normal_(module.weight, std=std)
            init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)


AutoConfig.register(FMLPRecConfig.model_type, FMLPRecConfig)
AutoModel.register(FMLPRecConfig, FMLPRecModel)
