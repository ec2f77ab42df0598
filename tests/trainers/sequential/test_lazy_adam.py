import copy

import pytest
import torch
from torch import nn

from hf_rec.trainers.sequential.lazy_adam import LazyAdam, clip_grad_norm


def tables(num_rows=6, width=3):
    torch.manual_seed(0)
    dense = nn.Embedding(num_rows, width)
    sparse = copy.deepcopy(dense)
    sparse.sparse = True
    return dense, sparse


def step(table, optimizer, rows, weight):
    optimizer.zero_grad()
    (table(rows) * weight).pow(2).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_with_every_row_touched_it_is_adamw(weight_decay):
    dense, sparse = tables()
    reference = torch.optim.AdamW(dense.parameters(), lr=0.05, weight_decay=weight_decay)
    lazy = LazyAdam(sparse.parameters(), lr=0.05, weight_decay=weight_decay)
    for _ in range(5):
        rows, weight = torch.tensor([0, 1, 2, 3, 4, 5, 2]), torch.randn(7, 3)  # row 2 twice
        step(dense, reference, rows, weight)
        step(sparse, lazy, rows, weight)
        torch.testing.assert_close(sparse.weight, dense.weight)


def test_parameters_with_dense_gradients_get_adamw():
    first, second = nn.Linear(3, 2), nn.Linear(3, 2)
    second.load_state_dict(first.state_dict())
    optimizers = [
        kind(module.parameters(), lr=0.05, weight_decay=0.1)
        for kind, module in ((torch.optim.AdamW, first), (LazyAdam, second))
    ]
    for _ in range(4):
        inputs = torch.randn(5, 3)
        for module, optimizer in zip((first, second), optimizers, strict=True):
            optimizer.zero_grad()
            module(inputs).pow(2).sum().backward()
            optimizer.step()
    torch.testing.assert_close(second.weight, first.weight)


def test_rows_without_a_gradient_stay_as_they_are():
    _, table = tables()
    before = table.weight.detach().clone()
    step(table, LazyAdam(table.parameters(), lr=0.1, weight_decay=0.5), torch.tensor([1, 4]), torch.ones(2, 3))
    changed = (table.weight != before).any(dim=1)
    assert changed.tolist() == [False, True, False, False, True, False]


def test_decay_of_a_row_is_made_up_for_when_it_is_touched():
    _, table = tables()
    optimizer = LazyAdam(table.parameters(), lr=0.1, weight_decay=0.5, betas=(0.0, 0.0), eps=1.0)
    start = table.weight[0].detach().clone()
    for rows in ([1], [2], [0]):
        step(table, optimizer, torch.tensor(rows), torch.zeros(1, 3))  # no gradient: decay alone
    torch.testing.assert_close(table.weight[0], start * (1 - 0.05) ** 3)


def test_state_survives_saving():
    _, table = tables()
    other = copy.deepcopy(table)
    optimizers = [LazyAdam(module.parameters(), lr=0.1) for module in (table, other)]
    step(table, optimizers[0], torch.tensor([1, 2]), torch.ones(2, 3))
    other.load_state_dict(table.state_dict())
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    for module, optimizer in zip((table, other), optimizers, strict=True):
        step(module, optimizer, torch.tensor([2, 3]), torch.ones(2, 3))
    torch.testing.assert_close(table.weight, other.weight)  # one step of float32


@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_clipping_counts_sparse_gradients_as_dense_ones(max_norm):
    dense, sparse = tables()
    rows = torch.tensor([1, 1, 4])
    for table in (dense, sparse):
        table(rows).pow(2).sum().backward()
    expected = nn.utils.clip_grad_norm_(dense.parameters(), max_norm)
    torch.testing.assert_close(clip_grad_norm(sparse.parameters(), max_norm), expected)
    torch.testing.assert_close(sparse.weight.grad.to_dense(), dense.weight.grad)
