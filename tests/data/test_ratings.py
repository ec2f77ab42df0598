"""Rows with ratings: histories of likes and dislikes, in order of time, and what is drawn from them."""

import numpy as np
import pytest
from datasets import Dataset

from hf_rec.data.prepare import load_prepared, prepare
from hf_rec.data.ratings import few_shot, rated_time


def log(users="aabbbabab", ratings=(5, 1, 3, 4, 5, 2, 1, 5, 2)):
    """Events in order of time; item `n` is the n-th one."""
    interactions = Dataset.from_dict(
        {"user_id": list(users), "item_id": list(range(len(users))), "timestamp": [10 * i for i in range(len(users))]}
    )
    return interactions, np.array(ratings, dtype=np.float64)


def test_a_row_holds_what_was_liked_and_disliked_before_its_target():
    splits = rated_time(*log(), like=4, window=4, min_events=2, ratios=(1, 0, 0))
    rows = {row["target"]: row for row in splits["train"]}
    assert list(rows) == sorted(rows)  # events and times ascend together
    # User a chose 0 (5), 1 (1), 5 (2) and 7 (5); user b 2 (3), 3 (4), 4 (5), 6 (1) and 8 (2)
    assert (rows[7]["history"], rows[7]["disliked"], rows[7]["liked"]) == ([0], [1, 5], 1)
    assert (rows[8]["history"], rows[8]["disliked"], rows[8]["liked"]) == ([3, 4], [6], 0)  # 2 is out of the window
    assert rows[8]["history_timestamps"] == [30, 40] and rows[1]["liked"] == 0
    assert 0 not in rows and 2 not in rows  # nothing came before


def test_splits_follow_each_other_in_time():
    splits = rated_time(*log("ab" * 20, [5, 1, 1, 5] * 10), like=4, window=3, ratios=(2, 1, 1))
    times = [splits[name]["timestamp"] for name in ("train", "validation", "test")]
    assert list(map(len, times)) == [18, 9, 9]
    assert max(times[0]) < min(times[1]) < max(times[1]) < min(times[2])


def test_ratings_that_are_all_likes_are_refused():
    with pytest.raises(ValueError, match="All 4 rows of split 'train' have `liked` = 1: .*`like` is 1"):
        rated_time(*log(), like=1, window=3)


def test_shots_are_drawn_by_seed_and_fewer_are_among_more():
    dataset = Dataset.from_dict({"liked": [0, 1] * 30, "target": list(range(60))})
    few, more = set(few_shot(dataset, 8, seed=1)["target"]), set(few_shot(dataset, 32, seed=1)["target"])
    assert few < more and few != set(few_shot(dataset, 8, seed=2)["target"])
    with pytest.raises(ValueError, match="`num_shots` must be from 2 to the 60 rows"):
        few_shot(dataset, 61, seed=0)
    with pytest.raises(ValueError, match="All 2 rows of the 2 shots of seed 0 have"):
        few_shot(Dataset.from_dict({"liked": [1] * 9 + [0]}), 2, seed=0)


class TestPrepare:
    @pytest.fixture
    def ratings(self, tmp_path):
        lines = [f"u{row % 4},i{row % 7},{row},{1 + row * 7 % 5}" for row in range(60)]
        path = tmp_path / "log.csv"
        path.write_text("\n".join(["user_id,item_id,timestamp,stars", *lines]) + "\n")
        return path

    def test_a_prepared_folder_says_how_it_was_made(self, ratings, tmp_path):
        card = prepare("table", tmp_path / "out", path=str(ratings), rating_column="stars", like=4, window=5)
        assert card["split"] == {"rule": "rated", "name": "rated-time", "window": 5, "like": 4}
        _, splits, _ = load_prepared(tmp_path / "out")
        assert 0 < card["splits"]["train"]["liked_share"] < 1
        assert {"history", "disliked", "liked"} <= set(splits["train"].column_names)
        assert all(len(row["history"]) + len(row["disliked"]) == 4 for row in splits["test"])

    def test_settings_that_do_not_fit_are_refused(self, ratings, tmp_path):
        def run(**settings):
            prepare("table", tmp_path / "no", path=str(ratings), **settings)

        with pytest.raises(ValueError, match="needs a column 'rating'"):
            run(like=4)
        with pytest.raises(ValueError, match="`like` is 4 and `split` 'leave-one-out'"):
            run(like=4, split="leave-one-out", rating_column="stars")
        with pytest.raises(ValueError, match="`like` is None and `split` 'rated-time'"):
            run(split="rated-time", rating_column="stars")
        with pytest.raises(ValueError, match="`stride` is 2"):
            run(like=4, stride=2, window=5, rating_column="stars")
