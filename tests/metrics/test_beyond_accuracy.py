import math

import numpy as np
import pytest

from hf_rec.metrics.beyond_accuracy import (
    catalog_coverage,
    certified_share,
    gini,
    popularity_lift,
    popularity_percentile,
    recommendation_counts,
)


class TestBeyondAccuracy:
    def test_counts_look_at_the_first_k_and_skip_fill(self):
        assert recommendation_counts([[0, 1, 2], [1], [], [1, -1]], num_items=4, k=2).tolist() == [1, 3, 0, 0]

    def test_coverage_is_the_share_of_items_shown_to_anyone(self):
        assert catalog_coverage([1, 3, 0, 0]) == 0.5

    def test_gini_is_zero_for_equal_counts_and_largest_for_one_item(self):
        assert gini([2, 2, 2, 2]) == pytest.approx(0.0)
        assert gini([0, 0, 0, 9]) == pytest.approx(0.75)
        counts = np.array([1.0, 4.0, 7.0, 0.0, 3.0])
        pairs = np.abs(counts[:, None] - counts).mean() / (2 * counts.mean())
        assert gini(counts) == pytest.approx(pairs)

    def test_percentile_counts_equals_half_and_is_one_half_for_uniform_lists(self):
        popularity = [5, 0, 0, 1]
        assert popularity_percentile([1, 0, 0, 0], popularity) == pytest.approx(3.5 / 4)
        assert popularity_percentile([0, 1, 0, 0], popularity) == pytest.approx(1 / 4)
        assert popularity_percentile([1, 1, 1, 1], popularity) == pytest.approx(0.5)

    def test_lift_is_one_for_lists_as_popular_as_the_log(self):
        popularity = np.array([5, 3, 1, 0])
        assert popularity_lift(popularity, popularity) == pytest.approx(1.0)
        assert popularity_lift([9, 0, 0, 0], popularity) == pytest.approx(5 / (35 / 9))

    def test_nothing_recommended_is_not_a_number(self):
        empty = recommendation_counts([[], []], num_items=3, k=5)
        assert catalog_coverage(empty) == 0.0
        assert all(math.isnan(value) for value in (gini(empty), popularity_lift(empty, [1, 1, 1])))
        assert math.isnan(popularity_percentile(empty, [1, 1, 1])) and math.isnan(certified_share([]))

    def test_certified_share(self):
        assert certified_share([True, False, True, True]) == 0.75

    def test_items_outside_the_catalog_and_uneven_counts_are_refused(self):
        with pytest.raises(ValueError, match="0..2, got 3..3"):
            recommendation_counts([[3]], num_items=3, k=1)
        with pytest.raises(ValueError, match="one count an item"):
            popularity_lift([1, 2], [1])
