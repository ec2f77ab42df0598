"""
Residual k-means: a code a level, each for what the levels before it have left of an item's vector.

Shapes: N items · d width of a vector · L levels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hf_rec.item_codes.bounded_clusters import fit_bounded
from hf_rec.item_codes.clusters import Library, check_library, fit_centroids, nearest


@dataclass(frozen=True)
class ItemCodes:
    """
    Codes of all items, and how well they stand for the vectors.

    Attributes:
        codes (`np.ndarray` of `int`, shape `(N, L)`): From 0 on in every level.
        centroids (`list[np.ndarray]`): Of each level made by k-means, float32 of shape `(K, d)`; fewer than asked for
            where fewer distinct vectors are left.
        errors (`list[float]`): Mean squared distance between a vector and the sum of its centroids up to level 0
            (none: the mean squared length), 1, 2, ...
    """

    codes: np.ndarray
    centroids: list[np.ndarray]
    errors: list[float]


def residual_kmeans(
    vectors: np.ndarray,
    *,
    levels: int = 3,
    num_codes: int = 256,
    balanced: bool = False,
    library: Library = "sklearn",
    seed: int = 0,
    progress: Callable[[int, float], None] | None = None,
) -> ItemCodes:
    """
    Codes by residual quantisation with k-means (RQ-KMeans, as in https://huggingface.co/papers/2502.18965).

    Args:
        vectors (`np.ndarray` of float32, shape `(N, d)`): One an item, all finite.
        levels (`int`, *optional*, defaults to `3`), num_codes (`int`, *optional*, defaults to `256`): Length of a path
            and the most codes of a level.
        balanced (`bool`, *optional*, defaults to `False`): No code of a level stands for more than `ceil(N / codes)`
            items, as [`~hf_rec.item_codes.bounded_clusters.fit_bounded`] does it. Otherwise each code is that of the
            centroid nearest to the residual.
        library (`str`, *optional*, defaults to `"sklearn"`): Whose k-means; `"faiss"` is the other one.
        seed (`int`, *optional*, defaults to `0`): Of the first centroids.
        progress (callable, *optional*): Is told each level and its error when it is done.

    Returns:
        [`ItemCodes`]
    """
    for name, value in (("levels", levels), ("num_codes", num_codes)):
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")
    check_library(library)
    residual = np.array(vectors, dtype=np.float32, order="C")
    codes = np.empty((len(residual), levels), dtype=np.int64)
    tables, errors = [], [_mean_square(residual)]
    for level in range(levels):
        centroids = fit_centroids(residual, num_codes, library, seed + level)
        if balanced:
            codes[:, level], centroids = fit_bounded(residual, centroids, -(-len(residual) // len(centroids)))
        else:
            codes[:, level] = nearest(residual, centroids)
        residual -= centroids[codes[:, level]]
        tables.append(centroids)
        errors.append(_mean_square(residual))
        if progress is not None:
            progress(level + 1, errors[-1])
    return ItemCodes(codes, tables, errors)


def with_digit(codes: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """
    Codes with one more level that tells the items of a path apart: 0, 1, ...

    Args:
        codes (`np.ndarray` of `int`, shape `(N, L)`): Codes.
        numbers (`np.ndarray` of `int`, shape `(N,)`): The order of the items of a path. That of the rows will not do
            where it follows the events: [`~hf_rec.data.item_numbers.numbers_in_hashed_order`].

    Returns:
        `np.ndarray` of shape `(N, L + 1)`: All rows differ.
    """
    _, paths, counts = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    order = np.lexsort((numbers, paths.reshape(-1)))
    digits = np.empty(len(codes), dtype=codes.dtype)
    digits[order] = np.arange(len(codes)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.column_stack([codes, digits])


def _mean_square(vectors: np.ndarray) -> float:
    return float(np.einsum("ij,ij->i", vectors, vectors).mean(dtype=np.float64))
