"""
Vectors of the items of a catalog: from their text, from a file, or from a column. A sequence model's table is read by
the command line, which may load models.

Shapes: N items · d width of a vector.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_rec.columns import TITLE
from hf_rec.data.catalog import Catalog
from hf_rec.data.titles import clean_title


TEXT_WIDTH = 128  # d of TF-IDF vectors after the SVD
MAX_TERMS = 50_000


def item_texts(catalog: Catalog, columns: Sequence[str]) -> list[str]:
    """
    What the named columns say about each item, joined by spaces; `""` where they say nothing.

    Args:
        catalog ([`Catalog`]): Items.
        columns (sequence of `str`): `"title"` and names of attributes that are text or lists of text.
    """
    for column in columns:
        values = _values(catalog, column, "text")
        wrong = next((value for value in values if value is not None and not _is_text(value)), None)
        if wrong is not None:
            raise ValueError(f"`text` names {column!r}, which holds {wrong!r:.80}. Name columns of text.")
    parts = [_values(catalog, column, "text") for column in columns]
    return [" ".join(clean_title(_as_text(value)) for value in values if value) for values in zip(*parts, strict=True)]


def tfidf_vectors(texts: Sequence[str], seed: int) -> np.ndarray:
    """
    TF-IDF of words and pairs of words, reduced by a truncated SVD (latent semantic analysis), each of length 1.

    Args:
        texts (sequence of `str`): One an item. One without a word gets the vector 0.
        seed (`int`): Of the SVD.

    Returns:
        `np.ndarray` of float32, shape `(N, d)`: d is 128, fewer where there are fewer items or words.
    """
    try:
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError as error:
        raise ValueError(
            "Vectors of text need scikit-learn: `pip install hf_rec[index]`. Or give vectors of your own in `vectors`."
        ) from error
    words = r"(?u)\b\w+\b"
    terms = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), max_features=MAX_TERMS, token_pattern=words)
    try:
        matrix = terms.fit_transform(texts)
    except ValueError as error:  # its only complaint about text
        raise ValueError(
            "No item has a word. Name columns of text in `text`, or give vectors in `vectors`."
        ) from error
    width = min(TEXT_WIDTH, *matrix.shape)
    if width == matrix.shape[1]:
        return unit_length(matrix.toarray())
    return unit_length(TruncatedSVD(width, random_state=seed).fit_transform(matrix))


def sentence_vectors(texts: Sequence[str], name: str) -> np.ndarray:
    """
    Vectors by a model of the library sentence-transformers, each of length 1.

    Args:
        texts (sequence of `str`): One an item.
        name (`str`): Folder or Hub id of the model. Code that comes with it is never run.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ValueError(
            f"`sentence_transformers` {name!r} needs that library: `pip install sentence-transformers`."
        ) from error
    model = SentenceTransformer(name, trust_remote_code=False)
    return unit_length(model.encode(list(texts), show_progress_bar=True, convert_to_numpy=True))


def vectors_from_file(path: str | os.PathLike, num_items: int) -> np.ndarray:
    """
    Read an array `(N, d)` of numbers, row `i` of which is item `i` of the catalog.

    Args:
        path (`str` or `os.PathLike`): A `.npy` file. One with Python objects in it is refused.
        num_items (`int`): N.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no {path}. `vectors` must be a .npy file or a column of the catalog.")
    try:
        found = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(
            f"`vectors` {path} is no .npy file of plain numbers: it is damaged, of another format, or holds Python "
            "objects, which are not read. Write it with numpy.save(path, array)."
        ) from error
    return checked_vectors(found, num_items, str(path))


def vectors_from_column(catalog: Catalog, column: str) -> np.ndarray:
    """Read an attribute that holds a list of numbers, as long for every item."""
    values = _values(catalog, column, "vectors")
    lengths = {len(value) if isinstance(value, list) else -1 for value in values}
    if -1 in lengths or len(lengths) != 1:
        bad = next((row for row, value in enumerate(values) if not isinstance(value, list)), None)
        what = f"lists of lengths {sorted(lengths)[:4]}" if bad is None else f"{values[bad]!r:.60} for item {bad}"
        raise ValueError(
            f"`vectors` names the column {column!r}, which holds {what}. Each item needs as many numbers."
        )
    try:
        found = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`vectors` names the column {column!r}, whose lists hold other things than numbers."
        ) from error
    return checked_vectors(found, len(catalog), f"Column {column!r}")


def checked_vectors(found: Any, num_items: int, where: str) -> np.ndarray:
    """Vectors as float32; a `ValueError` names what is wrong with their shape or values."""
    if not isinstance(found, np.ndarray) or found.ndim != 2 or not found.size:
        shape = found.shape if isinstance(found, np.ndarray) else type(found).__name__
        raise ValueError(f"{where} holds {shape}; `vectors` must be a table of shape (items, width).")
    if found.dtype.kind not in "fiu":
        raise ValueError(f"{where} holds values of type {found.dtype}; `vectors` must be numbers.")
    if len(found) != num_items:
        raise ValueError(
            f"{where} has {len(found)} rows, the catalog {num_items} items. Row i must be item i of catalog.jsonl."
        )
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused below
        vectors = found.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise ValueError(f"{where} has {len(bad)} rows that are not finite numbers; the first is row {bad[0]}.")
    return vectors


def unit_length(vectors: np.ndarray) -> np.ndarray:
    """Vectors divided by their length, as float32; zero stays zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def _values(catalog: Catalog, column: str, argument: str) -> list[Any]:
    """One value an item, `None` where it has none; `argument` named the column."""
    if column == TITLE and catalog.titles is not None:
        return list(catalog.titles)
    values = [attributes.get(column) for attributes in catalog.attributes]
    if all(value is None for value in values):
        known = {name for attributes in catalog.attributes for name in attributes}
        names = [*([TITLE] if catalog.titles is not None else []), *sorted(known)]
        raise ValueError(
            f"`{argument}` names {column!r}, which no item has; the catalog has "
            f"{', '.join(map(repr, names)) or 'ids alone'}."
        )
    return values


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(entry, str) for entry in value))


def _as_text(value: str | list[str]) -> str:
    return value if isinstance(value, str) else ", ".join(value)
