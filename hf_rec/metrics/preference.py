"""
How well scores tell what was liked from what was not: the area under the ROC curve, over all rows and by user.

Shapes: R rows, C clusters (users).
"""

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from hf_rec.metrics.significance import LEVEL, NUM_SAMPLES, cluster_bootstrap


_SAMPLES_AT_ONCE = 64


def auc(scores: ArrayLike, liked: ArrayLike) -> float:
    """
    Chance that a liked row scores higher than one that is not; ties count one half.

    Args:
        scores (`np.ndarray` of shape `[R]`): Higher is better. NaN ranks last.
        liked (`np.ndarray` of shape `[R]`): 0 or 1.

    Returns:
        `float`: From 0 to 1; NaN where all rows are of one kind.
    """
    scores, liked = _checked(scores, liked)
    return float(_weighted_auc(scores, liked, np.ones((1, len(scores))))[0])


def user_aucs(
    scores: ArrayLike, liked: ArrayLike, users: Sequence[Hashable] | np.ndarray
) -> tuple[list[Hashable], np.ndarray]:
    """
    AUC of each user who has rows of both kinds.

    Args:
        scores, liked: As in [`auc`].
        users (`Sequence` of R hashable values): The user of each row.

    Returns:
        `tuple[list, np.ndarray]`: The users, and their values.
    """
    scores, liked = _checked(scores, liked)
    rows_of_user: dict[Hashable, list[int]] = {}
    for row, user in enumerate(list(users)):
        rows_of_user.setdefault(user, []).append(row)
    values = {user: auc(scores[rows], liked[rows]) for user, rows in rows_of_user.items() if _mixed(liked[rows])}
    return list(values), np.array(list(values.values()), dtype=np.float64)


def mean_user_auc(scores: ArrayLike, liked: ArrayLike, users: Sequence[Hashable] | np.ndarray) -> float:
    """UAUC: mean of [`user_aucs`], every user counting once; NaN where no user has rows of both kinds."""
    values = user_aucs(scores, liked, users)[1]
    return float(values.mean()) if len(values) else float("nan")


def preference_intervals(
    scores: ArrayLike,
    liked: ArrayLike,
    users: Sequence[Hashable],
    *,
    level: float = LEVEL,
    num_samples: int = NUM_SAMPLES,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """
    AUC and UAUC with percentile bootstrap intervals; a drawn user brings all of its rows.

    Args:
        scores, liked, users: As in [`user_aucs`].
        level (`float`, *optional*, defaults to 0.95), num_samples (`int`, *optional*), seed (`int`, *optional*,
            defaults to 0): Of the intervals. Samples whose rows are all of one kind are drawn, but have no AUC.

    Returns:
        `dict`: `"auc"` and, where a user has rows of both kinds, `"user_auc"`, each `{"mean", "low", "high"}`.
    """
    scores, liked = _checked(scores, liked)
    if not _mixed(liked):
        raise ValueError(
            f"`liked` must hold rows of both kinds to tell them apart, got {int(liked.sum())} of 1 alone."
        )
    number: dict[Hashable, int] = {}
    cluster = np.array([number.setdefault(user, len(number)) for user in users])
    generator, drawn = np.random.default_rng(seed), []
    for start in range(0, num_samples, _SAMPLES_AT_ONCE):
        count = min(_SAMPLES_AT_ONCE, num_samples - start)
        times = generator.multinomial(len(number), np.full(len(number), 1 / len(number)), size=count)
        drawn.append(_weighted_auc(scores, liked, times[:, cluster].astype(np.float64)))
    low, high = np.nanquantile(np.concatenate(drawn), [(1 - level) / 2, (1 + level) / 2])
    found = {"auc": {"mean": auc(scores, liked), "low": float(low), "high": float(high)}}
    names, values = user_aucs(scores, liked, users)
    if names:
        mean, low, high = cluster_bootstrap(values, names, level=level, num_samples=num_samples, seed=seed)
        found["user_auc"] = {"mean": float(mean), "low": float(low), "high": float(high)}
    return found


def _checked(scores: ArrayLike, liked: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    scores, liked = np.asarray(scores, dtype=np.float64), np.asarray(liked)
    if scores.shape != liked.shape or scores.ndim != 1 or not len(scores):
        raise ValueError(f"`scores` and `liked` must have one value a row, got {scores.shape} and {liked.shape}.")
    if not np.isin(liked, (0, 1)).all():
        raise ValueError(f"`liked` must hold 0 and 1, got {np.unique(liked)[:5].tolist()}.")
    return np.where(np.isnan(scores), -np.inf, scores), liked.astype(bool)


def _mixed(liked: np.ndarray) -> bool:
    return bool(liked.any() and not liked.all())


def _weighted_auc(scores: np.ndarray, liked: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUC under several weightings of the rows, `[S, R]`: `[S]`, NaN where a kind has no weight."""
    order = np.argsort(scores, kind="stable")
    ties = np.flatnonzero(np.concatenate([[True], np.diff(scores[order]) > 0]))
    positive, negative = (np.add.reduceat(weights[:, order] * kind[order], ties, axis=1) for kind in (liked, ~liked))
    below = negative.cumsum(axis=1) - negative / 2  # of the negatives with the same score one half
    total = positive.sum(axis=1) * negative.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (positive * below).sum(axis=1) / total
