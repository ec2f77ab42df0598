import numpy as np
import pytest
import torch

from hf_rec.columns import IGNORE_INDEX
from hf_rec.trainers.seeded_draws import draw_outside, position_keys, row_keys, uniform
from hf_rec.trainers.sequential.sampling import NegativeSampler, hide_labels


CPU = torch.device("cpu")


def test_numbers_are_even_and_independent_of_their_neighbours():
    numbers = uniform(3, 5, torch.arange(200_000)).numpy()
    counts = np.histogram(numbers, bins=20, range=(0, 1))[0]
    assert numbers.min() >= 0 and numbers.max() < 1
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 43.8  # chi-square, 19 degrees of freedom, p = 0.001
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.01
    assert abs(np.corrcoef(numbers, uniform(3, 6, torch.arange(200_000)))[0, 1]) < 0.01


def test_a_draw_depends_on_seed_and_step_and_leaves_the_global_state_alone():
    before = torch.get_rng_state()
    draws = [NegativeSampler(1000, 50, seed=seed).shared(step, CPU) for seed, step in ((0, 0), (0, 0), (0, 1), (1, 0))]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2]) and not torch.equal(draws[0], draws[3])
    assert torch.equal(before, torch.get_rng_state())


def test_shared_sets_differ_and_the_first_is_the_only_one_of_a_single_set():
    sampler = NegativeSampler(1000, 50)
    sets = sampler.shared(3, CPU, num_sets=4)
    assert sets.shape == (4, 50)
    assert torch.equal(sets[:1], sampler.shared(3, CPU))
    assert len({tuple(part.tolist()) for part in sets}) == 4


def test_positions_are_dealt_evenly_among_the_sets():
    chosen = NegativeSampler(1000, 50).set_of(3, torch.arange(8000), num_sets=4)
    assert all(abs(count - 2000) < 200 for count in chosen.bincount(minlength=4).tolist())
    assert not torch.equal(chosen, NegativeSampler(1000, 50).set_of(4, torch.arange(8000), num_sets=4))


def test_rows_and_positions_have_keys_that_padding_does_not_change():
    input_ids = torch.tensor([[-1, 3, 4], [5, 6, 7]])
    wider = torch.tensor([[-1, -1, 3, 4, -1], [-1, 5, 6, 7, -1]])
    assert torch.equal(row_keys(input_ids), row_keys(wider))
    assert torch.equal(position_keys(input_ids)[input_ids >= 0], position_keys(wider)[wider >= 0])
    assert len(set(position_keys(input_ids)[input_ids >= 0].tolist())) == 5
    assert row_keys(torch.tensor([[4, 3]])) != row_keys(torch.tensor([[3, 4]]))


def test_micro_batches_draw_what_the_whole_batch_draws():
    positions, targets = torch.arange(100, 110), torch.arange(10)
    sampler = NegativeSampler(50, 7, pool="non_target")
    together = sampler.by_position(4, positions, targets)
    apart = [sampler.by_position(4, positions[part], targets[part]) for part in (slice(0, 3), slice(3, 10))]
    assert torch.equal(together, torch.cat(apart))


def test_excluded_items_are_never_drawn_and_all_others_alike():
    excluded = torch.tensor([[1, 1, -1], [0, 7, 3], [2, 3, 4], [-1, -1, -1]])
    numbers = uniform(0, torch.arange(4)[:, None], torch.arange(8000))
    for row, drawn in zip(excluded, draw_outside(numbers, excluded, 8), strict=True):
        counts = torch.bincount(drawn, minlength=8)
        free = torch.ones(8, dtype=torch.bool)
        free[row[row >= 0]] = False
        assert counts[~free].sum() == 0
        expected = 8000 / free.sum()
        assert ((counts[free] - expected) ** 2 / expected).sum() < 24.4  # at most 7 degrees of freedom, p = 0.001


def test_with_everything_excluded_the_last_item_is_drawn():
    assert draw_outside(torch.tensor([[0.0, 0.9]]), torch.tensor([[0, 1, 2]]), 3).tolist() == [[2, 2]]


@pytest.mark.parametrize("pool", ["non_target", "unseen"])
def test_pools_leave_out_what_they_say(pool):
    sampler = NegativeSampler(6, 500, pool=pool)
    seen = torch.tensor([[0, 1, 2], [-1, -1, 4]])
    drawn = sampler.by_position(0, torch.tensor([7, 8]), torch.tensor([2, 4]), seen)
    expected = [{0, 1, 3, 4, 5}, {0, 1, 2, 3, 5}] if pool == "non_target" else [{3, 4, 5}, {0, 1, 2, 3, 5}]
    assert [set(row.tolist()) for row in drawn] == expected


def test_popular_items_are_drawn_in_proportion_and_corrected_for():
    popularity = np.array([1.0, 0.0, 3.0, 4.0])
    sampler = NegativeSampler(4, 40_000, popularity=popularity)
    share = torch.bincount(sampler.shared(0, CPU)[0], minlength=4) / 40_000
    torch.testing.assert_close(share, torch.tensor(popularity / 8, dtype=torch.float32), atol=0.01, rtol=0)
    log_q = sampler.log_relative_frequency(torch.tensor([0, 2, 3]))
    torch.testing.assert_close(log_q.exp(), torch.tensor([1 / 2, 3 / 2, 2.0]))
    assert NegativeSampler(4, 2).log_relative_frequency(torch.tensor([[1, 2]])).tolist() == [[0, 0]]


def test_masks_hide_labels_alone_in_the_shares_asked_for():
    input_ids = torch.randint(0, 50, (400, 12))
    input_ids[:, :4] = -1
    labels = input_ids.masked_fill(input_ids < 0, IGNORE_INDEX)
    labels[:, 4] = IGNORE_INDEX  # an event that is a label in another row
    hidden_ids, hidden_labels = hide_labels(input_ids, labels, 50, 0.25, 0.5, IGNORE_INDEX, seed=0, step=3)
    hidden = hidden_labels != IGNORE_INDEX
    assert torch.equal(hidden_ids == 50, hidden)
    assert torch.equal(hidden_labels[hidden], input_ids[hidden])
    assert not hidden[:, :5].any()
    only_newest = (hidden.sum(1) == 1) & hidden[:, -1]
    assert 0.4 < only_newest.float().mean() < 0.65
    assert 0.2 < hidden[~only_newest, 5:].float().mean() < 0.3
    again = hide_labels(input_ids[7:9], labels[7:9], 50, 0.25, 0.5, IGNORE_INDEX, seed=0, step=3)[0]
    assert torch.equal(again, hidden_ids[7:9])
