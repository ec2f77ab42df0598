"""
Which leaves a search may find, as short sorted lists: no table of users and leaves.

Shapes: U users · E prefixes asked about.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class LeafFilter:
    """
    Lists of leaves, one for each user or one for all, that name either the allowed leaves or the forbidden ones.

    Example, of two users and 9 leaves: the lists `[2, 5]` and `[0, 5]` are the keys `[2, 5, 10, 15]`. How many of them
    user 1 has among the leaves 3 .. 8 is the number of keys from 13 up to 18: one, leaf 5.

    Attributes:
        keys (`torch.LongTensor`): `user * (num_leaves + 1) + leaf`, ascending.
        num_leaves (`int`): Leaves of the trie.
        are_allowed (`bool`): Whether the lists name the allowed leaves; else each names a forbidden leaf once.
        is_shared (`bool`): Whether one list holds for all users.
    """

    keys: Tensor
    num_leaves: int
    are_allowed: bool
    is_shared: bool

    @classmethod
    def from_lists(
        cls, lists: Sequence[np.ndarray], num_leaves: int, are_allowed: bool, device: torch.device | str
    ) -> "LeafFilter":
        """
        Args:
            lists (`list[np.ndarray]`): Sorted leaf ids, each once: of each user, or a single list for all.
            num_leaves (`int`), are_allowed (`bool`): As above.
            device (`torch.device`): That of the search.
        """
        keys = [leaves.astype(np.int64) + user * (num_leaves + 1) for user, leaves in enumerate(lists)]
        flat = torch.from_numpy(np.concatenate(keys)).to(device)
        return cls(flat, num_leaves, are_allowed, is_shared=len(lists) == 1)

    @classmethod
    def allowing(cls, leaves: Tensor, num_leaves: int) -> "LeafFilter":
        """
        Allow the leaves in the rows of a tensor `(U, n)`, each row ascending; `-1` stands for none.
        """
        # The key of -1 is the one behind the last leaf of the user before: it is in nobody's range
        keys = leaves + torch.arange(len(leaves), device=leaves.device)[:, None] * (num_leaves + 1)
        return cls(keys.flatten(), num_leaves, are_allowed=True, is_shared=len(leaves) == 1)

    def leaves_nothing(self, users: Tensor, first_leaf: Tensor, num_leaves: Tensor) -> Tensor:
        """
        Which prefixes have no allowed leaf below them.

        Args:
            users, first_leaf, num_leaves (`torch.LongTensor` of shape `(E,)`): User of each prefix, and the leaves
                below it: `first_leaf .. first_leaf + num_leaves - 1`.

        Returns:
            `torch.BoolTensor` of shape `(E,)`.
        """
        start = first_leaf if self.is_shared else users * (self.num_leaves + 1) + first_leaf
        named = torch.searchsorted(self.keys, start + num_leaves) - torch.searchsorted(self.keys, start)
        return named == 0 if self.are_allowed else named == num_leaves
