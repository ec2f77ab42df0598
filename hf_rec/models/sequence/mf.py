"""
Matrix factorisation without a table of users: the user is the sum of the factors of the items in the history.

A table with a row for each user knows nobody who is met after training, and a recommender here takes any history. So
the user vector is made from the history, as in FISM (Kabbur, Ning and Karypis, KDD 2013): with n items in the history,
`n^-alpha * sum of p_i`, and the score of item j is its product with `q_j`, plus a bias of item j. `p` and `q` are two
tables. The order of events plays no part, which makes it a control too: what a model of sequences gains over it, it
gains from order (or from depth).

FISM leaves the item that is scored out of the sum, since its rows are sets; here a label stands behind the events that
are summed up.

Shapes: B rows · S positions of a row · T real positions of the batch · N items · d hidden size.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from transformers import initialization as init

from hf_rec.models.sequence.base import SequenceModelConfig, SequenceModelOutput, SequencePreTrainedModel
from hf_rec.models.sequence.dropout import Dropout
from hf_rec.models.sequence.ragged import RaggedBatch


class MFConfig(SequenceModelConfig):
    """
    Settings of [`MFModel`], on top of those of [`SequenceModelConfig`].

    Parameters:
        length_power (`float`, *optional*, defaults to `0.5`):
            Power alpha of the number of events by which their sum is divided: 0 is the sum, 1 the mean.
    """

    model_type = "mf"

    length_power: float = 0.5

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if not 0 <= self.length_power <= 1:
            raise ValueError(f"`length_power` must be between 0 (sum) and 1 (mean), got {self.length_power}.")


class MFModel(SequencePreTrainedModel):
    """
    Matrix factorisation whose user vector comes from the history alone, whatever its order.

    Args:
        config ([`MFConfig`]): Settings.
    """

    config_class = MFConfig
    reads_item_vectors = False  # but factors of their own

    def __init__(self, config: MFConfig):
        super().__init__(config)
        self.history_embedding = nn.Embedding(config.num_items + 1, config.hidden_size, padding_idx=0)
        self.output_bias = nn.Embedding(config.num_items + 1, 1, padding_idx=0)
        self.dropout = Dropout(config.dropout)
        self.post_init()

    def item_tables(self) -> list[nn.Embedding]:
        return [*super().item_tables(), self.history_embedding]

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
        factors = self.dropout(self.history_embedding(input_ids.flatten()[batch.cells] + 1))
        sums = batch.linear_recurrence(factors, decay=factors.new_ones(factors.shape[1]))
        counts = batch.lengths[batch.rows] - batch.age  # events up to this one
        users = sums * counts.to(sums.dtype)[:, None] ** -self.config.length_power
        return SequenceModelOutput(user_vector=batch.last(users), last_hidden_state=batch.pad(users))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if module is self.output_bias and isinstance(module, nn.Embedding):
            init.zeros_(module.weight)
        elif isinstance(module, nn.Embedding):
            self._init_item_table(module)


AutoConfig.register(MFConfig.model_type, MFConfig)
AutoModel.register(MFConfig, MFModel)
