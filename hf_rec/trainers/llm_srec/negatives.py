"""
The negatives of a retrieval model's users, as a function of (seed, step, row) and of nothing else.

Shapes: B users of a micro-batch · H items of the longest history · K negatives of a user · M shared negatives · N
items.
"""

import torch
from torch import Tensor

from hf_rec.columns import PADDING_ITEM
from hf_rec.trainers.seeded_draws import draw_outside, mix, row_keys, uniform


_HIDING = 1  # keeps the draw of hidden items apart from that of negatives


class RetrievalNegatives:
    """
    Draws negatives, and items whose slots are emptied.

    Args:
        pool (`torch.LongTensor`): Items that may be drawn, ascending: those that the teacher has seen.
        num_items (`int`): N.
        num_negatives (`int`): K or M.
        seed (`int`, *optional*, defaults to `0`): Seed.
    """

    def __init__(self, pool: Tensor, num_items: int, num_negatives: int, seed: int = 0):
        if len(pool) < 2:
            raise ValueError(f"The teacher has seen {len(pool)} items; negatives need at least 2 to draw from.")
        self.pool = pool
        self.num_negatives = num_negatives
        self.seed = seed
        # Place of each item in the pool, -1 outside it; the last entry serves padding, the item -1
        self._place = torch.full((num_items + 1,), PADDING_ITEM)
        self._place[pool] = torch.arange(len(pool))

    def by_user(self, step: int, seen: Tensor) -> Tensor:
        """
        Different items for each user, outside the whole history and the target.

        Args:
            step (`int`): Optimizer steps taken.
            seen (`torch.LongTensor` of shape `(B, H + 1)`): On the CPU: each history, padded with -1, then the target.

        Returns:
            `torch.LongTensor` of shape `(B, K)`. Where a user has seen nearly everything an item may come twice, or be
            the target; the loss leaves the latter out.
        """
        keys = mix(row_keys(seen))
        excluded = self._place[seen]
        for number in range(self.num_negatives):
            drawn = draw_outside(uniform(self.seed, step, keys, number)[:, None], excluded, len(self.pool))
            excluded = torch.cat([excluded, drawn], dim=1)
        return self.pool[excluded[:, excluded.shape[1] - self.num_negatives :]]

    def shared(self, step: int, micro_batch: int, rank: int = 0, num_processes: int = 1) -> Tensor:
        """
        The same items for all users of a micro-batch, as this process has to encode them.

        Returns:
            `torch.LongTensor` of shape `(M / num_processes,)`, rounded up; together the processes hold at least M
            items.
        """
        share = -(-self.num_negatives // num_processes)
        places = torch.arange(rank * share, (rank + 1) * share)
        return self.pool[(uniform(self.seed, step, micro_batch, places) * len(self.pool)).long()]

    def hidden(self, step: int, items: Tensor, rate: float) -> Tensor:
        """True at items whose slots are empty in this step, whatever row they stand in."""
        return uniform(self.seed + _HIDING, step, mix(items)) < rate
