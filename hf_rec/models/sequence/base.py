"""
What all sequence models share: the item table, the output type, and scores.

Shapes: B rows · S positions of a row · K candidates · N items · d width of a user vector. Items are catalog rows `0 ..
N-1`; the padding item is `-1`. Inside, row 0 of the item table is padding and item i is row i + 1.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from hf_rec.columns import PADDING_ITEM
from hf_rec.models.sequence import ragged
from hf_rec.models.sequence.text_vectors import TextVectors


def dot_products(user_vectors: Tensor, item_vectors: Tensor, item_bias: Tensor | None = None) -> Tensor:
    """
    Scores of items for users.

    Args:
        user_vectors (`torch.Tensor` of shape `(B, d)`): Users.
        item_vectors (`torch.Tensor` of shape `(K, d)` or `(B, K, d)`): Items for all users, or for each.
        item_bias (`torch.Tensor` of shape `(K,)` or `(B, K)`, *optional*): Added to the scores.

    Returns:
        `torch.Tensor` of shape `(B, K)`.
    """
    if item_vectors.dim() == 2:
        scores = user_vectors @ item_vectors.t()
    else:
        scores = (item_vectors @ user_vectors[:, :, None]).squeeze(-1)
    return scores if item_bias is None else scores + item_bias


class SequenceModelConfig(PreTrainedConfig):
    """
    Settings that all sequence models share.

    Parameters:
        num_items (`int`, *optional*, defaults to `1`):
            Items of the catalog, N.
        hidden_size (`int`, *optional*, defaults to `64`):
            Width of the item vectors.
        max_length (`int`, *optional*, defaults to `50`):
            Newest events of a history that the model reads; older ones are dropped.
        dropout (`float`, *optional*, defaults to `0.2`):
            Dropout probability, the same at all places.
        catalog_sha256 (`str`, *optional*):
            Hash of the catalog whose rows the items are. A recommender refuses another catalog.
        text_size (`int`, *optional*):
            Width of the text vectors that are read beside the item vectors; none without it.
        text_weight (`float`, *optional*, defaults to `0.2`):
            Weight of the projected text vectors.
    """

    num_items: int = 1
    hidden_size: int = 64
    max_length: int = 50
    dropout: float = 0.2
    catalog_sha256: str | None = None
    text_size: int | None = None
    text_weight: float = 0.2

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        for name in ("num_items", "hidden_size", "max_length"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` must be a whole number of at least 1, got {value!r}.")
        heads = getattr(self, "num_attention_heads", 1)
        if heads < 1 or self.hidden_size % heads:
            raise ValueError(f"`num_attention_heads` must divide `hidden_size` = {self.hidden_size}, got {heads}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"`dropout` must be at least 0 and less than 1, got {self.dropout}.")


@dataclass
class SequenceModelOutput(ModelOutput):
    """
    Output of all sequence models.

    Args:
        user_vector (`torch.FloatTensor` of shape `(B, d)`):
            The user after the whole history; zero for a row of padding alone. Its dot product with an item vector
            (plus the item bias, where the model has one) is the score of the item.
        last_hidden_state (`torch.FloatTensor` of shape `(B, S, d)`, *optional*):
            For models with `causal = True`: the user after each event, from that event and older ones; zero at
            padding. For BERT4Rec: the vector at each position, from all events of the row.
    """

    user_vector: torch.FloatTensor | None = None
    last_hidden_state: torch.FloatTensor | None = None


class SequencePreTrainedModel(PreTrainedModel):
    """
    Base of the sequence models: a table of item vectors, and scores of items for user vectors.

    A subclass gives `forward(input_ids, attention_mask=None) -> SequenceModelOutput`.
    """

    config_class = SequenceModelConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _supports_sdpa = True

    # Whether the vector after an event depends on no later one, so that all positions can be trained at once
    causal = True
    # Whether the model is trained to fill in hidden events, in place of predicting the next one
    masked = False
    # Rows of the item table behind the items, such as the mask of BERT4Rec
    num_special_items = 0
    # Whether the item vectors are what it reads, to which text can be added
    reads_item_vectors = True
    # Whether `user_vectors` takes the time `before` which all that it may know lies
    reads_times = False

    def __init__(self, config: SequenceModelConfig):
        super().__init__(config)
        rows = 1 + config.num_items + self.num_special_items
        self.item_embedding = nn.Embedding(rows, config.hidden_size, padding_idx=0)
        self.text_vectors = TextVectors(rows, config.text_size, config.hidden_size) if config.text_size else None
        # A bias for each item, of the models that have one; of a table row i + 1 is item i, as among the item vectors
        self.output_bias: nn.Embedding | nn.Parameter | None = None

    def get_input_embeddings(self) -> nn.Module:
        return self.item_embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.item_embedding = value

    def read_items(self, rows: Tensor) -> Tensor:
        """What the model reads at rows of the item table: their vectors, and their text where it has been given."""
        vectors = self.item_embedding(rows)
        return vectors if self.text_vectors is None else vectors + self.config.text_weight * self.text_vectors(rows)

    def set_text_vectors(self, vectors: Tensor, weight: float, seed: int = 0) -> None:
        """
        Read text beside the item vectors. Scores are products with the item vectors alone, as before.

        Args:
            vectors (`torch.Tensor` of shape `(N, D)`): Of the text of each item.
            weight (`float`): Of their projection.
            seed (`int`, *optional*, defaults to `0`): Of the projection.

        Raises:
            `ValueError`: Where the model does not read item vectors, or was trained with other text vectors.
        """
        config = self.config
        if not self.reads_item_vectors:
            raise ValueError(f"{type(self).__name__} does not read item vectors, so no text can be added to them.")
        if self.text_vectors is not None:
            same = (config.text_weight, config.text_size) == (weight, vectors.shape[1])
            if not same or not torch.equal(self.text_vectors.vectors[1 : 1 + len(vectors)], vectors.to(self.dtype)):
                raise ValueError(
                    "The model was trained with other text vectors, or another weight of them. Give those, or none: "
                    "it has them in its weights."
                )
            return
        config.text_size, config.text_weight = vectors.shape[1], weight
        self.text_vectors = TextVectors(len(self.item_embedding.weight), config.text_size, config.hidden_size)
        self.text_vectors.to(device=self.device, dtype=self.dtype).fill(vectors, seed)

    def read_positions(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Boolean mask `(B, S)` of the newest `max_length` events, once every event is known to be in the table."""
        real = input_ids != PADDING_ITEM if attention_mask is None else attention_mask.bool()
        if ragged.reads_are_free(input_ids):  # an accelerator asserts by itself
            self.check_items(input_ids[real])
        if real.shape[1] > self.config.max_length:
            real = real & (real.flip(1).cumsum(1).flip(1) <= self.config.max_length)
        return real

    def check_items(self, items: Tensor) -> None:
        """Raises a `ValueError` that names the first item without a row in the table."""
        limit = self.config.num_items + self.num_special_items
        if items.numel() and (items.min() < 0 or items.max() >= limit):
            wrong = items[(items < 0) | (items >= limit)][0].item()
            raise ValueError(
                f"`input_ids` has the item {wrong}, but this model knows the items 0..{self.config.num_items - 1} "
                f"(padding is {PADDING_ITEM}). Was it trained with another catalog?"
            )

    def padded_rows(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Table rows of the newest `max_length` events, shape `(B, max_length)`, left padded with 0."""
        length = self.config.max_length
        real = self.read_positions(input_ids, attention_mask)
        order = real.to(torch.int8).argsort(dim=1, stable=True)  # events to the right, in their order
        rows = (input_ids + 1).masked_fill(~real, 0).gather(1, order)[:, -length:]
        return nn.functional.pad(rows, (length - rows.shape[1], 0))

    @staticmethod
    def clear_empty(vectors: Tensor, rows: Tensor) -> Tensor:
        """`vectors` `(B, d)` with zeros for the users whose table rows `(B, S)` are padding alone."""
        return vectors.where((rows > 0).any(dim=1, keepdim=True), 0)

    def item_vectors(self, items: Tensor | None = None) -> Tensor:
        """Output vectors of all items, shape `(N, d)`, or of the given ones, shape `(*items, d)`."""
        if items is None:
            return self.item_embedding.weight[1 : self.config.num_items + 1]
        return self.item_embedding(items + 1)

    def item_bias(self, items: Tensor | None = None) -> Tensor | None:
        """What is added to the scores of all items, `(N,)`, or of the given ones; `None` where there is no bias."""
        if not isinstance(self.output_bias, nn.Embedding):
            return self.output_bias if items is None or self.output_bias is None else self.output_bias[items]
        return self.output_bias.weight[1:, 0] if items is None else self.output_bias(items + 1).squeeze(-1)

    def score_items(self, user_vectors: Tensor, items: Tensor | None = None) -> Tensor:
        """
        Scores of items for users.

        Args:
            user_vectors (`torch.Tensor` of shape `(B, d)`): As in [`SequenceModelOutput`].
            items (`torch.Tensor` of shape `(B, K)` or `(K,)`, *optional*): Candidates of each user, or of all.
                Default: all items.

        Returns:
            `torch.Tensor` of shape `(B, K)` or `(B, N)`.
        """
        return dot_products(user_vectors, self.item_vectors(items), self.item_bias(items))

    def user_vectors(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The user after the whole history, shape `(B, d)`."""
        return self(input_ids=input_ids, attention_mask=attention_mask).user_vector

    def set_sparse_item_gradient(self, sparse: bool) -> None:
        """Whether looking items up gives tables of items sparse gradients, for optimizers that touch few rows."""
        for table in self.item_tables():
            table.sparse = sparse

    def item_tables(self) -> list[nn.Embedding]:
        """The tables with a row for each item."""
        return [table for table in (self.item_embedding, self.output_bias) if isinstance(table, nn.Embedding)]

    def _init_item_table(self, module: nn.Embedding) -> None:
        init.xavier_normal_(module.weight)
        self._clear_padding(module)

    @staticmethod
    def _clear_padding(module: nn.Embedding) -> None:
        if module.padding_idx is not None and not getattr(module.weight, "_is_hf_initialized", False):
            init.zeros_(module.weight[module.padding_idx])
