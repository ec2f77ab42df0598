"""
Stage 1 of A-LLMRec: two small autoencoders, one of the item vectors of a frozen sequence model and one of text
vectors, whose inner vectors of an item are brought together (https://huggingface.co/papers/2404.11343).

Shapes: B rows · S positions of a row · P labelled positions · K items of a position · N items · d width of the
sequence model's vectors · t width of the text vectors · j width of the joint space.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from hf_rec.columns import PADDING_ITEM
from hf_rec.models.a_llmrec.config import ALLMRecModelConfig
from hf_rec.models.sequence.base import SequenceModelConfig, SequencePreTrainedModel, dot_products
from hf_rec.models.sequence.loading import check_reads_history_alone


@dataclass
class ALLMRecOutput(ModelOutput):
    """
    Output of [`ALLMRecModel`], of which the loss is made. Vectors of items and texts have a mean square near 1.

    Args:
        user_vectors (`torch.FloatTensor` of shape `(P, d)`): Of the sequence model, at the labelled positions.
        scores (`torch.FloatTensor` of shape `(P, K)`): Of items for them, through the reconstructed vectors.
        item_vectors, rebuilt_items (`torch.FloatTensor` of shape `(P, K, d)`): Vectors of items, and what the decoder
            makes of their joint vectors.
        text_vectors, rebuilt_texts (`torch.FloatTensor` of shape `(P, K, t)`): The same for their texts.
        item_joints, text_joints (`torch.FloatTensor` of shape `(P, K, j)`): The joint vectors, by item and by text.
    """

    user_vectors: torch.FloatTensor | None = None
    scores: torch.FloatTensor | None = None
    item_vectors: torch.FloatTensor | None = None
    rebuilt_items: torch.FloatTensor | None = None
    text_vectors: torch.FloatTensor | None = None
    rebuilt_texts: torch.FloatTensor | None = None
    item_joints: torch.FloatTensor | None = None
    text_joints: torch.FloatTensor | None = None


class ALLMRecModel(PreTrainedModel):
    """
    A frozen sequence model, the text vectors of its items, and two autoencoders: `Linear(d, j)`, sigmoid,
    `Linear(j, d)` for items, the same with t for texts. Make one with [`ALLMRecModel.from_parts`].

    It scores items for histories as a sequence model does, with the vectors that the decoder makes of joint vectors,
    so a folder of it is a recommender. An item that the sequence model has not seen is known by its text: its joint
    vector is that of the text, and as an event of a history it is left out.

    The sequence model stays in eval mode and gets no gradient. All is saved in one folder.

    Args:
        config ([`ALLMRecModelConfig`]): Settings.

    Attributes:
        text_vectors (`torch.FloatTensor` of shape `(N, t)`): As given.
        item_seen (`torch.BoolTensor` of shape `(N,)`): Items that the sequence model was trained on.
        item_scale, text_scale (`torch.FloatTensor` of shape `()`): Factors that bring the vectors that are encoded to
            a mean square of 1; the weights of the loss mean the same then, whatever the vectors come from.
    """

    config_class = ALLMRecModelConfig
    base_model_prefix = "a_llmrec"
    main_input_name = "input_ids"
    _supports_sdpa = True
    reads_times = False  # as of [`SequencePreTrainedModel`]

    def __init__(self, config: ALLMRecModelConfig):
        super().__init__(config)
        d, t, j = config.sequence_size, config.text_size, config.joint_size
        self.item_encoder, self.item_decoder = nn.Linear(d, j), nn.Linear(j, d)
        self.text_encoder, self.text_decoder = nn.Linear(t, j), nn.Linear(j, t)
        self.sequence_model = _new_sequence_model(config)
        self.register_buffer("text_vectors", torch.zeros(config.num_items, t))
        self.register_buffer("item_seen", torch.ones(config.num_items, dtype=torch.bool))
        self.register_buffer("item_scale", torch.ones(()))
        self.register_buffer("text_scale", torch.ones(()))
        self.post_init()
        self.eval()

    @classmethod
    def from_parts(
        cls,
        sequence_model: SequencePreTrainedModel,
        text_vectors: Tensor,
        *,
        seen_items: Iterable[int] | None = None,
        joint_size: int = 128,
    ) -> "ALLMRecModel":
        """
        Put a new model together; its own weights are drawn from the global random state.

        Args:
            sequence_model ([`~hf_rec.models.sequence.base.SequencePreTrainedModel`]): Trained; its weights are copied.
            text_vectors (`torch.Tensor` of shape `(N, t)`): Of the items, in catalog order.
            seen_items (`Iterable[int]`, *optional*): Items that the sequence model was trained on; all by default.
            joint_size (`int`, *optional*, defaults to `128`): j.

        Raises:
            `ValueError`: Where the text vectors are not one vector of numbers for each item.
        """
        if not isinstance(sequence_model, SequencePreTrainedModel):
            raise ValueError(
                f"`sequence_model` must be a sequence model of `hf_rec.models`, got {type(sequence_model).__name__}."
            )
        check_reads_history_alone(sequence_model, "sequence_model")
        num_items = sequence_model.config.num_items
        _check_text_vectors(text_vectors, num_items)
        config = ALLMRecModelConfig(
            sequence_config=sequence_model.config.to_dict(),
            num_items=num_items,
            catalog_sha256=sequence_model.config.catalog_sha256,
            max_length=sequence_model.config.max_length,
            sequence_size=sequence_model.item_vectors().shape[1],
            text_size=text_vectors.shape[1],
            joint_size=joint_size,
        )
        model = cls(config)
        model.sequence_model.load_state_dict(sequence_model.state_dict())
        with torch.no_grad():
            model.text_vectors.copy_(text_vectors)
            if seen_items is not None:
                model.item_seen.zero_()
                model.item_seen[sorted(seen_items)] = True
            if not model.item_seen.any():
                raise ValueError("`seen_items` is empty: the sequence model knows no item of the catalog.")
            model.item_scale.copy_(_scale(sequence_model.item_vectors()[model.item_seen], "item"))
            model.text_scale.copy_(_scale(model.text_vectors, "text"))
        return model

    def train(self, mode: bool = True) -> "ALLMRecModel":
        """The sequence model stays frozen and in eval mode; loading a model calls this too."""
        super().train(mode)
        self.sequence_model.requires_grad_(False).eval()
        return self

    def forward(
        self, input_ids: Tensor, label_places: Tensor, items: Tensor, whole_rows: bool = True, **kwargs: Any
    ) -> ALLMRecOutput:
        """
        All that the loss of stage 1 needs.

        Args:
            input_ids (`torch.LongTensor` of shape `(B, S)`): Histories as catalog rows, padded with -1.
            label_places (`torch.LongTensor` of shape `(P,)`): Which of the `B * S` positions are predicted from; rows
                of the batch where `whole_rows` is `False`.
            items (`torch.LongTensor` of shape `(P, K)`): Target and negatives of each, which the sequence model knows.
            whole_rows (`bool`, *optional*, defaults to `True`): Whether all positions of a row count, or the end of it
                alone, for models that are not causal.
        """
        with torch.no_grad():
            if whole_rows:
                users = self.sequence_model(input_ids=input_ids).last_hidden_state.flatten(0, 1)[label_places]
            else:
                users = self.sequence_model.user_vectors(input_ids)[label_places]
            item_vectors = self.sequence_model.item_vectors(items) * self.item_scale
            texts = self.text_vectors[items] * self.text_scale
        item_joints, text_joints = self.item_encoder(item_vectors).sigmoid(), self.text_encoder(texts).sigmoid()
        rebuilt_items = self.item_decoder(item_joints)
        scores = (rebuilt_items @ users[:, :, None]).squeeze(2) / self.item_scale
        bias = self.item_bias(items)
        return ALLMRecOutput(
            user_vectors=users,
            scores=scores if bias is None else scores + bias,
            item_vectors=item_vectors,
            rebuilt_items=rebuilt_items,
            text_vectors=texts,
            rebuilt_texts=self.text_decoder(text_joints),
            item_joints=item_joints,
            text_joints=text_joints,
        )

    # What it knows of items and users

    def joint_vectors(self, items: Tensor | None = None) -> Tensor:
        """
        Joint vectors of all items, `(N, j)`, or of the given ones, `(*items, j)`: entries from 0 to 1. An item that
        the sequence model has not seen has that of its text.
        """
        items = torch.arange(self.config.num_items, device=self.device) if items is None else items
        by_item = self.item_encoder(self.sequence_model.item_vectors(items) * self.item_scale)
        by_text = self.text_encoder(self.text_vectors[items] * self.text_scale)
        return torch.where(self.item_seen[items][..., None], by_item, by_text).sigmoid()

    def item_vectors(self, items: Tensor | None = None) -> Tensor:
        """Vectors `(N, d)` or `(*items, d)` to compare with those of users, decoded from the joint ones."""
        return self.item_decoder(self.joint_vectors(items)) / self.item_scale

    def item_bias(self, items: Tensor | None = None) -> Tensor | None:
        """That of the sequence model, and its mean for items that it has not seen; `None` where it has none."""
        bias = self.sequence_model.item_bias(items)
        if bias is None or self.item_seen.all():
            return bias
        everything = self.sequence_model.item_bias()
        seen = self.item_seen if items is None else self.item_seen[items]
        return bias.where(seen, everything[self.item_seen].mean())

    def score_items(self, user_vectors: Tensor, items: Tensor | None = None) -> Tensor:
        """Scores of all items, `(B, N)`, or of some, as of [`SequencePreTrainedModel.score_items`]."""
        return dot_products(user_vectors, self.item_vectors(items), self.item_bias(items))

    def user_vectors(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The user after the whole history, `(B, d)`; events that the sequence model has not seen are left out."""
        known = (input_ids >= 0) & self.item_seen[input_ids.clamp(min=0)]
        if attention_mask is not None:
            known = known & attention_mask.bool()
        return self.sequence_model.user_vectors(input_ids.masked_fill(~known, PADDING_ITEM))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):  # the default of torch, as published
            bound = 1 / math.sqrt(module.in_features)
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)


def _new_sequence_model(config: ALLMRecModelConfig) -> Any:
    """The sequence model that a configuration describes, its weights not yet those that were trained."""
    settings = dict(config.sequence_config or {})
    inner = AutoConfig.for_model(settings.pop("model_type", "sasrec"), **settings)
    if not isinstance(inner, SequenceModelConfig):
        raise ValueError(f"`sequence_config` must be that of a sequence model, got a {inner.model_type!r}.")
    return AutoModel.from_config(inner, trust_remote_code=False)


def _check_text_vectors(vectors: Tensor, num_items: int) -> None:
    if vectors.dim() != 2 or len(vectors) != num_items or not vectors.shape[1]:
        raise ValueError(
            f"`text_vectors` must have the shape ({num_items}, width), one row for each item of the catalog, got "
            f"{tuple(vectors.shape)}."
        )
    bad = (~vectors.isfinite()).any(dim=1).nonzero()
    if len(bad):
        raise ValueError(
            f"`text_vectors` hold NaN or infinity for {len(bad)} items, the first of which is row {int(bad[0])}."
        )


def _scale(vectors: Tensor, what: str) -> Tensor:
    square = vectors.float().square().mean()
    if not (square.isfinite() and square > 0):
        raise ValueError(
            f"The {what} vectors have the mean square {float(square)}, so they tell nothing apart. Give vectors that "
            "are not all 0."
        )
    return square.rsqrt()


AutoModel.register(ALLMRecModelConfig, ALLMRecModel)
