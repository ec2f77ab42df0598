"""Lists of one recommender for the rows of a split: what is written, and what is refused when it is read."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset

from hf_rec.columns import HISTORY, SUPERVISE_FROM, TARGET, USER_ID
from hf_rec.data.catalog import Catalog
from hf_rec.evaluation.ranked_lists import INDEX_FILE, LISTS_FILE, read_lists, write_lists
from hf_rec.recommenders.controls import PopularityRecommender


CATALOG = Catalog.from_records([{"item_id": f"item-{item}"} for item in range(6)])
ROWS = Dataset.from_dict(
    {
        USER_ID: ["a", "b", "c"],
        HISTORY: [[0, 1, 2], [], [1, 2]],
        TARGET: [3, 1, 0],
        SUPERVISE_FROM: [2, 1, 1],
    }
)


@pytest.fixture(scope="module")
def teacher():
    return PopularityRecommender(CATALOG, ROWS)


def test_a_row_has_the_list_that_recommend_gives(teacher, tmp_path):
    index = write_lists(teacher, ROWS, tmp_path / "lists", split="train", name="popular", k=3)
    lists = read_lists(tmp_path / "lists", CATALOG)
    assert (index["lists"], lists.index) == (2, index)
    assert (lists.users, lists.histories) == (["a", "c"], [[0, 1, 2], [1, 2]])  # nothing follows an empty history
    found = teacher.recommend([["item-0"]], k=3)
    assert [[CATALOG.ids[row] for row in listed] for listed in lists.items] == found.item_ids * 2
    np.testing.assert_array_equal(lists.scores, np.repeat(found.scores, 2, axis=0))


def test_every_label_has_a_list_after_the_events_before_it(teacher, tmp_path):
    write_lists(teacher, ROWS, tmp_path / "lists", split="train", name="popular", k=3, every_label=True)
    lists = read_lists(tmp_path / "lists", CATALOG)
    assert lists.histories == [[0, 1], [0, 1, 2], [1], [1, 2]]
    assert lists.users == ["a", "a", "c", "c"]


def test_short_lists_are_filled_with_what_is_no_item(teacher, tmp_path):
    write_lists(teacher, ROWS, tmp_path / "lists", split="train", name="p", k=5, exclude_history=True)
    lists = read_lists(tmp_path / "lists", CATALOG)
    assert (lists.items >= 0).sum(axis=1).tolist() == [3, 4]
    assert not set(lists.items[0].tolist()) & {0, 1, 2}
    assert ((lists.items < 0) == (lists.scores == -np.inf)).all()


def test_another_catalog_with_these_ids_reads_them_and_one_without_is_refused(teacher, tmp_path):
    write_lists(teacher, ROWS, tmp_path / "lists", split="train", name="p", k=3)
    turned = Catalog.from_records([{"item_id": item_id} for item_id in reversed(CATALOG.ids)])
    lists = read_lists(tmp_path / "lists", turned)
    assert lists.histories == [[5, 4, 3], [4, 3]]
    with pytest.raises(ValueError, match=r"names an item that the catalog does not have: .*item-"):
        read_lists(tmp_path / "lists", Catalog.from_records([{"item_id": "item-0"}]))


def test_lists_that_have_changed_or_are_missing_are_refused(teacher, tmp_path):
    folder = tmp_path / "lists"
    with pytest.raises(FileNotFoundError, match="write lists with `hf-rec recommend"):
        read_lists(folder, CATALOG)
    write_lists(teacher, ROWS, folder, split="train", name="p", k=3)
    whole = (folder / LISTS_FILE).read_bytes()
    (folder / LISTS_FILE).write_bytes(whole[:-1] + b"x")
    with pytest.raises(ValueError, match="is not as it was written"):
        read_lists(folder, CATALOG)
    (folder / LISTS_FILE).write_bytes(whole)
    index = json.loads((folder / INDEX_FILE).read_text())
    (folder / INDEX_FILE).write_text(json.dumps(index | {"version": 9}))
    with pytest.raises(ValueError, match=r"must be .*found \('hf_rec.ranked_lists', 9\)"):
        read_lists(folder, CATALOG)


def test_a_model_that_would_find_the_row_itself_makes_no_lists_for_training_rows_without_times(
    teacher, tmp_path, monkeypatch
):
    monkeypatch.setattr(teacher, "model", SimpleNamespace(reads_times=True), raising=False)
    with pytest.raises(ValueError, match="find the row itself, and tell its label"):
        write_lists(teacher, ROWS, tmp_path / "train", split="train", name="p", k=3)
    write_lists(teacher, ROWS, tmp_path / "test", split="test", name="p", k=3)
    timed = ROWS.add_column("history_timestamps", [[0] * len(history) for history in ROWS["history"]])
    write_lists(teacher, timed, tmp_path / "timed", split="train", name="p", k=3)
