"""Rows grouped by length: a permutation of seed and epoch alone, with little padding."""

from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset
from torch.utils.data import DataLoader

from hf_rec.trainers.length_grouping import LengthGroups, row_lengths


def lengths_of(count, seed=0):
    return np.random.default_rng(seed).integers(5, 200, count)


def padding(lengths, order, batch_size):
    batches = [lengths[order[start : start + batch_size]] for start in range(0, len(order), batch_size)]
    return 1 - lengths.sum() / sum(len(batch) * batch.max() for batch in batches)


def test_every_row_comes_once_and_a_batch_has_little_padding():
    lengths = lengths_of(1003)
    order = list(LengthGroups(lengths, 8, seed=1, epoch=lambda: 0))
    assert sorted(order) == list(range(1003))
    assert padding(lengths, order, 8) < 0.06 < 0.4 < padding(lengths, np.arange(1003), 8)


def test_the_order_is_a_function_of_seed_and_epoch():
    def order(seed, epoch):
        return list(LengthGroups(lengths_of(100), 4, seed, lambda: epoch))

    assert order(1, 2) == order(1, 2)
    assert order(1, 2) != order(1, 3) and order(1, 2) != order(2, 2)


def test_long_and_short_steps_are_shuffled():
    lengths = lengths_of(4000)
    order = np.array(list(LengthGroups(lengths, 8, seed=1, epoch=lambda: 0)))
    steps = lengths[order].reshape(-1, 8).mean(axis=1)
    # Neither the lengths of neighbours nor those of early and late steps have to do with each other
    assert abs(np.corrcoef(steps[:-1], steps[1:])[0, 1]) < 0.15
    assert abs(np.corrcoef(np.arange(len(steps)), steps)[0, 1]) < 0.15
    # and rows that meet in a step meet others in the next epoch
    later = np.array(list(LengthGroups(lengths, 8, seed=1, epoch=lambda: 1)))
    pairs, again = ({tuple(sorted(pair)) for pair in rows.reshape(-1, 2).tolist()} for rows in (order, later))
    assert len(pairs & again) < 0.05 * len(pairs)


def test_a_step_holds_the_same_rows_however_it_is_cut():
    lengths = lengths_of(64)
    whole = list(LengthGroups(lengths, 16, seed=3, epoch=lambda: 0))
    parts = [list(batch) for batch in DataLoader(whole, batch_size=4, collate_fn=list)]
    assert sum(parts, []) == whole
    assert np.ptp(lengths[whole[:16]]) <= np.ptp(lengths)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_resumed_loader_goes_on_where_the_epoch_was_left(processes):
    from accelerate.data_loader import prepare_data_loader, skip_first_batches

    def loader(epoch):
        state = SimpleNamespace(epoch=epoch)
        order = LengthGroups(lengths_of(32), 4, seed=3, epoch=lambda: int(state.epoch))
        plain = DataLoader(list(range(32)), batch_size=4 // processes, sampler=order)
        return prepare_data_loader(plain, num_processes=processes, process_index=0, put_on_device=False)

    whole = [batch.tolist() for batch in loader(3.0)]
    assert [batch.tolist() for batch in skip_first_batches(loader(3.25), 2)] == whole[2:]


def test_lengths_are_those_of_lists_and_of_lists_of_lists():
    rows = {"a": [[1, 2], [], [3]], "b": [[[1], [2, 3]], [], [[4, 5, 6]]]}
    dataset = Dataset.from_dict(rows).select([2, 0, 1])
    assert row_lengths(dataset, ["a"]).tolist() == [1, 2, 0]
    assert row_lengths(dataset, ["a", "b"]).tolist() == [4, 5, 0]
