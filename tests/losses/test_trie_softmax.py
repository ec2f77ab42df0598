import math

import pytest
import torch
import torch.nn.functional as F

from hf_rec.losses.trie_softmax import (
    adaptive_temperature,
    masked_softmax_loss,
    ragged_softmax_loss,
    segment_logsumexp,
    sft_parts,
    token_cross_entropy,
)


def random_positions(num_positions=6, vocab_size=11, seed=0):
    """Random logits, and children rows of different lengths that hold their target."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_positions, vocab_size, generator=generator, dtype=torch.float64).float()
    lists = [
        sorted(torch.randperm(vocab_size, generator=generator)[: 1 + row % 5].tolist()) for row in range(num_positions)
    ]
    targets = torch.tensor([row[len(row) // 2] for row in lists])
    children = torch.full((num_positions, 5), -1)
    for row, tokens in enumerate(lists):
        children[row, : len(tokens)] = torch.tensor(tokens)
    return logits, targets, children, lists


def flat_children(logits, targets, lists):
    values = torch.cat([logits[row, tokens] for row, tokens in enumerate(lists)])
    offsets = torch.tensor([0] + [len(tokens) for tokens in lists]).cumsum(0)
    return values, offsets, logits.gather(1, targets[:, None]).squeeze(1)


class TestMaskedSoftmaxLoss:
    def test_two_siblings_by_hand(self):
        # Tokens 0 and 2 are allowed with weights 1 and 3, so target 2 has probability 3/4; token 1 is not allowed.
        logits = torch.tensor([[1.0, 99.0, 3.0]]).log()
        loss = masked_softmax_loss(logits, torch.tensor([2]), torch.tensor([[0, 2]]))
        torch.testing.assert_close(loss, torch.tensor([4 / 3]).log())

    def test_temperature_divides_the_logits_and_multiplies_the_loss(self):
        # At tau 2 the weights 1 and 9 become 1 and 3: P = 3/4, and the loss is twice its negative logarithm.
        logits = torch.tensor([[1.0, 99.0, 9.0]]).log()
        loss = masked_softmax_loss(logits, torch.tensor([2]), torch.tensor([[0, 2]]), tau=2.0)
        torch.testing.assert_close(loss, 2 * torch.tensor([4 / 3]).log())

    def test_a_trie_of_every_token_is_plain_cross_entropy(self):
        logits, targets, children = torch.randn(4, 7), torch.tensor([0, 3, 6, 2]), torch.arange(7).expand(4, 7)
        loss = masked_softmax_loss(logits, targets, children)
        torch.testing.assert_close(loss, F.cross_entropy(logits, targets, reduction="none"))

    def test_one_choice_costs_exactly_nothing_and_sends_no_gradient(self):
        logits = (torch.randn(3, 5) * 30).requires_grad_()
        loss = masked_softmax_loss(logits, torch.tensor([4, 0, 1]), torch.tensor([[4], [0], [1]]), tau=1.7)
        loss.sum().backward()
        assert loss.tolist() == [0.0, 0.0, 0.0]
        assert not logits.grad.any()

    @pytest.mark.parametrize("tau", [0.5, 1.0, 3.0])
    def test_gradient_is_probability_minus_onehot_and_zero_outside_the_trie(self, tau):
        logits, targets, children, lists = random_positions()
        logits.requires_grad_()
        masked_softmax_loss(logits, targets, children, tau).sum().backward()
        expected = torch.zeros_like(logits)
        for row, tokens in enumerate(lists):
            expected[row, tokens] = (logits.detach()[row, tokens] / tau).softmax(0)
            expected[row, targets[row]] -= 1
        torch.testing.assert_close(logits.grad, expected)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_logits_far_apart_stay_finite(self, dtype):
        logits = torch.tensor([[6e4, -6e4, 0.0]], dtype=dtype, requires_grad=True)
        loss = masked_softmax_loss(logits, torch.tensor([1]), torch.tensor([[0, 1, 2]]))
        loss.sum().backward()
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, (logits[:, 0] - logits[:, 1].float()).detach())
        assert logits.grad.isfinite().all()


class TestRaggedForm:
    @pytest.mark.parametrize("tau", [0.5, 1.0, 3.0])
    def test_it_equals_the_plain_form_in_value_and_gradient(self, tau):
        logits, targets, children, lists = random_positions(num_positions=20)
        plain, ragged = logits.clone().requires_grad_(), logits.clone().requires_grad_()
        expected = masked_softmax_loss(plain, targets, children, tau)
        loss = ragged_softmax_loss(*flat_children(ragged, targets, lists), tau)
        torch.testing.assert_close(loss, expected)
        expected.square().sum().backward()
        loss.square().sum().backward()
        torch.testing.assert_close(ragged.grad, plain.grad)

    def test_an_empty_segment_sums_to_minus_infinity(self):
        sums = segment_logsumexp(torch.tensor([1.0, 2.0]), torch.tensor([0, 2, 2]))
        torch.testing.assert_close(sums, torch.tensor([math.log(math.exp(1) + math.exp(2)), -math.inf]))


class TestSFT:
    def test_plain_sft_is_its_two_parts_to_a_millionth(self):
        logits, targets, children, _ = random_positions(num_positions=30)
        parts = sft_parts(logits, targets, children)
        total = F.cross_entropy(logits, targets, reduction="none")
        torch.testing.assert_close(parts.invalid_loss + parts.valid_loss, total, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(parts.valid_loss, masked_softmax_loss(logits, targets, children))

    def test_the_gradient_shares_are_half_the_l1_norms_that_autograd_finds(self):
        logits, targets, children, _ = random_positions(num_positions=10)
        leaf = logits.clone().requires_grad_()
        valid = masked_softmax_loss(leaf, targets, children)
        invalid = F.cross_entropy(leaf, targets, reduction="none") - valid
        valid_gradient = torch.autograd.grad(valid.sum(), leaf, retain_graph=True)[0]
        invalid_gradient = torch.autograd.grad(invalid.sum(), leaf)[0]
        parts = sft_parts(logits, targets, children)
        torch.testing.assert_close(parts.valid_gradient, valid_gradient.abs().sum(1) / 2)
        torch.testing.assert_close(parts.invalid_gradient, invalid_gradient.abs().sum(1) / 2)

    @pytest.mark.parametrize("tau", [1.0, 2.0])
    def test_chunks_change_neither_the_loss_nor_the_gradient(self, tau):
        logits, targets = torch.randn(10, 13), torch.arange(10)
        whole, chunked = logits.clone().requires_grad_(), logits.clone().requires_grad_()
        expected = tau * F.cross_entropy(whole / tau, targets, reduction="none")
        loss = token_cross_entropy(chunked, targets, tau, chunk_size=3)
        torch.testing.assert_close(loss, expected)
        expected.square().sum().backward()
        loss.square().sum().backward()
        torch.testing.assert_close(chunked.grad, whole.grad)

    def test_no_position_gives_no_loss(self):
        assert token_cross_entropy(torch.randn(0, 5), torch.empty(0, dtype=torch.long)).shape == (0,)


class TestAdaptiveTemperature:
    @pytest.mark.parametrize(
        ("num_valid", "deviation", "gap", "expected"),
        [(300, 2, 8, 1.555), (50, 2, 6, 1.975), (300, 1, 10, 2.265), (9, 2, 5, 5.736)],
    )
    def test_it_takes_the_larger_root(self, num_valid, deviation, gap, expected):
        tau = adaptive_temperature(gap, 0.0, deviation**2, num_valid, eta=0.25, tau_max=5.0)
        assert abs(tau.item() - expected) < 0.01  # the last one is above tau_max: the function does not clamp it

    def test_the_positive_gets_about_eta_among_gaussian_logits(self):
        # eta is the ratio of the positive to the negatives, so its probability is eta / (1 + eta).
        generator = torch.Generator().manual_seed(0)
        negatives = torch.randn(200, 300, generator=generator, dtype=torch.float64) * 2.0
        tau = adaptive_temperature(8.0, 0.0, 4.0, 300, eta=0.25)
        scores = torch.cat([torch.full((200, 1), 8.0, dtype=torch.float64), negatives], dim=1) / tau
        assert abs(scores.softmax(1)[:, 0].mean().item() - 0.2) < 0.01

    def test_without_spread_it_is_the_gap_over_the_log_ratio(self):
        tau = adaptive_temperature(3.0, 1.0, 0.0, 100, eta=0.25)
        assert tau.item() == pytest.approx(2.0 / math.log(25))

    def test_a_negative_discriminant_counts_as_zero(self):
        tau = adaptive_temperature(8.0, 0.0, 9.0, 300, eta=0.25)  # 64 < 2 * 9 * log(75)
        assert tau.item() == pytest.approx(8.0 / (2 * math.log(75)))

    @pytest.mark.parametrize(("gap", "num_valid"), [(5.0, 4), (5.0, 1), (0.0, 300), (-2.0, 300)])
    def test_where_no_temperature_can_be_found_it_is_the_largest(self, gap, num_valid):
        assert adaptive_temperature(gap, 0.0, 1.0, num_valid, eta=0.25, tau_max=5.0).item() == 5.0

    def test_tensors_of_several_cases_are_solved_at_once(self):
        tau = adaptive_temperature(torch.tensor([8.0, -1.0]), torch.zeros(2), torch.tensor([4.0, 4.0]), 300, eta=0.25)
        torch.testing.assert_close(tau, torch.tensor([1.555, 5.0], dtype=torch.float64), atol=0.01, rtol=0)
