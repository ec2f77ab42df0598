"""
Negatives and masks of sequence models, as a function of (seed, step, position) and of nothing else.

No random state is kept and the global one is not touched. So a resumed run draws what the uninterrupted one drew, and
a batch draws the same whether it is worked on at once, in micro-batches or by several processes.

Shapes: P labelled positions · K negatives · B rows · S positions of a row · N items.
"""

import numpy as np
import torch
from torch import Tensor

from hf_rec.columns import PADDING_ITEM


NEGATIVE_POOLS = ("all", "non_target", "unseen")

_MULTIPLIERS = (-4658895280553007687, -7723592293110705685)  # of splitmix64, as signed integers
_INCREMENT = -7046029254386353131


def mix(values: Tensor) -> Tensor:
    """The finalizer of splitmix64 on `int64` tensors: each input bit flips half of the output bits."""
    values = values + _INCREMENT
    for shift, multiplier in zip((30, 27), _MULTIPLIERS, strict=True):
        values = (values ^ _shift_right(values, shift)) * multiplier
    return values ^ _shift_right(values, 31)


def uniform(*keys: int | Tensor) -> Tensor:
    """One number in [0, 1) for each entry of the broadcast integer `keys`: `float64`."""
    state = torch.zeros((), dtype=torch.int64)
    for key in keys:
        key = torch.as_tensor(key, dtype=torch.int64)
        state = mix(state.to(key.device) ^ key)
    return _shift_right(state, 11).double() * 2.0**-53


def row_keys(input_ids: Tensor) -> Tensor:
    """A number of each row that its padding does not change: shape `(B,)`."""
    real = input_ids != PADDING_ITEM
    age = real.flip(1).cumsum(1).flip(1)
    return (mix(mix(input_ids) ^ age) * real).sum(dim=1)


def position_keys(input_ids: Tensor) -> Tensor:
    """A number of each position, from its row and the number of events behind it: shape `(B, S)`."""
    age = (input_ids != PADDING_ITEM).flip(1).cumsum(1).flip(1)
    return mix(row_keys(input_ids)[:, None] ^ mix(age))


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

    def __init__(self, num_items, num_negatives, pool="all", popularity: np.ndarray | None = None, seed: int = 0):
        self.num_items = num_items
        self.num_negatives = num_negatives
        self.pool = pool
        self.seed = seed
        self._cumulative = self._log_relative = None
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
        return self._log_relative.to(items.device)[items]

    def _draw(self, numbers: Tensor) -> Tensor:
        if self._cumulative is None:
            return (numbers * self.num_items).long()
        return torch.searchsorted(self._cumulative.to(numbers.device), numbers, right=True).clamp(
            max=self.num_items - 1
        )


def draw_outside(numbers: Tensor, excluded: Tensor, num_items: int) -> Tensor:
    """
    Items that are not excluded, each as likely as any other.

    Args:
        numbers (`torch.Tensor` of shape `(P, K)`): In [0, 1).
        excluded (`torch.Tensor` of shape `(P, S)`): Items that a position must not draw; repeats and -1 are allowed.
            Where all items are excluded the last one is drawn.
        num_items (`int`): N.

    Returns:
        `torch.Tensor` of shape `(P, K)`.
    """
    excluded = excluded.masked_fill(excluded < 0, num_items).sort(dim=1).values
    repeated = torch.zeros_like(excluded, dtype=torch.bool)
    repeated[:, 1:] = excluded[:, 1:] == excluded[:, :-1]
    excluded = excluded.masked_fill(repeated, num_items).sort(dim=1).values
    num_excluded = (excluded < num_items).sum(dim=1, keepdim=True)
    place = (numbers * (num_items - num_excluded)).long()
    # Of the free items before the i-th excluded one there are excluded[i] - i: count those at or below the place drawn
    free_before = excluded - torch.arange(excluded.shape[1], device=excluded.device)
    free_before = free_before.masked_fill(excluded == num_items, torch.iinfo(torch.int64).max)
    return (place + torch.searchsorted(free_before, place, right=True)).clamp(max=num_items - 1)


def mask_items(
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


def _shift_right(values: Tensor, bits: int) -> Tensor:
    """Shift that fills with zeros; torch's fills with the sign."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)
