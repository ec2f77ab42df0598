import math

import pytest
import torch
import torch.nn.functional as F

from hf_rec.losses.item_softmax import (
    bce,
    bpr,
    ce_tight,
    chunked_cross_entropy,
    chunked_scaled_cross_entropy,
    cross_entropy,
    nce,
    neg,
    sampled_softmax,
    scaled_cross_entropy,
)


P, N, D = 6, 11, 4  # positions, items, width


@pytest.fixture
def scores():
    return torch.randn(P, N, generator=torch.Generator().manual_seed(0)) * 2


@pytest.fixture
def targets():
    return torch.tensor([0, 10, 3, 3, 7, 5])


def split_scores(scores, targets):
    """Scores of the target, and of all other items in their order."""
    others = torch.ones_like(scores, dtype=torch.bool).scatter(1, targets[:, None], False)
    return scores.gather(1, targets[:, None]).squeeze(1), scores[others].view(len(scores), -1)


class TestIdentities:
    def test_cross_entropy_by_hand(self):
        # Weights 1, 2, 5: the second item has probability 2/8.
        loss = cross_entropy(torch.tensor([[1.0, 2.0, 5.0]]).log(), torch.tensor([1]))
        torch.testing.assert_close(loss, torch.tensor([math.log(4)]))

    def test_scaled_cross_entropy_with_alpha_1_is_the_sampled_softmax(self, scores, targets):
        positive, negative = split_scores(scores, targets)
        torch.testing.assert_close(
            scaled_cross_entropy(positive, negative[:, :4], alpha=1.0), sampled_softmax(positive, negative[:, :4])
        )

    def test_with_all_other_items_and_alpha_1_it_is_the_full_softmax(self, scores, targets):
        positive, negative = split_scores(scores, targets)
        torch.testing.assert_close(scaled_cross_entropy(positive, negative, alpha=1.0), cross_entropy(scores, targets))

    def test_alpha_counts_each_negative_that_often(self, scores, targets):
        positive, negative = split_scores(scores, targets)
        torch.testing.assert_close(
            scaled_cross_entropy(positive, negative[:, :2], alpha=3.0),
            sampled_softmax(positive, negative[:, :2].repeat(1, 3)),
        )

    def test_alpha_n_over_k_estimates_the_full_sum_without_bias(self, scores, targets):
        positive, negative = split_scores(scores, targets)
        sums = []
        for column in range(N - 1):  # every draw of K = 1 negative, each as likely
            loss = scaled_cross_entropy(positive, negative[:, [column]], alpha=N - 1)
            sums.append((loss + positive).exp() - positive.exp())  # alpha * sum of the negatives
        torch.testing.assert_close(torch.stack(sums).mean(0), negative.exp().sum(1), rtol=1e-4, atol=1e-5)

    def test_tight_with_a_large_eta_is_the_full_softmax(self, scores, targets):
        torch.testing.assert_close(ce_tight(scores, targets, eta=1e6), cross_entropy(scores, targets))

    def test_tight_with_eta_0_keeps_the_items_that_score_as_high_as_the_target(self):
        loss = ce_tight(torch.tensor([[1.0, 3.0, 2.0, -5.0]]), torch.tensor([2]), eta=0.0)
        torch.testing.assert_close(
            loss, F.cross_entropy(torch.tensor([[3.0, 2.0]]), torch.tensor([1]), reduction="none")
        )

    def test_bce_bpr_neg_and_nce_in_closed_form(self):
        positive, negative = torch.tensor([0.5]), torch.tensor([[-1.0, 2.0]])
        sigmoid = torch.sigmoid
        torch.testing.assert_close(
            bce(positive, negative), -sigmoid(positive).log() - (1 - sigmoid(negative)).log().mean(1)
        )
        torch.testing.assert_close(bpr(positive, negative), -sigmoid(positive[:, None] - negative).log().mean(1))
        torch.testing.assert_close(
            neg(positive, negative), -sigmoid(positive).log() - (1 - sigmoid(negative)).log().sum(1)
        )
        shift = math.log(100 / 2) - 7.0
        torch.testing.assert_close(
            nce(positive, negative, num_items=100, c=7.0), neg(positive + shift, negative + shift)
        )

    def test_nce_whose_shift_is_0_is_neg(self, scores, targets):
        positive, negative = split_scores(scores, targets)
        torch.testing.assert_close(
            nce(positive, negative, num_items=1000, c=math.log(1000 / (N - 1))), neg(positive, negative)
        )

    def test_bpr_with_one_negative_is_the_sampled_softmax(self, scores, targets):
        positive, negative = split_scores(scores, targets)
        torch.testing.assert_close(bpr(positive, negative[:, :1]), sampled_softmax(positive, negative[:, :1]))


class TestExclusionsAndExtremes:
    @pytest.mark.parametrize("loss", [bce, bpr, neg, sampled_softmax])
    def test_a_negative_of_minus_infinity_is_no_negative(self, loss, scores, targets):
        positive, negative = split_scores(scores, targets)
        positive.requires_grad_()
        negative[:, 3:] = -torch.inf
        masked = loss(positive, negative)
        torch.testing.assert_close(masked, loss(positive, negative[:, :3]))
        assert torch.autograd.grad(masked.sum(), positive)[0].isfinite().all()

    @pytest.mark.parametrize("loss", [bce, bpr, neg, sampled_softmax])
    def test_a_position_without_any_negative_has_a_finite_loss(self, loss):
        assert loss(torch.tensor([1.0]), torch.tensor([[-torch.inf, -torch.inf]])).isfinite().all()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_gaps_of_ten_thousand_stay_finite_in_half_precision(self, dtype):
        positive, negative = torch.tensor([-1e4, 1e4], dtype=dtype), torch.tensor([[1e4], [-1e4]], dtype=dtype)
        for loss in (bce, bpr, neg, sampled_softmax):
            assert loss(positive, negative).isfinite().all()

    @pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan")])
    def test_alpha_must_be_positive(self, alpha):
        with pytest.raises(ValueError, match="`alpha` must be greater than 0"):
            scaled_cross_entropy(torch.zeros(1), torch.zeros(1, 1), alpha)

    def test_eta_must_not_be_negative(self, scores, targets):
        with pytest.raises(ValueError, match="`eta` must be at least 0"):
            ce_tight(scores, targets, eta=-0.1)
        with pytest.raises(ValueError, match="`eta` must be at least 0"):
            chunked_cross_entropy(torch.zeros(1, D), torch.zeros(N, D), targets[:1], eta=-0.1)


class TestChunkedCrossEntropy:
    def make(self):
        generator = torch.Generator().manual_seed(1)
        make = lambda *shape: torch.randn(*shape, generator=generator).requires_grad_()  # noqa: E731
        return make(P, D), make(N, D), make(N)

    @pytest.mark.parametrize("eta", [None, 0.5])
    @pytest.mark.parametrize("chunk_size", [1, 4, 100, None])
    def test_value_and_gradients_match_the_plain_form(self, targets, chunk_size, eta):
        vectors, items, bias = self.make()
        plain_scores = vectors @ items.t() + bias
        plain = cross_entropy(plain_scores, targets) if eta is None else ce_tight(plain_scores, targets, eta)
        chunked = chunked_cross_entropy(vectors, items, targets, bias, eta, chunk_size)
        torch.testing.assert_close(chunked, plain.sum())
        expected = torch.autograd.grad(plain.sum() * 0.3, (vectors, items, bias))
        torch.testing.assert_close(torch.autograd.grad(chunked * 0.3, (vectors, items, bias)), expected)

    def test_frozen_items_need_no_gradient(self, targets):
        vectors, items, _ = self.make()
        loss = chunked_cross_entropy(vectors, items.detach(), targets)
        expected = torch.autograd.grad(cross_entropy(vectors @ items.t(), targets).sum(), vectors)[0]
        torch.testing.assert_close(torch.autograd.grad(loss, vectors)[0], expected)

    def test_without_gradients_it_is_the_same_number(self, targets):
        vectors, items, _ = self.make()
        with torch.no_grad():
            value = chunked_cross_entropy(vectors, items, targets)
        torch.testing.assert_close(value, chunked_cross_entropy(vectors, items, targets).detach())

    def test_large_scores_do_not_overflow(self, targets):
        vectors, items, _ = self.make()
        assert chunked_cross_entropy(vectors * 1e3, items * 1e3, targets).isfinite()

    def test_no_position_is_a_loss_of_zero(self):
        vectors, items, _ = self.make()
        loss = chunked_cross_entropy(vectors[:0], items, torch.zeros(0, dtype=torch.long))
        assert loss.item() == 0
        assert torch.autograd.grad(loss, items)[0].abs().sum() == 0

    def test_under_autocast_the_sums_stay_in_float32(self, targets):
        vectors, items, bias = self.make()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = chunked_cross_entropy(vectors, items, targets, bias)
        assert loss.dtype == torch.float32
        reference = cross_entropy(vectors @ items.t() + bias, targets).sum()
        torch.testing.assert_close(loss, reference, rtol=2e-2, atol=2e-2)
        assert torch.autograd.grad(loss, items)[0].dtype == torch.float32


class TestChunkedScaledCrossEntropy:
    def make(self):
        generator = torch.Generator().manual_seed(2)
        make = lambda *shape: torch.randn(*shape, generator=generator).requires_grad_()  # noqa: E731
        return make(P, D), make(5, D), make(P), make(5)

    @pytest.mark.parametrize("chunk_size", [1, 4, None])
    def test_value_and_gradients_match_the_plain_form(self, chunk_size):
        inputs = vectors, negatives, positive, offset = self.make()
        targets, ids = torch.tensor([3, 1, 9, 2, 2, 7]), torch.tensor([1, 2, 2, 8, 5])
        scores = (vectors @ negatives.t() + offset).masked_fill(ids == targets[:, None], -torch.inf)
        plain = scaled_cross_entropy(positive, scores, alpha=7.0).sum()
        chunked = chunked_scaled_cross_entropy(vectors, negatives, positive, (targets, ids), offset, 7.0, chunk_size)
        torch.testing.assert_close(chunked, plain)
        expected = torch.autograd.grad(plain * 0.3, inputs)
        torch.testing.assert_close(torch.autograd.grad(chunked * 0.3, inputs), expected)

    def test_without_ids_and_offset_every_negative_counts(self):
        vectors, negatives, positive, _ = self.make()
        plain = sampled_softmax(positive, vectors @ negatives.t()).sum()
        torch.testing.assert_close(chunked_scaled_cross_entropy(vectors, negatives, positive), plain)

    def test_a_position_without_a_negative_left_costs_nothing(self):
        vectors, negatives, positive, _ = self.make()
        same = (torch.full((P,), 4), torch.full((5,), 4))
        loss = chunked_scaled_cross_entropy(vectors, negatives, positive, same)
        assert loss.item() == 0
        for grad in torch.autograd.grad(loss, (vectors, negatives, positive)):
            assert (grad == 0).all()

    def test_alpha_must_be_positive(self):
        with pytest.raises(ValueError, match="`alpha` must be greater than 0, got 0"):
            chunked_scaled_cross_entropy(*self.make()[:3], alpha=0)

    def test_under_autocast_the_sums_stay_in_float32(self):
        vectors, negatives, positive, _ = self.make()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = chunked_scaled_cross_entropy(vectors, negatives, positive)
        expected = sampled_softmax(positive, vectors @ negatives.t()).sum()
        torch.testing.assert_close(loss, expected, rtol=2e-2, atol=2e-2)
        assert torch.autograd.grad(loss, negatives)[0].dtype == torch.float32
