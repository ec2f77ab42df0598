"""
The item trie as a logits processor, for any `generate()`.

Shapes: R rows (users times beams) · T tokens so far · V vocabulary size · C most children of any row's trie node.
"""

import torch
from torch import Tensor
from transformers import LogitsProcessor

from hf_rec.trie.csr import TrieCSR


SCORINGS = ("valid", "full_vocab")


def check_scoring(tau: float, scoring: str) -> None:
    """Raise a `ValueError` unless `tau` and `scoring` are legal."""
    if not tau > 0:
        raise ValueError(f"`tau` must be greater than 0, got {tau}. Use 1.0 for a plain softmax.")
    if scoring not in SCORINGS:
        raise ValueError(f"`scoring` must be one of {', '.join(map(repr, SCORINGS))}, got {scoring!r}.")


class TrieLogitsProcessor(LogitsProcessor):
    """
    Lets `generate()` write nothing but items of a trie, each scored by its log-probability among the items.

    The trie node of a row is found anew from its tokens at every call, so rows may be reordered between calls, as beam
    search does. Scores come out normalised whatever came in (raw logits or log-probabilities): under
    `scoring="valid"` the scores of a path sum to `log P_valid`, and `exp` of that sums to 1 over all items. For this
    `generate()` needs `length_penalty=0.0` and no other processor that changes scores (`repetition_penalty=1.0`,
    `do_sample=False`). A row that has written a whole item repeats `eos_token_id` at no cost.

    With `eos_token_id` of `generate()` the last token of the item paths (`prompt.separator_ids[-1]`), the lists under
    `"full_vocab"` are those of [`~hf_rec.search.beam_search.trie_beam_search`]. With another one, such as the
    tokenizer's, a finished item holds one of the beams for one more step, and lists may differ where beams are few.

    Args:
        trie ([`TrieCSR`]): Item trie; moved to the device of the scores.
        prompt_length (`int`): Tokens of each row before the first item token, padding included.
        tau (`float`, *optional*, defaults to `1.0`): Temperature of the softmax, greater than 0.
        scoring (`str`, *optional*, defaults to `"valid"`):
            `"valid"`: log-softmax over the children of the trie node (https://huggingface.co/papers/2504.04178).
            `"full_vocab"`: log-softmax over the vocabulary, then the mask, as plain constrained decoding does.
        eos_token_id (`int`, *optional*): Token after a whole item. By default the item's own last token.

    Example:

    ```python
    processor = TrieLogitsProcessor(trie, prompt_length=inputs["input_ids"].shape[1])
    model.generate(**inputs, logits_processor=[processor], num_beams=10, length_penalty=0.0, max_new_tokens=32)
    ```
    """

    def __init__(
        self,
        trie: TrieCSR,
        prompt_length: int,
        tau: float = 1.0,
        scoring: str = "valid",
        eos_token_id: int | None = None,
    ):
        check_scoring(tau, scoring)
        self.trie = trie
        self.prompt_length = prompt_length
        self.tau = tau
        self.scoring = scoring
        self.eos_token_id = eos_token_id

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(R, T)`): Prompts with the tokens written so far.
            scores (`torch.FloatTensor` of shape `(R, V)`): Logits or log-probabilities of the next token.

        Returns:
            `torch.FloatTensor` of shape `(R, V)`: Log-probabilities; `-inf` for a token that leads to no item. A row
            that left the trie is `-inf` throughout, never NaN.
        """
        trie = self.trie = self.trie.to(scores.device)
        nodes, done = _walk(trie, input_ids[:, self.prompt_length :])
        children = trie.children(nodes)
        allowed = children >= 0
        # Fillers repeat the first child, so that the scatter below writes one value twice and no other token.
        tokens = torch.where(allowed, children, children[:, :1]).clamp_(min=0)
        chosen = scores.gather(1, tokens).float() / self.tau
        if self.scoring == "valid":
            normaliser = chosen.masked_fill(~allowed, -torch.inf).logsumexp(dim=1, keepdim=True)
        else:
            normaliser = (scores.float() / self.tau).logsumexp(dim=1, keepdim=True)
        dead = ~allowed[:, :1]
        log_probs = torch.where(dead, -torch.inf, chosen - normaliser).to(scores.dtype)
        result = torch.full_like(scores, -torch.inf).scatter_(1, tokens, log_probs)
        after = input_ids[:, -1] if self.eos_token_id is None else torch.full_like(nodes, self.eos_token_id)
        ended = done.nonzero().squeeze(1)
        result[ended, after[ended]] = 0.0
        return result


def _walk(trie: TrieCSR, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Trie node of each row, and whether a whole item stands at its start."""
    nodes = torch.full((tokens.shape[0],), trie.root, device=tokens.device)
    done = torch.zeros_like(nodes, dtype=torch.bool)
    for column in tokens.unbind(dim=1):
        nodes = trie.step(nodes, column)
        done |= trie.leaf(nodes) >= 0
    return nodes, done
