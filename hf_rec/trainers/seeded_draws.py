"""
Random numbers as a function of (seed, step, position) and of nothing else.

No random state is kept and the global one is not touched. So a resumed run draws what the uninterrupted one drew, and
a batch draws the same whether it is worked on at once, in micro-batches or by several processes.

Shapes: P labelled positions · K negatives · B rows · S positions of a row · N items.
"""

import torch
from torch import Tensor

from hf_rec.columns import PADDING_ITEM


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


def _shift_right(values: Tensor, bits: int) -> Tensor:
    """Shift that fills with zeros; torch's fills with the sign."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)
