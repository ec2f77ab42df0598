import numpy as np
import pytest

from hf_rec.data.catalog import Catalog
from hf_rec.recommenders.controls import LastItemRecommender, PopularityRecommender


CATALOG = Catalog.from_records([{"item_id": letter} for letter in "abcde"])
# Two windows of one user (a b c d a), the second of which supervises only what is new, and one of another user (c b).
ROWS = [
    {"history": [0, 1], "target": 2, "supervise_from": 1, "timestamp": 30},
    {"history": [1, 2, 3], "target": 0, "supervise_from": 2, "timestamp": 50},
    {"history": [2], "target": 1, "supervise_from": 1, "timestamp": 40},
]


class TestPopularity:
    def test_every_event_counts_once(self):
        found = PopularityRecommender(CATALOG, ROWS).recommend([["e"], []], k=4)
        assert found.item_ids == [["b", "a", "c", "d"]] * 2  # b: 2, a, c, d: 1, in row order
        assert found.scores.tolist() == [[2, 1, 1, 1]] * 2
        assert found.certified.all()

    def test_a_window_counts_the_newest_targets(self):
        assert PopularityRecommender(CATALOG, ROWS, window=2).counts.tolist() == [1, 1, 0, 0, 0]
        assert PopularityRecommender(CATALOG, ROWS, window=1).counts.tolist() == [1, 0, 0, 0, 0]

    def test_without_supervise_from_targets_count(self):
        rows = [{"history": [0, 1, 1], "target": 3}]
        assert PopularityRecommender(CATALOG, rows).counts.tolist() == [0, 0, 0, 1, 0]

    def test_all_items_are_scored_and_candidates_have_the_same_scores(self):
        control = PopularityRecommender(CATALOG, ROWS)
        assert control.score_all([["a"]]).tolist() == [[1, 2, 1, 1, 0]]
        assert [values.tolist() for values in control.score([["a"], ["b"]], [["b", "e"], ["a"]])] == [[2, 0], [1]]

    def test_excluded_items_are_not_listed(self):
        found = PopularityRecommender(CATALOG, ROWS).recommend([["a"], ["b"]], k=5, exclude=[["b"], list("abcde")])
        assert found.item_ids == [["a", "c", "d", "e"], []]
        assert found.scores[0].tolist() == [1, 1, 1, 0, -np.inf]

    def test_wrong_arguments_are_named(self):
        with pytest.raises(ValueError, match="`window` must be at least 1"):
            PopularityRecommender(CATALOG, ROWS, window=0)
        with pytest.raises(ValueError, match="items 9 .. 9, but the catalog has rows 0 .. 4"):
            PopularityRecommender(CATALOG, [{"history": [], "target": 9}])


class TestLastItem:
    def test_successors_come_first_then_popularity(self):
        # Counted: a>b, b>c, c>d, d>a and c>b; the pair b>c of the second window is that of the first.
        control = LastItemRecommender(CATALOG, ROWS)
        assert control.recommend([["e", "c"]], k=5).item_ids == [["b", "d", "a", "c", "e"]]
        scores = control.score_all([["c"], [], ["e"]])
        np.testing.assert_allclose(scores[0], np.array([0.2, 1.4, 0.2, 1.2, 0]) / 3, rtol=1e-6)
        np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-6)
        np.testing.assert_array_equal(scores[1], scores[2])

    def test_a_row_without_history_counts_its_target_only(self):
        control = LastItemRecommender(CATALOG, [{"history": [], "target": 3, "supervise_from": 0}])
        assert control.counts.tolist() == [0, 0, 0, 1, 0] and len(control.pairs) == 0


@pytest.mark.parametrize("make", [PopularityRecommender, LastItemRecommender])
def test_state_makes_the_same_recommender(make):
    control = make(CATALOG, ROWS)
    again = make.from_state(CATALOG, *control.state())
    np.testing.assert_array_equal(again.score_all([["c"], []]), control.score_all([["c"], []]))
    with pytest.raises(ValueError, match="counts are those of 5 items"):
        make.from_state(CATALOG.subset([0, 1]), *control.state())
