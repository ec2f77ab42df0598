"""
Which items may be listed for whom, from `exclude` and `allow`.

Shapes: U users · N items of the catalog · C columns of scores.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class AllowedItems:
    """
    Sorted lists of catalog rows, one for each user of a batch or one for all, that name either what may be listed or
    what may not. Their cost is that of the lists, however large the catalog is.

    Attributes:
        lists (`list[np.ndarray]`): Rows, ascending, each once.
        are_allowed (`bool`): Whether the lists name the allowed rows; else the forbidden ones.
        num_items (`int`): Items of the catalog.
    """

    lists: list[np.ndarray]
    are_allowed: bool
    num_items: int

    @property
    def is_shared(self) -> bool:
        """Whether one list holds for all users."""
        return len(self.lists) == 1

    def of(self, user: int) -> np.ndarray:
        """The list of one user."""
        return self.lists[0 if self.is_shared else user]

    def users(self, block: slice) -> "AllowedItems":
        """What holds for some of the users."""
        return self if self.is_shared else replace(self, lists=self.lists[block])

    def count(self, user: int) -> int:
        """Items that may be listed for a user."""
        return len(self.of(user)) if self.are_allowed else self.num_items - len(self.of(user))

    def has(self, user: int, rows: np.ndarray) -> np.ndarray:
        """Whether a user may be shown each of some rows: boolean, of their shape."""
        listed = self.of(user)
        if not len(listed):
            return np.full(rows.shape, not self.are_allowed)
        named = listed[np.searchsorted(listed, rows).clip(max=len(listed) - 1)] == rows
        return named if self.are_allowed else ~named

    def forbid(self, scores: Tensor, first_row: int = 0) -> None:
        """
        Write `-inf` over the scores of what is not allowed.

        Args:
            scores (`torch.Tensor` of shape `(U, C)`): Of the catalog rows `first_row .. first_row + C - 1`.
            first_row (`int`, *optional*, defaults to 0): Row of the first column.
        """
        bounds = [np.searchsorted(listed, [first_row, first_row + scores.shape[1]]) for listed in self.lists]
        parts = [listed[start:stop] - first_row for listed, (start, stop) in zip(self.lists, bounds, strict=True)]
        columns = torch.from_numpy(np.concatenate(parts)).to(scores.device)
        if self.is_shared:
            place: tuple[slice | Tensor, Tensor] = (slice(None), columns)
        else:
            users = np.repeat(np.arange(len(parts)), list(map(len, parts)))
            place = (torch.from_numpy(users).to(scores.device), columns)
        if self.are_allowed:
            kept = scores[place]
            scores.fill_(-torch.inf)
            scores[place] = kept
        else:
            scores[place] = -torch.inf


class ItemRules:
    """
    `exclude` and `allow` of a call, made into [`AllowedItems`] a batch at a time.

    Args:
        num_items (`int`): Items of the catalog, N.
        exclude, allow (`list[list[int]]`, *optional*): Catalog rows: one list for all users, or one for each.
    """

    def __init__(self, num_items: int, exclude: Sequence[Sequence[int]] | None, allow: Sequence[Sequence[int]] | None):
        self.num_items = num_items
        self._exclude = None if exclude is None else _Lists(exclude)
        self._allow = None if allow is None else _Lists(allow)

    def of(self, users: Sequence[int]) -> AllowedItems | None:
        """What holds for some users, in their order; `None` where all items are allowed."""
        given = [lists for lists in (self._exclude, self._allow) if lists is not None]
        if not given:
            return None
        asked = [0] if all(lists.shared is not None for lists in given) else users
        if self._allow is None:
            return AllowedItems([given[0].of(user) for user in asked], False, self.num_items)
        lists = [self._allow.of(user) for user in asked]
        if self._exclude is not None:
            excluded = (self._exclude.of(user) for user in asked)
            lists = [np.setdiff1d(rows, others) for rows, others in zip(lists, excluded, strict=True)]
        return AllowedItems(lists, True, self.num_items)


class _Lists:
    """Rows of each user, sorted when they are asked for; those that all share, once."""

    def __init__(self, lists: Sequence[Sequence[int]]):
        self.lists = lists
        self.shared = _sorted(lists[0]) if len(lists) == 1 else None

    def of(self, user: int) -> np.ndarray:
        return _sorted(self.lists[user]) if self.shared is None else self.shared


def _sorted(rows: Sequence[int]) -> np.ndarray:
    return np.unique(np.asarray(rows, dtype=np.int64))
