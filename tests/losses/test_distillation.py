import math

import pytest
import torch
import torch.nn.functional as F

from hf_rec.losses.distillation import list_bce, list_weights, match_loss, retrieval_loss, uniformity_loss


B, K, D = 5, 3, 4


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class TestRetrievalLoss:
    def test_one_negative_by_hand(self):
        # scores 2 and 0: -log(e^2 / (e^2 + 1))
        loss = retrieval_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 9.0]]), torch.tensor([[[0.0, 5.0]]]))
        torch.testing.assert_close(loss, torch.tensor(1 + 2.718281828**-2).log())

    def test_it_is_the_cross_entropy_of_a_softmax_over_positive_and_negatives(self):
        user, positive, negative = draw(B, D), draw(B, D, seed=1), draw(B, K, D, seed=2)
        scores = torch.einsum("bd,bkd->bk", user, torch.cat([positive[:, None], negative], dim=1))
        expected = F.cross_entropy(scores, torch.zeros(B, dtype=torch.long))
        torch.testing.assert_close(retrieval_loss(user, positive, negative), expected)

    def test_shared_negatives_equal_the_same_ones_given_to_each_user(self):
        user, positive, shared = draw(B, D), draw(B, D, seed=1), draw(7, D, seed=2)
        expected = retrieval_loss(user, positive, shared.expand(B, 7, D))
        torch.testing.assert_close(retrieval_loss(user, positive, shared), expected)

    def test_a_negative_that_is_not_kept_does_not_count(self):
        user, positive, negative = draw(B, D), draw(B, D, seed=1), draw(B, K, D, seed=2)
        keep = torch.ones(B, K, dtype=torch.bool)
        keep[:, 1] = False
        expected = retrieval_loss(user, positive, negative[:, [0, 2]])
        torch.testing.assert_close(retrieval_loss(user, positive, negative, keep), expected)
        assert retrieval_loss(user, positive, negative, torch.zeros_like(keep)) == 0

    def test_scores_of_ten_thousand_stay_finite_in_half_precision(self):
        user = (draw(B, D) * 100).bfloat16()
        loss = retrieval_loss(user, (draw(B, D, seed=1) * 100).bfloat16(), (draw(B, K, D, seed=2) * 100).bfloat16())
        assert loss.dtype == torch.float32 and loss.isfinite()


class TestMatchLoss:
    def test_it_is_the_mean_squared_difference_of_unit_vectors(self):
        user, teacher = draw(B, D), draw(B, D, seed=1)
        expected = (F.normalize(user) - F.normalize(teacher)).pow(2).mean()
        torch.testing.assert_close(match_loss(user, teacher), expected)

    def test_only_directions_count_and_opposite_ones_are_farthest(self):
        user = draw(B, D)
        torch.testing.assert_close(match_loss(user, 3 * user), torch.tensor(0.0), atol=1e-6, rtol=0)
        torch.testing.assert_close(match_loss(user, -2 * user), torch.tensor(4 / D))

    def test_infonce_looks_for_the_same_user_among_the_teachers_vectors(self):
        user, teacher = draw(B, D), draw(B, D, seed=1)
        cosine = F.normalize(user) @ F.normalize(teacher).t()
        expected = F.cross_entropy(cosine / 0.1, torch.arange(B))
        torch.testing.assert_close(match_loss(user, teacher, form="infonce", temperature=0.1), expected)
        assert match_loss(user[:1], teacher[:1], form="infonce") == 0

    @pytest.mark.parametrize("arguments", [{"form": "l1"}, {"form": "infonce", "temperature": 0.0}])
    def test_a_wrong_argument_is_named(self, arguments):
        with pytest.raises(ValueError, match=f"`{[*arguments][-1]}`"):
            match_loss(draw(B, D), draw(B, D), **arguments)


class TestUniformityLoss:
    def test_it_is_the_published_formula(self):
        vectors = draw(B, D)
        expected = torch.pdist(F.normalize(vectors)).pow(2).mul(-2).exp().mean()
        torch.testing.assert_close(uniformity_loss(3 * vectors), expected)

    def test_equal_vectors_give_one_and_opposite_ones_exp_minus_eight(self):
        vector = draw(1, D)
        torch.testing.assert_close(uniformity_loss(vector.expand(B, D)), torch.tensor(1.0))
        torch.testing.assert_close(uniformity_loss(torch.cat([vector, -vector])), torch.tensor(-8.0).exp())

    def test_a_batch_of_one_gives_zero_and_a_zero_gradient(self):
        vector = draw(1, D).requires_grad_()
        loss = uniformity_loss(vector)
        loss.backward()
        assert loss == 0 and vector.grad.abs().sum() == 0

    def test_the_gradient_pushes_vectors_apart_and_is_finite_where_two_are_equal(self):
        vectors = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.1]], requires_grad=True)
        uniformity_loss(vectors).backward()
        assert vectors.grad.isfinite().all() and vectors.grad[0, 1] > 0 > vectors.grad[1, 1]


class TestLists:
    def test_weights_by_hand(self):
        found = list_weights(torch.tensor([[0.0, 0.0, -torch.inf]]), position=2.0, confidence=1.0)
        first = 1 / (1 + math.exp(-1))
        torch.testing.assert_close(found, torch.tensor([[2 * first + 0.5, 2 * (1 - first) + 0.5, 0.0]]))
        assert list_weights(torch.full((1, 2), -torch.inf), 1.0, 1.0).eq(0).all()

    def test_a_negative_costs_the_log_of_one_minus_its_probability(self):
        loss = list_bce(torch.tensor([[0.0, 2.0]]), torch.tensor([1.5]), torch.tensor([[1.0, 3.0]]))
        negative = -math.log(1 - 1 / (1 + math.exp(-1.5)))
        expected = math.log(2) + negative + 3 * (math.log(1 + math.exp(-2)) + negative)
        torch.testing.assert_close(loss, torch.tensor([expected]))
