"""
Priors inside the trie search: what the items below a prefix can add to its score.

The score of an item is `weight * log P(path) + prior(item)`. As log P never rises along a path, no item below a prefix
scores higher than `weight * log P(prefix)` plus the largest prior below it. A search that ranks prefixes by this bound
keeps its certificate (https://huggingface.co/papers/2406.14900 adds the log of the prior's mass below each token in
its place: the sum along a path is the same score).

Shapes: U users · N items of the catalog · M nodes and L leaves of the trie · E prefixes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hf_rec.trie.csr import TrieCSR


@dataclass(frozen=True)
class ItemPrior:
    """
    What is added to the log-probabilities of a language model, for a batch of users.

    Attributes:
        items (`torch.FloatTensor` of shape `(U, N)`): Prior of each item, finite; `-inf` for an item that may not be
            found.
        weight (`torch.FloatTensor` of shape `(U,)`): What the log-probability is multiplied by, at least 0.
        margin (`torch.FloatTensor` of shape `(U,)`): What rounding may change in the prior of an item.
    """

    items: Tensor
    weight: Tensor
    margin: Tensor

    def to(self, device: str | torch.device) -> "ItemPrior":
        """The same prior on `device`."""
        return ItemPrior(self.items.to(device), self.weight.to(device), self.margin.to(device))


@dataclass(frozen=True)
class TriePrior:
    """
    The largest prior below each node.

    Attributes:
        best (`torch.FloatTensor` of shape `(M, U)`): Largest prior of any item below each node.
        weight (`torch.FloatTensor` of shape `(U,)`): As in [`ItemPrior`].
    """

    best: Tensor
    weight: Tensor

    @classmethod
    def below_nodes(cls, prior: ItemPrior, trie: TrieCSR) -> "TriePrior":
        """The maxima of a prior over a trie on its device, from the deepest level upwards."""
        leaves, rows = prior.items.t().contiguous(), trie.leaf_rows
        if len(rows) > len(trie):  # some items share a path
            lengths = trie.leaf_ptr.diff().long()
            leaves = torch.segment_reduce(leaves.index_select(0, rows), "max", lengths=lengths, unsafe=True)
            rows = torch.arange(len(trie), device=rows.device)
        best = leaves.index_select(0, rows[trie.first_leaf])  # a leaf below each node, and the only one at a leaf
        bounds = trie.levels
        for start, stop, end in reversed(list(zip(bounds, bounds[1:], bounds[2:], strict=False))):
            sizes = trie.num_children[start:stop].long()
            children = torch.segment_reduce(best[stop:end], "max", lengths=sizes, unsafe=True)
            best[start:stop] = torch.maximum(best[start:stop], children)
        return cls(best, prior.weight)

    def bounds(self, log_probs: Tensor, users: Tensor, nodes: Tensor) -> Tensor:
        """
        The highest score that any item below each prefix can have; at a leaf, the score of its best item.

        Args:
            log_probs (`torch.FloatTensor` of shape `(E,)`): Log-probability of each prefix.
            users, nodes (`torch.LongTensor` of shape `(E,)`): Its user and its trie node.

        Returns:
            `torch.FloatTensor` of shape `(E,)`: `-inf` where no item below may be found.
        """
        best = self.best[nodes, users]
        return (self.weight[users] * log_probs + best).masked_fill_(best == -torch.inf, -torch.inf)
