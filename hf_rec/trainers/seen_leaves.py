"""The items of a row's own history, which a ranking in evaluation may leave out (`seen="mask"`)."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_rec.columns import HISTORY
from hf_rec.search.leaf_filter import LeafFilter
from hf_rec.trie.csr import TrieCSR


SEEN_LEAVES = "seen_leaves"  # (B, H) leaves that hold items of the history alone, -1 for none


class WithSeenLeaves:
    """
    A collator that also says which leaves a row's history makes useless. One that holds another item too is kept.

    Args:
        collator (`Callable`): Makes the batch from the other columns.
        trie ([`TrieCSR`]): Of the catalog.
        num_items (`int`): Items of the catalog.
    """

    def __init__(self, collator: Callable[[Sequence[dict]], dict[str, Tensor]], trie: TrieCSR, num_items: int):
        self.collator = collator
        self._leaf_of_item = trie.row_leaf(num_items).cpu().numpy()
        self._items_of_leaf = trie.leaf_ptr.diff().cpu().numpy()

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """The batch, with `seen_leaves` of shape `(B, H)` where the rows have a history."""
        batch = self.collator(rows)
        if HISTORY not in rows[0]:
            return batch
        seen = [self._seen(row[HISTORY]) for row in rows]
        padded = np.full((len(rows), max(map(len, seen))), -1, dtype=np.int64)
        for row, leaves in zip(padded, seen, strict=True):
            row[: len(leaves)] = leaves
        return batch | {SEEN_LEAVES: torch.from_numpy(padded)}

    def _seen(self, history: Sequence[int]) -> np.ndarray:
        items = np.unique(np.asarray(history, dtype=np.int64))
        leaves, counts = np.unique(self._leaf_of_item[items], return_counts=True)
        return leaves[counts == self._items_of_leaf[leaves]]


def forbidding(seen_leaves: Tensor, num_leaves: int) -> LeafFilter:
    """
    What a search may find outside the histories.

    Args:
        seen_leaves (`torch.LongTensor` of shape `(B, H)`): Ascending in each row, -1 for none.
        num_leaves (`int`): Leaves of the trie.
    """
    lists = [leaves[leaves >= 0] for leaves in seen_leaves.cpu().numpy()]
    return LeafFilter.from_lists(lists, num_leaves, are_allowed=False, device=seen_leaves.device)
