"""Evaluation rows to tensors, for the likelihood of the answer and for the search after the prompt."""

import torch
from torch import Tensor

from hf_rec.columns import DEAD_NODE, IGNORE_INDEX, INPUT_IDS, LABELS, TRIE_NODES
from hf_rec.data.collators import PromptCollator


class RankingCollator:
    """
    Makes batches of prompt and answer, as [`PromptCollator`] does, with the prompt alone (left-padded) beside them.

    The answer is the last labelled item of a row; `target_leaf` is its leaf in the trie.

    Args:
        collator ([`PromptCollator`]): Pads on the right and keeps forced labels.
        pad_token_id (`int`): Fills `prompt_ids`; masked.
    """

    def __init__(self, collator: PromptCollator, pad_token_id: int):
        self.collator = collator
        self.pad_token_id = pad_token_id

    def __call__(self, rows: list[dict]) -> dict[str, Tensor]:
        trie = self.collator.trie
        batch = self.collator([{INPUT_IDS: row[INPUT_IDS], LABELS: row[LABELS]} for row in rows])
        labels, nodes = batch[LABELS], batch[TRIE_NODES]
        positions = torch.arange(labels.shape[1])
        start = torch.where(nodes == trie.root, positions, -1).amax(1)  # of the last item's path
        if (start < 0).any():
            row = int((start < 0).nonzero()[0])
            raise ValueError(
                f"Row {row} of the batch has no label: its answer is unknown. Leave it out of evaluation."
            )
        earlier = positions < start[:, None]
        labels = labels.masked_fill(earlier, IGNORE_INDEX)
        nodes = nodes.masked_fill(earlier, DEAD_NODE)
        last = torch.where(labels != IGNORE_INDEX, positions, -1).amax(1, keepdim=True)
        leaf = trie.leaf(trie.step(nodes.gather(1, last), labels.gather(1, last)).squeeze(1))
        forced = (nodes >= 0) & (trie.num_children[nodes.clamp(min=0)] == 1)
        prompt, mask = batch["input_ids"], batch["attention_mask"]
        width = int(start.max())
        columns = torch.arange(width) - (width - start[:, None])  # left padding: every prompt ends at the same column
        inside = columns >= 0
        return {
            "input_ids": prompt,
            "attention_mask": mask,
            LABELS: labels.masked_fill(forced, IGNORE_INDEX),
            TRIE_NODES: nodes.masked_fill(forced, DEAD_NODE),
            "prompt_ids": prompt.gather(1, columns.clamp(min=0)).masked_fill(~inside, self.pad_token_id),
            "prompt_mask": inside.long(),
            "target_leaf": leaf,
        }
