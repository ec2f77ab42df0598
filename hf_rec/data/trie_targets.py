"""
What a batch predicts, as index tensors: where, which token, and which columns of the head that takes.

A collator makes them on the CPU, so that a training step need not read anything back from its device.

Shapes: B rows · T tokens · N predicted tokens, R of them at the root of the trie and D = N - R below it · E children
of the D nodes, laid end to end · U different tokens among them.

Tokens of text, which no trie knows, may stand behind those of items: then N = R + D and the number of those.
"""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from hf_rec.columns import DEAD_NODE, IGNORE_INDEX


if TYPE_CHECKING:
    from hf_rec.trie import TrieCSR

_PREFIX = "target_"  # of the fields' names in a batch


@dataclass(frozen=True)
class TrieTargets:
    """
    Predicted tokens: those at the root of the trie first, those below it next, those of text last. Without a trie
    `root_columns` and what follows is empty.

    Attributes:
        positions (`torch.Tensor` of shape `(N,)`): Which of the B * T positions predicts: one before the token itself.
        tokens (`torch.Tensor` of shape `(N,)`): Token ids.
        nodes (`torch.Tensor` of shape `(N,)`): Trie node from which each token is chosen, `-1` where any token of the
            vocabulary may stand: without a trie, and in text.
        groups (`torch.Tensor` of shape `(N,)`): Row, or answer, that each token belongs to.
        root_columns (`torch.Tensor` of shape `(R,)`): Place of each token among the children of the root.
        columns (`torch.Tensor` of shape `(U,)`): Token ids that may follow any of the D nodes, ascending.
        edges (`torch.Tensor` of shape `(E,)`): Place of each child in the flattened `(D, U)` logits.
        offsets (`torch.Tensor` of shape `(D + 1,)`): The children of the d-th node are
            `edges[offsets[d]:offsets[d + 1]]`.
        target_edges (`torch.Tensor` of shape `(D,)`): Place of each token in `edges`.
    """

    positions: Tensor
    tokens: Tensor
    nodes: Tensor
    groups: Tensor
    root_columns: Tensor
    columns: Tensor
    edges: Tensor
    offsets: Tensor
    target_edges: Tensor

    def to_batch(self) -> dict[str, Tensor]:
        """The tensors under the names that they have in a batch."""
        return {_PREFIX + part.name: getattr(self, part.name) for part in fields(self)}

    @classmethod
    def from_batch(cls, batch: dict[str, Tensor]) -> "TrieTargets":
        """The targets of a batch; what else it holds is left."""
        return cls(*(batch[_PREFIX + part.name] for part in fields(cls)))

    @classmethod
    def of_vocabulary(
        cls, positions: np.ndarray, tokens: np.ndarray, groups: np.ndarray, nodes: np.ndarray | None = None
    ) -> "TrieTargets":
        """Targets that are chosen from the whole vocabulary; the arguments are the attributes of these names."""
        nodes = np.full_like(tokens, DEAD_NODE) if nodes is None else nodes
        empty = np.zeros(0, dtype=np.int64)
        return cls(*map(_tensor, (positions, tokens, nodes, groups, empty, empty, empty, np.zeros(1), empty)))

    @classmethod
    def among_children(
        cls, positions: np.ndarray, tokens: np.ndarray, groups: np.ndarray, nodes: np.ndarray, trie: "TrieCSR"
    ) -> "TrieTargets":
        """
        Targets that are chosen from the children of their nodes.

        Args:
            positions, tokens, groups, nodes (`np.ndarray` of shape `(N,)`): The attributes of these names, in any
                order.
            trie ([`TrieCSR`]): On the CPU; each token is a child of its node, unless that is `-1`.
        """
        order = np.argsort(np.where(nodes == DEAD_NODE, 2, nodes != trie.root), kind="stable")
        positions, tokens, groups, nodes = positions[order], tokens[order], groups[order], nodes[order]
        num_root, num_items = int((nodes == trie.root).sum()), int((nodes != DEAD_NODE).sum())
        deep_nodes, deep_tokens = nodes[num_root:num_items], tokens[num_root:num_items]
        root_tokens, _ = (part.numpy() for part in trie.children_flat(torch.tensor([trie.root])))
        children, offsets = (part.numpy() for part in trie.children_flat(torch.from_numpy(deep_nodes)))
        columns, column_of_child = np.unique(children, return_inverse=True)
        counts = np.diff(offsets)
        edges = np.repeat(np.arange(len(counts)) * len(columns), counts) + column_of_child
        target_edges = np.flatnonzero(children == np.repeat(deep_tokens, counts))
        root_columns = np.searchsorted(root_tokens, tokens[:num_root])
        arrays = (positions, tokens, nodes, groups, root_columns, columns, edges, offsets, target_edges)
        return cls(*map(_tensor, arrays))


def labelled(labels: np.ndarray, base: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Rows and columns of the labels that a model predicts, and the positions that predict them.

    Args:
        labels (`np.ndarray` of shape `(B, T)`): Token ids, `-100` where nothing is predicted. The first column has no
            position before it.
        base (`np.ndarray` of shape `(B,)`): Position of each row's first token.

    Returns:
        `tuple[np.ndarray, np.ndarray, np.ndarray]`: Rows, columns and positions, each of shape `(N,)`, in row-major
        order.
    """
    rows, columns = np.nonzero(labels[:, 1:] != IGNORE_INDEX)
    return rows, columns + 1, base[rows] + columns


def moved_positions(batch: dict[str, Tensor], width: int, new_width: int) -> dict[str, Tensor]:
    """A batch whose targets stand in rows of `new_width` positions in place of `width`, in the same columns."""
    name = _PREFIX + "positions"
    rows, columns = batch[name] // width, batch[name] % width
    return batch | {name: rows * new_width + columns}


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64))
