"""SequenceRecommender: the contract, ties, and what it refuses."""

import numpy as np
import pytest
import torch

from hf_rec import BERT4RecConfig, BERT4RecModel, CaserConfig, CaserModel, SASRecConfig, SASRecModel
from hf_rec.data.catalog import Catalog
from hf_rec.hub import load_recommender, save_recommender
from hf_rec.metrics.ranking import rank_bounds
from hf_rec.recommenders.ranks import exact_ranks
from hf_rec.recommenders.sequence import SequenceRecommender


N = 30
CATALOG = Catalog.from_records([{"item_id": f"i{item}"} for item in range(N)])  # ids alone, no titles
HISTORIES = [["i3", "i4", "i9"], [], ["i1"], [f"i{item}" for item in range(20)]]
MODELS = {
    "sasrec": SASRecModel(SASRecConfig(num_items=N, hidden_size=8, max_length=5, dropout=0.5)),
    "caser": CaserModel(CaserConfig(num_items=N, hidden_size=8, dropout=0.5)),
    "bert4rec": BERT4RecModel(
        BERT4RecConfig(num_items=N, hidden_size=8, max_length=5, dropout=0.5, initializer_range=0.5)
    ),
}


@pytest.fixture(params=MODELS)
def recommender(request):
    return SequenceRecommender(MODELS[request.param].train(), CATALOG)


class TestContract:
    def test_lists_are_the_best_of_all_scores(self, recommender):
        found, scores = recommender.recommend(HISTORIES, k=7), recommender.score_all(HISTORIES)
        for listed, values, all_scores in zip(found.item_ids, found.scores, scores, strict=True):
            order = np.argsort(-all_scores, kind="stable")[:7]
            assert listed == [CATALOG.ids[row] for row in order]
            np.testing.assert_array_equal(values, all_scores[order])
        assert found.certified.all() and found.scores.dtype == np.float32
        assert recommender.model.training  # left as it was, though dropout was off

    def test_batches_and_candidates_give_the_same_scores(self, recommender):
        scores = recommender.score_all(HISTORIES)
        np.testing.assert_allclose(scores[2:3], recommender.score_all(HISTORIES[2:3]), rtol=1e-4, atol=1e-5)
        candidates = [["i5", "i0"], [], ["i29"], ["i7", "i7", "i8"]]
        rows = [[5, 0], [], [29], [7, 7, 8]]
        for found, user, wanted in zip(recommender.score(HISTORIES, candidates), scores, rows, strict=True):
            np.testing.assert_allclose(found, user[wanted], rtol=1e-4, atol=1e-5)
        assert recommender.recommend(HISTORIES, batch_size=1).item_ids == recommender.recommend(HISTORIES).item_ids

    def test_scores_are_products_of_user_and_item_vectors(self, recommender):
        vectors = recommender.user_vectors(HISTORIES)
        model = recommender.model
        expected = vectors @ model.item_vectors().detach().numpy().T
        if (bias := model.item_bias()) is not None:
            expected = expected + bias.detach().numpy()
        np.testing.assert_allclose(recommender.score_all(HISTORIES), expected, rtol=1e-5, atol=1e-5)

    def test_exclude_and_allow_leave_scores_alone(self, recommender):
        scores = recommender.score_all(HISTORIES)
        found = recommender.recommend(HISTORIES, k=N, exclude=HISTORIES)
        for history, listed, values, all_scores in zip(HISTORIES, found.item_ids, found.scores, scores, strict=True):
            assert not set(listed) & set(history) and len(listed) == N - len(set(history))
            np.testing.assert_array_equal(values[: len(listed)], all_scores[CATALOG.rows(listed)])
            assert (values[len(listed) :] == -np.inf).all()
        allowed = recommender.recommend(HISTORIES, k=3, allow=["i2", "i8"])
        assert [sorted(listed) for listed in allowed.item_ids] == [["i2", "i8"]] * len(HISTORIES)
        assert recommender.recommend(HISTORIES[:1], exclude=CATALOG.ids).item_ids == [[]]

    def test_a_saved_folder_serves_the_same_lists(self, recommender, tmp_path):
        save_recommender(
            tmp_path / "saved", catalog=CATALOG, kind="sequence", scoring="exact", model=recommender.model
        )
        served = load_recommender(tmp_path / "saved", device="cpu")
        assert type(served) is SequenceRecommender and type(served.model) is type(recommender.model)
        assert served.recommend(HISTORIES).item_ids == recommender.recommend(HISTORIES).item_ids


class TestOrder:
    @pytest.fixture
    def tied(self):
        model = SASRecModel(SASRecConfig(num_items=N, hidden_size=8, max_length=5))
        with torch.no_grad():
            model.item_embedding.weight.zero_()
            model.item_embedding.weight[1:, 0] = (
                torch.arange(N) // 10
            )  # three groups of ten; one product each, so exact ties
            model.norm.bias.fill_(9.0)
        return SequenceRecommender(model, CATALOG)

    @pytest.mark.parametrize("k", [3, 10, 15, 30])
    def test_items_of_equal_score_stand_in_row_order(self, tied, k):
        expected = [*range(20, 30), *range(10, 20), *range(10)][:k]
        assert tied.recommend([["i1"]], k=k).item_ids == [[f"i{row}" for row in expected]]

    def test_without_a_history_sasrec_knows_nothing(self):
        recommender = SequenceRecommender(MODELS["sasrec"], CATALOG)
        with torch.no_grad():
            assert (recommender.score_all([[]]) == 0).all()
        assert recommender.recommend([[]], k=3).item_ids == [["i0", "i1", "i2"]]

    def test_nan_scores_are_in_no_list(self, tied):
        with torch.no_grad():
            tied.model.item_embedding.weight[26] = torch.nan
        found = tied.recommend([["i1"], ["i2"]], k=N, exclude=[[], ["i25"]])
        assert "i25" not in found.item_ids[0]
        assert found.nan_scores.tolist() == [1, 0] and found.certified.tolist() == [False, True]


class TestExactRanks:
    def test_ranks_are_the_bounds_over_all_items(self):
        model = MODELS["caser"].eval()
        vectors, targets = torch.randn(9, 8), torch.arange(9) * 3
        seen = torch.randint(-1, N, (9, 4))
        seen[:, -1] = targets.where(targets % 2 == 0, seen[:, -1])  # some targets are seen
        scores = model.score_items(vectors).detach()
        nll = torch.nn.functional.cross_entropy(scores, targets, reduction="none")
        better, tied, found = exact_ranks(model.score_items, N, vectors, targets)
        expected = rank_bounds(scores.numpy(), targets.numpy())
        np.testing.assert_array_equal((better.numpy(), tied.numpy()), expected)
        torch.testing.assert_close(found, nll)
        for row, items in enumerate(seen):
            scores[row, items[items >= 0]] = -torch.inf
        better, tied, found = exact_ranks(model.score_items, N, vectors, targets, seen)
        np.testing.assert_array_equal((better.numpy(), tied.numpy()), rank_bounds(scores.numpy(), targets.numpy()))
        torch.testing.assert_close(found, nll)  # a probability among all items, seen or not

    def test_a_nan_score_ranks_last(self):
        model = SASRecModel(SASRecConfig(num_items=N, hidden_size=8))
        better, tied, _ = exact_ranks(model.score_items, N, torch.full((1, 8), torch.nan), torch.tensor([4]))
        assert (better.item(), tied.item()) == (N - 1, 0)


class TestBadInput:
    def test_a_catalog_of_another_size(self):
        with pytest.raises(ValueError, match="`catalog` has 2 items, but the model was made for 30"):
            SequenceRecommender(MODELS["sasrec"], Catalog.from_records([{"item_id": 0}, {"item_id": 1}]))

    def test_another_catalog_of_the_same_size(self):
        model = SASRecModel(SASRecConfig(num_items=N, hidden_size=8, catalog_sha256=CATALOG.sha256))
        SequenceRecommender(model, CATALOG)
        with pytest.raises(ValueError, match="made for another catalog"):
            SequenceRecommender(model, Catalog.from_records([{"item_id": f"other-{item}"} for item in range(N)]))

    def test_an_unknown_item_is_named(self, recommender):
        with pytest.raises(ValueError, match="nowhere"):
            recommender.recommend([["i1", "nowhere"]])
