"""
Rows to tensors. The trie is passed in.

Shapes: B rows · T tokens of the longest row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from hf_rec.columns import ATTENTION_MASK, FIRST_TOKENS, IGNORE_INDEX, INPUT_IDS, LABELS, POSITION_IDS, SEGMENTS, TASK
from hf_rec.data.prompts.item_tasks import NEXT_ITEM, TEXT_ANSWER
from hf_rec.data.trie_targets import TrieTargets, labelled
from hf_rec.data.trie_walk import TrieWalk


if TYPE_CHECKING:
    from hf_rec.trie import TrieCSR

Layout = Literal["padded", "packed", "one_row"]
_NO_SEGMENT = -1  # of padding


@dataclass
class PromptCollator:
    """
    Lays tokenised prompts out as a batch, and finds for each label where it is predicted and what it is chosen from.

    The labels of a row are one or more whole item paths; see [`TrieWalk`]. In rows of the task whose answer is text
    they are any tokens. What follows a row's last label is cut off: no loss reads it. Attention must be causal, so
    that padding on the right is never seen.

    Args:
        pad_token_id (`int`):
            Token that fills `input_ids`; any id of the vocabulary does.
        trie ([`TrieCSR`]):
            Trie of the catalog, made from the same prompt's `encode_items()`.
        drop_forced (`bool`):
            Whether to write `-100` over labels that are the only child of their node. Under `scoring="valid"` their
            loss is exactly 0, so that they must not count as labels; plain fine-tuning keeps them.
        layout (`str`, *optional*, defaults to `"padded"`):
            `"padded"`: one row of the batch each. `"packed"`: end to end in as few rows of the longest one's length as
            they fit in. `"one_row"`: all end to end.
    """

    pad_token_id: int
    trie: "TrieCSR"
    drop_forced: bool
    layout: Layout = "padded"
    _walk: TrieWalk = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.pad_token_id is None:
            raise ValueError("`pad_token_id` is None. Pass the id of any token, for instance that of the EOS token.")
        self._walk = TrieWalk(self.trie)
        self.trie = self._walk.trie

    def __call__(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
        """
        Make a batch.

        Args:
            rows (`list[dict]`): Each with `input_ids` and `labels` of one length; all with `task` or none.

        Returns:
            `dict[str, torch.LongTensor]`: `input_ids` and `labels` of one shape, the fields of [`TrieTargets`] (with
            columns of the head where forced labels are dropped), and, of the same shape as `input_ids`,
            `attention_mask` where rows are padded, `position_ids` and `segments` where they are packed: which row a
            token is of, counted from 1, and `-1` for padding. Where rows have it, also `task` of shape `(B,)`, and
            `first_tokens`: which of the targets at the root of the trie are of the next item.
        """
        lengths, input_ids, labels = padded(rows, self.pad_token_id)
        tasks = np.array([row.get(TASK, NEXT_ITEM) for row in rows])
        is_text = (tasks == TEXT_ANSWER)[:, None]
        nodes = self._walk.nodes(np.where(is_text, IGNORE_INDEX, labels))
        branches = self._walk.branches(nodes)
        if self.drop_forced:
            labels = np.where(branches | is_text, labels, IGNORE_INDEX)
        columns = np.arange(labels.shape[1])
        lengths = np.where(labels != IGNORE_INDEX, columns + 1, 1).max(axis=1).clip(max=lengths)
        batch_rows, starts, shape = place(lengths, self.layout)
        base = batch_rows * shape[1] + starts
        of_row, column, positions = labelled(labels, base)
        chosen = labels[of_row, column], of_row, nodes[of_row, column]
        if self.drop_forced:
            targets = TrieTargets.among_children(positions, *chosen, self.trie)
        else:
            targets = TrieTargets.of_vocabulary(positions, *chosen)
        real = columns < lengths[:, None]
        places = (base[:, None] + columns)[real]
        labels[:, 0] = IGNORE_INDEX  # nothing comes before it, least of all the row that is packed before this one
        batch = {
            INPUT_IDS: _filled(shape, self.pad_token_id, places, input_ids[real]),
            LABELS: _filled(shape, IGNORE_INDEX, places, labels[real]),
        }
        if self.layout == "padded":
            batch[ATTENTION_MASK] = _filled(shape, 0, places, 1)
        else:
            batch[POSITION_IDS] = _filled(shape, 0, places, np.broadcast_to(columns, real.shape)[real])
            batch[SEGMENTS] = _filled(shape, _NO_SEGMENT, places, np.nonzero(real)[0] + 1)
        if TASK in rows[0]:
            roots = targets.groups[: len(targets.root_columns)].numpy()
            batch[TASK] = torch.from_numpy(tasks)
            batch[FIRST_TOKENS] = torch.from_numpy(np.flatnonzero(tasks[roots] == NEXT_ITEM))
        return batch | targets.to_batch()


def padded(rows: Sequence[dict[str, list[int]]], pad_token_id: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Rows as arrays, padded on the right.

    Args:
        rows (`list[dict]`): Each with `input_ids` and `labels` of one length.
        pad_token_id (`int`): Fills `input_ids`.

    Returns:
        `tuple[np.ndarray, np.ndarray, np.ndarray]`: Lengths `(B,)`, `input_ids` and `labels` `(B, T)`, int64.
    """
    for number, row in enumerate(rows):
        if len(row[INPUT_IDS]) != len(row[LABELS]):
            raise ValueError(
                f"Row {number} of the batch has {len(row[INPUT_IDS])} `input_ids` but {len(row[LABELS])} `labels`."
            )
    lengths = np.array([len(row[INPUT_IDS]) for row in rows])
    real = np.arange(lengths.max()) < lengths[:, None]
    input_ids = np.full(real.shape, pad_token_id, dtype=np.int64)
    labels = np.full(real.shape, IGNORE_INDEX, dtype=np.int64)
    input_ids[real] = np.concatenate([np.asarray(row[INPUT_IDS], dtype=np.int64) for row in rows])
    labels[real] = np.concatenate([np.asarray(row[LABELS], dtype=np.int64) for row in rows])
    return lengths, input_ids, labels


def left_padded(prompts: Sequence[Sequence[int]], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """`input_ids` and `attention_mask` of prompts, which all end at the same column."""
    return _padded_prompts(prompts, pad_token_id, on_the_left=True)


def right_padded(prompts: Sequence[Sequence[int]], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """`input_ids` and `attention_mask` of prompts, which all begin at the first column."""
    return _padded_prompts(prompts, pad_token_id, on_the_left=False)


def _padded_prompts(prompts: Sequence[Sequence[int]], pad_token_id: int, on_the_left: bool) -> tuple[Tensor, Tensor]:
    lengths = np.array([len(prompt) for prompt in prompts])[:, None]
    width = max(int(lengths.max()), 1)
    columns = np.arange(width)
    mask = columns >= width - lengths if on_the_left else columns < lengths
    input_ids = np.full(mask.shape, pad_token_id, dtype=np.int64)
    input_ids[mask] = np.concatenate([np.asarray(prompt, dtype=np.int64) for prompt in prompts])
    return torch.from_numpy(input_ids), torch.from_numpy(mask.astype(np.int64))


def place(lengths: np.ndarray, layout: Layout) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """
    Where each row goes.

    Lengths 5, 2, 4, 3 are packed into three rows of 5: the row of 5, that of 4, and those of 3 and 2 end to end.

    Args:
        lengths (`np.ndarray` of shape `(B,)`): Tokens of each row.
        layout (`str`): `"padded"`, `"packed"` or `"one_row"`; see [`PromptCollator`].

    Returns:
        `tuple[np.ndarray, np.ndarray, tuple[int, int]]`: Row of the batch and first column of each, both `(B,)`, and
        the shape of the batch.
    """
    if layout == "padded":
        return np.arange(len(lengths)), np.zeros(len(lengths), dtype=np.int64), (len(lengths), int(lengths.max()))
    width = int(lengths.max() if layout == "packed" else lengths.sum())
    batch_rows, starts = np.zeros_like(lengths), np.zeros_like(lengths)
    filled: list[int] = []  # columns taken of each row of the batch
    for row in np.argsort(-lengths, kind="stable"):
        length = int(lengths[row])
        batch_row = next((place for place, taken in enumerate(filled) if taken + length <= width), len(filled))
        if batch_row == len(filled):
            filled.append(0)
        batch_rows[row], starts[row] = batch_row, filled[batch_row]
        filled[batch_row] += length
    return batch_rows, starts, (len(filled), width)


def _filled(shape: tuple[int, int], filler: int, places: np.ndarray, values: np.ndarray | int) -> Tensor:
    flat = np.full(shape[0] * shape[1], filler, dtype=np.int64)
    flat[places] = values
    return torch.from_numpy(flat.reshape(shape))
