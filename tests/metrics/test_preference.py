import numpy as np
import pytest

from hf_rec.metrics.preference import auc, mean_user_auc, preference_intervals, user_aucs


def pairs_auc(scores, liked):
    """Share of pairs of a liked and another row that are in order, ties one half."""
    wins = [
        (p > n) + (p == n) / 2
        for p, a in zip(scores, liked, strict=True)
        if a
        for n, b in zip(scores, liked, strict=True)
        if not b
    ]
    return np.mean(wins)


def test_auc_counts_pairs_in_order():
    generator = np.random.default_rng(0)
    for _ in range(20):
        scores, liked = generator.integers(0, 6, 15), generator.integers(0, 2, 15)
        if 0 < liked.sum() < 15:
            assert auc(scores, liked) == pytest.approx(pairs_auc(scores, liked), abs=1e-12)
    assert auc([0.0, 0.0, 0.0], [1, 0, 0]) == 0.5
    assert np.isnan(auc([1.0, 2.0], [1, 1]))


def test_a_score_that_is_no_number_ranks_last():
    assert auc([np.nan, -5.0, 1.0], [1, 0, 1]) == 0.5


def test_auc_by_user_leaves_out_users_with_rows_of_one_kind():
    scores, liked = [3.0, 1.0, 0.0, 5.0, 2.0], [1, 0, 1, 1, 0]
    users, values = user_aucs(scores, liked, ["a", "a", "b", "c", "c"])
    assert (users, values.tolist()) == (["a", "c"], [1.0, 1.0])
    assert mean_user_auc([1.0, 2.0, 3.0, 1.0], [1, 0, 1, 0], list("aabb")) == 0.5
    assert np.isnan(mean_user_auc([1.0, 2.0], [1, 0], ["a", "b"]))


def test_intervals_draw_users_with_all_their_rows():
    generator = np.random.default_rng(1)
    users = np.repeat(np.arange(40), 5)
    liked = generator.integers(0, 2, 200)
    scores = liked + generator.normal(size=200)
    found = preference_intervals(scores, liked, users.tolist(), num_samples=400)
    samples = []
    for _ in range(400):
        drawn = generator.integers(0, 40, 40)
        rows = (drawn[:, None] * 5 + np.arange(5)).ravel()
        samples.append(auc(scores[rows], liked[rows]))
    low, high = np.quantile(samples, [0.025, 0.975])
    assert found["auc"]["mean"] == pytest.approx(auc(scores, liked))
    # The ends of two bootstraps of 400 samples differ by about a tenth of the width
    assert found["auc"]["low"] == pytest.approx(low, abs=0.02) and found["auc"]["high"] == pytest.approx(
        high, abs=0.02
    )
    assert found["user_auc"]["low"] < found["user_auc"]["mean"] < found["user_auc"]["high"]


def test_rows_that_are_all_likes_are_refused():
    with pytest.raises(ValueError, match="`liked` must hold rows of both kinds"):
        preference_intervals([1.0, 2.0], [1, 1], ["a", "b"])
    with pytest.raises(ValueError, match="`liked` must hold 0 and 1, got"):
        auc([1.0, 2.0], [1, 5])
