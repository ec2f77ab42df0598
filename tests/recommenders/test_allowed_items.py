"""`exclude` and `allow` as short lists, against masks over the whole catalog."""

import numpy as np
import pytest
import torch

from hf_rec.recommenders.allowed_items import ItemRules


N = 30
LISTS = [[3, 3, 7], [], [29, 0, 12], [5]]


@pytest.mark.parametrize("exclude", [None, LISTS, [[4, 7]]])
@pytest.mark.parametrize("allow", [None, LISTS[::-1], [[7, 4, 12, 12, 29]]])
def test_lists_say_what_masks_say(exclude, allow):
    users = [3, 0, 2]
    allowed = ItemRules(N, exclude, allow).of(users)
    if exclude is None and allow is None:
        assert allowed is None
        return
    mask = np.full((3, N), allow is None)
    for place, user in enumerate(users):
        for lists, value in ((allow, True), (exclude, False)):
            if lists is not None:
                mask[place, lists[user % len(lists)]] = value
    for place in range(3):
        assert allowed.count(place) == mask[place].sum()
        np.testing.assert_array_equal(allowed.has(place, np.arange(N)), mask[place])
    scores = torch.rand(3, N)
    for first, stop in ((0, N), (5, 13)):
        part = scores[:, first:stop].clone()
        allowed.forbid(part, first)
        torch.testing.assert_close(
            part, scores[:, first:stop].masked_fill(~torch.from_numpy(mask[:, first:stop]), -torch.inf)
        )
    assert allowed.users(slice(1, 2)).count(0) == mask[1].sum()
    assert sum(map(len, allowed.lists)) <= 15  # and no table of users and items
