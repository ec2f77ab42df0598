"""The search with a prior against log P and prior of every leaf, added up outside of it."""

import numpy as np
import pytest
import torch

from hf_rec.search.beam_search import score_leaves, trie_beam_search
from hf_rec.search.priors import ItemPrior, TriePrior
from hf_rec.trie.item_trie import ItemTrie


def make_prior(num_users, num_items, seed=0, scale=3.0, weight=1.0):
    generator = torch.Generator().manual_seed(seed)
    items = scale * torch.randn(num_users, num_items, generator=generator)
    return ItemPrior(items, torch.full((num_users,), weight), torch.zeros(num_users))


def best_of_leaf(prior, csr):
    """Prior of the best item of each leaf, one at a time."""
    return torch.stack([prior.items[:, csr.items(leaf)].amax(dim=1) for leaf in range(len(csr))], dim=1)


class TestTriePrior:
    @pytest.mark.parametrize("seed", range(3))
    def test_the_bound_of_a_node_is_the_largest_prior_below_it(self, seed):
        rng = np.random.default_rng(seed)
        paths = [[*rng.integers(0, 3, size=rng.integers(1, 6)).tolist(), 9] for _ in range(40)]
        csr = ItemTrie.build(paths).csr()
        assert len(csr) < 40  # some items share a path
        prior = make_prior(3, 40, seed)
        prior.items[:, rng.integers(0, 40, size=15)] = -torch.inf
        of_leaf, found = best_of_leaf(prior, csr), TriePrior.below_nodes(prior, csr)
        spans = zip(csr.first_leaf.tolist(), csr.num_leaves.tolist(), strict=True)
        expected = torch.stack([of_leaf[:, first : first + size].amax(dim=1) for first, size in spans])
        assert torch.equal(found.best, expected)

    def test_nothing_is_below_a_node_whose_items_may_not_be_found_whatever_log_p_is(self, problem):
        prior = make_prior(3, 13)
        prior.items[1] = -torch.inf
        users, nodes = torch.tensor([0, 1]), torch.tensor([0, 0])
        bounds = TriePrior.below_nodes(prior, problem.csr).bounds(torch.tensor([-1.0, torch.nan]), users, nodes)
        assert bounds[0] == prior.items[0].max() - 1 and bounds[1] == -torch.inf


@pytest.mark.parametrize("scoring", ["valid", "full_vocab"])
class TestSearchWithPrior:
    def find(self, model, problem, prior, num_beams=12, **settings):
        of_trie = TriePrior.below_nodes(prior, problem.csr)
        return trie_beam_search(
            model, problem.input_ids, problem.attention_mask, problem.csr, num_beams, prior=of_trie, **settings
        )

    @pytest.mark.parametrize("weight", [1.0, 0.3, 0.0])
    def test_enough_beams_are_late_fusion(self, problem, tiny_lm, scoring, weight):
        model, prior = tiny_lm(vocab_size=20), make_prior(3, 13, weight=weight)
        exact = weight * problem.exact_scores(model, scoring=scoring) + best_of_leaf(prior, problem.csr)
        found = self.find(model, problem, prior, scoring=scoring)
        torch.testing.assert_close(found.scores, exact.sort(dim=1, descending=True).values, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.scores, exact.gather(1, found.leaves), atol=1e-5, rtol=1e-5)

    def test_no_missing_leaf_beats_the_bound_of_what_was_given_up(self, problem, tiny_lm, scoring):
        pruned = 0
        for seed in range(3):
            model, prior = tiny_lm(vocab_size=20, seed=seed), make_prior(3, 13, seed)
            exact = problem.exact_scores(model, scoring=scoring) + best_of_leaf(prior, problem.csr)
            for num_beams in (1, 2, 4):
                found = self.find(model, problem, prior, num_beams, scoring=scoring)
                for user in range(3):
                    listed = found.leaves[user][found.leaves[user] >= 0]
                    missing = exact[user].index_fill(0, listed, -torch.inf).max()
                    assert missing <= found.pruned_bound[user] + 1e-5
                    torch.testing.assert_close(exact[user][listed], found.scores[user][: len(listed)])
                pruned += int((found.pruned_bound > -torch.inf).sum())
        assert pruned > 9


def test_certified_lists_over_random_tries_are_exact_and_some_are_not_certified(problem, tiny_lm):
    model, prompts, certified = tiny_lm(vocab_size=20), (problem.input_ids, problem.attention_mask), []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        csr = ItemTrie.build([rng.integers(0, 6, size=4).tolist() for _ in range(300)]).csr()
        prior = make_prior(3, 300, seed, scale=rng.choice([0.1, 1, 5]), weight=float(rng.choice([0.5, 1])))
        prior.items[:, rng.integers(0, 300, size=200)] = -torch.inf
        log_probs = score_leaves(model, *prompts, csr, torch.arange(len(csr)).expand(3, -1))
        exact = prior.weight[:, None] * log_probs + best_of_leaf(prior, csr)
        for k, num_beams in ((1, 3), (1, 8), (5, 8), (5, 20)):
            of_trie = TriePrior.below_nodes(prior, csr)
            found = trie_beam_search(model, *prompts, csr, num_beams, prior=of_trie, num_results=k)
            scores = found.scores[:, :k]
            sure = scores[:, -1] >= found.pruned_bound + 1e-4
            torch.testing.assert_close(scores[sure], exact.topk(k, dim=1).values[sure], atol=1e-4, rtol=1e-5)
            certified += sure.tolist()
    assert 4 < sum(certified) < len(certified), certified
