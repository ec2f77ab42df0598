import numpy as np
import pytest
import torch
from datasets import Dataset

from hf_rec.data.prompts.rerank import RerankPrompt
from hf_rec.diagnostics.position_bias import position_bias
from hf_rec.models.sequence.sasrec import SASRecConfig, SASRecModel
from hf_rec.recommenders.reranked import RerankedRecommender
from hf_rec.recommenders.reranker import Reranker
from hf_rec.recommenders.sequence import SequenceRecommender


ROWS = Dataset.from_dict({"history": [[row, (row + 3) % 12] for row in range(12)] * 2})


@pytest.fixture
def build(tiny_catalog, bpe_tokenizer, tiny_lm):
    def made(judged, **settings):
        """A re-ranker whose log-probabilities are what `judged(rows in their places)` says."""
        torch.manual_seed(0)
        model = SASRecModel(SASRecConfig(num_items=12, hidden_size=8, initializer_range=0.9))
        prompt = RerankPrompt(bpe_tokenizer, tiny_catalog, "letters", num_candidates=4, max_length=400)
        reranker = Reranker(tiny_lm(), bpe_tokenizer, tiny_catalog, prompt, **settings)

        def judge_orders(histories, candidates, disliked=None):
            orders = [reranker.orders(*pair) for pair in zip(histories, candidates, strict=True)]
            pairs = zip(orders, candidates, strict=True)
            return [(order, judged(np.array(rows)[order])) for order, rows in pairs]

        reranker.judge_orders = judge_orders
        return RerankedRecommender(SequenceRecommender(model, tiny_catalog), reranker, 4)

    return made


def test_a_model_that_always_chooses_the_first_place_is_all_bias_until_orders_are_averaged(build):
    always_first = np.log(np.array([0.7, 0.1, 0.1, 0.1]))
    recommender = build(lambda rows: np.tile(always_first, (len(rows), 1)), permutations=4)
    found = position_bias(recommender, ROWS)
    assert found["rows"] == 24 and found["one_order"]["choice_share"] == [1.0, 0.0, 0.0, 0.0]
    assert found["one_order"]["distance"] == 0.75
    np.testing.assert_allclose(found["one_order"]["mean_log_probability"], always_first)


def test_a_model_that_looks_at_items_alone_has_none_beyond_chance(build):
    def smallest(rows):
        return np.log(np.where(rows == rows.min(axis=1, keepdims=True), 0.7, 0.1))

    found = position_bias(build(smallest, permutations=2), ROWS)
    assert found["averaged"]["choice_share"] == found["one_order"]["choice_share"]
    assert found["one_order"]["distance"] < 0.35  # 24 draws of 4 places
