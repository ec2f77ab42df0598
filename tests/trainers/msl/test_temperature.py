import types

import pytest
import torch

from hf_rec.losses.trie_softmax import adaptive_temperature
from hf_rec.trainers.msl.temperature import RunningMoments, Temperature


def alone():
    return types.SimpleNamespace(num_processes=1)


def make(tau=1.5, **kwargs):
    return Temperature(tau, kwargs.pop("num_valid", 40), 0.25, 1.5, 5.0, torch.device("cpu"))


def step_logits(seed, rows=6, num_valid=40):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, generator=generator) + 6, torch.randn(rows, num_valid, generator=generator) * 2


def test_moments_of_parts_merge_into_the_moments_of_all():
    values = torch.randn(1000, dtype=torch.float64) * 3 + 1e4
    moments = RunningMoments(torch.device("cpu"))
    for part in values.split([1, 400, 0, 599]):
        moments.add(part)
    count, mean, deviations = moments.values.tolist()
    assert count == 1000
    assert mean == pytest.approx(values.mean().item(), rel=1e-12)
    assert deviations / (count - 1) == pytest.approx(values.var().item(), rel=1e-9)


def test_one_update_is_a_twentieth_of_the_closed_form_on_the_pooled_logits():
    temperature = make()
    positive, valid = step_logits(0)
    temperature.observe(positive, valid)
    temperature.update(alone())
    wanted = adaptive_temperature(positive.double().mean(), valid.double().mean(), valid.double().var(), 40, 0.25)
    assert 1.5 < wanted < 5.0
    assert temperature.tau == pytest.approx(0.95 * 1.5 + 0.05 * wanted.item(), rel=1e-6)


def test_micro_batches_give_the_temperature_of_the_whole_batch():
    whole, parts = make(), make()
    positive, valid = step_logits(1)
    whole.observe(positive, valid)
    for rows in ([0], [1, 2, 3], [4, 5]):
        parts.observe(positive[rows], valid[rows])
    whole.update(alone())
    parts.update(alone())
    assert parts.tau == pytest.approx(whole.tau, rel=1e-12)


def test_processes_that_gather_agree_with_one_process():
    positive, valid = step_logits(2)
    whole = make()
    whole.observe(positive, valid)
    whole.update(alone())
    ranks = [make(), make()]
    for rank, rows in zip(ranks, ([0, 1, 2, 3, 4, 5], []), strict=True):  # the second process has no first token
        rank.observe(positive[rows], valid[rows])
    gathered = torch.stack([torch.stack([rank._positive.values, rank._valid.values]) for rank in ranks])
    for rank in ranks:
        accelerator = types.SimpleNamespace(num_processes=2, device="cpu", gather=lambda _: gathered)
        rank.update(accelerator)
        assert rank.tau == pytest.approx(whole.tau, rel=1e-12)


def test_a_step_without_a_first_token_leaves_it_alone():
    temperature = make(tau=2.5)
    temperature.observe(torch.empty(0), torch.empty(0, 40))
    temperature.update(alone())
    assert temperature.tau == 2.5
    assert temperature.pop_clamped_share() is None


def test_the_share_of_clamped_updates_is_told_once():
    temperature = make()
    temperature.observe(torch.zeros(3), torch.ones(3, 40))  # positives below the mean: no temperature, the limit
    temperature.update(alone())
    temperature.observe(*step_logits(0))
    temperature.update(alone())
    assert temperature.pop_clamped_share() == 0.5
    assert temperature.pop_clamped_share() is None


def test_it_is_not_an_adapting_temperature_with_few_valid_tokens():
    temperature = make(num_valid=4)  # 4 * .25 <= 1: no temperature can be found, every update asks for the limit
    temperature.observe(torch.ones(2) * 9, torch.zeros(2, 4))
    temperature.update(alone())
    assert temperature.tau == pytest.approx(0.95 * 1.5 + 0.05 * 5.0)
