"""The text vectors of the items, from where the arguments say."""

import numpy as np

from hf_rec.columns import TITLE
from hf_rec.data.catalog import Catalog
from hf_rec.hub.load import load_base
from hf_rec.item_codes.item_vectors import (
    checked_vectors,
    item_texts,
    sentence_vectors,
    tfidf_vectors,
    vectors_from_file,
)
from hf_rec.recommenders.text_states import TextStates
from hf_rec.trainers.a_llmrec.config import ALLMRecConfig


_MOST_TOKENS = 512  # of a text that a language model reads


def text_vectors(args: ALLMRecConfig, catalog: Catalog) -> np.ndarray:
    """
    One vector for each item, float32 of shape `(N, t)`.

    Args:
        args ([`ALLMRecConfig`]): `text_source`, `text_model`, `text_columns`, and the seed of the SVD.
        catalog ([`Catalog`]): Items.

    Raises:
        `ValueError`: Where the items have no text, or a file does not fit the catalog.
    """
    name = args.text_model or ""
    if args.text_source == "file":
        return vectors_from_file(name, len(catalog))
    texts = item_texts(catalog, args.text_columns or [TITLE])
    if args.text_source == "tfidf":
        return tfidf_vectors(texts, args.seed)
    if args.text_source == "sentence_transformers":
        return sentence_vectors(texts, name)
    states = TextStates(*load_base(name, device=args.device))
    return checked_vectors(
        states.vectors(states.tokens(texts, _MOST_TOKENS), "mean").cpu().numpy(), len(catalog), name
    )
