"""
A padded batch of histories without its padding.

On Amazon Beauty 6.7 of 50 positions are real. Everything that works position by position (projections, feed-forward
layers, norms, dropout) runs on the real positions alone, laid end to end; attention runs on groups of rows of about
equal length. The result depends on neither the side nor the amount of padding.

Shapes: B rows · S positions of a row, padding included · T real positions of the batch · L the length that the model
was built for · h heads · e width of a head.
"""

from typing import Any

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
        row, column = mask[order].nonzero(as_tuple=True)  # the one place that waits for an accelerator
        self._sorted_lengths = self.lengths[order]
        self._ends = self._sorted_lengths.cumsum(dim=0)
        self._order = order
        self._rank = row  # of the row of each real position, by length
        self.rows = order[row]
        self.cells = self.rows * mask.shape[1] + column
        self.age = self._ends[row] - 1 - torch.arange(len(row), device=mask.device)

    def pad(self, flat: Tensor) -> Tensor:
        """Puts values of the real positions, `(T, ...)`, back into their places: `(B, S, ...)`, zero elsewhere."""
        padded = flat.new_zeros((self.shape[0] * self.shape[1], *flat.shape[1:]))
        return padded.index_copy_(0, self.cells, flat).view(*self.shape, *flat.shape[1:])

    def last(self, flat: Tensor) -> Tensor:
        """Values at the newest event of each row, shape `(B, ...)`; zero for a row without events."""
        values = flat.new_zeros((self.shape[0], *flat.shape[1:]))
        if not len(flat):
            return values
        filled = (self._sorted_lengths > 0).view(-1, *[1] * (flat.dim() - 1))
        newest = flat.index_select(0, (self._ends - 1).clamp(min=0)).where(filled, 0)
        return values.index_copy_(0, self._order, newest)

    def packed_order(self) -> tuple[Tensor, Tensor]:
        """
        Order of a [`~torch.nn.utils.rnn.PackedSequence`]: the oldest events of all rows, longest row first, then the
        second oldest, and so on.

        Returns:
            `tuple`: Place of each real position in that order, `(T,)`, and the number of rows that have a first,
            second, ... event, on the CPU as torch wants it.
        """
        step = self.lengths[self.rows] - 1 - self.age
        longest_first = self.shape[0] - 1 - self._rank
        # Rows that have a first, second, ... event; the last steps of a batch that is padded throughout have none
        sizes = (self.lengths > torch.arange(self.shape[1], device=step.device)[:, None]).sum(dim=1)
        starts = sizes.cumsum(dim=0) - sizes
        sizes = sizes.cpu()
        return starts[step] + longest_first, sizes[sizes > 0]

    def linear_recurrence(self, inputs: Tensor, decay: Tensor) -> Tensor:
        """
        States `h_t = decay * h_{t-1} + inputs_t` within each row, the oldest event first and `h` before it zero.

        All positions at once, by doubling: after the rounds 1, 2, 4, ... a state sums that many of the newest inputs,
        so a row of S events takes about log2 S rounds in place of S steps.

        Args:
            inputs (`torch.Tensor` of shape `(T, d)`): Of the real positions, real or complex.
            decay (`torch.Tensor` of shape `(d,)`): Factor of each channel, the same at all events.

        Returns:
            `torch.Tensor` of shape `(T, d)`.
        """
        older = self.lengths[self.rows] - 1 - self.age  # events before this one in its row
        result: Tensor = _LinearRecurrence.apply(inputs, decay, older, self.age, self.shape[1])
        return result

    def attention(self, causal: bool, padded_length: int | None = None) -> "RaggedAttention":
        """
        Attention within the rows.

        Args:
            causal (`bool`): An event sees itself and older ones; otherwise all events of its row.
            padded_length (`int`, *optional*): Length L up to which each row counts as padded with zero vectors that
                attention sees too, as in the published SASRec. All of them have the score 0 and the value 0, so one
                column stands for them.
        """
        if reads_are_free(self.cells):
            bounds = _group_bounds(self._sorted_lengths.tolist())
        else:  # and padding is cheap: all rows form one group
            bounds = [(0, self.shape[0], self.shape[1])]
        groups, index, row_starts, start = [], [], [], 0
        if bounds:  # rows without events stand first
            row_starts.append(torch.zeros(bounds[0][0], dtype=torch.int64, device=self.cells.device))
        for first, last, longest in bounds:
            lengths, ends = self._sorted_lengths[first:last, None], self._ends[first:last, None]
            steps = torch.arange(longest, device=self.cells.device)
            index.append((ends - lengths + steps.minimum(lengths - 1)).clamp(min=0).flatten())
            row_starts.append(start + longest * torch.arange(last - first, device=self.cells.device))
            start += longest * (last - first)
            groups.append((last - first, longest, _attention_mask(steps < lengths, lengths, causal, padded_length)))
        # Place of a position: where its row starts among the padded groups, plus the events before it
        inside = (torch.cat(row_starts) + self._sorted_lengths)[self._rank] - 1 - self.age
        return RaggedAttention(groups, torch.cat(index), inside, padded_length is not None)


class _LinearRecurrence(torch.autograd.Function):
    """
    `h_t = decay * h_{t-1} + inputs_t` within rows that lie end to end. The gradient of the inputs is a recurrence too,
    from the newest event back, so nothing is kept for it but the states.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, decay: Tensor, older: Tensor, newer: Tensor, longest: int) -> Tensor:
        states = _carried(inputs, decay, older, longest)
        ctx.save_for_backward(states, decay, older, newer)
        ctx.longest = longest
        return states

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        states, decay, older, newer = ctx.saved_tensors
        flipped = _carried(grads[0].flip(0), decay.conj(), newer.flip(0), ctx.longest)
        grad_inputs = flipped.flip(0)
        grad_decay = None
        if ctx.needs_input_grad[1]:
            before = states[:-1].conj().masked_fill((older[1:] == 0)[:, None], 0)
            grad_decay = (grad_inputs[1:] * before).sum(dim=0)
        return grad_inputs, grad_decay, None, None, None


def _carried(inputs: Tensor, decay: Tensor, places: Tensor, longest: int) -> Tensor:
    """The states of a linear recurrence; `places`: how many entries of its row come before each, at most `longest`."""
    states, distance = inputs.clone(), 1
    while distance < min(longest, len(states)):
        carried = states[:-distance] * decay
        states[distance:] += carried.masked_fill_((places[distance:] < distance)[:, None], 0)
        decay, distance = decay * decay, 2 * distance
    return states


class RaggedAttention:
    """
    Scaled dot-product attention within the rows of a [`RaggedBatch`], in groups of rows of about equal length.

    Made by [`RaggedBatch.attention`], once for all layers.
    """

    def __init__(self, groups: list[tuple[int, int, Tensor]], index: Tensor, inside: Tensor, has_sink: bool):
        self._groups = groups  # rows, length, mask of each
        self._index = index  # real position in each place of the padded groups, which lie end to end
        self._inside = inside  # places that are no padding
        self._has_sink = has_sink

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, dropout: float = 0.0) -> Tensor:
        """
        Args:
            query, key, value (`torch.Tensor` of shape `(T, h, e)`): One vector a real position and head.
            dropout (`float`, *optional*, defaults to `0.0`): Dropout probability of the weights.

        Returns:
            `torch.Tensor` of shape `(T, h, e)`.
        """
        # One gather for all groups: its backward is one scatter, where slices would each fill a whole tensor
        padded = torch.stack([query, key, value], dim=1).index_select(0, self._index)
        attended = []
        parts = padded.split([rows * length for rows, length, _ in self._groups])
        for part, (rows, length, mask) in zip(parts, self._groups, strict=True):
            part = part.view(rows, length, *part.shape[1:]).permute(2, 0, 3, 1, 4)  # (3, rows, h, length, e)
            queries, keys, values = part.unbind()
            if self._has_sink:
                keys, values = F.pad(keys, (0, 0, 1, 0)), F.pad(values, (0, 0, 1, 0))
            if mask.is_floating_point():
                mask = mask.to(queries.dtype)
            states = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, dropout_p=dropout)
            attended.append(states.transpose(1, 2).flatten(0, 1))
        return torch.cat(attended).index_select(0, self._inside)


def reads_are_free(tensor: Tensor) -> bool:
    """Whether the host can look at values: reading from an accelerator waits for all that it still has to do."""
    return tensor.device.type == "cpu"


def _attention_mask(real: Tensor, lengths: Tensor, causal: bool, padded_length: int | None) -> Tensor:
    """Mask of a group, `(rows, 1, length, length)`; where padding counts, added to the scores, with its column."""
    length = real.shape[1]
    visible = torch.ones(1, length, length, dtype=torch.bool, device=real.device)
    if causal:
        visible = visible.tril()
    else:
        # A query behind the end of its row sees everything: its result is dropped, but must not be NaN
        visible = real[:, None, :] | ~real[:, :, None]
    if padded_length is None:
        return visible[:, None]
    absent = (padded_length - lengths).clamp(min=0)[:, None]  # (rows, 1, 1)
    bias = torch.zeros(len(absent), length, length + 1, device=real.device)
    bias[..., 1:].masked_fill_(~visible, -torch.inf)
    bias[..., :1] = absent.float().log()  # log 0 = -inf: a full row has no padding to see
    return bias[:, None]


def _group_bounds(lengths: list[int], slack: float = 0.5) -> list[tuple[int, int, int]]:
    """Splits ascending lengths into runs `(first, last + 1, longest)` that differ by a share of at most `slack`."""
    bounds, first = [], 0
    for place, length in enumerate(lengths):
        if length * (1 - slack) > lengths[first]:
            bounds.append((first, place, lengths[place - 1]))
            first = place
    bounds.append((first, len(lengths), lengths[-1]))
    return [bound for bound in bounds if bound[2]]
