"""
Token paths of a catalog's items.

No path is the beginning of another one. A text is followed by the separator, which occurs nowhere else in a path, so
that an item whose title starts another title can be told from it. Codes are all of one length.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from hf_rec.data.catalog import Catalog
from hf_rec.data.prompts.item_attributes import attribute_texts
from hf_rec.data.prompts.path_forms import PathForms, is_text, item_texts
from hf_rec.data.prompts.path_tokens import token_paths
from hf_rec.data.prompts.text_encoder import PlainTextEncoder


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def resolve_separator(tokenizer: "PreTrainedTokenizerBase", encoder: PlainTextEncoder, separator: str) -> list[int]:
    """
    Tokens of the separator.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Tokenizer of the language model.
        encoder ([`PlainTextEncoder`]): The same tokenizer for plain text.
        separator (`str`): Text, or a control token of the tokenizer. Where the tokenizer cannot tell the default
            newline from a space, its `sep_token` is used.

    Returns:
        `list[int]`: At least one id.
    """
    added = tokenizer.get_added_vocab()
    if separator in added:
        return [added[separator]]
    ids, space = _ending(encoder, separator), _ending(encoder, " ")
    if ids and ids != space and tokenizer.unk_token_id not in ids:
        return ids
    if separator == "\n" and tokenizer.sep_token_id is not None:
        return [tokenizer.sep_token_id]
    raise ValueError(
        f"`separator` {separator!r} is lost in this tokenizer, which turns it into {ids} (a space: {space}). Pass a "
        "text that it keeps and that no title holds, or one of its control tokens, such as its EOS token."
    )


def _ending(encoder: PlainTextEncoder, text: str) -> list[int]:
    """Ids that `text` adds to a word, without the mark some tokenizers put where a text begins."""
    word, whole = encoder("a"), encoder(f"a{text}")
    return whole[len(word) :] if whole[: len(word)] == word else encoder(text)


@dataclass(frozen=True)
class EncodedPaths:
    """
    Token paths of all items, end to end in row order.

    Attributes:
        tokens (`np.ndarray` of `int32`, shape `(T,)`): All paths.
        offsets (`np.ndarray` of `int64`, shape `(N + 1,)`): Where each begins, and the end of the last.
    """

    tokens: np.ndarray
    offsets: np.ndarray

    @classmethod
    def from_lists(cls, paths: list[list[int]]) -> "EncodedPaths":
        """Lay paths end to end."""
        lengths = np.fromiter(map(len, paths), dtype=np.int64, count=len(paths))
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        return cls(np.fromiter(chain.from_iterable(paths), dtype=np.int32, count=offsets[-1]), offsets)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each path."""
        return np.diff(self.offsets)

    def __getitem__(self, row: int) -> np.ndarray:
        return self.tokens[self.offsets[row] : self.offsets[row + 1]]


def encode_catalog(
    catalog: Catalog,
    forms: PathForms,
    tokenizer: "PreTrainedTokenizerBase",
    encoder: PlainTextEncoder,
    separator_ids: list[int],
    max_item_tokens: int,
) -> tuple[EncodedPaths, EncodedPaths, dict[str, float]]:
    """
    Token paths of all items.

    Args:
        catalog ([`Catalog`]): Items.
        forms ([`PathForms`]): What paths are made of.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): With the tokens of codes and items.
        encoder ([`PlainTextEncoder`]): The same tokenizer for plain text.
        separator_ids (`list[int]`): Tokens that end a path of text. Those of codes and items are all of one length
            and need none.
        max_item_tokens (`int`): Most tokens of a path of text.

    Returns:
        `tuple[EncodedPaths, EncodedPaths, dict[str, float]]`: Paths of answers, what stands for each item in a
        history, and the counts of [`Prompt.report`].
    """
    found: dict[str, list[list[int]]] = {}
    counts = Counter({"shortened": 0, "unnamed": 0, "merged": 0})
    for form in forms.all:
        if is_text(form):
            texts = item_texts(catalog, form)
            found[form], of_form = _text_paths(texts, encoder, separator_ids, max_item_tokens)
            counts.update(of_form)
        else:
            found[form] = token_paths(tokenizer, catalog, form).tolist()
    answers = EncodedPaths.from_lists(found[forms.answer])
    history = answers
    if forms.history != (forms.answer,) or forms.attributes:
        behind, cut = _attributes(catalog, forms.attributes, encoder, separator_ids, max_item_tokens)
        counts.update({"shortened": cut} if cut else {})
        parts = zip(*(found[form] for form in forms.history), behind, strict=True)
        history = EncodedPaths.from_lists([list(chain.from_iterable(item)) for item in parts])
    sharing = Counter(map(tuple, found[forms.answer]))
    report = {
        "items": len(catalog),
        "longest_path": int(answers.lengths.max()),
        "mean_path": float(answers.lengths.mean()),
        **counts,
        "sharing": sum(count for count in sharing.values() if count > 1),
    }
    return answers, history, report


def _attributes(
    catalog: Catalog, names: Sequence[str], encoder: PlainTextEncoder, separator_ids: list[int], max_item_tokens: int
) -> tuple[list[list[int]], int]:
    """What follows each item in a history: its attributes, where it has any. Also how many had to be cut."""
    texts = encoder.encode_batch(attribute_texts(catalog, names))
    room = max_item_tokens - len(separator_ids)
    cut = sum(len(text) > room for text in texts)
    return [text[:room] + separator_ids if text else [] for text in texts], cut


def _text_paths(
    texts: list[str], encoder: PlainTextEncoder, separator_ids: list[int], max_item_tokens: int
) -> tuple[list[list[int]], dict[str, int]]:
    """
    Paths of text. A longer one than `max_item_tokens` is cut and ends in ` #<row>`, the row of the first item with the
    same tokens.
    """
    bodies = encoder.encode_batch(texts)
    unnamed = [row for row, body in enumerate(bodies) if not body]
    for row in unnamed:
        bodies[row] = encoder(f"item {row}")
    shortened = _shorten(bodies, encoder, max_item_tokens - len(separator_ids))
    _check_separator(bodies, texts, separator_ids)
    texts_of_body: dict[tuple[int, ...], set[str]] = {}
    for text, body in zip(texts, bodies, strict=True):
        texts_of_body.setdefault(tuple(body), set()).add(text)
    merged = sum(len(texts_of_body[tuple(body)]) > 1 for body in bodies)
    counts = {"shortened": shortened, "unnamed": len(unnamed), "merged": merged}
    return [body + separator_ids for body in bodies], counts


def _check_separator(bodies: list[list[int]], texts: list[str], separator_ids: list[int]) -> None:
    """Refuse a separator that a path would hold before its end."""
    first, size = separator_ids[0], len(separator_ids)
    for row, body in enumerate(bodies):
        if first not in body:
            continue
        path = body + separator_ids
        if any(path[start : start + size] == separator_ids for start in range(len(body))):
            raise ValueError(
                f"`separator` (tokens {separator_ids}) occurs inside item row {row}, {texts[row][:80]!r}. Choose a "
                "text that no title holds, or a control token of the tokenizer."
            )


def _shorten(bodies: list[list[int]], encoder: PlainTextEncoder, room: int) -> int:
    """Cut, in place, the bodies longer than `room`, each to one that no other text has; returns their number."""
    long_rows = [row for row, body in enumerate(bodies) if len(body) > room]
    taken = {tuple(body) for body in bodies} if long_rows else set()
    short_of: dict[tuple[int, ...], list[int]] = {}
    for row in long_rows:
        whole = tuple(bodies[row])
        if whole not in short_of:
            mark = encoder(f" #{row}")
            cuts = (list(whole[:keep]) + mark for keep in range(room - len(mark), 0, -1))
            found = next((body for body in cuts if tuple(body) not in taken), None)
            if found is None:
                raise ValueError(
                    f"`max_item_tokens` leaves {room} tokens for the text of item row {row}, too few to tell it from "
                    "other items. Raise it."
                )
            taken.add(tuple(found))
            short_of[whole] = found
        bodies[row] = short_of[whole]
    return len(long_rows)
