"""
From a batch to the logits of the tokens a trie allows, without the `[B, T, V]` logits of the whole vocabulary.

Positions at the trie's root share thousands of columns, the others have a handful each: the two kinds are two blocks
of the head's output, and neither pays for the columns of the other.

Shapes: B rows · T tokens · N labelled positions, R of them at the root · E children of the others, laid end to end.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hf_rec.columns import IGNORE_INDEX
from hf_rec.losses.trie_softmax import ragged_softmax_loss
from hf_rec.models.language.compact_head import CompactHead
from hf_rec.trie.csr import TrieCSR


@dataclass(frozen=True)
class LabelledPositions:
    """The labelled positions of a batch, in row-major order."""

    flat: Tensor  # (N,) index into the B * T positions, of the position that predicts
    targets: Tensor  # (N,) token ids
    nodes: Tensor  # (N,) trie node from which each target is chosen
    rows: Tensor  # (N,) row of the batch


def labelled_positions(labels: Tensor, trie_nodes: Tensor) -> LabelledPositions:
    """
    Find what a batch predicts: position t predicts token t + 1.

    Args:
        labels (`torch.Tensor` of shape `(B, T)`): Token ids, `-100` where nothing is predicted.
        trie_nodes (`torch.Tensor` of shape `(B, T)`): Trie node from which `labels[b, t]` is chosen.

    Returns:
        [`LabelledPositions`]: Of the `N` labels that are not `-100`.
    """
    rows, columns = (labels[:, 1:] != IGNORE_INDEX).nonzero(as_tuple=True)
    return LabelledPositions(
        flat=rows * labels.shape[1] + columns,
        targets=labels[rows, columns + 1],
        nodes=trie_nodes[rows, columns + 1],
        rows=rows,
    )


@dataclass(frozen=True)
class ValidLogits:
    """Logits of the allowed tokens at every labelled position."""

    at_root: Tensor  # (N,) bool
    root_values: Tensor  # (R, children of the root)
    root_targets: Tensor  # (R,) column of each target in `root_values`
    values: Tensor  # (E,)
    offsets: Tensor  # (N - R + 1,)
    target_edges: Tensor  # (N - R,) place of each target in `values`

    def losses(self, tau: float) -> Tensor:
        """`-tau * log P_valid(target)` of every position: `torch.Tensor` of shape `(N,)`, float32."""
        root_scores = self.root_values.float() / tau
        root = tau * (root_scores.logsumexp(1) - root_scores.gather(1, self.root_targets[:, None]).squeeze(1))
        deep = ragged_softmax_loss(self.values, self.offsets, self.values.index_select(0, self.target_edges), tau)
        both = torch.cat([root, deep])
        order = torch.cat([self.at_root.nonzero().squeeze(1), (~self.at_root).nonzero().squeeze(1)])
        return torch.zeros_like(both).index_copy(0, order, both)

    def first_token_logits(self) -> tuple[Tensor, Tensor]:
        """Logits of the targets `(R,)` and of all valid tokens `(R, children of the root)` where items begin."""
        values = self.root_values.detach()
        return values.gather(1, self.root_targets[:, None]).squeeze(1), values


def valid_logits(
    model: nn.Module, head: CompactHead | None, inputs: dict[str, Tensor], labelled: LabelledPositions, trie: TrieCSR
) -> ValidLogits:
    """
    Run the model and return the logits of the children of each labelled position's trie node.

    Args:
        model (`torch.nn.Module`): The causal LM as the trainer calls it, wrapped or not.
        head ([`CompactHead`] or `None`): The model's compact head; whole rows of logits are computed without one.
        inputs (`dict[str, torch.Tensor]`): Arguments of the model: `input_ids`, `attention_mask`.
        labelled ([`LabelledPositions`]): Where to look; every target is a child of its node.
        trie ([`TrieCSR`]): On the model's device.

    Returns:
        [`ValidLogits`]: Differentiable.
    """
    at_root = labelled.nodes == trie.root
    root_tokens, _ = trie.children_flat(labelled.nodes.new_tensor([trie.root]))
    tokens, offsets = trie.children_flat(labelled.nodes[~at_root])
    columns, column_of_edge = tokens.unique(return_inverse=True)
    num_deep = offsets.numel() - 1
    position_of_edge = torch.repeat_interleave(
        torch.arange(num_deep, device=tokens.device), offsets.diff(), output_size=tokens.numel()
    )
    root_flat, deep_flat = labelled.flat[at_root], labelled.flat[~at_root]
    if head is None:
        logits = model(**inputs, use_cache=False).logits.flatten(0, 1)
        root_values = logits.index_select(0, root_flat).index_select(1, root_tokens)
        values = logits.index_select(0, deep_flat).flatten()
        values = values.index_select(0, position_of_edge * logits.shape[1] + tokens)
    else:
        with head.select_blocks([(root_flat, root_tokens), (deep_flat, columns)]):
            logits = model(**inputs, use_cache=False).logits.flatten()
        root_values, values = logits.split([len(root_flat) * len(root_tokens), num_deep * len(columns)])
        root_values = root_values.view(len(root_flat), len(root_tokens))
        values = values.index_select(0, position_of_edge * len(columns) + column_of_edge)
    is_target = tokens == labelled.targets[~at_root].repeat_interleave(offsets.diff(), output_size=tokens.numel())
    return ValidLogits(
        at_root=at_root,
        root_values=root_values,
        root_targets=torch.searchsorted(root_tokens, labelled.targets[at_root]),
        values=values,
        offsets=offsets,
        target_edges=is_target.nonzero().squeeze(1),
    )


def vocabulary_logits(model: nn.Module, head: CompactHead | None, inputs: dict[str, Tensor], flat: Tensor) -> Tensor:
    """
    Run the model and return whole rows of logits at chosen positions.

    Args:
        model (`torch.nn.Module`): The causal LM as the trainer calls it.
        head ([`CompactHead`] or `None`): The model's compact head.
        inputs (`dict[str, torch.Tensor]`): Arguments of the model.
        flat (`torch.Tensor` of shape `(N,)`): Indices into the `B * T` positions.

    Returns:
        `torch.Tensor` of shape `(N, V)`: Differentiable.
    """
    if head is None:
        return model(**inputs, use_cache=False).logits.flatten(0, 1).index_select(0, flat)
    with head.select(flat, None):
        return model(**inputs, use_cache=False).logits[0]
