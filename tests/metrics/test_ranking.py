import itertools
import math

import numpy as np
import pytest

from hf_rec.metrics.ranking import (
    NOT_LISTED,
    count_nan,
    hit_rate,
    list_bounds,
    metric_values,
    mrr,
    ndcg,
    rank_bounds,
    ranking_metrics,
)


GAINS = {
    hit_rate: lambda place: 1.0,
    ndcg: lambda place: 1.0 / math.log2(place + 2),
    mrr: lambda place: 1.0 / (place + 1),
}


def by_enumeration(scores, target, k, gain):
    """Mean gain of `target` over every order of the items that sorts them by score."""
    found = []
    for order in itertools.permutations(range(len(scores))):
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order)):
            place = order.index(target)
            found.append(gain(place) if place < k else 0.0)
    return sum(found) / len(found)


class TestMetricsOverTies:
    @pytest.mark.parametrize("metric", GAINS)
    def test_every_tie_pattern_matches_the_mean_over_all_sorted_orders(self, metric):
        for scores in itertools.product([0.0, 1.0, 2.0], repeat=5):
            for target, k in [(0, 1), (2, 3), (4, 5), (1, 9)]:
                better, tied = rank_bounds(np.array([scores]), np.array([target]))
                expected = by_enumeration(scores, target, k, GAINS[metric])
                np.testing.assert_allclose(metric(better, tied, k), [expected], atol=1e-12)

    def test_a_constant_scorer_over_100_items_has_a_hit_rate_of_one_in_ten(self):
        better, tied = rank_bounds(np.zeros((3, 100)), np.array([0, 50, 99]))
        assert better.tolist() == [0, 0, 0] and tied.tolist() == [99, 99, 99]
        np.testing.assert_allclose(hit_rate(better, tied, 10), 0.1)

    def test_without_ties_the_values_are_the_textbook_ones(self):
        better, tied = np.array([0, 2, 10]), np.zeros(3, dtype=int)
        np.testing.assert_allclose(ndcg(better, tied, 10), [1.0, 0.5, 0.0])
        np.testing.assert_allclose(hit_rate(better, tied, 10), [1.0, 1.0, 0.0])
        np.testing.assert_allclose(mrr(better, tied, 10), [1.0, 1 / 3, 0.0])

    def test_summary_names_each_metric_and_cutoff(self):
        found = ranking_metrics(np.array([0, 7]), np.array([0, 0]), ks=(5, 10))
        assert list(found) == ["ndcg@5", "hit_rate@5", "mrr@5", "ndcg@10", "hit_rate@10", "mrr@10"]
        assert found["hit_rate@5"] == 0.5 and found["hit_rate@10"] == 1.0
        np.testing.assert_allclose(metric_values(np.array([0, 7]), np.array([0, 0]), "mrr@10"), [1.0, 1 / 8])

    @pytest.mark.parametrize("k", [0, -1, 2.5, True])
    def test_a_cutoff_that_is_no_count_is_refused(self, k):
        with pytest.raises(ValueError, match="`k` must be a whole number"):
            hit_rate(np.array([0]), np.array([0]), k)

    def test_wrong_names_negative_counts_and_no_rows_are_refused(self):
        with pytest.raises(ValueError, match="'recall@10'"):
            metric_values(np.array([0]), np.array([0]), "recall@10")
        with pytest.raises(ValueError, match="cannot be negative"):
            hit_rate(np.array([-1]), np.array([0]), 10)
        with pytest.raises(ValueError, match="empty"):
            ranking_metrics([], [])


class TestRankBounds:
    def test_nan_of_another_item_never_beats_the_target(self):
        better, tied = rank_bounds(np.array([[np.nan, 1.0, 2.0, np.nan]]), np.array([1]))
        assert (better.item(), tied.item()) == (1, 0)

    def test_nan_of_the_target_ranks_last_even_among_nans(self):
        better, tied = rank_bounds(np.array([[np.nan, 1.0, 2.0], [np.nan] * 3]), np.array([0, 2]))
        assert better.tolist() == [2, 2] and tied.tolist() == [0, 0]
        assert count_nan([[np.nan, 1.0, np.nan]]) == 2

    def test_infinite_scores_are_ordinary_scores(self):
        better, tied = rank_bounds(np.array([[-np.inf, 0.0, -np.inf, np.inf]]), np.array([0]))
        assert (better.item(), tied.item()) == (2, 1)

    def test_scores_and_targets_that_do_not_fit_are_refused(self):
        with pytest.raises(ValueError, match=r"0..2, the columns of `scores`, got 3"):
            rank_bounds(np.zeros((1, 3)), np.array([3]))
        with pytest.raises(ValueError, match="one column for each of the 2 rows"):
            rank_bounds(np.zeros((2, 3)), np.array([0]))
        with pytest.raises(ValueError, match=r"\[rows, items\]"):
            rank_bounds(np.zeros(3), np.array([0]))
        with pytest.raises(ValueError, match="integer"):
            rank_bounds(np.zeros((1, 3)), np.array([1.0]))

    def test_no_rows_give_no_bounds(self):
        better, tied = rank_bounds(np.zeros((0, 3)), np.zeros(0, dtype=int))
        assert better.shape == tied.shape == (0,)


class TestListBounds:
    def test_a_full_list_gives_the_bounds_of_the_scores(self):
        scores = np.random.default_rng(0).integers(0, 4, size=(20, 8)).astype(float)
        target = np.arange(20) % 8
        order = np.argsort(-scores, axis=1, kind="stable")
        found = list_bounds(order.tolist(), np.take_along_axis(scores, order, axis=1), target)
        np.testing.assert_array_equal(found, rank_bounds(scores, target))

    def test_an_unlisted_target_is_a_miss_for_every_cutoff(self):
        better, tied = list_bounds([["a", "b"], []], np.array([[2.0, 1.0], [-np.inf, -np.inf]]), ["c", "a"])
        assert better.tolist() == [NOT_LISTED] * 2 and tied.tolist() == [0, 0]
        assert hit_rate(better, tied, 10**6).tolist() == [0.0, 0.0]

    def test_fill_beyond_a_short_list_is_not_a_tie(self):
        better, tied = list_bounds([[5, 3]], [[1.0, 0.5, -np.inf, -np.inf]], [3])
        assert (better.item(), tied.item()) == (1, 0)

    def test_nan_of_a_listed_target_is_a_miss(self):
        better, _ = list_bounds([[5, 3]], [[1.0, np.nan]], [3])
        assert better.item() == NOT_LISTED

    def test_arrays_of_rows_are_lists_too(self):
        better, tied = list_bounds(np.array([[4, 2, 9]]), np.array([[1.0, 1.0, 0.0]]), np.array([2]))
        assert (better.item(), tied.item()) == (0, 1)

    def test_uneven_lengths_are_refused(self):
        with pytest.raises(ValueError, match="got 1, 1 and 2"):
            list_bounds([[1]], [[1.0]], [1, 2])
        with pytest.raises(ValueError, match="row 0 has 1 entries for 2"):
            list_bounds([[1, 2]], [[1.0]], [1])
