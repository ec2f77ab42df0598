"""Which collaborative tokens a step hides."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.utils import logging

from hf_rec.item_token_ids import UNKNOWN_ROW, USER
from hf_rec.models.language.item_tokens import ItemTokens
from hf_rec.trainers.msl.config import MSLConfig
from hf_rec.trainers.seeded_draws import mix, uniform


logger = logging.get_logger(__name__)

_ITEMS, _CURRICULUM = 7919, 104729  # keep these draws apart from each other and from others of the same seed


_SETTINGS = ("cold_item_rate", "curriculum", "freeze_language_model")


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
