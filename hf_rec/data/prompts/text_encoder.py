"""
Untrusted text to token ids: a title that spells a control token stays text.

A tokenizer looks for its special and added tokens in any text before it does anything else, so the title
`<|endoftext|>` would end the text. Here that step is left out, and what is produced is checked.
"""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK = 10_000  # texts a call: their encodings are large and live until the call is over


class PlainTextEncoder:
    """
    Tokenizer without special and added tokens: whatever a text spells, its ids are those of ordinary text.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Any tokenizer; it is not changed.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase"):
        added = tokenizer.added_tokens_decoder.items()
        control = {token_id for token_id, token in added if token.special or len(token.content) > 1}
        control |= set(tokenizer.all_special_ids)
        # An unknown token stands for letters that the tokenizer lacks, unless it has another role too, as GPT-2's has.
        if [*tokenizer.special_tokens_map.values()].count(tokenizer.unk_token) == 1:
            control.discard(tokenizer.unk_token_id)
        self.control_ids = frozenset(control)
        self._tokenizer, self._backend = tokenizer, None
        if tokenizer.is_fast:
            from tokenizers import Tokenizer

            state = json.loads(tokenizer.backend_tokenizer.to_str())
            state.update(added_tokens=[], post_processor=None, truncation=None, padding=None)
            self._backend = Tokenizer.from_str(json.dumps(state))

    def __call__(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, without any of `control_ids`."""
        pairs = zip(texts, self._encode(texts), strict=True)
        return [ids if self.control_ids.isdisjoint(ids) else self._split(text) for text, ids in pairs]

    def _encode(self, texts: list[str]) -> Iterator[list[int]]:
        if self._backend is None:
            for text in texts:
                yield self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        else:
            for start in range(0, len(texts), CHUNK):
                for encoding in self._backend.encode_batch_fast(
                    texts[start : start + CHUNK], add_special_tokens=False
                ):
                    yield encoding.ids

    def _split(self, text: str) -> list[int]:
        """Ids of a text of which the vocabulary itself knows a part as a control token: that part letter by letter."""
        if len(text) == 1:
            raise ValueError(
                f"The tokenizer has {text!r} only as a control token, and an item's text holds it. Remove it from the "
                "titles, or use a tokenizer whose control tokens are longer."
            )
        pieces, start = [], 0
        for first, last in self._control_spans(text):
            pieces += [text[start:first], *text[first:last]]
            start = last
        pieces.append(text[start:])
        encoded = self.encode_batch([piece for piece in pieces if piece])
        return [token_id for ids in encoded for token_id in ids]

    def _control_spans(self, text: str) -> list[tuple[int, int]]:
        if self._backend is None:  # slow tokenizers do not say where a token comes from
            return [(0, len(text))]
        encoding = self._backend.encode(text, add_special_tokens=False)
        spans = zip(encoding.ids, encoding.offsets, strict=True)
        return sorted({span for token_id, span in spans if token_id in self.control_ids and span[0] < span[1]}) or [
            (0, len(text))
        ]
