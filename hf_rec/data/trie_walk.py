"""From labels to the trie nodes that they are chosen from, many rows at once and on the CPU."""

from typing import TYPE_CHECKING

import numpy as np
import torch

from hf_rec.columns import DEAD_NODE, IGNORE_INDEX


if TYPE_CHECKING:
    from hf_rec.trie import TrieCSR


class TrieWalk:
    """
    Walks over whole item paths. A path starts at the root: at a row's first label, after `-100` and after a leaf.

    Args:
        trie ([`TrieCSR`]): Trie of the catalog, made from the same prompt's `encode_items()`.
    """

    def __init__(self, trie: "TrieCSR"):
        self.trie = trie.to("cpu")
        self._num_children = self.trie.num_children.numpy()

    def nodes(self, labels: np.ndarray) -> np.ndarray:
        """
        Trie node from which each label is chosen.

        Args:
            labels (`np.ndarray` of shape `(B, T)`): Token ids of one or more whole paths, `-100` for no label.

        Returns:
            `np.ndarray` of shape `(B, T)`, int64: `-1` where there is no label.

        Raises:
            `ValueError`: Where labels are no whole item of the trie; the message names the row and its tokens.
        """
        is_label = labels != IGNORE_INDEX
        before = np.full(labels.shape, DEAD_NODE, dtype=np.int64)
        nodes = np.full(len(labels), self.trie.root, dtype=np.int64)
        # All rows advance together, one column at a time
        for column in np.flatnonzero(is_label.any(axis=0) | np.roll(is_label.any(axis=0), 1)).tolist():
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

    def branches(self, nodes: np.ndarray) -> np.ndarray:
        """Which nodes (`np.ndarray` of any shape) leave a choice; `-1` leaves none."""
        return (nodes != DEAD_NODE) & (self._num_children[nodes] > 1)

    def _step(self, nodes: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        return self.trie.step(torch.from_numpy(nodes), torch.from_numpy(tokens)).numpy()

    def _refuse(self, labels: np.ndarray, bad: np.ndarray, nodes: np.ndarray, column: int, what: str) -> None:
        """Raise for the first bad row: its labels from the root to `column`."""
        row = int(bad.argmax())
        path = labels[row, column - int(self.trie.depth[nodes[row]]) : column + 1]
        raise ValueError(
            f"Row {row} of the batch: the labels {path[path != IGNORE_INDEX].tolist()} {what}. Make rows with "
            "`Prompt.encode_example` and the trie with `ItemTrie.build(prompt.encode_items())`, both from one prompt, "
            "and do not truncate rows afterwards."
        )
