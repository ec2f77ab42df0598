"""
The item trie as flat integer tensors, for training and search on any device.

Nodes are numbered breadth first from the root, 0. The children of a node are contiguous and sorted by token, so edge
`e` leads to node `e + 1`, and node `n` owns the edges `ptr[n] .. ptr[n + 1] - 1`. Leaves are numbered in sorted path
order, so the leaves below a node are `first_leaf .. first_leaf + num_leaves - 1`.

Shapes: N queried nodes · C most children of any of them · E all their children · M nodes · L leaves · R item rows.
"""

from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from hf_rec.columns import DEAD_NODE, NO_CHILD


@dataclass(frozen=True, eq=False, repr=False)
class TrieCSR:
    """
    Item trie in compressed sparse rows; get one from [`ItemTrie.csr`]. Every attribute is int32, half the memory of
    int64, and on one device; what the methods return is int64.

    A dead node (`-1`, the result of a step that the trie does not have) has no children and stays dead.

    Attributes:
        ptr (`torch.Tensor` of shape `(M + 1,)`): First edge of each node.
        tokens (`torch.Tensor` of shape `(M - 1,)`): Token id on each edge.
        num_children (`torch.Tensor` of shape `(M,)`): Number of tokens that may follow each node.
        num_leaves (`torch.Tensor` of shape `(M,)`): Number of leaves at or below each node.
        first_leaf (`torch.Tensor` of shape `(M,)`): Smallest leaf id at or below each node.
        depth (`torch.Tensor` of shape `(M,)`): Tokens between the root and each node.
        chain_end (`torch.Tensor` of shape `(M,)`): Where the tokens that the trie forces behind each node lead: the
            next node with a choice, or with one leaf below; the node itself where nothing is forced.
        leaf_ptr (`torch.Tensor` of shape `(L + 1,)`): First entry of each leaf in `leaf_rows`.
        leaf_rows (`torch.Tensor` of shape `(R,)`): Item rows, sorted within each leaf.
        vocab_size (`int`): Largest token id in the trie, plus 1.
        max_depth (`int`): Tokens of the longest path.
        max_children (`int`): Most children of any node.
    """

    ptr: Tensor
    tokens: Tensor
    num_children: Tensor
    num_leaves: Tensor
    first_leaf: Tensor
    depth: Tensor
    chain_end: Tensor
    leaf_ptr: Tensor
    leaf_rows: Tensor
    vocab_size: int
    max_depth: int
    max_children: int

    root = 0

    @classmethod
    def from_arrays(
        cls, ptr: np.ndarray, tokens: np.ndarray, leaf_ptr: np.ndarray, leaf_rows: np.ndarray
    ) -> "TrieCSR":
        """Derive the per-node tensors from the four arrays that a trie file stores, on the CPU."""
        num_children = np.diff(ptr)
        num_leaves, first_leaf, depth = leaf_spans(ptr.astype(np.int64))
        chain_end = _chain_ends(ptr, (num_children == 1) & (num_leaves > 1))
        return cls(
            ptr=_int32(ptr),
            tokens=_int32(tokens),
            num_children=_int32(num_children),
            num_leaves=_int32(num_leaves),
            first_leaf=_int32(first_leaf),
            depth=_int32(depth),
            chain_end=_int32(chain_end),
            leaf_ptr=_int32(leaf_ptr),
            leaf_rows=_int32(leaf_rows),
            vocab_size=int(tokens.max()) + 1,
            max_depth=int(depth.max()),
            max_children=int(num_children.max()),
        )

    def __len__(self) -> int:
        return len(self.leaf_ptr) - 1

    def __repr__(self) -> str:
        return (
            f"TrieCSR(leaves={len(self)}, nodes={len(self.depth)}, max_depth={self.max_depth}, "
            f"max_children={self.max_children}, device={str(self.device)!r})"
        )

    @property
    def device(self) -> torch.device:
        return self.ptr.device

    @cached_property
    def edge_keys(self) -> Tensor:
        """`parent * vocab_size + token` of each edge, ascending; int64 of shape `(M - 1,)`, made when first needed."""
        parents = torch.arange(len(self.depth), device=self.device)
        parents = torch.repeat_interleave(parents, self.num_children, output_size=len(self.tokens))
        return parents * self.vocab_size + self.tokens

    @cached_property
    def start(self) -> tuple[int, int]:
        """The node behind what every item starts with, and the number of its children."""
        node = int(self.chain_end[self.root])
        return node, int(self.num_children[node])

    @cached_property
    def start_depth(self) -> int:
        """Tokens that every item starts with."""
        return int(self.depth[self.start[0]])

    @cached_property
    def levels(self) -> list[int]:
        """Nodes `levels[d] .. levels[d + 1] - 1` have depth d; the last entry is the number of nodes."""
        return [0, *torch.bincount(self.depth).cumsum(0).tolist()]

    def to(self, device: str | torch.device) -> "TrieCSR":
        """The same trie on `device`; `self` where it is there already."""
        if self.device == torch.empty(0, device=device).device:
            return self
        values = (getattr(self, field.name) for field in fields(self))
        return TrieCSR(*(value.to(device) if isinstance(value, Tensor) else value for value in values))

    def children(self, nodes: Tensor) -> Tensor:
        """
        Tokens that may follow each node.

        Args:
            nodes (`torch.LongTensor` of shape `(N,)`): Node ids, `-1` for a dead one.

        Returns:
            `torch.LongTensor` of shape `(N, C)`: Ascending token ids, short rows filled with `-1`; C is at least 1.
        """
        counts, starts = self._edge_ranges(nodes)
        columns = torch.arange(max(1, int(counts.max())) if counts.numel() else 1, device=self.device)
        edges = (starts[:, None] + columns).clamp(max=len(self.tokens) - 1)
        return self.tokens[edges].long().masked_fill_(columns >= counts[:, None], NO_CHILD)

    def children_flat(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """
        Tokens that may follow each node, without filler: node `nodes[i]` has `tokens[offsets[i]:offsets[i + 1]]`.

        Args:
            nodes (`torch.LongTensor` of shape `(N,)`): Node ids, `-1` for a dead one.

        Returns:
            `tuple[torch.LongTensor, torch.LongTensor]`: `tokens` of shape `(E,)`, ascending within each node, and
            `offsets` of shape `(N + 1,)`.
        """
        counts, starts = self._edge_ranges(nodes)
        offsets = torch.zeros(len(counts) + 1, dtype=torch.long, device=self.device)
        torch.cumsum(counts, 0, out=offsets[1:])
        total = int(offsets[-1])
        shift = torch.repeat_interleave(starts - offsets[:-1], counts, output_size=total)
        return self.tokens[torch.arange(total, device=self.device) + shift].long(), offsets

    def step(self, nodes: Tensor, tokens: Tensor) -> Tensor:
        """
        Follow one token from each node.

        Args:
            nodes (`torch.LongTensor` of any shape): Node ids, `-1` for a dead one.
            tokens (`torch.LongTensor` of the same shape): Any integers; one that is no child leads to a dead node.

        Returns:
            `torch.LongTensor` of the same shape: Node ids, `-1` where the trie has no such child.
        """
        keys = nodes * self.vocab_size + tokens
        edges = torch.searchsorted(self.edge_keys, keys).clamp_(max=len(self.edge_keys) - 1)
        # A token outside the vocabulary would alias an edge of a neighbouring node.
        found = (self.edge_keys[edges] == keys) & (nodes >= 0) & (tokens >= 0) & (tokens < self.vocab_size)
        return torch.where(found, edges + 1, DEAD_NODE)

    def leaf(self, nodes: Tensor) -> Tensor:
        """Leaf id of each node (`torch.LongTensor` of any shape); `-1` where a path does not end there."""
        alive = nodes.clamp(min=0)
        return torch.where((nodes >= 0) & (self.num_children[alive] == 0), self.first_leaf[alive].long(), -1)

    def items(self, leaf: int) -> list[int]:
        """Item rows of one leaf, ascending: more than one where items share a token path."""
        if not 0 <= leaf < len(self):
            raise ValueError(f"`leaf` must be between 0 and {len(self) - 1}, got {leaf}.")
        return self.leaf_rows[self.leaf_ptr[leaf] : self.leaf_ptr[leaf + 1]].tolist()

    def row_leaf(self, num_rows: int) -> Tensor:
        """Leaf id of each item row (`torch.LongTensor` of shape `(num_rows,)`); `-1` for a row outside the trie."""
        largest = int(self.leaf_rows.max())
        if num_rows <= largest:
            raise ValueError(f"`num_rows` must be greater than the trie's largest row, {largest}, got {num_rows}.")
        leaves = torch.full((num_rows,), -1, dtype=torch.long, device=self.device)
        leaves[self.leaf_rows.long()] = torch.repeat_interleave(
            torch.arange(len(self), device=self.device), self.leaf_ptr.diff(), output_size=len(self.leaf_rows)
        )
        return leaves

    def _edge_ranges(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """Number of edges and first edge of each node; none for a dead node."""
        alive = nodes.clamp(min=0)
        return self.num_children[alive].masked_fill(nodes < 0, 0), self.ptr[alive]


def _int32(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.int32))


def leaf_spans(ptr: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Number of leaves below each node, smallest leaf id below it, and its depth, for nodes numbered breadth first.

    Args:
        ptr (`np.ndarray` of shape `(M + 1,)`): First edge of each node.

    Returns:
        `tuple[np.ndarray, np.ndarray, np.ndarray]`: `num_leaves`, `first_leaf` and `depth`, int64 of shape `(M,)`.
    """
    bounds = [0, 1]  # nodes bounds[d] .. bounds[d + 1] - 1 have depth d
    while ptr[bounds[-1]] > ptr[bounds[-2]]:
        bounds.append(int(ptr[bounds[-1]]) + 1)
    levels = list(zip(bounds[:-1], bounds[1:], strict=True))
    num_children = np.diff(ptr)
    num_leaves = (num_children == 0).astype(np.int64)
    first_leaf = np.zeros_like(num_leaves)
    for start, stop in reversed(levels[:-1]):
        before = _leaves_before(num_leaves, ptr, start, stop)
        edges = ptr[start : stop + 1] - ptr[start]
        num_leaves[start:stop] += before[edges[1:]] - before[edges[:-1]]
    for start, stop in levels[:-1]:
        before = _leaves_before(num_leaves, ptr, start, stop)
        shift = first_leaf[start:stop] - before[ptr[start:stop] - ptr[start]]
        first_leaf[stop : stop + len(before) - 1] = before[:-1] + np.repeat(shift, num_children[start:stop])
    return num_leaves, first_leaf, np.repeat(np.arange(len(levels)), np.diff(bounds))


def _chain_ends(ptr: np.ndarray, is_forced: np.ndarray) -> np.ndarray:
    """Last node of the run of forced tokens behind each node; each round follows twice as many of them."""
    ends = np.where(is_forced, ptr[:-1] + 1, np.arange(len(is_forced)))
    while True:
        further = ends[ends]
        if (further == ends).all():
            return ends
        ends = further


def _leaves_before(num_leaves: np.ndarray, ptr: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Running sum of the leaves below the children of the nodes `start .. stop - 1`, which are `stop` and on."""
    return np.concatenate([[0], np.cumsum(num_leaves[stop : int(ptr[stop]) + 1])])
