"""The text vectors of the items that a run is given, or that it makes from the catalog."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_rec.data.catalog import Catalog
from hf_rec.item_codes.item_vectors import item_texts, tfidf_vectors, vectors_from_file
from hf_rec.trainers.sequential.aided_config import AidedConfig


@dataclass(frozen=True)
class ItemText:
    """Text vectors `(N, D)` of the items, and their hash."""

    vectors: Tensor
    sha256: str


def item_text_vectors(args: AidedConfig, catalog: Catalog | None) -> ItemText | None:
    """
    What `item_text_vectors` or `item_text_columns` name; `None` where neither is given.

    Raises:
        `ValueError`: Where the file is of the wrong shape or holds what is no number, or no catalog says which item
            is which.
    """
    if args.item_text_vectors is None and args.item_text_columns is None:
        return None
    if catalog is None:
        raise ValueError("Text vectors belong to the rows of a catalog: give the trainer the `catalog`.")
    if args.item_text_vectors is not None:
        try:
            vectors = vectors_from_file(args.item_text_vectors, len(catalog))
        except (ValueError, FileNotFoundError) as error:
            raise type(error)(f"`item_text_vectors`: {error}") from error
    else:
        vectors = tfidf_vectors(item_texts(catalog, args.item_text_columns or []), seed=0)
    return ItemText(torch.from_numpy(vectors), hashlib.sha256(vectors.tobytes()).hexdigest())
