"""
Preference rows to tensors: a prompt and all its answers, end to end in one packed row.

Shapes: B examples · T tokens of the longest packed row · S answer slots (the chosen one, then the rejected ones).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hf_rec.columns import DEAD_NODE, INPUT_IDS, LABELS, TRIE_NODES
from hf_rec.data.collators import PromptCollator


if TYPE_CHECKING:
    from hf_rec.trie import TrieCSR

PROMPT_IDS = "prompt_ids"
CHOSEN_IDS = "chosen_ids"
REJECTED_IDS = "rejected_ids"
REF_CHOSEN = "ref_chosen_logps"
REF_REJECTED = "ref_rejected_logps"

POSITION_IDS = "position_ids"
ANSWERS = "answers"  # (B, T) 0 for the prompt, 1 for the chosen answer, 2 and on for the rejected ones, -1 for padding
ANSWER_LENGTHS = "answer_lengths"  # (B, S) tokens of each answer, 0 where an example has fewer
PROMPT, PADDING = 0, -1


@dataclass
class PreferenceCollator:
    """
    Packs tokenised preference rows: `[prompt, chosen, rejected_1, ..., rejected_K]`, padded on the right.

    Positions start again behind the prompt in each answer. Whoever runs the model keeps the answers apart by a mask,
    or lays them out as K + 1 rows that repeat the prompt.

    Args:
        pad_token_id (`int`):
            Token that fills `input_ids`; it is masked, so any id of the vocabulary does.
        trie ([`TrieCSR`], *optional*):
            Trie of the catalog. With it every answer must be one whole item path. The batch says from which node each
            of its tokens is chosen, and leaves out the tokens behind the last that the trie leaves a choice for: their
            log-probability is exactly 0. (Of the 13 tokens of a Books title, 3 identify it.)
        in_batch (`bool`, *optional*, defaults to `False`):
            Whether a row without rejected answers takes the chosen answers of the other rows of its batch, each once
            and never its own. Where all are equal it has none, and no loss.
        num_rejected (`int`, *optional*, defaults to `0`):
            Least number of rejected slots, so that all batches of a data set can have equally many.
    """

    pad_token_id: int
    trie: "TrieCSR | None" = None
    in_batch: bool = False
    num_rejected: int = 0
    _prompt_collator: PromptCollator | None = field(init=False, repr=False, default=None)

    def __post_init__(self):
        if self.trie is not None:
            self._prompt_collator = PromptCollator(
                self.pad_token_id, self.trie, drop_forced=False, padding_side="right"
            )

    def __call__(self, rows: Sequence[dict]) -> dict[str, Tensor]:
        """
        Make a batch.

        Args:
            rows (`list[dict]`): Each with `prompt_ids` and `chosen_ids` (`list[int]`) and `rejected_ids` (a list of
                such lists); optionally the reference log-probabilities `ref_chosen_logps` and `ref_rejected_logps`.

        Returns:
            `dict[str, torch.Tensor]`: `input_ids`, `position_ids` and `answers` of shape `(B, T)`, `answer_lengths` of
            shape `(B, S)`, `trie_nodes` of shape `(B, T)` where there is a trie (the node from which a token is
            chosen, `-1` for prompt and padding), and the reference log-probabilities where the rows have them.
        """
        counts, flat = [], []
        for number in range(len(rows)):
            answers = self._answers(number, rows)
            counts.append(len(answers))
            flat += answers
        cut = iter(self._cut(flat))
        num_slots = max(1 + self.num_rejected, *counts)
        packed, positions, slots, nodes, lengths = [], [], [], [], []
        for row, count in zip(rows, counts, strict=True):
            prompt = row[PROMPT_IDS]
            packed.append(list(prompt))
            positions.append(list(range(len(prompt))))
            slots.append([PROMPT] * len(prompt))
            nodes.append([DEAD_NODE] * len(prompt))
            lengths.append([0] * num_slots)
            for slot, (answer, path) in enumerate(islice(cut, count)):
                packed[-1] += answer
                positions[-1] += range(len(prompt), len(prompt) + len(answer))
                slots[-1] += [slot + 1] * len(answer)
                nodes[-1] += path
                lengths[-1][slot] = len(answer)
        batch = {
            INPUT_IDS: _pad(packed, self.pad_token_id),
            POSITION_IDS: _pad(positions, 0),
            ANSWERS: _pad(slots, PADDING),
            ANSWER_LENGTHS: torch.tensor(lengths),
        }
        if self.trie is not None:
            batch[TRIE_NODES] = _pad(nodes, DEAD_NODE)
        if REF_CHOSEN in rows[0]:
            batch[REF_CHOSEN] = torch.tensor([row[REF_CHOSEN] for row in rows])
            batch[REF_REJECTED] = torch.tensor([row[REF_REJECTED] for row in rows])
        return batch

    def _answers(self, number: int, rows: Sequence[dict]) -> list[list[int]]:
        answers = [rows[number][CHOSEN_IDS], *rows[number][REJECTED_IDS]]
        if len(answers) == 1 and not self.in_batch:
            raise ValueError(
                f"Row {number} of the batch has no rejected answer: `{REJECTED_IDS}` is empty. Give at least one, or "
                "let the trainer draw them."
            )
        if len(answers) == 1:
            for other in rows:
                if other[CHOSEN_IDS] not in answers:
                    answers.append(other[CHOSEN_IDS])
        return answers

    def _cut(self, answers: list[list[int]]) -> list[tuple[list[int], list[int]]]:
        """
        Each answer with the nodes from which its tokens are chosen, up to the last token that the trie leaves a choice
        for: what comes after that has probability 1.
        """
        if self.trie is None:
            return [(answer, [DEAD_NODE] * len(answer)) for answer in answers]
        try:
            nodes = self._prompt_collator([{INPUT_IDS: answer, LABELS: answer} for answer in answers])[TRIE_NODES]
        except ValueError as error:
            raise ValueError(f"An answer is no item of the trie. {error}") from error
        joined = (nodes[:, 1:] == self.trie.root).any(1)
        if joined.any():
            raise ValueError(
                f"The answer {answers[int(joined.nonzero()[0])]} is more than one item of the trie. Make answers with "
                "`Prompt.encode_item`."
            )
        branches = (nodes != DEAD_NODE) & (self.trie.num_children[nodes.clamp(min=0)] > 1)
        kept = torch.where(branches, torch.arange(1, nodes.shape[1] + 1), 1).amax(1).tolist()
        return [
            (answer[:length], path[:length])
            for answer, path, length in zip(answers, nodes.tolist(), kept, strict=True)
        ]


def _pad(rows: list[list[int]], value: int) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [value] * (width - len(row)) for row in rows])
