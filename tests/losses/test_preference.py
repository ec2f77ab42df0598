"""The loss of S-DPO by hand, as DPO, as a cross-entropy, and at its edges."""

import math

import pytest
import torch
import torch.nn.functional as F

from hf_rec.losses.preference import softmax_dpo_loss


def test_two_rejected_answers_by_hand():
    # rewards 2 * (0.5, 0, -0.5) = 1, 0, -1: log(e^1 + e^0 + e^-1) - 1
    loss = softmax_dpo_loss(torch.tensor([0.5]), torch.tensor([[0.0, -0.5]]), beta=2.0)
    assert loss.item() == pytest.approx(math.log(math.e + 1 + 1 / math.e) - 1)


def test_it_is_the_formula_of_the_paper_and_its_gradient():
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randn(6, generator=generator, dtype=torch.float64).requires_grad_()
    rejected = torch.randn(6, 4, generator=generator, dtype=torch.float64).requires_grad_()
    paper = -F.logsigmoid(-(0.7 * (rejected - chosen[:, None])).exp().sum(1).log())
    found = softmax_dpo_loss(chosen, rejected, beta=0.7)
    torch.testing.assert_close(found, paper.float())
    expected = torch.autograd.grad(paper.sum(), (chosen, rejected))
    for one, other in zip(torch.autograd.grad(found.sum(), (chosen, rejected)), expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_one_rejected_answer_is_dpo():
    chosen, rejected = torch.randn(5), torch.randn(5)
    found = softmax_dpo_loss(chosen, rejected[:, None], beta=0.3)
    torch.testing.assert_close(found, -F.logsigmoid(0.3 * (chosen - rejected)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gap", [1e4, -1e4])
def test_it_stays_finite_at_large_gaps(dtype, gap):
    chosen = torch.tensor([gap], dtype=dtype, requires_grad=True)
    rejected = torch.zeros(1, 3, dtype=dtype, requires_grad=True)
    loss = softmax_dpo_loss(chosen, rejected, beta=1.0)
    loss.sum().backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(max(0.0, -gap) + (math.log(3) if gap < 0 else 0.0), rel=2e-3)
    assert chosen.grad.isfinite().all() and rejected.grad.isfinite().all()


def test_an_answer_that_is_not_there_changes_nothing():
    chosen = torch.tensor([0.3, 0.1], requires_grad=True)
    rejected = torch.tensor([[0.2, -torch.inf], [-torch.inf, -torch.inf]])
    loss = softmax_dpo_loss(chosen, rejected, beta=1.0)
    loss.sum().backward()
    torch.testing.assert_close(loss, torch.stack([-F.logsigmoid(torch.tensor(0.1)), torch.tensor(0.0)]))
    assert chosen.grad.isfinite().all() and chosen.grad[1] == 0


@pytest.mark.parametrize("beta", [0.0, -0.1, float("nan")])
def test_a_beta_that_is_not_positive_is_refused(beta):
    with pytest.raises(ValueError, match="`beta` must be greater than 0"):
        softmax_dpo_loss(torch.zeros(1), torch.zeros(1, 1), beta)


def test_no_rejected_answer_is_refused():
    with pytest.raises(ValueError, match="at least one rejected answer"):
        softmax_dpo_loss(torch.zeros(2), torch.zeros(2, 0), 1.0)
    with pytest.raises(ValueError, match=r"shape \(B, K\)"):
        softmax_dpo_loss(torch.zeros(2), torch.zeros(2), 1.0)
