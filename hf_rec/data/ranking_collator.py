"""Rows to tensors for an evaluation that ranks: the likelihood of the answer, and the prompt to search behind."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from hf_rec.columns import IGNORE_INDEX, INPUT_IDS, LABELS
from hf_rec.data.collators import PromptCollator, left_padded, padded, right_padded
from hf_rec.data.encoder_decoder_collator import EncoderDecoderCollator
from hf_rec.data.trie_walk import TrieWalk


if TYPE_CHECKING:
    from hf_rec.trie import TrieCSR


class RankingCollator:
    """
    Evaluation rows to tensors: prompt and answer for the likelihood, and the prompt alone for the search after it.

    The answer is the last labelled item of a row; `target_leaf` is its leaf in the trie.

    Args:
        pad_token_id (`int`): Token that fills `input_ids` and `prompt_ids`.
        trie ([`TrieCSR`]): As of [`PromptCollator`].
        start_token_id (`int`, *optional*): Token that the decoder of an encoder-decoder model begins with. Prompts are
            padded on the right then, as an encoder reads them in training, and on the left without one.
    """

    def __init__(self, pad_token_id: int, trie: "TrieCSR", start_token_id: int | None = None):
        self.pad_token_id = pad_token_id
        self.has_encoder = start_token_id is not None
        self.collator: PromptCollator | EncoderDecoderCollator = (
            PromptCollator(pad_token_id, trie, drop_forced=True)
            if start_token_id is None
            else EncoderDecoderCollator(pad_token_id, trie, True, start_token_id)
        )
        self._walk = TrieWalk(trie)

    def __call__(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
        """
        Make a batch.

        Args:
            rows (`list[dict]`): Each with `input_ids` and `labels` of one length.

        Returns:
            `dict[str, torch.LongTensor]`: What [`PromptCollator`] makes of the rows with the answer as their only
            label, `prompt_ids` and `prompt_mask` of one shape, and `target_leaf` of shape `(B,)`.
        """
        trie = self._walk.trie
        _, _, labels = padded(rows, 0)
        nodes = self._walk.nodes(labels)
        starts = np.where(nodes == trie.root, np.arange(labels.shape[1]), -1).max(axis=1)  # of the last item's path
        if (starts < 0).any():
            row = int(np.argmax(starts < 0))
            raise ValueError(
                f"Row {row} of the batch has no label: its answer is unknown. Leave it out of evaluation."
            )
        answers = [
            {INPUT_IDS: row[INPUT_IDS], LABELS: [IGNORE_INDEX] * start + list(row[LABELS][start:])}
            for row, start in zip(rows, starts.tolist(), strict=True)
        ]
        last = np.where(labels != IGNORE_INDEX, np.arange(labels.shape[1]), -1).max(axis=1)
        each = np.arange(len(rows))
        leaf = trie.leaf(trie.step(torch.from_numpy(nodes[each, last]), torch.from_numpy(labels[each, last])))
        prompts = [row[INPUT_IDS][:start] for row, start in zip(rows, starts.tolist(), strict=True)]
        pad = right_padded if self.has_encoder else left_padded
        prompt_ids, prompt_mask = pad(prompts, self.pad_token_id)
        return self.collator(answers) | {"prompt_ids": prompt_ids, "prompt_mask": prompt_mask, "target_leaf": leaf}
