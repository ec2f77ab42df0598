import math

import pytest
import torch

from hf_rec.losses.robust import chunked_robust_loss, item_shares, robust_loss


P, N, D, K = 7, 12, 4, 3


def naive(scores, target, shares, radius):
    """The formula as it is written, for one position, in float64."""
    exponents = (shares * scores**2 / radius).exp()
    own = shares[target] / radius
    return (exponents.sum() - exponents[target] + (own * (scores[target] - 1) ** 2).exp()).log()


@pytest.fixture
def parts():
    generator = torch.Generator().manual_seed(0)
    vectors, items, bias = (torch.randn(*shape, generator=generator) for shape in ((P, D), (N, D), (N,)))
    shares = item_shares(torch.randint(0, 9, (N,), generator=generator), 0.3)
    listed = torch.stack([torch.randperm(N, generator=generator)[:K] for _ in range(P)])
    weights = torch.rand(P, K, generator=generator)
    return [part.requires_grad_() for part in (vectors, items, bias)], shares, listed, weights


def test_shares_by_hand():
    # Counts 0, 1, 2 and one more each: 1/6, 2/6, 3/6
    shares = item_shares(torch.tensor([0, 1, 2]), 0.5)
    torch.testing.assert_close(shares, torch.tensor([1 / 6, 2 / 6, 3 / 6]).sqrt())
    torch.testing.assert_close(item_shares(torch.tensor([0, 7]), 0.0), torch.ones(2))


def test_the_robust_loss_by_hand():
    # Scores 0, 1, 2; the second is the target, so the exponents are 0, 0 and 4 / 2
    loss = robust_loss(torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([1]), torch.ones(3), radius=2.0)
    torch.testing.assert_close(loss, torch.tensor([math.log(1 + 1 + math.exp(2))]))


def test_it_is_the_formula_at_small_scores(parts):
    (vectors, items, bias), shares, listed, _ = parts
    scores = (vectors @ items.t() + bias).detach().double()
    expected = torch.stack([naive(scores[row], listed[row, 0], shares.double(), 0.7) for row in range(P)])
    found = robust_loss(scores, listed[:, 0], shares, 0.7)
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk_size", [1, 3, 100])
def test_the_sum_over_lists_and_its_gradient_are_those_of_one_loss_a_target(parts, chunk_size):
    inputs, shares, listed, weights = parts
    vectors, items, bias = inputs
    exact = [part.detach().double().requires_grad_() for part in inputs]
    scores = exact[0] @ exact[1].t() + exact[2]
    expected = sum(
        weights[row, place].double() * naive(scores[row], listed[row, place], shares.double(), 0.7)
        for row in range(P)
        for place in range(K)
    )
    found = chunked_robust_loss(vectors, items, listed, shares, 0.7, bias, weights, chunk_size)
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)
    for grad, by_hand in zip(
        torch.autograd.grad(found * 0.3, inputs), torch.autograd.grad(expected * 0.3, exact), strict=True
    ):
        torch.testing.assert_close(grad, by_hand.float(), rtol=1e-4, atol=1e-5)


def test_short_lists_count_their_items_alone(parts):
    (vectors, items, bias), shares, listed, weights = parts
    short = torch.where(torch.arange(K) < 2, listed, -1)
    found = chunked_robust_loss(vectors, items, short, shares, 0.7, bias, weights)
    expected = chunked_robust_loss(vectors, items, listed[:, :2], shares, 0.7, bias, weights[:, :2])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("size", [1e2, 1e4])
def test_large_scores_overflow_neither_the_loss_nor_its_gradient(parts, size):
    inputs, shares, listed, weights = parts
    vectors, items, bias = inputs
    best = (vectors @ items.t()).argmax(dim=1, keepdim=True)
    for targets in (listed, best):  # also where the target alone makes up the sum
        own = weights[:, : targets.shape[1]]
        found = chunked_robust_loss(vectors * size, items, targets, shares, 0.7, bias, own)
        scores = (vectors.detach().double() * size) @ items.detach().double().t() + bias.detach().double()
        expected = sum(
            (robust_64(scores, targets[:, place], shares.double(), 0.7) * own[:, place].double()).sum()
            for place in range(targets.shape[1])
        )
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0.0)
        assert all(grad.isfinite().all() for grad in torch.autograd.grad(found, inputs))


def robust_64(scores, targets, shares, radius):
    wanted = torch.zeros_like(scores).scatter(1, targets[:, None], 1.0)
    return (shares / radius * (scores - wanted) ** 2).logsumexp(dim=1)


def test_a_list_of_the_whole_catalog_leaves_no_other_item(parts):
    (vectors, items, bias), shares, _, _ = parts
    everything = torch.arange(N).expand(P, N)
    found = chunked_robust_loss(vectors, items, everything, shares, 0.7, bias)
    scores = (vectors @ items.t() + bias).detach()
    expected = sum(robust_loss(scores, everything[:, place], shares, 0.7).sum() for place in range(N))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(found, (vectors, items)))


def test_no_position_makes_no_loss(parts):
    (vectors, items, _), shares, listed, _ = parts
    loss = chunked_robust_loss(vectors[:0], items, listed[:0], shares, 1.0)
    assert loss == 0 and torch.autograd.grad(loss, items)[0].eq(0).all()


def test_a_radius_that_is_not_positive_is_refused(parts):
    with pytest.raises(ValueError, match="`radius` must be greater than 0, got 0"):
        robust_loss(torch.zeros(1, N), torch.tensor([0]), parts[1], 0)
