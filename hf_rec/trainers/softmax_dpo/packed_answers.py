"""
Two ways to run a causal LM over a prompt and its answers, with the same log-probabilities.

*Packed*: one row an example, `[prompt, chosen, rejected_1, ...]`. The prompt is computed once; positions start again
behind it in each answer, and a mask keeps the answers apart. *Plain*: one row an answer, each behind its own prompt.

Shapes: B examples · T tokens of the longest packed row · S answer slots · N answer tokens of the batch, row by row ·
A answers of the batch · L tokens of the longest prompt and answer.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hf_rec.columns import ATTENTION_MASK, INPUT_IDS, TRIE_NODES
from hf_rec.data.preference_collator import ANSWER_LENGTHS, ANSWERS, PADDING, POSITION_IDS, PROMPT
from hf_rec.trainers.trie_logits import LabelledPositions
from hf_rec.trie.csr import TrieCSR


@dataclass(frozen=True)
class PackedAnswers:
    """What [`~hf_rec.data.preference_collator.PreferenceCollator`] makes, without the reference log-probabilities."""

    input_ids: Tensor  # (B, T)
    position_ids: Tensor  # (B, T)
    answers: Tensor  # (B, T) 0 prompt, 1 chosen, 2 and on rejected, -1 padding
    answer_lengths: Tensor  # (B, S) 0 where an example has fewer answers
    trie_nodes: Tensor | None  # (B, T)

    @classmethod
    def from_batch(cls, batch: dict[str, Tensor]) -> "PackedAnswers":
        """The fields of a batch; what else it holds is left."""
        names = (INPUT_IDS, POSITION_IDS, ANSWERS, ANSWER_LENGTHS)
        return cls(*(batch[name] for name in names), batch.get(TRIE_NODES))

    def present(self) -> Tensor:
        """`torch.BoolTensor` of shape `(B, S)`: which slots hold an answer."""
        return self.answer_lengths > 0

    def tokens(self, trie: TrieCSR | None = None) -> "AnswerTokens":
        """
        All answer tokens. With a trie those that it forces are left out: their log-probability is exactly 0.

        Args:
            trie ([`TrieCSR`], *optional*): On the device of the batch.
        """
        wanted = self.answers > PROMPT
        if trie is not None:
            wanted = wanted & (trie.num_children[self.trie_nodes.clamp(min=0)] > 1)
        rows, columns = wanted.nonzero(as_tuple=True)
        return AnswerTokens(rows, columns, self.answers[rows, columns] - 1)

    def select(self, tokens: "AnswerTokens", packed: bool) -> tuple[dict[str, Tensor], LabelledPositions]:
        """
        Inputs of the model for one of the two ways, and where in its output the tokens are predicted.

        Args:
            tokens ([`AnswerTokens`]): What is to be predicted.
            packed (`bool`): Which way. The mask of the packed way still is to be made by [`attention_mask`].

        Returns:
            `tuple[dict, LabelledPositions]`: `input_ids` with `position_ids` (packed) or `attention_mask` (plain), and
            the `N` positions.
        """
        rows, columns, slots = tokens.rows, tokens.columns, tokens.slots
        if packed:
            inputs = {INPUT_IDS: self.input_ids, POSITION_IDS: self.position_ids}
            # The first token of every answer follows the last one of the prompt
            is_first = self.answers[rows, columns - 1] != slots + 1
            previous = torch.where(is_first, self.prompt_lengths()[rows] - 1, columns - 1)
            flat = rows * self.input_ids.shape[1] + previous
        else:
            inputs, sequence = self._plain_inputs()
            flat = sequence[rows, slots] * inputs[INPUT_IDS].shape[1] + self.position_ids[rows, columns] - 1
        nodes = torch.zeros_like(rows) if self.trie_nodes is None else self.trie_nodes[rows, columns]
        return inputs, LabelledPositions(flat, self.input_ids[rows, columns], nodes, rows)

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

    def _plain_inputs(self) -> tuple[dict[str, Tensor], Tensor]:
        """One row an answer, and the row `(B, S)` of each slot."""
        present = self.present()
        sequence = present.flatten().cumsum(0).view_as(present) - 1
        rows, slots = present.nonzero(as_tuple=True)
        lengths, prompts = self.answer_lengths, self.prompt_lengths()
        starts = prompts[:, None] + lengths.cumsum(1) - lengths  # column of each answer's first token
        places = torch.arange(int(self.position_ids.max()) + 1, device=present.device)
        prompt, length, start = prompts[rows, None], lengths[rows, slots, None], starts[rows, slots, None]
        source = torch.where(places < prompt, places, start + places - prompt)
        real = places < prompt + length
        input_ids = self.input_ids[rows[:, None], source.clamp(max=self.input_ids.shape[1] - 1)]
        return {INPUT_IDS: input_ids, ATTENTION_MASK: real.long()}, sequence

    def beginnings(self, prompt_tokens: int, num_answers: int, answer_tokens: int) -> "PackedAnswers":
        """The end of the first row's prompt, and the beginnings of its first answers."""
        answers, positions = self.answers[0], self.position_ids[0]
        prompt_length = int((answers == PROMPT).sum())
        dropped = max(prompt_length - prompt_tokens, 0)
        kept = (answers != PADDING) & (answers <= num_answers) & (positions >= dropped)
        columns = (kept & (positions < prompt_length + answer_tokens)).nonzero().squeeze(1)
        return PackedAnswers(
            input_ids=self.input_ids[:1, columns],
            position_ids=self.position_ids[:1, columns] - dropped,
            answers=self.answers[:1, columns],
            answer_lengths=self.answer_lengths[:1, :num_answers].clamp(max=answer_tokens),
            trie_nodes=None,
        )


@dataclass(frozen=True)
class AnswerTokens:
    """Tokens of answers, in row-major order of the packed batch; each field has shape `(N,)`."""

    rows: Tensor  # example
    columns: Tensor  # place in the packed row
    slots: Tensor  # 0 for the chosen answer, 1 and on for the rejected ones


def attention_mask(answers: Tensor, implementation: str, dtype: torch.dtype) -> Tensor:
    """
    Mask under which a token sees the prompt and what comes before it in its own answer.

    Args:
        answers (`torch.LongTensor` of shape `(B, T)`): 0 prompt, 1 and on the answers, -1 padding.
        implementation (`str`): `"sdpa"` takes a boolean mask; `"eager"` adds it to the attention scores.
        dtype (`torch.dtype`): Of the attention scores, for `"eager"`.

    Returns:
        `torch.Tensor` of shape `(B, 1, T, T)`: `True` or `0` where a query (row) sees a key (column).
    """
    query, key = answers[:, :, None], answers[:, None, :]
    order = torch.ones(answers.shape[1], answers.shape[1], dtype=torch.bool, device=answers.device).tril()
    # Padding sees padding, so that no row of the mask is empty
    seen = (order & ((key == PROMPT) | (key == query)))[:, None]
    if implementation == "sdpa":
        return seen
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)
