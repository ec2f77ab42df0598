"""
Intervals and tests for means over rows that come in clusters (several rows of one user are not independent).

Shapes: `R` rows, `M` metrics, `C` clusters. All functions draw from their own seeded generator, in blocks of bounded
size.
"""

from collections.abc import Hashable, Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike


LEVEL, NUM_SAMPLES = 0.95, 2000  # of bootstrap intervals
NUM_FLIPS = 10_000  # of sign-flip tests
_BLOCK = 2**22  # numbers drawn at a time: about 32 MiB, whatever the number of clusters


def cluster_bootstrap(
    values: ArrayLike,
    clusters: Sequence[Hashable],
    *,
    level: float = LEVEL,
    num_samples: int = NUM_SAMPLES,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    Percentile bootstrap interval of the mean over rows, drawing whole clusters with replacement.

    Args:
        values (`np.ndarray` of shape `[R]` or `[R, M]`):
            One value a row; columns are resampled together.
        clusters (`Sequence` of `R` hashable values):
            The user of each row. A drawn user brings all of its rows.
        level (`float`, *optional*, defaults to 0.95):
            Share of the bootstrap means between the two ends.
        num_samples (`int`, *optional*, defaults to 2000):
            Number of bootstrap samples.
        seed (`int`, *optional*, defaults to 0):
            Seed of the draws.

    Returns:
        `tuple` of three `float64` arrays of shape `[]` or `[M]`: mean, low end, high end.
    """
    if not 0.0 < level < 1.0:
        raise ValueError(f"`level` must lie between 0 and 1, for example 0.95, got {level}.")
    if num_samples < 1:
        raise ValueError(f"`num_samples` must be at least 1, got {num_samples}.")
    sums, sizes = _cluster_sums(values, clusters)
    generator, num_clusters = np.random.default_rng(seed), len(sizes)
    means = np.empty((num_samples, sums.shape[1]))
    for start, stop in _blocks(num_samples, num_clusters):
        drawn = generator.integers(num_clusters, size=(stop - start, num_clusters))
        drawn += np.arange(stop - start)[:, None] * num_clusters
        times = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape).astype(np.float64)
        means[start:stop] = (times @ sums) / (times @ sizes)[:, None]
    tail = 50.0 * (1.0 - level)
    low, high = np.percentile(means, [tail, 100.0 - tail], axis=0)
    shape = np.shape(values)[1:]
    return (sums.sum(axis=0) / sizes.sum()).reshape(shape), low.reshape(shape), high.reshape(shape)


def sign_flip_test(
    differences: ArrayLike, clusters: Sequence[Hashable], *, num_samples: int = NUM_FLIPS, seed: int = 0
) -> np.ndarray:
    """
    Two-sided p-value of a paired comparison, by flipping the sign of all differences of a user together.

    Under the null hypothesis that both models are exchangeable for every user, each of the `2**C` sign patterns is
    equally likely. All of them are counted where there are at most `num_samples`; otherwise random patterns are drawn
    and the observed one is added, so that `p >= 1 / (num_samples + 1)`. Users without a difference change nothing and
    are left out.

    Args:
        differences (`np.ndarray` of shape `[R]` or `[R, M]`):
            Value of one model less value of the other, row by row.
        clusters (`Sequence` of `R` hashable values):
            The user of each row.
        num_samples (`int`, *optional*, defaults to 10,000):
            Number of sign patterns.
        seed (`int`, *optional*, defaults to 0):
            Seed of the draws.

    Returns:
        `float64` array of shape `[]` or `[M]`: p-values, 1 where no user differs.
    """
    if num_samples < 1:
        raise ValueError(f"`num_samples` must be at least 1, got {num_samples}.")
    sums, _ = _cluster_sums(differences, clusters)
    sums = sums[np.any(sums != 0.0, axis=1)]
    num_clusters, shape = len(sums), np.shape(differences)[1:]
    # A pattern that equals the observed one up to rounding counts as at least as extreme.
    observed = np.abs(sums.sum(axis=0)) - 1e-9 * np.abs(sums).sum(axis=0)
    exact = num_clusters < 63 and 2**num_clusters <= num_samples
    num_patterns = 2**num_clusters if exact else num_samples
    generator, extreme = np.random.default_rng(seed), np.zeros(sums.shape[1], dtype=np.int64)
    for start, stop in _blocks(num_patterns, num_clusters):
        if exact:
            flips = (np.arange(start, stop)[:, None] >> np.arange(num_clusters)) & 1
        else:
            flips = generator.integers(2, size=(stop - start, num_clusters), dtype=np.int8)
        extreme += (np.abs(sums.sum(axis=0) - 2.0 * (flips.astype(np.float64) @ sums)) >= observed).sum(axis=0)
    found = extreme / num_patterns if exact else (extreme + 1) / (num_patterns + 1)
    return found.reshape(shape)


def holm(p_values: ArrayLike) -> np.ndarray:
    """
    Holm's step-down correction: p-values that may each be compared with the level while the chance of any false
    finding in the whole family stays below it.

    Args:
        p_values (`np.ndarray` of shape `[M]`):
            P-values of the family.

    Returns:
        `float64` array of shape `[M]`, in the order given, each at most 1.
    """
    p_values = np.asarray(p_values, dtype=np.float64)
    if p_values.ndim != 1 or np.isnan(p_values).any() or ((p_values < 0) | (p_values > 1)).any():
        raise ValueError(f"`p_values` must be a list of numbers between 0 and 1, got {p_values.tolist()}.")
    order = np.argsort(p_values, kind="stable")
    adjusted = np.maximum.accumulate(p_values[order] * np.arange(len(order), 0, -1))
    found = np.empty_like(p_values)
    found[order] = np.minimum(adjusted, 1.0)
    return found


def _cluster_sums(values: ArrayLike, clusters: Sequence[Hashable]) -> tuple[np.ndarray, np.ndarray]:
    """Sum of each metric, `[C, M]`, and number of rows, `[C]`, of each cluster."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim not in (1, 2) or not len(values):
        raise ValueError(f"`values` must have the shape [rows] or [rows, metrics] with rows, got {values.shape}.")
    if len(clusters) != len(values):
        raise ValueError(f"`clusters` must name the user of each of the {len(values)} rows, got {len(clusters)}.")
    if not np.isfinite(values).all():
        raise ValueError(f"`values` must be finite, got {np.count_nonzero(~np.isfinite(values))} that are not.")
    number: dict = {}
    member = np.array([number.setdefault(cluster, len(number)) for cluster in clusters])
    sums = np.zeros((len(number), values.reshape(len(values), -1).shape[1]))
    np.add.at(sums, member, values.reshape(len(values), -1))
    return sums, np.bincount(member).astype(np.float64)


def _blocks(num_samples: int, width: int) -> Iterator[tuple[int, int]]:
    """Splits samples into ranges of at most `_BLOCK` drawn numbers."""
    step = max(1, _BLOCK // max(1, width))
    for start in range(0, num_samples, step):
        yield start, min(start + step, num_samples)
