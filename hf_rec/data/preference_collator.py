"""
Preference rows to tensors: a prompt and all its answers, end to end in one packed row.

Shapes: B examples · T tokens of the longest packed row · S answer slots (the chosen one, then the rejected ones).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hf_rec.columns import DEAD_NODE, IGNORE_INDEX, INPUT_IDS, POSITION_IDS
from hf_rec.data.trie_targets import TrieTargets
from hf_rec.data.trie_walk import TrieWalk


if TYPE_CHECKING:
    from hf_rec.trie import TrieCSR

PROMPT_IDS = "prompt_ids"
CHOSEN_IDS = "chosen_ids"
REJECTED_IDS = "rejected_ids"
REF_CHOSEN = "ref_chosen_logps"
REF_REJECTED = "ref_rejected_logps"
WEIGHT = "weight"  # of a row in the mean; 0 where it only fills up a batch

ANSWERS = "answers"  # (B, T) 0 for the prompt, 1 for the chosen answer, 2 and on for the rejected ones, -1 for padding
ANSWER_LENGTHS = "answer_lengths"  # (B, S) tokens of each answer, 0 where an example has fewer
PLAIN_POSITIONS = "plain_positions"  # (N,) position of each target where each answer has a row, behind its own prompt
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
            Trie of the catalog. With it every answer must be one whole item path. The batch says from which tokens
            each of its tokens is chosen, and leaves out those that are forced, and all behind the last that the trie
            leaves a choice for: their log-probability is exactly 0. (Of the 13 tokens of a Books title, 3 identify
            it.)
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
    _walk: TrieWalk | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        if self.trie is not None:
            self._walk = TrieWalk(self.trie)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """
        Make a batch.

        Args:
            rows (`list[dict]`): Each with `prompt_ids` and `chosen_ids` (`list[int]`) and `rejected_ids` (a list of
                such lists); optionally the reference log-probabilities `ref_chosen_logps` and `ref_rejected_logps`,
                and `weight` (1 where a row has none).

        Returns:
            `dict[str, torch.Tensor]`: `input_ids`, `position_ids` and `answers` of shape `(B, T)`, `answer_lengths` of
            shape `(B, S)`, the fields of [`TrieTargets`] with the flat number of its answer, `row * S + slot`, as the
            group of each target, `plain_positions`, and the reference log-probabilities and `weight` `(B,)` where rows
            have them.
        """
        counts: list[int] = []
        flat: list[list[int]] = []
        for number in range(len(rows)):
            answers = self._answers(number, rows)
            counts.append(len(answers))
            flat += answers
        cut = iter(self._cut(flat))
        num_slots = max(1 + self.num_rejected, *counts)
        packed: list[list[int]] = []
        positions: list[list[int]] = []
        slots: list[list[int]] = []
        nodes: list[list[int]] = []
        lengths: list[list[int]] = []
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
            ANSWER_LENGTHS: np.array(lengths),
        }
        tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
        tensors |= self._targets(batch, _pad(nodes, DEAD_NODE))
        if REF_CHOSEN in rows[0]:
            tensors[REF_CHOSEN] = torch.tensor([row[REF_CHOSEN] for row in rows])
            tensors[REF_REJECTED] = torch.tensor([row[REF_REJECTED] for row in rows])
        if any(WEIGHT in row for row in rows):
            tensors[WEIGHT] = torch.tensor([row.get(WEIGHT, 1.0) for row in rows])
        return tensors

    def _targets(self, batch: dict[str, np.ndarray], nodes: np.ndarray) -> dict[str, Tensor]:
        """Where the tokens of the answers are predicted, in both layouts; with a trie those that are not forced."""
        answers, lengths, width = batch[ANSWERS], batch[ANSWER_LENGTHS], batch[INPUT_IDS].shape[1]
        rows, columns = np.nonzero(answers > PROMPT if self._walk is None else self._walk.branches(nodes))
        slots, places = answers[rows, columns] - 1, batch[POSITION_IDS][rows, columns]
        prompts = (answers == PROMPT).sum(axis=1)[rows]
        # The first token of every answer follows the last one of the prompt
        packed = rows * width + np.where(places == prompts, prompts, columns) - 1
        sequences = (np.cumsum(lengths > 0) - 1).reshape(lengths.shape)  # row of each answer in the plain layout
        plain = sequences[rows, slots] * (batch[POSITION_IDS].max() + 1) + places - 1
        found = np.arange(len(rows)), batch[INPUT_IDS][rows, columns], rows * lengths.shape[1] + slots
        if self._walk is None:
            targets = TrieTargets.of_vocabulary(*found)
        else:
            targets = TrieTargets.among_children(*found, nodes[rows, columns], self._walk.trie)
        order = targets.positions
        targets = replace(targets, positions=torch.from_numpy(packed)[order])
        return targets.to_batch() | {PLAIN_POSITIONS: torch.from_numpy(plain)[order]}

    def _answers(self, number: int, rows: Sequence[dict[str, Any]]) -> list[list[int]]:
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
        if self._walk is None:
            return [(answer, [DEAD_NODE] * len(answer)) for answer in answers]
        labels = _pad(answers, IGNORE_INDEX)
        try:
            nodes = self._walk.nodes(labels)
        except ValueError as error:
            raise ValueError(f"An answer is no item of the trie. {error}") from error
        joined = (nodes[:, 1:] == self._walk.trie.root).any(axis=1)
        if joined.any():
            raise ValueError(
                f"The answer {answers[int(joined.argmax())]} is more than one item of the trie. Make answers with "
                "`Prompt.encode_item`."
            )
        kept = np.where(self._walk.branches(nodes), np.arange(1, nodes.shape[1] + 1), 1).max(axis=1).tolist()
        return [
            (answer[:length], path[:length])
            for answer, path, length in zip(answers, nodes.tolist(), kept, strict=True)
        ]


def _pad(rows: list[list[int]], value: int) -> np.ndarray:
    width = max(map(len, rows))
    return np.array([row + [value] * (width - len(row)) for row in rows], dtype=np.int64)
