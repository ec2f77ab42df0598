"""
From a batch to the logits of the tokens a trie allows, without the `[B, T, V]` logits of the whole vocabulary.

Positions at the trie's root share thousands of columns, the others have a handful each: the two kinds are two blocks
of the head's output, and neither pays for the columns of the other.

Shapes: B rows · T tokens · N predicted tokens, R of them at the root and D below it · U columns of those · E children
of theirs, laid end to end · X tokens of text · W positions with whole rows of V logits.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from hf_rec.data.trie_targets import TrieTargets
from hf_rec.losses.trie_softmax import ragged_softmax_loss, token_cross_entropy
from hf_rec.models.language.compact_head import CompactHead
from hf_rec.trie.csr import TrieCSR


@dataclass(frozen=True)
class ValidLogits:
    """Logits of the allowed tokens of every target, those at the root first."""

    root_values: Tensor  # (R, children of the root)
    root_targets: Tensor  # (R,) column of each target in `root_values`
    values: Tensor  # (E,)
    offsets: Tensor  # (D + 1,)
    target_edges: Tensor  # (D,) place of each target in `values`
    text_values: Tensor  # (X, V)
    text_targets: Tensor  # (X,) token ids
    whole: Tensor  # (W, V) detached

    def losses(self, tau: float) -> Tensor:
        """
        `-tau * log P_valid(target)` of every target, and cross-entropy where it is text: `torch.Tensor` of shape
        `(N,)`, float32.
        """
        root_scores = self.root_values.float() / tau
        root = tau * (root_scores.logsumexp(1) - root_scores.gather(1, self.root_targets[:, None]).squeeze(1))
        deep = ragged_softmax_loss(self.values, self.offsets, self.values.index_select(0, self.target_edges), tau)
        return torch.cat([root, deep, token_cross_entropy(self.text_values, self.text_targets)])

    def first_token_logits(self, places: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """
        Logits of the targets `(R,)` and of all valid tokens `(R, children of the root)` where items begin, or at some
        of these places.
        """
        values, targets = self.root_values.detach(), self.root_targets
        if places is not None:
            values, targets = values.index_select(0, places), targets.index_select(0, places)
        return values.gather(1, targets[:, None]).squeeze(1), values


def root_children(trie: TrieCSR) -> Tensor:
    """Tokens that may begin an item, ascending, on the trie's device."""
    return trie.children_flat(torch.tensor([trie.root], device=trie.device))[0]


def valid_logits(
    model: nn.Module,
    head: CompactHead | None,
    inputs: dict[str, Tensor],
    targets: TrieTargets,
    root_tokens: Tensor,
    whole_rows: Tensor | None = None,
) -> ValidLogits:
    """
    Run the model and return the logits of the children of each target's trie node.

    Args:
        model (`torch.nn.Module`): The causal LM as the trainer calls it, wrapped or not.
        head ([`CompactHead`] or `None`): The model's compact head; whole rows of logits are computed without one.
        inputs (`dict[str, torch.Tensor]`): Arguments of the model: `input_ids` and what else it takes.
        targets ([`TrieTargets`]): With columns.
        root_tokens (`torch.Tensor`): What [`root_children`] returns.
        whole_rows (`torch.Tensor` of shape `(W,)`, *optional*): Positions of which whole rows of logits are wanted,
            too.

    Returns:
        [`ValidLogits`]: Differentiable.
    """
    num_root, num_deep, num_columns = len(targets.root_columns), len(targets.target_edges), len(targets.columns)
    num_text = len(targets.positions) - num_root - num_deep
    root_positions, deep_positions, text_positions = targets.positions.split([num_root, num_deep, num_text])
    whole_rows = targets.positions[:0] if whole_rows is None else whole_rows
    if head is None:
        logits = model(**inputs, use_cache=False).logits.flatten(0, 1)
        root_values = logits.index_select(0, root_positions).index_select(1, root_tokens)
        deep_values = logits.index_select(0, deep_positions).index_select(1, targets.columns)
        text_values = logits.index_select(0, text_positions)
        whole = logits.detach().index_select(0, whole_rows)
    else:
        blocks = [(root_positions, root_tokens), (deep_positions, targets.columns)]
        blocks += [(positions, None) for positions in (text_positions, whole_rows) if len(positions)]
        with head.select_blocks(blocks):
            logits = model(**inputs, use_cache=False).logits.flatten()
        sizes = [num_root * len(root_tokens), num_deep * num_columns, num_text * head.vocab_size]
        root_values, deep_values, text_values, whole = logits.tensor_split(np.cumsum(sizes).tolist())
        root_values = root_values.view(num_root, len(root_tokens))
        text_values = text_values.view(num_text, head.vocab_size)
        whole = whole.detach().view(len(whole_rows), head.vocab_size)
    return ValidLogits(
        root_values=root_values,
        root_targets=targets.root_columns,
        values=deep_values.flatten().index_select(0, targets.edges),
        offsets=targets.offsets,
        target_edges=targets.target_edges,
        text_values=text_values,
        text_targets=targets.tokens[num_root + num_deep :],
        whole=whole,
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
