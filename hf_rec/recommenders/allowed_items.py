"""Which items may be listed for whom, from `exclude` and `allow`."""

import numpy as np


class AllowedItems:
    """
    `exclude` and `allow` as boolean masks over the catalog, made a batch at a time: for all users at once they would
    not fit where users and items are many.

    Args:
        num_items (`int`): Items of the catalog, N.
        exclude, allow (`list[list[int]]`, *optional*): Catalog rows: one list for all users, or one for each.
    """

    def __init__(self, num_items: int, exclude: list[list[int]] | None, allow: list[list[int]] | None):
        self.num_items, self.exclude, self.allow = num_items, exclude, allow

    def of(self, users: list[int]) -> np.ndarray | None:
        """Boolean array of shape `(len(users), N)`, or `(1, N)` where all users share one; `None` for all items."""
        if self.exclude is None and self.allow is None:
            return None
        shared = all(lists is None or len(lists) == 1 for lists in (self.exclude, self.allow))
        mask = np.full((1 if shared else len(users), self.num_items), self.allow is None)
        for lists, value in ((self.allow, True), (self.exclude, False)):
            if lists is None:
                continue
            if len(lists) == 1:
                mask[:, lists[0]] = value
                continue
            for place, user in enumerate(users):
                mask[place, lists[user]] = value
        return mask
