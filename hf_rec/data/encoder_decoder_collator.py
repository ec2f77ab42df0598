"""
Rows to tensors for a model that reads the prompt in an encoder and writes the answer in a decoder.

Shapes: B rows · T tokens of the longest prompt · D tokens of the longest answer.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from hf_rec.columns import ATTENTION_MASK, DECODER_INPUT_IDS, IGNORE_INDEX, INPUT_IDS, LABELS
from hf_rec.data.collators import PromptCollator, right_padded
from hf_rec.data.trie_targets import moved_positions
from hf_rec.data.trie_walk import TrieWalk


if TYPE_CHECKING:
    from hf_rec.trie import TrieCSR


class EncoderDecoderCollator:
    """
    Takes the rows of [`PromptCollator`] apart: what stands before the first label goes to the encoder, padded on the
    right, and the one labelled item to the decoder, behind its start token.

    Example: the row with `input_ids` `[5, 6, 7, 8]` and `labels` `[-100, -100, 7, 8]` becomes `input_ids` `[5, 6]`,
    `decoder_input_ids` `[start, 7]` and `labels` `[7, 8]`.

    Args:
        pad_token_id (`int`), trie ([`TrieCSR`]), drop_forced (`bool`): As of [`PromptCollator`].
        start_token_id (`int`): Token that every answer begins behind.
    """

    def __init__(self, pad_token_id: int, trie: "TrieCSR", drop_forced: bool, start_token_id: int):
        self.pad_token_id = pad_token_id
        self.start_token_id = start_token_id
        self._answers = PromptCollator(pad_token_id, trie, drop_forced)
        self._walk = TrieWalk(trie)

    def __call__(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
        """
        Make a batch.

        Args:
            rows (`list[dict]`): Each with `input_ids` and `labels` of one length, and one labelled item at the end, or
                none.

        Returns:
            `dict[str, torch.LongTensor]`: `input_ids` and `attention_mask` of shape `(B, T)`, `decoder_input_ids` and
            `labels` of shape `(B, D)`, and the fields of [`~hf_rec.data.trie_targets.TrieTargets`], whose positions
            are those of the decoder.
        """
        starts = [_first_label(row[LABELS]) for row in rows]
        answers = [
            {
                INPUT_IDS: [self.start_token_id, *row[INPUT_IDS][start:]],
                LABELS: [IGNORE_INDEX, *row[LABELS][start:]],
            }
            for row, start in zip(rows, starts, strict=True)
        ]
        batch = self._answers(answers)
        self._check_answers(answers)
        # The last token of the longest answer predicts nothing
        width = max(batch[INPUT_IDS].shape[1] - 1, 1)
        decoder_ids, labels = batch.pop(INPUT_IDS)[:, :width], batch.pop(LABELS)[:, -width:]
        del batch[ATTENTION_MASK]
        input_ids, attention_mask = right_padded(
            [row[INPUT_IDS][:start] for row, start in zip(rows, starts, strict=True)], self.pad_token_id
        )
        encoder = {INPUT_IDS: input_ids, ATTENTION_MASK: attention_mask}
        return encoder | {DECODER_INPUT_IDS: decoder_ids, LABELS: labels} | moved_positions(batch, width + 1, width)

    def _check_answers(self, answers: list[dict[str, list[int]]]) -> None:
        width = max(len(answer[LABELS]) for answer in answers)
        labels = np.array([answer[LABELS] + [IGNORE_INDEX] * (width - len(answer[LABELS])) for answer in answers])
        items = (self._walk.nodes(labels) == self._walk.trie.root).sum(axis=1)
        if (items > 1).any():
            raise ValueError(
                f"Row {int(np.argmax(items > 1))} of the batch has {int(items.max())} labelled items, but the decoder "
                "of this model writes one, behind a prompt that stands in its encoder. Make rows with "
                "`supervise='last'`."
            )


def _first_label(labels: list[int]) -> int:
    return next((place for place, label in enumerate(labels) if label != IGNORE_INDEX), len(labels))
