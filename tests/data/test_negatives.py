"""Negatives: keyed streams that do not know the target, by share, and from ranked lists."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from hf_rec.columns import HISTORY, REJECTED, SUPERVISE_FROM, TARGET, USER_ID
from hf_rec.data.catalog import Catalog
from hf_rec.data.negatives import (
    ListedNegatives,
    PopularityNegatives,
    RankedNegatives,
    UniformNegatives,
    add_negatives,
    answer_groups,
    draw,
    label_counts,
)


N = 50
ALONE = np.arange(N)  # every item is an answer of its own


def rows(targets, histories=None):
    histories = [[1, 2]] * len(targets) if histories is None else histories
    return Dataset.from_dict({USER_ID: [f"u{n}" for n in range(len(targets))], HISTORY: histories, TARGET: targets})


def drawn(dataset, source=None, count=5, **kwargs):
    found = add_negatives(dataset, source or UniformNegatives(N), count, **{"same_answer": ALONE} | kwargs)
    return found[REJECTED]


def test_they_are_different_items_that_are_neither_target_nor_history():
    dataset = rows(list(range(N)), [[(row * 7 + i) % N for i in range(10)] for row in range(N)])
    for history, target, rejected in zip(dataset[HISTORY], dataset[TARGET], drawn(dataset, count=20), strict=True):
        assert len(set(rejected)) == 20
        assert not set(rejected) & {target, *history}


def test_the_target_is_skipped_and_changes_nothing_else():
    stream = UniformNegatives(N).stream(0, np.random.default_rng([0, 0]))
    first = next(item for item in stream if item > 2)
    (unaware,), (hit,) = drawn(rows([0])), drawn(rows([first]))
    assert unaware[0] == first
    assert hit[:4] == unaware[1:]


def test_a_row_draws_the_same_whatever_the_other_rows_are_and_how_many_processes_draw():
    whole = drawn(rows([3] * 8))
    assert drawn(rows([3] * 4)) == whole[:4]
    assert drawn(rows([3, 4, 5, 3]))[3] == whole[3]
    assert drawn(rows([3] * 8), num_proc=2) == whole
    assert len({tuple(negatives) for negatives in whole}) == 8
    assert drawn(rows([3] * 8), seed=1) != whole


def test_a_stream_draws_what_its_rows_draw_in_a_data_set():
    dataset = rows([4, 9, 11])
    stream = add_negatives(dataset.to_iterable_dataset(num_shards=2), UniformNegatives(N), 5, same_answer=ALONE)
    assert [row[REJECTED] for row in stream] == list(drawn(dataset))


def test_uniform_ones_are_uniform_over_what_is_left():
    counts = np.bincount(np.concatenate(drawn(rows([0] * 2000), count=1)), minlength=N)
    assert counts[:3].sum() == 0
    expected = 2000 / 47
    assert ((counts[3:] - expected) ** 2 / expected).sum() < 90  # chi-squared with 46 degrees: p < 1e-4


def test_popular_ones_come_in_proportion_and_unseen_items_never():
    popularity = np.zeros(N)
    popularity[[10, 20, 30]] = [1, 2, 5]
    found = drawn(rows([0] * 2000), PopularityNegatives(popularity), count=1)
    counts = np.bincount(np.concatenate(found), minlength=N)
    assert counts[[10, 20, 30]] / 2000 == pytest.approx([0.125, 0.25, 0.625], abs=0.04)
    assert counts.sum() == counts[[10, 20, 30]].sum()


def test_items_that_a_model_writes_alike_count_as_one():
    catalog = Catalog.from_records([{"item_id": row, "title": f"Title {row // 2}"} for row in range(12)])
    groups = answer_groups(catalog)
    assert groups.tolist() == [row // 2 for row in range(12)]
    (rejected,) = drawn(rows([4], [[0]]), UniformNegatives(12), count=4, same_answer=groups)
    assert sorted(item // 2 for item in rejected) == [1, 3, 4, 5]
    with pytest.raises(ValueError, match="only 4 different items are left"):
        drawn(rows([4], [[0]]), UniformNegatives(12), count=5, same_answer=groups)


def test_more_than_there_are_is_refused():
    with pytest.raises(ValueError, match="only 2 different items"):
        drawn(rows([0]), PopularityNegatives(np.array([1, 1, 1, 1, 1] + [0] * 45)), count=3)
    with pytest.raises(ValueError, match="`num_negatives`"):
        drawn(rows([0]), count=0)
    with pytest.raises(ValueError, match="`counts`"):
        PopularityNegatives(np.zeros(3))


class TestRankedLists:
    @pytest.fixture
    def lists(self, tmp_path):
        """The file of `hf-rec evaluate` for two rows."""
        table = {USER_ID: ["u0", "u1"], "target_row": [7, 8], "item_rows": [[7, 1, 9, 11, 12], [3, 4, 5, 8, 6]]}
        pq.write_table(pa.table(table), tmp_path / "predictions.parquet")
        return tmp_path

    def test_they_are_of_the_rows_own_list_and_uniform_once_it_is_used_up(self, lists):
        dataset = rows([7, 8])
        source = RankedNegatives.from_file(lists, dataset, N)
        first, second = drawn(dataset, source, count=3)
        assert set(first) == {9, 11, 12}
        assert set(second) < {3, 4, 5, 6}
        first, second = drawn(dataset, source, count=5)
        assert set(first[:3]) == {9, 11, 12} and not set(first[3:]) & {1, 2, 7, 9, 11, 12}

    def test_lists_of_other_rows_are_refused(self, lists):
        with pytest.raises(ValueError, match="'target_row' differs"):
            RankedNegatives.from_file(lists / "predictions.parquet", rows([7, 9]), N)
        with pytest.raises(ValueError, match="other rows"):
            RankedNegatives.from_file(lists, rows([7]), N)
        with pytest.raises(FileNotFoundError, match="hf-rec evaluate"):
            RankedNegatives.from_file(lists / "nowhere", rows([7, 8]), N)
        pq.write_table(pa.table({"a": [1]}), lists / "predictions.parquet")
        with pytest.raises(ValueError, match="no column"):
            RankedNegatives.from_file(lists, rows([7, 8]), N)


def test_an_event_counts_once_however_many_windows_show_it():
    windows = Dataset.from_dict(
        {HISTORY: [[1, 2], [2, 3], []], TARGET: [3, 4, 5], SUPERVISE_FROM: [1, 2, 0]},
    )
    # of the first window 2 and 3 are new, of the second 4, of the third 5
    assert label_counts(windows, 7).tolist() == [0, 0, 1, 1, 1, 1, 0]
    assert label_counts(windows.remove_columns(SUPERVISE_FROM), 7).tolist() == [0, 0, 0, 1, 1, 1, 0]


def test_draw_takes_the_first_free_items_of_the_stream():
    class Fixed(UniformNegatives):
        def stream(self, row, rng):
            yield from [4, 4, 1, 6, 9]

    assert draw(Fixed(N), 0, np.random.default_rng(0), 3, ALONE, [1]) == [4, 6, 9]


def test_of_a_list_alone_a_row_draws_what_is_in_it_and_fewer_where_it_runs_out():
    dataset = rows([7, 7, 7])
    found = drawn(dataset, ListedNegatives([[1, 7, 20, 21, 22, 23], [30, 31, 2], [7, 40]]), count=3)
    assert len(found[0]) == 3 and set(found[0]) < {20, 21, 22, 23}
    assert [sorted(negatives) for negatives in found[1:]] == [[30, 31], [40]]


def test_a_list_without_a_negative_gives_way_to_the_catalog():
    found = drawn(rows([7] * 40), ListedNegatives([[1, 2, 7]] * 40), count=25)
    assert all(len(set(negatives)) == 25 and not {1, 2, 7} & set(negatives) for negatives in found)
    assert {item for negatives in found for item in negatives} == set(range(N)) - {
        1,
        2,
        7,
    }  # one is missed with 47 * (22 / 47)^40 < 1e-10
    assert drawn(rows([7] * 40), ListedNegatives([[1, 2, 7]] * 40), count=25) == found


def test_a_seed_of_two_numbers_is_another_one_than_either():
    whole = drawn(rows([3] * 8))
    assert drawn(rows([3] * 8), seed=(0,)) == whole
    assert drawn(rows([3] * 8), seed=(0, 1)) != whole != drawn(rows([3] * 8), seed=(0, 2))
