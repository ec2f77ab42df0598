"""What the prompts check alike: rows of a catalog, and whether a tokenizer encodes as another one did."""

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from hf_rec.data.prompts.text_encoder import PlainTextEncoder


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Tokenizers that encode these alike encode items alike: words, case, digits, spaces, marks, accents, scripts, emoji.
PROBES = (
    "The quick brown fox, jumps over 12,345.67 lazy dogs!",
    "  two spaces\tand a tab\nand a line",
    "Amélie (2001) naïve Ångström ŒUVRE",
    "七人の侍 Солярис Ελλάδα مرحبا שלום",
    '🎬👩‍👩‍👧 #1 & "it\'s" <b>[x]</b> {y}',
)


def check_rows(num_items: int, rows: Sequence[int]) -> np.ndarray:
    """`rows` as an array of `int64`; a number that is no row of a catalog of `num_items` is a `ValueError`."""
    array = np.asarray(rows, dtype=np.int64)
    if len(array) and not (array.min() >= 0 and array.max() < num_items):
        raise ValueError(
            f"Items are catalog rows between 0 and {num_items - 1}, got {array.tolist()}. Turn raw ids into rows with "
            "`Catalog.rows`."
        )
    return array


def probe_hash(tokenizer: "PreTrainedTokenizerBase", encoder: PlainTextEncoder) -> str:
    """Hash of how a tokenizer encodes text, which does not depend on its name, its files or added tokens."""
    encoded = [[encoder(text), tokenizer(text, add_special_tokens=False)["input_ids"]] for text in PROBES]
    return hashlib.sha256(json.dumps([encoded, tokenizer.bos_token_id]).encode()).hexdigest()
