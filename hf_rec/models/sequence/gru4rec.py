"""
GRU4Rec: a recurrent network over the history (https://huggingface.co/papers/1511.06939), as trained for the SCE paper.

Shapes: B rows · S positions of a row · T real positions of the batch · d hidden size.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from transformers import AutoConfig, AutoModel
from transformers import initialization as init

from hf_rec.models.sequence.base import SequenceModelConfig, SequenceModelOutput, SequencePreTrainedModel
from hf_rec.models.sequence.dropout import Dropout
from hf_rec.models.sequence.ragged import RaggedBatch


class GRU4RecConfig(SequenceModelConfig):
    """
    Settings of [`GRU4RecModel`], on top of those of [`SequenceModelConfig`].

    Parameters:
        num_hidden_layers (`int`, *optional*, defaults to `1`):
            Layers of the recurrent network.
        recurrent_size (`int`, *optional*):
            Width of its state. Default: `hidden_size`.
    """

    model_type = "gru4rec"

    num_hidden_layers: int = 1
    recurrent_size: int | None = None


class GRU4RecModel(SequencePreTrainedModel):
    """
    A GRU without biases, then a dense layer. Scores are dot products with the item vectors of the input (tied).

    Args:
        config ([`GRU4RecConfig`]): Settings.
    """

    config_class = GRU4RecConfig

    def __init__(self, config: GRU4RecConfig):
        super().__init__(config)
        size = config.recurrent_size or config.hidden_size
        self.embedding_dropout = Dropout(config.dropout)
        self.gru = nn.GRU(config.hidden_size, size, config.num_hidden_layers, bias=False, batch_first=True)
        self.dense = nn.Linear(size, config.hidden_size)
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
        states = self.embedding_dropout(self.read_items(input_ids.flatten()[batch.cells] + 1))
        if len(states):
            # Straight to packed form and back by one gather each: torch's own way copies a step at a time, and its
            # backward pass fills a padded tensor for every step
            place, batch_sizes = batch.packed_order()
            packed = PackedSequence(torch.empty_like(states).index_copy(0, place, states), batch_sizes)
            states = self.gru(packed)[0].data.index_select(0, place)
        else:
            states = states.new_zeros((0, self.gru.hidden_size))
        states = self.dense(states)
        return SequenceModelOutput(user_vector=batch.last(states), last_hidden_state=batch.pad(states))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            self._init_item_table(module)
        elif isinstance(module, nn.GRU):
            for weight in module.parameters():
                init.xavier_uniform_(weight)
        elif isinstance(module, nn.Linear):
            bound = 1 / math.sqrt(module.in_features)
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)


AutoConfig.register(GRU4RecConfig.model_type, GRU4RecConfig)
AutoModel.register(GRU4RecConfig, GRU4RecModel)
