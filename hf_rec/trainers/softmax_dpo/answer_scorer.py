"""Log-probabilities of the answers of a batch, under either scoring and in either of the two ways to run them."""

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hf_rec.columns import ATTENTION_MASK
from hf_rec.losses.trie_softmax import token_cross_entropy
from hf_rec.models.language.compact_head import CompactHead
from hf_rec.trainers.packed_rows import attention_mask, mask_dtype
from hf_rec.trainers.softmax_dpo.packed_answers import PackedAnswers
from hf_rec.trainers.softmax_dpo.prompt_sharing import PromptSharing
from hf_rec.trainers.trie_logits import root_children, valid_logits, vocabulary_logits
from hf_rec.trie.csr import TrieCSR


class AnswerScorer:
    """
    Scores answers.

    Args:
        sharing ([`PromptSharing`]): Says whether the prompt is computed once for all answers of a row.
        tau (`float`): Temperature of the softmax over tokens.
        trie ([`TrieCSR`] or `None`): The tokens compete with the other children of their node; with the whole
            vocabulary without it.
    """

    def __init__(self, sharing: PromptSharing, tau: float, trie: TrieCSR | None):
        self.sharing = sharing
        self.tau = tau
        self._root_tokens = None if trie is None else root_children(trie)

    def __call__(self, model: nn.Module, batch: PackedAnswers, accelerator: Accelerator) -> Tensor:
        """
        Args:
            model (`torch.nn.Module`): The causal LM as the trainer calls it, wrapped or not.
            batch ([`PackedAnswers`]): B examples of up to 1 + K answers.
            accelerator (`accelerate.Accelerator`): Unwraps the model.

        Returns:
            `torch.Tensor` of shape `(B, 1 + K)`, float32: log P of each answer in nats, the chosen one first; 0 where
            an example has fewer than K rejected ones.
        """
        unwrapped = accelerator.unwrap_model(model)
        head = CompactHead.install(unwrapped)
        packed = self.sharing(model, head, batch, accelerator)
        inputs, targets = batch.select(packed)
        if packed:
            kind = unwrapped.config._attn_implementation
            inputs[ATTENTION_MASK] = attention_mask(batch.answers, kind, mask_dtype(unwrapped))
        if self._root_tokens is None:
            logits = vocabulary_logits(model, head, inputs, targets.positions)
            losses = token_cross_entropy(logits, targets.tokens, self.tau)
        else:
            losses = valid_logits(model, head, inputs, targets, self._root_tokens).losses(self.tau)
        shape = batch.answer_lengths.shape
        sums = torch.zeros(shape.numel(), device=losses.device)
        return sums.index_add(0, targets.groups, -losses / self.tau).view(shape)
