"""
Caser: convolutions over the last few events (https://huggingface.co/papers/1809.07426).

The published network also learns a vector of each user. Here a user is a history and nothing else, so that people who
were not there in training get recommendations too; the rest is as published.

Shapes: B rows · S positions of a row · L `max_length` · d hidden size · N items.
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


class CaserConfig(SequenceModelConfig):
    """
    Settings of [`CaserModel`], on top of those of [`SequenceModelConfig`].

    Parameters:
        max_length (`int`, *optional*, defaults to `5`):
            Newest events of a history that the model reads.
        num_vertical (`int`, *optional*, defaults to `4`):
            Filters that weigh the events, one number an event.
        num_horizontal (`int`, *optional*, defaults to `16`):
            Filters over 1, 2, ... `max_length` events in a row, so many of each height.
    """

    model_type = "caser"

    max_length: int = 5
    num_vertical: int = 4
    num_horizontal: int = 16


class CaserModel(SequencePreTrainedModel):
    """
    Convolutional sequence embedding. Scores are dot products with item vectors of their own, plus a bias of the item.

    Args:
        config ([`CaserConfig`]): Settings.
    """

    config_class = CaserConfig
    causal = False

    def __init__(self, config: CaserConfig):
        super().__init__(config)
        length, size = config.max_length, config.hidden_size
        self.vertical = nn.Conv2d(1, config.num_vertical, kernel_size=(length, 1))
        self.horizontal = nn.ModuleList(
            nn.Conv2d(1, config.num_horizontal, kernel_size=(height, size)) for height in range(1, length + 1)
        )
        self.dense = nn.Linear(config.num_vertical * size + config.num_horizontal * length, size)
        self.dropout = Dropout(config.dropout)
        self.output_embedding = nn.Embedding(config.num_items + 1, size, padding_idx=0)
        self.output_bias = nn.Embedding(config.num_items + 1, 1, padding_idx=0)
        self.post_init()

    def item_vectors(self, items: Tensor | None = None) -> Tensor:
        return self.output_embedding.weight[1:] if items is None else self.output_embedding(items + 1)

    def item_tables(self) -> list[nn.Embedding]:
        return [*super().item_tables(), self.output_embedding]

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> SequenceModelOutput:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(B, S)`): Histories as catalog rows, oldest event first, padded
                with -1 on any side. Of more than `max_length` events the newest are read.
            attention_mask (`torch.Tensor` of shape `(B, S)`, *optional*): 1 at events, 0 at padding. Default: wherever
                `input_ids` is not -1.

        Returns:
            [`SequenceModelOutput`]: With `user_vector` alone.
        """
        rows = self.padded_rows(input_ids, attention_mask)
        states = self.read_items(rows)[:, None]  # (B, 1, L, d)
        features = [self.vertical(states).flatten(1)]
        features += [F.relu(convolution(states)).amax(dim=(2, 3)) for convolution in self.horizontal]
        users = F.relu(self.dense(self.dropout(torch.cat(features, dim=1))))
        return SequenceModelOutput(user_vector=self.clear_empty(users, rows))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if module is self.output_bias and isinstance(module, nn.Embedding):
            init.zeros_(module.weight)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=1 / self.config.hidden_size)
            self._clear_padding(module)
        elif isinstance(module, nn.Conv2d):
            bound = 1 / math.sqrt(module.weight[0].numel())
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.Linear):
            init.xavier_normal_(module.weight)
            init.zeros_(module.bias)


AutoConfig.register(CaserConfig.model_type, CaserConfig)
AutoModel.register(CaserConfig, CaserModel)
