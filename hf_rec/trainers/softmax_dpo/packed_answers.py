"""
Two ways to run a causal LM over a prompt and its answers, with the same log-probabilities.

*Packed*: one row an example, `[prompt, chosen, rejected_1, ...]`. The prompt is computed once; positions start again
behind it in each answer, and a mask keeps the answers apart. *Plain*: one row an answer, each behind its own prompt.

Shapes: B examples · T tokens of the longest packed row · S answer slots · N answer tokens of the batch, row by row ·
A answers of the batch · L tokens of the longest prompt and answer.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hf_rec.columns import INPUT_IDS, POSITION_IDS
from hf_rec.data.preference_collator import (
    ANSWER_LENGTHS,
    ANSWERS,
    CHOSEN_IDS,
    PLAIN_POSITIONS,
    PROMPT,
    PROMPT_IDS,
    REJECTED_IDS,
    PreferenceCollator,
)
from hf_rec.data.trie_targets import TrieTargets
from hf_rec.trie.csr import TrieCSR


@dataclass(frozen=True)
class PackedAnswers:
    """What [`~hf_rec.data.preference_collator.PreferenceCollator`] makes, without the reference log-probabilities."""

    input_ids: Tensor  # (B, T)
    position_ids: Tensor  # (B, T)
    answers: Tensor  # (B, T) 0 prompt, 1 chosen, 2 and on rejected, -1 padding
    answer_lengths: Tensor  # (B, S) 0 where an example has fewer answers
    plain_positions: Tensor  # (N,)
    targets: TrieTargets  # the answer tokens that are not forced; their groups are answers, `row * S + slot`

    @classmethod
    def from_batch(cls, batch: dict[str, Tensor]) -> "PackedAnswers":
        """The fields of a batch; what else it holds is left."""
        return cls(
            batch[INPUT_IDS],
            batch[POSITION_IDS],
            batch[ANSWERS],
            batch[ANSWER_LENGTHS],
            batch[PLAIN_POSITIONS],
            TrieTargets.from_batch(batch),
        )

    def select(self, packed: bool) -> tuple[dict[str, Tensor], TrieTargets]:
        """
        Inputs of the model for one of the two ways, and where in its output the tokens are predicted.

        Args:
            packed (`bool`): Which way. The mask of the packed way still is to be made, by
                [`~hf_rec.trainers.packed_rows.attention_mask`].

        Returns:
            `tuple[dict, TrieTargets]`: `input_ids` with `position_ids` (packed) or `attention_mask` (plain), and the
            `N` targets.
        """
        if packed:
            return {INPUT_IDS: self.input_ids, POSITION_IDS: self.position_ids}, self.targets
        return self._plain_inputs(), replace(self.targets, positions=self.plain_positions)

    def prompt_lengths(self) -> Tensor:
        """`torch.LongTensor` of shape `(B,)`: tokens of each prompt."""
        return (self.answers == PROMPT).sum(1)

    def prompts(self) -> tuple[Tensor, Tensor]:
        """The prompts alone, padded on the left: `input_ids` and `attention_mask`."""
        lengths = self.prompt_lengths()[:, None]
        width = int(lengths.max())
        columns = torch.arange(width, device=lengths.device) - (width - lengths)
        real = columns >= 0
        return self.input_ids.gather(1, columns.clamp(min=0)).masked_fill(~real, 0), real.long()

    def chosen_leaves(self, trie: TrieCSR) -> Tensor:
        """`torch.LongTensor` of shape `(B,)`: leaf that each chosen answer leads to; number of leaves for no item."""
        lengths = self.answer_lengths[:, 0]
        places = torch.arange(int(lengths.max()), device=lengths.device)
        columns = self.prompt_lengths()[:, None] + places
        tokens = self.input_ids.gather(1, columns.clamp(max=self.input_ids.shape[1] - 1))
        nodes = torch.full_like(lengths, trie.root)
        for place in places:
            nodes = torch.where(place < lengths, trie.step(nodes, tokens[:, place]), nodes)
        known = nodes.clamp(min=0)
        # An answer may be cut where the trie leaves no more choice
        return torch.where((nodes >= 0) & (trie.num_leaves[known] == 1), trie.first_leaf[known], len(trie))

    def _plain_inputs(self) -> dict[str, Tensor]:
        """One row an answer; what stands behind it is padding, which causal attention does not see."""
        rows, slots = (self.answer_lengths > 0).nonzero(as_tuple=True)
        lengths, prompts = self.answer_lengths, self.prompt_lengths()
        starts = prompts[:, None] + lengths.cumsum(1) - lengths  # column of each answer's first token
        places = torch.arange(int(self.position_ids.max()) + 1, device=lengths.device)
        prompt, start = prompts[rows, None], starts[rows, slots, None]
        source = torch.where(places < prompt, places, start + places - prompt)
        return {INPUT_IDS: self.input_ids[rows[:, None], source.clamp(max=self.input_ids.shape[1] - 1)]}

    def beginnings(self, prompt_tokens: int, num_answers: int, answer_tokens: int) -> "PackedAnswers":
        """The end of the first row's prompt, and the beginnings of its first answers, scored over the vocabulary."""
        tokens, answers = self.input_ids[0].tolist(), self.answers[0].tolist()
        prompt, chosen, *rejected = (
            [token for token, part in zip(tokens, answers, strict=True) if part == wanted]
            for wanted in range(1 + num_answers)
        )
        row = {
            PROMPT_IDS: prompt[-prompt_tokens:],
            CHOSEN_IDS: chosen[:answer_tokens],
            REJECTED_IDS: [answer[:answer_tokens] for answer in rejected if answer],
        }
        batch = PreferenceCollator(pad_token_id=0, in_batch=True)([row])
        return PackedAnswers.from_batch({name: values.to(self.input_ids.device) for name, values in batch.items()})
