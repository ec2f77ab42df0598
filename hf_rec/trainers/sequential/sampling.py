"""
Negatives and masks of sequence models, drawn by `seeded_draws`.

Shapes: P labelled positions · K negatives · B rows · S positions of a row · N items.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from hf_rec.trainers.seeded_draws import draw_outside, mix, position_keys, row_keys, uniform


NegativePool = Literal["all", "non_target", "unseen"]


class NegativeSampler:
    """
    Draws negatives.

    Args:
        num_items (`int`): N.
        num_negatives (`int`): K, at most N.
        pool (`str`, *optional*, defaults to `"all"`): What a position may draw, with replacement: `"all"` items, all
            but its target (`"non_target"`), or all but those of its row (`"unseen"`). Negatives shared by a batch come
            from `"all"`.
        popularity (`np.ndarray` of shape `[N]`, *optional*): Draw from `"all"` in proportion to these weights rather
            than evenly.
        seed (`int`, *optional*, defaults to `0`): Seed.
    """

    def __init__(
        self,
        num_items: int,
        num_negatives: int,
        pool: NegativePool = "all",
        popularity: np.ndarray | None = None,
        seed: int = 0,
    ):
        self.num_items = num_items
        self.num_negatives = num_negatives
        self.pool = pool
        self.seed = seed
        self._cumulative: Tensor | None = None
        self._log_relative: Tensor | None = None
        if popularity is not None:
            share = popularity / popularity.sum()
            self._cumulative = torch.from_numpy(np.cumsum(share))
            with np.errstate(divide="ignore"):
                self._log_relative = torch.from_numpy(np.log(share * num_items)).float()

    def shared(self, step: int, device: torch.device, num_sets: int = 1) -> Tensor:
        """Sets of negatives that the positions of a step share: shape `(num_sets, K)`."""
        places = torch.arange(num_sets * self.num_negatives, device=device).view(num_sets, -1)
        return self._draw(uniform(self.seed, step, places))

    def set_of(self, step: int, positions: Tensor, num_sets: int) -> Tensor:
        """Which of the shared sets each position is scored against: shape `(P,)`."""
        return (uniform(self.seed, step, positions) * num_sets).long()

    def by_position(self, step: int, positions: Tensor, targets: Tensor, seen: Tensor | None = None) -> Tensor:
        """
        Negatives of each position.

        Args:
            step (`int`): Optimizer steps taken.
            positions (`torch.Tensor` of shape `(P,)`): From [`position_keys`].
            targets (`torch.Tensor` of shape `(P,)`): Target of each position.
            seen (`torch.Tensor` of shape `(P, S)`): Items of the row of each position, padded with -1; needed by
                `"unseen"` alone.

        Returns:
            `torch.Tensor` of shape `(P, K)`.
        """
        places = torch.arange(self.num_negatives, device=positions.device)
        numbers = uniform(self.seed, step, positions[:, None], places)
        if self.pool == "all":
            return self._draw(numbers)
        excluded = targets[:, None] if self.pool == "non_target" else seen
        return draw_outside(numbers, excluded, self.num_items)

    def log_relative_frequency(self, items: Tensor) -> Tensor:
        """Log of how often items are drawn, against even draws: 0 where all are drawn alike."""
        if self._log_relative is None:
            return torch.zeros(items.shape, device=items.device)
        self._log_relative = self._log_relative.to(items.device)  # once: the table is as long as the catalog
        return self._log_relative[items]

    def _draw(self, numbers: Tensor) -> Tensor:
        if self._cumulative is None:
            return (numbers * self.num_items).long()
        self._cumulative = self._cumulative.to(numbers.device)
        return torch.searchsorted(self._cumulative, numbers, right=True).clamp(max=self.num_items - 1)


def hide_labels(
    input_ids: Tensor,
    labels: Tensor,
    mask_item: int,
    ratio: float,
    last_ratio: float,
    ignore: int,
    seed: int,
    step: int,
) -> tuple[Tensor, Tensor]:
    """
    Hides labels from a bidirectional model, as BERT4Rec is trained.

    Args:
        input_ids (`torch.Tensor` of shape `(B, S)`): Whole rows, padded with -1.
        labels (`torch.Tensor` of shape `(B, S)`): The same items where they may be labels, `ignore` elsewhere.
        mask_item (`int`): What stands in place of a hidden item.
        ratio (`float`): Share of the possible labels that are hidden.
        last_ratio (`float`): Share of the rows in which the newest event alone is hidden, as it is when the model is
            used.
        ignore (`int`): Label of positions that are not hidden.
        seed (`int`), step (`int`): What the draw depends on, beside the rows.

    Returns:
        `tuple`: `input_ids` and `labels` of the step.
    """
    possible = labels != ignore
    hidden = (uniform(seed, step, position_keys(input_ids)) < ratio) & possible
    newest = possible & (possible.flip(1).cumsum(1).flip(1) == 1)
    newest_only = uniform(seed, step, mix(row_keys(input_ids))) < last_ratio
    hidden = torch.where(newest_only[:, None], newest, hidden)
    return input_ids.masked_fill(hidden, mask_item), labels.masked_fill(~hidden, ignore)
