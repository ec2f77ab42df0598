"""
Ranks of targets under many weights of a fusion, with one search of the language model for all of them.

The search gives log P of the best paths and a bound for all others. Under each weight an item whose path was not read
scores at most what its priors and this bound give, so its path is read only where that could put it before the target.

Shapes: U users · W weights · P recommenders · N items of the catalog · L leaves of the trie.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hf_rec.recommenders.allowed_items import AllowedItems, ItemRules
from hf_rec.recommenders.contract import Times
from hf_rec.recommenders.fused import FusedRecommender, checked_log_probabilities
from hf_rec.recommenders.language_model import LanguageModelRecommender, rounding_margin


NOT_LISTED = 2**31 - 1  # as in `hf_rec.metrics.ranking`
_BEAMS = 50  # of the one search
_READ_AT_ONCE = 20  # best items of each prior, whose paths are read in any case
_SCORES_AT_ONCE = 2**20  # of a batch, so that they stay in the cache of a CPU
_LOWEST = -1e30  # bound where nothing is left to be found; times 0 it is 0


def ranks_by_weight(
    fused: FusedRecommender,
    histories: list[list[int]],
    targets: Sequence[int],
    weights: np.ndarray,
    k: int,
    mask_seen: bool,
    timestamps: Times | None = None,
    batch_size: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """
    Where each target stands among all items, up to place `k`.

    Args:
        fused ([`FusedRecommender`]): Its recommenders; its own weights play no part.
        histories (`list[list[int]]`), targets (`Sequence[int]`): Catalog rows, of U users.
        weights (`np.ndarray` of shape `(W, P)`): What is to be tried, at least 0 for the language model.
        k (`int`): Ranks are exact below it. A target behind `k` others has at least `k` of them in `better`.
        mask_seen (`bool`): Whether items of a history are kept out of its list.
        timestamps (`list[list[int]]`, *optional*), batch_size (`int`, *optional*): As in `recommend`.

    Returns:
        `tuple` of two `int64` arrays of shape `(W, U)`: `better` and `tied`, as in
        [`~hf_rec.metrics.ranking.rank_bounds`].
    """
    num_items = len(fused.catalog)
    rules = ItemRules(num_items, exclude=histories if mask_seen else None, allow=None)
    better, tied = (np.zeros((len(weights), len(histories)), dtype=np.int64) for _ in range(2))
    size = fused._users_at_once(batch_size, _BEAMS, None)
    for users in fused._batches(histories, max(1, min(size, _SCORES_AT_ONCE // num_items)), "Trying weights"):
        times = None if timestamps is None else [timestamps[user] for user in users]
        batch = _Batch(
            fused, [histories[user] for user in users], [targets[user] for user in users], times, rules.of(users)
        )
        better[:, users], tied[:, users] = batch.ranks(weights, k)
    return better, tied


class _Batch:
    """Some users, and what is known of the log-probabilities of all items for them."""

    def __init__(
        self,
        fused: FusedRecommender,
        histories: list[list[int]],
        targets: list[int],
        timestamps: Times | None,
        allowed: AllowedItems | None,
    ):
        self.histories, self.targets, self.num_items = histories, torch.tensor(targets), len(fused.catalog)
        self.model, self.place = fused.searched, fused.place
        self.log_q = [
            None if place == self.place else checked_log_probabilities(part, histories, timestamps)
            for place, part in enumerate(fused.recommenders)
        ]
        self.forbidden = torch.zeros(len(histories), self.num_items)
        if allowed is not None:
            allowed.forbid(self.forbidden)
        if self.model is not None:
            self._search(self.model, allowed)

    def ranks(self, weights: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """`better` and `tied` of the targets, `(W, U)`."""
        better, tied, wanted = self._count(torch.arange(len(self.targets)), weights, k)
        users = wanted.any(dim=1).nonzero().squeeze(1)
        if self.model is not None and len(users):
            self._read(self.model, [row.nonzero().squeeze(1) for row in wanted])
            better[:, users], tied[:, users], _ = self._count(users, weights, k)
        return better.numpy(), tied.numpy()

    def _search(self, model: LanguageModelRecommender, allowed: AllowedItems | None) -> None:
        found = model.search(self.histories, _BEAMS, allowed, _BEAMS)
        _refuse_nan(found.nan_scores)
        bound = found.pruned_bound.cpu() + rounding_margin(model.model, model.scoring)
        # One more column, for the -1 that fills the lists
        self.log_p = bound.clamp(min=_LOWEST)[:, None].repeat(1, len(model.trie) + 1)
        self.is_read = torch.zeros(self.log_p.shape, dtype=torch.bool)
        leaves = found.leaves.cpu().masked_fill(found.leaves.cpu() < 0, len(model.trie))
        self.log_p.scatter_(1, leaves, found.scores.cpu())
        self.is_read.scatter_(1, leaves, True)
        self.leaf = model.trie.row_leaf(self.num_items).cpu()
        best = [
            log_q.topk(min(_READ_AT_ONCE, self.num_items), dim=1).indices for log_q in self.log_q if log_q is not None
        ]
        self._read(model, list(torch.cat([self.targets[:, None], *best], dim=1)))

    def _read(self, model: LanguageModelRecommender, items: list[Tensor]) -> None:
        """Read the paths of items, a list of catalog rows for each user, apart from those that are known."""
        unread = [rows[~self.is_read[user, self.leaf[rows]]].tolist() for user, rows in enumerate(items)]
        users = [user for user, rows in enumerate(unread) if rows]
        if not users:
            return
        found = model._score_rows([self.histories[user] for user in users], [unread[user] for user in users], None)
        for user, values in zip(users, map(torch.from_numpy, found), strict=True):
            _refuse_nan(values.isnan())
            leaves = self.leaf[unread[user]]
            self.log_p[user, leaves], self.is_read[user, leaves] = values, True

    def _count(self, users: Tensor, weights: np.ndarray, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """`better` and `tied`, `(W, U)`, of some users among what is read; what else must be read, `(U, N)`."""
        logs = [None if log_q is None else log_q[users] for log_q in self.log_q]
        is_read = torch.ones(len(users), self.num_items, dtype=torch.bool)
        if self.place is not None:
            logs[self.place], is_read = self.log_p[users][:, self.leaf], self.is_read[users][:, self.leaf]
        forbidden, targets = self.forbidden[users], self.targets[users, None]
        better = torch.zeros(len(weights), len(users), dtype=torch.long)
        tied, wanted = torch.zeros_like(better), torch.zeros_like(is_read)
        for number, row in enumerate(weights.tolist()):
            scores = forbidden.clone()
            for weight, log_p in zip(row, logs, strict=True):
                if weight and log_p is not None:
                    scores.add_(log_p, alpha=weight)
            own = scores.gather(1, targets)
            above, level = scores > own, scores == own
            unread = None
            if self.place is not None and row[self.place]:
                unread = (above | level) & ~is_read
                above, level = above & is_read, level & is_read
            can_be_listed = own.squeeze(1) > -torch.inf
            better[number] = above.sum(dim=1, dtype=torch.int32).where(can_be_listed, NOT_LISTED)
            tied[number] = (level.sum(dim=1, dtype=torch.int32) - 1).where(can_be_listed, 0)
            if unread is not None:
                wanted |= unread & (better[number] < k)[:, None]
        return better, tied, wanted


def _refuse_nan(is_nan: Tensor) -> None:
    if is_nan.any():
        raise ValueError("The language model gives scores that are NaN: its weights are damaged. Train it again.")
