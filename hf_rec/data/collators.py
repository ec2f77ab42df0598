"""
Rows to tensors. The trie is passed in.

Shapes: B rows · T tokens of the longest row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from hf_rec.columns import ATTENTION_MASK, DEAD_NODE, IGNORE_INDEX, INPUT_IDS, LABELS, TRIE_NODES


if TYPE_CHECKING:
    from hf_rec.trie import TrieCSR


@dataclass
class PromptCollator:
    """
    Pads tokenised prompts and finds, for each label, the trie node from which it is chosen.

    The labels of a row are one or more whole item paths. A path starts at the root: at a row's first label, after
    `-100` and after a leaf.

    Args:
        pad_token_id (`int`):
            Token that fills `input_ids`; it is masked, so any id of the vocabulary does.
        trie ([`TrieCSR`]):
            Trie of the catalog, made from the same prompt's `encode_items()`.
        drop_forced (`bool`):
            Whether to write `-100` over labels that are the only child of their node. Under `scoring="valid"` their
            loss is exactly 0, so that they must not count as labels; plain fine-tuning keeps them.
        padding_side (`str`, *optional*, defaults to `"left"`):
            `"left"` or `"right"`.
        pad_to_multiple_of (`int`, *optional*):
            Round the padded length up to a multiple of this.
    """

    pad_token_id: int
    trie: "TrieCSR"
    drop_forced: bool
    padding_side: str = "left"
    pad_to_multiple_of: int | None = None
    _edge_keys: np.ndarray = field(init=False, repr=False)
    _num_children: np.ndarray = field(init=False, repr=False)

    def __post_init__(self):
        if self.padding_side not in ("left", "right"):
            raise ValueError(f'`padding_side` must be "left" or "right", got {self.padding_side!r}.')
        if self.pad_token_id is None:
            raise ValueError("`pad_token_id` is None. Pass the id of any token, for instance that of the EOS token.")
        self.trie = self.trie.to("cpu")
        self._edge_keys, self._num_children = self.trie.edge_keys.numpy(), self.trie.num_children.numpy()

    def __call__(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        """
        Make a batch.

        Args:
            rows (`list[dict]`): Each with `input_ids` and `labels` of one length.

        Returns:
            `dict[str, torch.LongTensor]`: `input_ids`, `attention_mask`, `labels` and `trie_nodes`, each of shape
            `(B, T)`. `trie_nodes[b, t]` is the node from which the token `labels[b, t]` is chosen, `-1` where there is
            no label.
        """
        for number, row in enumerate(rows):
            if len(row[INPUT_IDS]) != len(row[LABELS]):
                raise ValueError(
                    f"Row {number} of the batch has {len(row[INPUT_IDS])} `input_ids` but {len(row[LABELS])} `labels`."
                )
        lengths = np.array([len(row[INPUT_IDS]) for row in rows])
        width = int(lengths.max())
        if self.pad_to_multiple_of is not None:
            width = -(-width // self.pad_to_multiple_of) * self.pad_to_multiple_of
        columns = np.arange(width)
        if self.padding_side == "left":
            real = columns >= width - lengths[:, None]
        else:
            real = columns < lengths[:, None]
        input_ids = np.full(real.shape, self.pad_token_id, dtype=np.int64)
        labels = np.full(real.shape, IGNORE_INDEX, dtype=np.int64)
        input_ids[real] = np.concatenate([np.asarray(row[INPUT_IDS], dtype=np.int64) for row in rows])
        labels[real] = np.concatenate([np.asarray(row[LABELS], dtype=np.int64) for row in rows])
        nodes = self._walk(labels)
        if self.drop_forced:
            forced = (nodes != DEAD_NODE) & (self._num_children[nodes] == 1)
            labels[forced], nodes[forced] = IGNORE_INDEX, DEAD_NODE
        batch = {INPUT_IDS: input_ids, ATTENTION_MASK: real.astype(np.int64), LABELS: labels, TRIE_NODES: nodes}
        return {name: torch.from_numpy(array) for name, array in batch.items()}

    def _walk(self, labels: np.ndarray) -> np.ndarray:
        """Trie node from which each label is chosen; all rows advance together, one column at a time."""
        is_label = labels != IGNORE_INDEX
        before = np.full(labels.shape, DEAD_NODE, dtype=np.int64)
        nodes = np.full(len(labels), self.trie.root, dtype=np.int64)
        for column in np.flatnonzero(is_label.any(axis=0) | np.roll(is_label.any(axis=0), 1)):
            here, tokens = is_label[:, column], labels[:, column]
            cut = ~here & (nodes != self.trie.root)
            if cut.any():
                self._refuse(labels, cut, nodes, column, "end before the item does")
            before[here, column] = nodes[here]
            reached = self._step(nodes, tokens)
            wrong = here & (reached == DEAD_NODE)
            if wrong.any():
                self._refuse(labels, wrong, nodes, column, "are no item of the trie")
            goes_on = here & (self._num_children[reached] > 0)
            nodes = np.where(goes_on, reached, self.trie.root)
        cut = nodes != self.trie.root
        if cut.any():
            self._refuse(labels, cut, nodes, labels.shape[1], "end before the item does")
        return before

    def _step(self, nodes: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        keys = nodes * self.trie.vocab_size + tokens
        edges = np.searchsorted(self._edge_keys, keys).clip(max=len(self._edge_keys) - 1)
        found = (self._edge_keys[edges] == keys) & (tokens >= 0) & (tokens < self.trie.vocab_size)
        return np.where(found, edges + 1, DEAD_NODE)

    def _refuse(self, labels: np.ndarray, bad: np.ndarray, nodes: np.ndarray, column: int, what: str) -> None:
        """Raise for the first bad row: its labels from the root to `column`."""
        row = int(bad.argmax())
        path = labels[row, column - int(self.trie.depth[nodes[row]]) : column + 1]
        raise ValueError(
            f"Row {row} of the batch: the labels {path[path != IGNORE_INDEX].tolist()} {what}. Make rows with "
            "`Prompt.encode_example` and the trie with `ItemTrie.build(prompt.encode_items())`, both from one prompt, "
            "and do not truncate rows afterwards."
        )
