"""What the trainer does with collaborative tokens: where they come from, and which of them a step hides."""

import os
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_rec.columns import HISTORY, TARGET
from hf_rec.data.catalog import Catalog
from hf_rec.data.splits import seen_items
from hf_rec.item_token_ids import UNKNOWN_ROW, USER
from hf_rec.models.language.item_tokens import MODULE, ItemTokens, SequenceKnowledge
from hf_rec.models.sequence.loading import load_sequence_model
from hf_rec.trainers.msl.config import MSLConfig
from hf_rec.trainers.seeded_draws import mix, uniform


logger = logging.get_logger(__name__)

_ITEMS, _CURRICULUM = 7919, 104729  # keep these draws apart from each other and from others of the same seed


_SETTINGS = ("cold_item_rate", "curriculum", "freeze_language_model")


def sequence_knowledge(
    sequence_model: str | os.PathLike | PreTrainedModel | None,
    args: MSLConfig,
    catalog: Catalog | None,
    train_dataset: Any,
) -> SequenceKnowledge | None:
    """
    What new collaborative tokens are to show; `None` where none are asked for.

    Args:
        sequence_model (*optional*): A model over items, or its folder.
        args ([`MSLConfig`]): `collaborative` and `user_token`.
        catalog ([`Catalog`], *optional*): Must be the one that the sequence model was trained on.
        train_dataset (*optional*): Tells which items the sequence model has seen.
    """
    if (sequence_model is None) != (args.collaborative is None):
        raise ValueError(
            f"`sequence_model` and `collaborative` go together, got {sequence_model!r} and {args.collaborative!r}. A "
            "folder with collaborative tokens brings both along: leave them out to train it further."
        )
    if sequence_model is None or args.collaborative is None:
        return None
    model = sequence_model if isinstance(sequence_model, nn.Module) else load_sequence_model(sequence_model)
    if catalog is not None:
        catalog.check_made_for(
            model.config.num_items, getattr(model.config, "catalog_sha256", None), "`sequence_model`"
        )
    known = None  # a model with joint vectors knows an item without events by its text
    if (
        args.collaborative != "joint"
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
    return SequenceKnowledge(model, args.collaborative, args.user_token, known)


@dataclass(frozen=True)
class Hiding:
    """
    Which collaborative tokens tell nothing in a step.

    Attributes:
        vocab_size (`int`): Ids from this on are collaborative tokens.
        cold_item_rate (`float`): Share of items that are hidden.
        curriculum (`bool`): Whether all items are hidden in some steps, ever fewer.
        seed (`int`): Of the draws, which depend on it, the step and the item alone.
    """

    vocab_size: int
    cold_item_rate: float
    curriculum: bool
    seed: int

    @classmethod
    def of(cls, model: nn.Module, args: MSLConfig) -> "Hiding | None":
        """As the arguments say; `None` where nothing is ever hidden."""
        item_tokens = ItemTokens.of(model)
        wanted = [name for name in _SETTINGS if getattr(args, name)]
        if item_tokens is None:
            if wanted:
                raise ValueError(
                    f"`{wanted[0]}` is {getattr(args, wanted[0])}, but there are no collaborative tokens. Set "
                    "`collaborative`, and give a `sequence_model`."
                )
            return None
        if not (args.cold_item_rate or args.curriculum):
            return None
        return cls(item_tokens.vocab_size, args.cold_item_rate, args.curriculum, args.seed)

    def shows_any(self, step: int, num_steps: int) -> bool:
        """
        Whether a step shows collaborative tokens at all.

        Args:
            step (`int`): Optimizer steps before it.
            num_steps (`int`): Steps of the whole run.
        """
        if self.curriculum and num_steps < 2:
            raise ValueError(
                f"`curriculum` needs at least 2 steps, got {num_steps}: collaborative tokens would never be shown. "
                "Train for longer, or leave it out."
            )
        return not self.curriculum or float(uniform(self.seed + _CURRICULUM, step)) < step / num_steps

    def hide(self, input_ids: Tensor, step: int, num_steps: int) -> Tensor:
        """Tokens, with those of hidden items as those of an item that nothing is known of."""
        codes = input_ids - self.vocab_size
        rows = codes & UNKNOWN_ROW
        is_item = (codes >= 0) & ((codes & USER) == 0)
        hidden = is_item
        if self.shows_any(step, num_steps):
            hidden = is_item & (uniform(self.seed + _ITEMS, step, mix(rows)) < self.cold_item_rate)
        return torch.where(hidden, input_ids - rows + UNKNOWN_ROW, input_ids)


def freeze_language_model(model: nn.Module) -> None:
    """Leave the projector of collaborative tokens to be trained, and nothing else."""
    for name, weight in model.named_parameters():
        weight.requires_grad_(weight.requires_grad and MODULE in name.split("."))
