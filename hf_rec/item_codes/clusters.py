"""
k-means: centroids by scikit-learn or faiss, nearest centroids by plain arithmetic.

Shapes: N vectors · d their width · K centroids.
"""

from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np


Library = Literal["sklearn", "faiss"]
ITERATIONS = 50
SAMPLES_A_CENTROID = 256  # vectors that the first centroids are drawn from
ROWS_AT_ONCE = 1 << 14  # of the matrix of distances
THREADS = 2  # sums over more threads come in no fixed order, so that one seed would give several results


def check_library(library: Library) -> None:
    """Raises a `ValueError` where the library is not installed, whether or not there is anything to do for it."""
    _fit_of(library)


def fit_centroids(vectors: np.ndarray, num_centroids: int, library: Library, seed: int) -> np.ndarray:
    """
    Centroids of k-means with squared Euclidean distance.

    The first ones are drawn by k-means++ from a sample; then scikit-learn runs Lloyd's iterations over all vectors,
    on two threads at most. faiss draws its own. Where there are no more distinct vectors than centroids, they are the
    centroids.

    Args:
        vectors (`np.ndarray` of float32, shape `(N, d)`): At least one.
        num_centroids (`int`): K, at least 1.
        library (`str`): `"sklearn"` or `"faiss"`.
        seed (`int`): The same seed gives the same centroids on machines of one kind.

    Returns:
        `np.ndarray` of float32, shape `(K, d)`: Fewer rows where there are fewer distinct vectors. Each is the mean of
        the vectors that were nearest to it one iteration before.
    """
    random = np.random.default_rng(seed)
    sample = vectors
    if len(vectors) > SAMPLES_A_CENTROID * num_centroids:
        sample = vectors[np.sort(random.choice(len(vectors), SAMPLES_A_CENTROID * num_centroids, replace=False))]
    if len(np.unique(sample, axis=0)) <= num_centroids:
        distinct = np.unique(vectors, axis=0)
        if len(distinct) <= num_centroids:
            return distinct
    return _fit_of(library)(vectors, sample, num_centroids, seed)


def nearest(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The nearest centroid of each vector, shape `(N,)`; of several as near the first."""
    codes = np.empty(len(vectors), dtype=np.int64)
    for rows, distances in distances_to(vectors, centroids):
        codes[rows] = distances.argmin(axis=1)
    return codes


def distances_to(vectors: np.ndarray, centroids: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """
    Squared distances from vectors to centroids less the squared length of the vector, some rows at a time.

    Yields:
        `tuple[slice, np.ndarray]`: The rows, and their distances of shape `(rows, K)`.
    """
    middle = centroids.mean(axis=0)  # around it the products are small, so that little is lost in their difference
    centroids = centroids - middle
    lengths = (centroids**2).sum(axis=1)
    for start in range(0, len(vectors), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        products = (vectors[rows] - middle) @ centroids.T
        products *= -2
        products += lengths
        yield rows, products


def means(vectors: np.ndarray, codes: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Mean of the vectors of each code, float32 of shape `(K, d)`; a code without any keeps its centroid."""
    order = np.argsort(codes, kind="stable")
    found, starts, counts = np.unique(codes[order], return_index=True, return_counts=True)
    moved = centroids.copy()
    for code, start, count in zip(found, starts, counts, strict=True):
        moved[code] = vectors[order[start : start + count]].mean(axis=0, dtype=np.float64)
    return moved


def _fit_of(library: Library) -> Callable[[np.ndarray, np.ndarray, int, int], np.ndarray]:
    try:
        if library == "sklearn":
            import sklearn.cluster  # noqa: F401
            import threadpoolctl  # noqa: F401

            return _fit_sklearn
        import faiss  # noqa: F401
    except ImportError as error:
        if library == "sklearn":
            raise ValueError("k-means needs scikit-learn: `pip install hf_rec[index]`.") from error
        raise ValueError("`kmeans` 'faiss' needs faiss: `pip install hf_rec[faiss]`.") from error
    return _fit_faiss


def _fit_sklearn(vectors: np.ndarray, sample: np.ndarray, num_centroids: int, seed: int) -> np.ndarray:
    from sklearn.cluster import KMeans, kmeans_plusplus
    from threadpoolctl import threadpool_info, threadpool_limits

    threads = min([THREADS, *(pool["num_threads"] for pool in threadpool_info())])
    with threadpool_limits(threads):
        first, _ = kmeans_plusplus(sample, num_centroids, random_state=seed)
        model = KMeans(num_centroids, init=first, n_init=1, max_iter=ITERATIONS, random_state=seed)
        return model.fit(vectors).cluster_centers_.astype(np.float32)


def _fit_faiss(vectors: np.ndarray, sample: np.ndarray, num_centroids: int, seed: int) -> np.ndarray:
    import faiss

    settings: dict[str, Any] = {"niter": ITERATIONS, "seed": seed, "min_points_per_centroid": 1}
    model = faiss.Kmeans(vectors.shape[1], num_centroids, max_points_per_centroid=len(vectors), **settings)
    model.train(np.ascontiguousarray(vectors))
    return model.centroids
