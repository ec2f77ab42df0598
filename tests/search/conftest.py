"""A trie of twelve leaves with every difficulty, prompts for it, and scores by plain teacher forcing."""

from dataclasses import dataclass

import pytest
import torch

from hf_rec.trie.csr import TrieCSR
from hf_rec.trie.item_trie import ItemTrie


SEP = 19
PATHS = [
    [1, 2, SEP],  # the beginning of the next
    [1, 2, 3, SEP],
    [1, 4, 5, 6, SEP],
    [1, 4, 5, 7, 8, SEP],
    [2, SEP],
    [3, 9, SEP],
    [3, 10, 11, SEP],
    [3, 10, 12, SEP],
    [3, 10, 13, 14, SEP],
    [5, 6, 7, 8, 9, 10, SEP],  # four forced tokens before it branches
    [5, 6, 7, 8, 9, 11, SEP],
    [7, SEP],
    [7, SEP],  # the same title again
]
PROMPTS = [[SEP, 1, 2, SEP, 3], [4, 4], [8, 7, 6, 5, 4, 3, 2]]


@dataclass(frozen=True)
class Problem:
    """Leaf `i` of `csr` has the token path `paths[i]`; prompt `u` stands in row `u`, left padded."""

    csr: TrieCSR
    paths: list[list[int]]
    prompts: list[list[int]]
    input_ids: torch.Tensor
    attention_mask: torch.Tensor

    def prompt(self, user: int) -> dict[str, torch.Tensor]:
        """One prompt alone, without padding."""
        input_ids = torch.tensor([self.prompts[user]])
        return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}

    @torch.no_grad()
    def exact_scores(self, model, tau=1.0, scoring="valid") -> torch.Tensor:
        """Log-probability of each leaf for each prompt, one forward pass each, over whole rows of logits."""
        scores = torch.zeros(len(self.prompts), len(self.paths))
        for user, prompt in enumerate(self.prompts):
            for leaf, path in enumerate(self.paths):
                logits = self._logits(model, prompt, path) / tau
                for place, token in enumerate(path):
                    row = logits[place]
                    rivals = slice(None)
                    if scoring == "valid":
                        rivals = sorted({p[place] for p in self.paths if p[:place] == path[:place]})
                    scores[user, leaf] += row[token] - row[rivals].logsumexp(dim=0)
        return scores

    @staticmethod
    def _logits(model, prompt, path) -> torch.Tensor:
        """Row `i` is what token `i` of the path is chosen from."""
        if not model.config.is_encoder_decoder:
            return model(torch.tensor([prompt + path])).logits[0, len(prompt) - 1 :].float()
        decoder_ids = torch.tensor([[model.config.decoder_start_token_id, *path]])
        return model(input_ids=torch.tensor([prompt]), decoder_input_ids=decoder_ids).logits[0].float()


def left_pad(prompts, width=None):
    width = width or max(map(len, prompts))
    input_ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    attention_mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return input_ids, attention_mask


@pytest.fixture(scope="package")
def problem():
    csr = ItemTrie.build(PATHS).csr()
    leaves = sorted(map(list, {tuple(path) for path in PATHS}))
    return Problem(csr, leaves, PROMPTS, *left_pad(PROMPTS))
