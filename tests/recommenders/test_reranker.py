"""Re-rankers against plain passes over whole prompts, and re-ranked lists against lists put in order by hand."""

import numpy as np
import pytest
import torch

from hf_rec.data.catalog import Catalog
from hf_rec.data.prompts.rerank import RerankPrompt
from hf_rec.evaluation.full import evaluate_recommender
from hf_rec.hub import load_recommender
from hf_rec.models.sequence.sasrec import SASRecConfig, SASRecModel
from hf_rec.recommenders.fused import FusedRecommender
from hf_rec.recommenders.reranked import RerankedRecommender
from hf_rec.recommenders.reranker import Reranker
from hf_rec.recommenders.sequence import SequenceRecommender
from hf_rec.search import answer_logits


HISTORIES = [[0, 5, 3], [], [11, 7], [7, 8, 9, 10, 0]]
CANDIDATES = [[4, 1, 9], [2, 3, 8, 6], [0], [5, 4, 3, 2]]
RAW = [[100 + row for row in history] for history in HISTORIES]
TOLERANCE = {"rtol": 1e-5, "atol": 1e-4}  # float32 logits of size 10


@pytest.fixture(scope="module")
def judge(tiny_catalog, bpe_tokenizer, tiny_lm):
    def build(form="letters", kind="gpt2", num_candidates=4, **settings):
        verbalizers = ["Y", "N"] if form == "yes_no" else None
        prompt = RerankPrompt(bpe_tokenizer, tiny_catalog, form, verbalizers, num_candidates, max_length=400)
        return Reranker(tiny_lm(kind), bpe_tokenizer, tiny_catalog, prompt, **settings)

    return build


@pytest.fixture(scope="module")
def sequence(tiny_catalog):
    torch.manual_seed(0)
    model = SASRecModel(SASRecConfig(num_items=12, hidden_size=8, initializer_range=0.9))
    return SequenceRecommender(model, tiny_catalog)


@torch.no_grad()
def plain_logits(reranker, history, rows, disliked=()):
    """Logits of the answers from one pass over the whole prompt."""
    tokens = reranker.prompt.encode_user(history, disliked) + reranker.prompt.encode_candidates(rows)
    logits = reranker.model(input_ids=torch.tensor([tokens])).logits[0, -1]
    return logits[reranker.prompt.verbalizer_ids]


class TestScores:
    @pytest.mark.parametrize("kind", ["gpt2", "llama"])
    @pytest.mark.parametrize("shared", [True, False])
    def test_yes_and_no_are_the_log_odds_of_a_plain_pass(self, judge, kind, shared):
        reranker = judge("yes_no", kind, shared_prefix=shared)
        disliked = [[1], [2, 3], [], [6]]
        found = reranker.judge(HISTORIES, CANDIDATES, disliked)
        for user, rows in enumerate(CANDIDATES):
            for place, row in enumerate(rows):
                yes, no = plain_logits(reranker, HISTORIES[user], [row], disliked[user])
                np.testing.assert_allclose(found[user][place], float(yes - no), **TOLERANCE)

    @pytest.mark.parametrize("shared", [True, False])
    def test_letters_are_log_probabilities_averaged_over_rotations(self, judge, shared):
        reranker = judge(permutations=3, shared_prefix=shared)
        found = reranker.judge(HISTORIES, CANDIDATES)
        for user, rows in enumerate(CANDIDATES):
            orders = reranker.orders(HISTORIES[user], rows)
            assert len({tuple(order) for order in orders.tolist()}) == min(3, len(rows))
            total = np.zeros(len(rows))
            for order in orders:
                shown = [rows[place] for place in order]
                log_probs = plain_logits(reranker, HISTORIES[user], shown)[: len(rows)].log_softmax(0)
                for place, value in zip(order, log_probs.tolist(), strict=True):
                    total[place] += value
            np.testing.assert_allclose(found[user], total / len(orders), **TOLERANCE)

    def test_with_as_many_orders_as_candidates_each_stands_once_in_every_place(self, judge):
        orders = judge(permutations=4).orders([3], [5, 1, 2, 9])
        assert all(sorted(column) == [0, 1, 2, 3] for column in orders.T.tolist())

    def test_drawn_orders_depend_on_the_set_and_given_ones_on_the_list(self, judge):
        drawn, given = judge(), judge(candidate_order="retrieved")
        np.testing.assert_allclose(
            drawn.judge([[1]], [[4, 6, 8]])[0], drawn.judge([[1]], [[8, 4, 6]])[0][[1, 2, 0]], **TOLERANCE
        )
        assert given.orders([1], [8, 4, 6]).tolist() == [[0, 1, 2]]

    def test_a_long_list_of_candidates_is_read_in_portions(self, judge, monkeypatch):
        reranker = judge("yes_no")
        whole = reranker.judge(HISTORIES, CANDIDATES)
        monkeypatch.setattr(answer_logits, "TOKENS_AT_ONCE", 100)
        for found, expected in zip(reranker.judge(HISTORIES, CANDIDATES), whole, strict=True):
            np.testing.assert_allclose(found, expected, **TOLERANCE)

    def test_no_candidates_have_no_scores(self, judge):
        for form in ("yes_no", "letters"):
            assert [len(scores) for scores in judge(form).judge([[1], [2]], [[], [3]])] == [0, 1]


class TestContract:
    def test_yes_and_no_rank_the_whole_catalog_and_letters_refuse(self, judge):
        reranker = judge("yes_no")
        scores = np.stack(reranker.score(RAW, reranker.catalog.ids))
        found = reranker.recommend(RAW, k=3, exclude=[[], [103], [], []])
        assert found.certified.all() and 103 not in found.item_ids[1]
        np.testing.assert_allclose(found.scores[0], np.sort(scores[0])[::-1][:3], **TOLERANCE)
        with pytest.raises(ValueError, match="'letters' orders the candidates of another recommender"):
            judge().recommend(RAW, k=3)
        with pytest.raises(ValueError, match="holds 12 items for a user, .* up to 4 together"):
            judge().score(RAW, reranker.catalog.ids)

    @pytest.mark.parametrize("form", ["yes_no", "letters"])
    def test_a_list_is_that_of_the_retriever_with_its_beginning_in_order(self, judge, sequence, form):
        reranker = judge(form, permutations=2 if form == "letters" else 1)
        exclude = [[101], [], [105, 106], []]
        found = RerankedRecommender(sequence, reranker, 4).recommend(RAW, k=7, exclude=exclude)
        retrieved = sequence.recommend(RAW, k=7, exclude=exclude)
        assert (np.diff(found.scores, axis=1) <= 0).all()
        for user, ids in enumerate(retrieved.item_ids):
            rows = [item - 100 for item in ids]
            scores = reranker.judge([HISTORIES[user]], [rows[:4]])[0]
            expected = [rows[place] for place in np.argsort(-scores, kind="stable")] + rows[4:]
            assert [item - 100 for item in found.item_ids[user]] == expected
            np.testing.assert_allclose(found.scores[user, :4], np.sort(scores)[::-1], **TOLERANCE)

    def test_scores_are_those_that_lists_are_ranked_by(self, judge, sequence):
        reranked = RerankedRecommender(sequence, judge(), 4)
        scores, found = reranked.score_all(RAW), reranked.recommend(RAW, k=12)
        listed = np.array(found.item_ids) - 100
        np.testing.assert_allclose(np.take_along_axis(scores, listed, axis=1), found.scores, **TOLERANCE)

    def test_a_short_list_has_fewer_places_and_few_allowed_items_fewer_candidates(self, judge, sequence):
        reranked = RerankedRecommender(sequence, judge(), 4)
        assert [ids[0] for ids in reranked.recommend(RAW, k=1).item_ids] == [
            ids[0] for ids in reranked.recommend(RAW, k=4).item_ids
        ]
        found = reranked.recommend(RAW, k=5, allow=[[100, 101], [102], [], [107]])
        assert list(map(len, found.item_ids)) == [2, 1, 0, 1]

    @pytest.mark.parametrize(
        ("n", "message"), [(5, "`n` is 5, but the re-ranker has 4 letters"), (1, "`n` must be a whole number")]
    )
    def test_wrong_numbers_of_candidates_are_refused(self, judge, sequence, n, message):
        with pytest.raises(ValueError, match=message):
            RerankedRecommender(sequence, judge(), n)

    def test_parts_of_different_catalogs_are_refused(self, judge, tiny_catalog):
        other = Catalog.from_records([{"item_id": row} for row in range(12)])
        retriever = SequenceRecommender(SASRecModel(SASRecConfig(num_items=12, hidden_size=8)), other)
        with pytest.raises(ValueError, match="`retriever` and `reranker` are over different catalogs"):
            RerankedRecommender(retriever, judge(), 4)
        with pytest.raises(ValueError, match="`reranker` must be a Reranker, got SequenceRecommender"):
            RerankedRecommender(retriever, retriever, 4)


class TestFolder:
    def test_a_folder_ranks_as_before_after_it_was_moved(self, judge, sequence, tmp_path):
        reranked = RerankedRecommender(sequence, judge(permutations=2), 4)
        reranked.save(tmp_path / "there")
        (tmp_path / "there").rename(tmp_path / "here")
        again = load_recommender(tmp_path / "here")
        found, before = again.recommend(RAW, k=6), reranked.recommend(RAW, k=6)
        assert found.item_ids == before.item_ids and (again.n, again.reranker.permutations) == (4, 2)
        np.testing.assert_allclose(found.scores, before.scores, **TOLERANCE)
        with pytest.raises(FileExistsError, match="is not empty"):
            reranked.save(tmp_path / "here")
        (tmp_path / "here" / "part-1" / "rerank_prompt.json").write_text("{}")
        with pytest.raises(ValueError, match="rerank_prompt.json is not as it was saved"):
            load_recommender(tmp_path / "here")

    def test_it_is_measured_and_fused_like_any_other(self, judge, sequence, tmp_path):
        from datasets import Dataset

        reranked = RerankedRecommender(sequence, judge(), 4)
        rows = Dataset.from_dict({"user_id": ["a", "b", "c", "d"], "history": HISTORIES, "target": [4, 2, 0, 1]})
        result = evaluate_recommender(reranked, rows, tmp_path / "run", name="re-ranked")
        lists = [[item - 100 for item in ids] for ids in reranked.recommend(RAW, k=10).item_ids]
        expected = np.mean([target in ids for ids, target in zip(lists, [4, 2, 0, 1], strict=True)])
        assert result["metrics"]["full/search=exact/seen=keep/split=loo/hit_rate@10"]["mean"] == expected
        fused = FusedRecommender([reranked, sequence], [0.5, 0.5])
        fused.save(tmp_path / "fused")
        assert load_recommender(tmp_path / "fused").recommend(RAW, k=5).item_ids == fused.recommend(RAW, k=5).item_ids
