"""Fused recommenders against late fusion: log-probabilities of all items, added up one recommender after another."""

import numpy as np
import pytest
import torch

from hf_rec.data.catalog import Catalog
from hf_rec.data.prompts.next_item import Prompt
from hf_rec.models.sequence.sasrec import SASRecConfig, SASRecModel
from hf_rec.recommenders.controls import LastItemRecommender, PopularityRecommender
from hf_rec.recommenders.fused import FusedRecommender
from hf_rec.recommenders.language_model import LanguageModelRecommender
from hf_rec.recommenders.sequence import SequenceRecommender
from hf_rec.trie.item_trie import ItemTrie


HISTORIES = [[100, 105, 103], [], [111], [107, 108, 109, 110, 100]]
ROWS = [{"history": [0, 1, 2, 3], "target": 5, "supervise_from": 0}, {"history": [5, 1], "target": 2}]


@pytest.fixture(scope="module")
def language(tiny_catalog, bpe_tokenizer, tiny_lm):
    prompt = Prompt(bpe_tokenizer, tiny_catalog)
    csr = ItemTrie.build(prompt.encode_items()).csr()

    def build(seed=0, kind="llama", **settings):
        model = tiny_lm(seed=seed, kind=kind)
        return LanguageModelRecommender(model, bpe_tokenizer, tiny_catalog, prompt, csr, **settings)

    return build


@pytest.fixture(scope="module")
def sequence(tiny_catalog):
    torch.manual_seed(0)
    config = SASRecConfig(num_items=12, hidden_size=8, initializer_range=0.9)
    return SequenceRecommender(SASRecModel(config), tiny_catalog)


@pytest.fixture(scope="module")
def popularity(tiny_catalog):
    return PopularityRecommender(tiny_catalog, ROWS)


def softmax(scores):
    shares = np.exp(scores.astype(np.float64) - scores.max(axis=1, keepdims=True))
    return np.log(shares / shares.sum(axis=1, keepdims=True))


def late_fusion(language, w_language, priors):
    """Scores of all items: those of `score` times a weight, and the log of a softmax, made here, for each prior."""
    scores = w_language * np.stack(language.score(HISTORIES, language.catalog.ids)).astype(np.float64)
    return scores + sum(weight * log_q for log_q, weight in priors)


def log_q_of(popularity):
    return np.log((popularity.counts + 1) / (popularity.counts.sum() + 12))


class TestSearchedFusion:
    @pytest.mark.parametrize("scoring", ["valid", "full_vocab"])
    @pytest.mark.parametrize("weights", [(1, 0.5, 0), (0.7, 0.3, -0.4), (1, 0, 0), (0, 1, 0.2), (0.01, 2, 1)])
    def test_lists_are_those_of_late_fusion(self, language, sequence, popularity, scoring, weights):
        model = language(scoring=scoring, tau=1.3)
        log_q = [softmax(sequence.score_all(HISTORIES)), log_q_of(popularity)]
        expected = late_fusion(model, weights[0], zip(log_q, weights[1:], strict=True))
        fused = FusedRecommender([model, sequence, popularity], weights)
        for settings in ({"k": 12}, {"k": 3, "num_beams": 3}, {"k": 5, "exclude": [[104], [], [100, 111], [103]]}):
            found = fused.recommend(HISTORIES, **settings)
            allowed = expected.copy()
            for user, excluded in enumerate(settings.get("exclude", [])):
                allowed[user, np.array(excluded, dtype=int) - 100] = -np.inf
            for user in np.flatnonzero(found.certified):
                best = np.sort(allowed[user])[::-1][: settings["k"]]
                np.testing.assert_allclose(found.scores[user], best, atol=2e-5)
                rows = np.array(found.item_ids[user]) - 100
                np.testing.assert_allclose(allowed[user, rows], found.scores[user], atol=2e-5)
            assert found.certified.all() or settings["k"] == 3 or scoring == "full_vocab"
        scores = np.stack(fused.score(HISTORIES, fused.catalog.ids))
        np.testing.assert_allclose(scores, expected, atol=2e-5)

    def test_a_model_with_an_encoder_is_fused_like_any_other(self, language, sequence):
        model, weights = language(kind="t5"), (0.7, 0.3)
        expected = late_fusion(model, 0.7, [(0.3, softmax(sequence.score_all(HISTORIES)))])
        fused = FusedRecommender([model, sequence], weights)
        found = fused.recommend(HISTORIES, k=12)
        for user, items in enumerate(found.item_ids):
            np.testing.assert_allclose(found.scores[user], np.sort(expected[user])[::-1], atol=2e-5)
            np.testing.assert_allclose(expected[user, np.array(items) - 100], found.scores[user], atol=2e-5)
        assert found.certified.all()
        np.testing.assert_allclose(fused.score_all(HISTORIES), expected, atol=2e-5)

    def test_items_of_one_leaf_are_ordered_by_the_prior(self, language, tiny_catalog):
        popularity = PopularityRecommender(tiny_catalog, [{"history": [], "target": 4}] * 9)  # the second Solaris
        found = FusedRecommender([language(), popularity], [1, 0.1]).recommend(HISTORIES, k=12)
        for items, scores in zip(found.item_ids, found.scores, strict=True):
            first, second = items.index(104), items.index(103)
            assert first < second
            np.testing.assert_allclose(scores[first] - scores[second], 0.1 * np.log(10), atol=1e-5)
        found = FusedRecommender([language(), popularity], [1, 0]).recommend(HISTORIES, k=12)
        assert all(items.index(104) == items.index(103) + 1 for items in found.item_ids)

    def test_a_list_longer_than_what_is_allowed_holds_all_of_it_for_sure(self, language, sequence):
        fused = FusedRecommender([language(), sequence], [0.5, 0.5])
        everything = fused.score(HISTORIES, [103, 104, 100])
        found = fused.recommend(HISTORIES, k=10, allow=[103, 104, 100])
        assert found.certified.all() and [len(items) for items in found.item_ids] == [3] * 4
        for items, listed, scores in zip(found.item_ids, found.scores, everything, strict=True):
            assert sorted(items) == [100, 103, 104]
            np.testing.assert_allclose(listed[:3], np.sort(scores)[::-1], atol=1e-5)
        none = fused.recommend(HISTORIES, k=2, exclude=fused.catalog.ids)
        assert none.item_ids == [[]] * 4 and none.certified.all() and none.nan_scores.tolist() == [0] * 4

    def test_the_look_ahead_finds_what_the_language_model_alone_would_give_up(self, language, sequence):
        fused = FusedRecommender([language(), sequence], [0.2, 5.0])
        found = fused.recommend(HISTORIES, k=1, num_beams=1)
        assert found.certified.all()
        np.testing.assert_allclose(found.scores[:, 0], fused.score_all(HISTORIES).max(axis=1), atol=2e-5)

    def test_a_batch_is_its_users_one_by_one(self, language, sequence):
        fused = FusedRecommender([language(), sequence], [[1, 0.2], [0.3, 0.7]], lengths=[0, 3])
        together = fused.recommend(HISTORIES, k=4)
        for batch_size in (1, 3):
            apart = fused.recommend(HISTORIES, k=4, batch_size=batch_size)
            assert apart.item_ids == together.item_ids
            np.testing.assert_allclose(apart.scores, together.scores, atol=2e-5)

    def test_weights_follow_the_length_of_the_history(self, language, sequence):
        fused = FusedRecommender([language(), sequence], [[1, 0.2], [0.3, 0.7]], lengths=[0, 3])
        scores = fused.score_all(HISTORIES)
        short, long = (FusedRecommender([language(), sequence], weights) for weights in ([1, 0.2], [0.3, 0.7]))
        np.testing.assert_allclose(scores[[1, 2]], short.score_all(HISTORIES)[[1, 2]], atol=2e-5)
        np.testing.assert_allclose(scores[[0, 3]], long.score_all(HISTORIES)[[0, 3]], atol=2e-5)

    def test_priors_of_a_call_are_a_fusion_whose_language_model_weighs_1(self, language, sequence, popularity):
        model = language()
        found = model.recommend(HISTORIES, k=4, exclude=[100], priors={sequence: 0.5, popularity: -0.2})
        fused = FusedRecommender([model, sequence, popularity], [1, 0.5, -0.2])
        expected = fused.recommend(HISTORIES, k=4, exclude=[100])
        assert found.item_ids == expected.item_ids
        np.testing.assert_array_equal(found.scores, expected.scores)

    def test_nan_of_the_language_model_is_counted_and_not_certified(self, language, sequence):
        model = language()
        with torch.no_grad():
            model.model.lm_head.weight.fill_(torch.nan)
        found = FusedRecommender([model, sequence], [1, 1]).recommend(HISTORIES, k=3)
        assert (found.nan_scores > 0).all() and not found.certified.any()

    def test_another_language_model_is_read_in_full(self, language):
        one, other = language(0), language(1)
        expected = late_fusion(one, 1, [(softmax(np.stack(other.score(HISTORIES, other.catalog.ids))), 0.6)])
        found = FusedRecommender([one, other], [1, 0.6]).recommend(HISTORIES, k=12)
        np.testing.assert_allclose(found.scores, np.sort(expected, axis=1)[:, ::-1], atol=2e-5)


class TestFusionOfScores:
    def test_without_a_language_model_all_items_are_scored(self, sequence, popularity):
        fused = FusedRecommender([sequence, popularity], [1, -0.5])
        expected = softmax(sequence.score_all(HISTORIES)) - 0.5 * log_q_of(popularity)
        assert fused.is_exact
        np.testing.assert_allclose(fused.score_all(HISTORIES), expected, atol=1e-5)
        found = fused.recommend(HISTORIES, k=3, exclude=[100])
        expected[:, 0] = -np.inf
        np.testing.assert_allclose(found.scores, np.sort(expected, axis=1)[:, :-4:-1], atol=1e-5)
        assert found.certified.all()

    def test_a_fusion_can_be_fused(self, sequence, popularity, language):
        inner = FusedRecommender([sequence, popularity], [1, 0.5])
        fused = FusedRecommender([language(), inner], [1, 2])
        expected = late_fusion(language(), 1, [(softmax(inner.score_all(HISTORIES)), 2)])
        np.testing.assert_allclose(fused.score_all(HISTORIES), expected, atol=2e-5)
        found = fused.recommend(HISTORIES, k=12)
        np.testing.assert_allclose(found.scores, np.sort(expected, axis=1)[:, ::-1], atol=2e-5)

    def test_controls_give_probabilities_without_zeros(self, tiny_catalog):
        rows = [[0, 1], [], [11], [7, 8]]
        for control in (PopularityRecommender(tiny_catalog, ROWS), LastItemRecommender(tiny_catalog, ROWS)):
            log_q = control.log_probabilities(rows, None)
            assert log_q.isfinite().all()
            torch.testing.assert_close(log_q.exp().sum(dim=1), torch.ones(4))
        # Item 2 followed item 1 twice and is 2 of 6 events; each of the 12 items counts once more
        assert log_q[0, 2].exp() == pytest.approx((2 + 3 / 18) / 3) and log_q[0, 9].exp() == pytest.approx(1 / 18 / 3)


class TestRefusals:
    @pytest.mark.parametrize(
        "weights, lengths, message",
        [
            ([0, 0], None, "must not all be 0"),
            ([[1, 1], [0, 0]], [0, 5], "must not all be 0"),
            ([1, np.nan], None, "finite"),
            ([1, np.inf], None, "finite"),
            ([1], None, "one weight for each of the 2"),
            ([1, 2, 3], None, "one weight for each of the 2"),
            ([1, 1], [0, 5], "in each of 2 lists"),
            ([[1, 1], [1, 1]], [1, 5], "`lengths` must ascend from 0"),
            ([[1, 1], [1, 1]], [0, 0], "`lengths` must ascend from 0"),
            ([-0.1, 1], None, "at least 0 for the language model"),
        ],
    )
    def test_weights_that_cannot_be(self, language, sequence, weights, lengths, message):
        with pytest.raises(ValueError, match=message):
            FusedRecommender([language(), sequence], weights, lengths)

    def test_a_prior_over_another_catalog(self, language, tiny_catalog):
        for titles in (["A", "B"], [f"Other {row}" for row in range(12)]):
            other = Catalog.from_records([{"item_id": 100 + row, "title": title} for row, title in enumerate(titles)])
            with pytest.raises(ValueError, match="different catalogs"):
                language().recommend(HISTORIES, priors={PopularityRecommender(other, []): 1.0})

    def test_a_catalog_of_the_same_ids_without_titles_is_the_same(self, language, tiny_catalog):
        bare = Catalog.from_records([{"item_id": item_id} for item_id in tiny_catalog.ids])
        for parts in (
            [PopularityRecommender(bare, ROWS), language()],
            [language(), PopularityRecommender(bare, ROWS)],
        ):
            assert FusedRecommender(parts, [1, 1]).catalog is tiny_catalog
        turned = Catalog.from_records([{"item_id": item_id} for item_id in tiny_catalog.ids[::-1]])
        with pytest.raises(ValueError, match="different catalogs"):
            FusedRecommender([language(), PopularityRecommender(turned, ROWS)], [1, 1])

    def test_a_prior_that_gives_nan(self, language, tiny_catalog):
        model = SASRecModel(SASRecConfig(num_items=12, hidden_size=8))
        model.item_vectors().data.fill_(torch.nan)
        broken = SequenceRecommender(model, tiny_catalog)
        for call in (lambda fused: fused.recommend(HISTORIES), lambda fused: fused.score(HISTORIES, [100])):
            with pytest.raises(ValueError, match="SequenceRecommender that gives 48 scores that are NaN"):
                call(FusedRecommender([language(), broken], [1, 1]))
        # With a weight of 0 it is not asked
        FusedRecommender([language(), broken], [1, 0]).recommend(HISTORIES)

    def test_one_recommender_or_a_folder_name(self, language):
        with pytest.raises(ValueError, match="at least two"):
            FusedRecommender([language()], [1])
        with pytest.raises(ValueError, match="load_recommender"):
            FusedRecommender([language(), "runs/sasrec"], [1, 1])
