"""
A padded batch of histories without its padding.

On Amazon Beauty 6.7 of 50 positions are real. Everything that works position by position (projections, feed-forward layers, norms,
dropout) runs on the real positions alone, laid end to end; attention runs on groups of rows of about equal length. The result depends
on neither the side nor the amount of padding.

Shapes: B rows · S positions of a row, padding included · T real positions of the batch · L the length that the model was built for ·
h heads · e width of a head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


class RaggedBatch:
    """
    The real positions of a batch, shortest row first and oldest event first within a row.

    Args:
        mask (`torch.Tensor` of shape `(B, S)`): True at real positions. Any padding, left, right or between.

    Attributes:
        cells (`torch.Tensor` of shape `(T,)`): Index of each real position in the flattened `B * S` ones.
        rows (`torch.Tensor` of shape `(T,)`): Row of each real position.
        age (`torch.Tensor` of shape `(T,)`): Events after this one in its row: 0 at the newest event.
        lengths (`torch.Tensor` of shape `(B,)`): Real positions of each row, in the order of the rows as given.
    """

    def __init__(self, mask: Tensor):
        self.shape = mask.shape
        self.lengths = mask.sum(dim=1)
        order = self.lengths.argsort(stable=True)
        row, column = mask[order].nonzero(as_tuple=True)
        self._sorted_lengths = self.lengths[order]
        self._ends = self._sorted_lengths.cumsum(dim=0)
        self._order = order
        self.rows = order[row]
        self.cells = self.rows * mask.shape[1] + column
        self.age = self._ends[row] - 1 - torch.arange(len(row), device=mask.device)

    def pad(self, flat: Tensor) -> Tensor:
        """Puts values of the real positions, shape `(T, ...)`, back into their places: `(B, S, ...)`, zero elsewhere."""
        padded = flat.new_zeros((self.shape[0] * self.shape[1], *flat.shape[1:]))
        return padded.index_copy(0, self.cells, flat).view(*self.shape, *flat.shape[1:])

    def last(self, flat: Tensor) -> Tensor:
        """Values at the newest event of each row, shape `(B, ...)`; zero for a row without events."""
        values = flat.new_zeros((self.shape[0], *flat.shape[1:]))
        filled = self._sorted_lengths > 0
        return values.index_copy(0, self._order[filled], flat[self._ends[filled] - 1])

    def attention_groups(self, causal: bool, padded_length: int | None = None) -> list["AttentionGroup"]:
        """
        Rows of about equal length, with what their attention may see.

        Args:
            causal (`bool`): An event sees itself and older ones; otherwise all events of its row.
            padded_length (`int`, *optional*): Length `L` up to which each row counts as padded with zero vectors that attention sees
                too, as in the published SASRec. All of them have the score 0 and the value 0, so one column stands for them.
        """
        # Reading lengths back stalls an accelerator, where padding is cheap: there all rows form one group
        on_cpu = self.cells.device.type == "cpu"
        lengths = self._sorted_lengths.tolist() if on_cpu else None
        if lengths is None:
            filled = self._sorted_lengths > 0
            bounds = [(int((~filled).sum()), len(filled), self.shape[1])]
        else:
            bounds = _group_bounds(lengths)
        groups = []
        for first, last, longest in bounds:
            if longest == 0 or first == last:
                continue
            group_lengths, ends = self._sorted_lengths[first:last], self._ends[first:last]
            steps = torch.arange(longest, device=self.cells.device)
            if lengths is not None and lengths[first] == longest:  # no padding: views will do
                start = int(ends[0]) - longest
                groups.append(AttentionGroup(slice(start, int(ends[-1])), None, last - first, longest))
            else:
                inside = steps < group_lengths[:, None]
                index = (ends - group_lengths)[:, None] + steps.minimum(group_lengths[:, None] - 1)
                groups.append(AttentionGroup(index, inside, last - first, longest))
            groups[-1].set_mask(causal, group_lengths, padded_length)
        return groups


class AttentionGroup:
    """Rows that share one call of scaled dot-product attention. Made by [`RaggedBatch.attention_groups`]."""

    def __init__(self, index: slice | Tensor, inside: Tensor | None, num_rows: int, length: int):
        self.index = index
        self.inside = inside  # (rows, length), None: all True
        self.num_rows = num_rows
        self.length = length
        self.mask = None
        self.has_sink = False

    def set_mask(self, causal: bool, lengths: Tensor, padded_length: int | None) -> None:
        device = lengths.device
        visible = torch.ones(self.length, self.length, dtype=torch.bool, device=device)
        if causal:
            visible = visible.tril()[None]
        elif self.inside is not None:
            # A query beyond the end of its row sees everything: its result is dropped, but must not be NaN
            visible = (self.inside[:, None, :] | ~self.inside[:, :, None]) & visible
        else:
            visible = visible[None]
        if padded_length is None:
            self.mask = visible[:, None]
            return
        self.has_sink = True
        if self.inside is None:
            lengths = lengths[:1]
        absent = (padded_length - lengths).clamp(min=0)
        bias = torch.zeros(len(absent), 1, self.length, self.length + 1, device=device)
        bias[..., 1:].masked_fill_(~visible[:, None], -torch.inf)
        bias[..., 0] = absent.float().log()[:, None, None]  # log 0 = -inf: a full row has no padding to see
        self.mask = bias

    def attend(self, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        """Attention of the rows of this group: `(T, h, e)` tensors in, `(real positions of the group, h, e)` out."""
        query, key, value = (self._rows(states) for states in (query, key, value))
        if self.has_sink:
            key, value = F.pad(key, (0, 0, 1, 0)), F.pad(value, (0, 0, 1, 0))
        mask = self.mask if self.mask.dtype == torch.bool else self.mask.to(query.dtype)
        states = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        states = states.transpose(1, 2)
        return states.flatten(0, 1) if self.inside is None else states[self.inside]

    def _rows(self, states: Tensor) -> Tensor:
        states = states[self.index]
        return states.reshape(self.num_rows, self.length, *states.shape[-2:]).transpose(1, 2)


def _group_bounds(lengths: list[int], slack: float = 0.5) -> list[tuple[int, int, int]]:
    """Splits ascending lengths into runs `(first, last + 1, longest)` that differ by less than `slack` of the longest."""
    bounds, first = [], 0
    for place, length in enumerate(lengths):
        if length * (1 - slack) > lengths[first]:
            bounds.append((first, place, lengths[place - 1]))
            first = place
    if lengths:
        bounds.append((first, len(lengths), lengths[-1]))
    return bounds
