"""
k-means whose clusters hold no more than a given number of vectors.

Shapes: N vectors · d their width · K centroids.
"""

import numpy as np

from hf_rec.item_codes.clusters import distances_to, means


ROUNDS = 10


def fit_bounded(vectors: np.ndarray, centroids: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """
    Move centroids so that each serves at most `capacity` vectors.

    Lloyd's iterations with another first half: `bounded_assignment` in place of the nearest centroid, then the mean of
    each cluster. A round costs O(N K d); the rounds are few and their number is fixed, and the best one counts.

    Args:
        vectors (`np.ndarray` of float32, shape `(N, d)`), centroids (`np.ndarray` of float32, shape `(K, d)`):
            Vectors, and where to start.
        capacity (`int`): Vectors of a cluster, at least `N / K`.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: The code of each vector, and the means of the clusters. A vector need not have
        the code of its nearest centroid: that one may be full.
    """
    best, codes = np.inf, np.zeros(len(vectors), dtype=np.int64)
    found = codes, centroids
    for _ in range(ROUNDS):
        codes = bounded_assignment(vectors, centroids, capacity)
        centroids = means(vectors, codes, centroids)
        error = float(((vectors - centroids[codes]) ** 2).sum(dtype=np.float64))
        if error >= best:
            break
        best, found = error, (codes, centroids)
    return found


def bounded_assignment(vectors: np.ndarray, centroids: np.ndarray, capacity: int) -> np.ndarray:
    """
    Give each vector a centroid, none of them more than `capacity` vectors.

    All go to their nearest centroid. One that has too many keeps those that would lose most by going to their second
    nearest. The others, in the same order, go one by one to the nearest centroid that has room. O(N K d) in all.

    Returns:
        `np.ndarray` of `int`, shape `(N,)`: Codes.
    """
    if capacity * len(centroids) < len(vectors):
        raise ValueError(
            f"`capacity` {capacity} times {len(centroids)} centroids is less than {len(vectors)} vectors."
        )
    codes = np.empty(len(vectors), dtype=np.int64)
    loss = np.zeros(len(vectors), dtype=np.float32)  # of going to the second nearest
    for rows, distances in distances_to(vectors, centroids):
        codes[rows] = distances.argmin(axis=1)
        if len(centroids) > 1:
            two = np.partition(distances, 1, axis=1)[:, :2]
            loss[rows] = two[:, 1] - two[:, 0]
    order = np.lexsort((-loss, codes))  # stable: of equal losses the first row comes first
    counts = np.bincount(codes, minlength=len(centroids))
    places = np.arange(len(codes)) - np.repeat(np.cumsum(counts) - counts, counts)
    late = order[places >= capacity]
    late = late[np.argsort(-loss[late], kind="stable")]
    room = capacity - np.minimum(counts, capacity)
    full = np.where(room > 0, 0, np.inf).astype(np.float32)  # added to the distances
    for rows, distances in distances_to(vectors[late], centroids):
        for row, distance in zip(late[rows], distances, strict=True):
            code = int((distance + full).argmin())
            codes[row] = code
            room[code] -= 1
            if not room[code]:
                full[code] = np.inf
    return codes
