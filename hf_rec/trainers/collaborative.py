"""What the trainers of language models do with collaborative tokens: where they come from, and training them alone."""

import os
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_rec.columns import HISTORY, TARGET
from hf_rec.data.catalog import Catalog
from hf_rec.data.splits import seen_items
from hf_rec.models.language.item_tokens import MODULE, Features, SequenceKnowledge
from hf_rec.models.sequence.loading import load_sequence_model


logger = logging.get_logger(__name__)


def sequence_knowledge(
    sequence_model: str | os.PathLike | PreTrainedModel | None,
    features: Features | None,
    user_token: bool,
    catalog: Catalog | None,
    train_dataset: Any,
) -> SequenceKnowledge | None:
    """
    What new collaborative tokens are to show; `None` where none are asked for.

    Args:
        sequence_model (*optional*): A model over items, or its folder.
        features (`str`, *optional*), user_token (`bool`): What they show.
        catalog ([`Catalog`], *optional*): Must be the one that the sequence model was trained on.
        train_dataset (*optional*): Tells which items the sequence model has seen.
    """
    if (sequence_model is None) != (features is None):
        raise ValueError(
            f"`sequence_model` and `collaborative` go together, got {sequence_model!r} and {features!r}. A folder "
            "with collaborative tokens brings both along: leave them out to train it further."
        )
    if sequence_model is None or features is None:
        return None
    model = sequence_model if isinstance(sequence_model, nn.Module) else load_sequence_model(sequence_model)
    if catalog is not None:
        catalog.check_made_for(
            model.config.num_items, getattr(model.config, "catalog_sha256", None), "`sequence_model`"
        )
    known = None  # a model with joint vectors knows an item without events by its text
    if (
        features != "joint"
        and isinstance(train_dataset, Dataset)
        and {HISTORY, TARGET} <= set(train_dataset.column_names)
    ):
        known = torch.zeros(model.config.num_items, dtype=torch.bool)
        known[[row for row in seen_items(train_dataset) if row < len(known)]] = True
        if unknown := int((~known).sum()):
            logger.warning(
                f"{unknown} of {len(known)} items do not occur in the training rows, so `sequence_model` knows "
                "nothing of them: they share one learned vector as their collaborative token."
            )
    return SequenceKnowledge(model, features, user_token, known)


def freeze_language_model(model: nn.Module) -> None:
    """Leave the projector of collaborative tokens to be trained, and nothing else."""
    for name, weight in model.named_parameters():
        weight.requires_grad_(weight.requires_grad and MODULE in name.split("."))
