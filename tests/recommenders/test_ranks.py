"""The one stable top-k and the one exact rank, against plain sorting in numpy."""

import numpy as np
import pytest
import torch

from hf_rec.metrics.ranking import rank_bounds
from hf_rec.recommenders.ranks import best_scores, exact_ranks


def random_scores(seed, rows=5, columns=40):
    """Few different values, so that ties are many; some NaN, some infinite."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 6, (rows, columns)).astype(np.float32)
    scores[rng.random(scores.shape) < 0.1] = np.nan
    scores[rng.random(scores.shape) < 0.1] = -np.inf
    scores[rng.random(scores.shape) < 0.02] = np.inf
    return scores


@pytest.mark.parametrize("k", [1, 3, 20, 39, 40])
def test_the_best_are_those_of_a_stable_sort(k):
    for seed in range(20):
        scores = random_scores(seed)
        whole = np.where(np.isnan(scores), -np.inf, scores)
        order = np.argsort(-whole, axis=1, kind="stable")[:, :k]
        values, columns = best_scores(torch.from_numpy(scores), k)
        np.testing.assert_array_equal(columns.numpy(), order)
        np.testing.assert_array_equal(values.numpy(), np.take_along_axis(whole, order, axis=1))


def test_nothing_but_nan_is_listed_in_column_order():
    values, columns = best_scores(torch.full((2, 5), torch.nan), 3)
    assert columns.tolist() == [[0, 1, 2]] * 2 and (values == -torch.inf).all()


def test_ranks_are_the_bounds_of_the_metrics(monkeypatch):
    monkeypatch.setattr("hf_rec.recommenders.ranks.CPU_BLOCK_ELEMENTS", 80)  # two users at a time
    for seed in range(20):
        scores = random_scores(seed)
        rng = np.random.default_rng(seed)
        targets, seen = rng.integers(0, 40, 5), rng.integers(-1, 40, (5, 3))
        for hidden in (None, seen):
            table = scores.copy()
            if hidden is not None:
                for row, items in enumerate(hidden):
                    table[row, items[items >= 0]] = -np.inf
            users = torch.arange(5)[:, None]
            better, tied, _ = exact_ranks(
                lambda vectors, scores=scores: torch.from_numpy(scores)[vectors[:, 0]],
                40,
                users,
                torch.from_numpy(targets),
                None if hidden is None else torch.from_numpy(hidden),
            )
            np.testing.assert_array_equal((better.numpy(), tied.numpy()), rank_bounds(table, targets))
