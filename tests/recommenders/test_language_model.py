import numpy as np
import pytest
import torch

from hf_rec.data.prompts.next_item import Prompt
from hf_rec.recommenders.contract import Recommender
from hf_rec.recommenders.language_model import LanguageModelRecommender
from hf_rec.trie.item_trie import ItemTrie


HISTORIES = [[100, 105, 103], [], [111], [107, 108, 109, 110, 100]]


@pytest.fixture(scope="module")
def make(tiny_catalog, bpe_tokenizer, tiny_lm):
    prompt = Prompt(bpe_tokenizer, tiny_catalog)
    csr = ItemTrie.build(prompt.encode_items()).csr()

    def build(seed=0, kind="gpt2", **settings):
        return LanguageModelRecommender(tiny_lm(kind, seed=seed), bpe_tokenizer, tiny_catalog, prompt, csr, **settings)

    return build


@torch.no_grad()
def exact(recommender, history):
    """log P_valid of all items by teacher forcing, in catalog order."""
    catalog, prompt = recommender.catalog, recommender.prompt
    paths, scores = prompt.encode_items(), []
    start = prompt.encode_history(catalog.rows(history))
    for path in paths:
        if recommender.model.config.is_encoder_decoder:
            decoder_ids = torch.tensor([[recommender.model.config.decoder_start_token_id, *path]])
            logits = recommender.model(input_ids=torch.tensor([start]), decoder_input_ids=decoder_ids).logits[0]
        else:
            logits = recommender.model(torch.tensor([start + path])).logits[0, len(start) - 1 :]
        logits, score = logits.float() / recommender.tau, 0.0
        for place, token in enumerate(path):
            rivals = sorted({other[place] for other in paths if other[:place] == path[:place]})
            score += (logits[place, token] - logits[place, rivals].logsumexp(dim=0)).item()
        scores.append(score)
    return np.array(scores, dtype=np.float32)


class TestLanguageModelRecommender:
    @pytest.mark.parametrize("kind", ["gpt2", "llama", "t5"])
    def test_all_items_ranked_are_the_exact_ranking(self, make, kind):
        recommender = make(kind=kind, tau=1.4)
        found = recommender.recommend(HISTORIES, k=12)
        assert found.certified.all() and found.scores.dtype == np.float32
        for history, items, scores in zip(HISTORIES, found.item_ids, found.scores, strict=True):
            expected = exact(recommender, history)
            assert sorted(items) == list(range(100, 112))
            np.testing.assert_allclose(scores, expected[np.array(items) - 100], rtol=1e-5, atol=1e-4)
            assert (np.diff(scores) <= 0).all()
            # The eleven titles share all probability; the two films called Solaris share one of them.
            np.testing.assert_allclose(np.exp(np.delete(scores, items.index(104))).sum(), 1, rtol=1e-4)
            assert items.index(104) == items.index(103) + 1

    def test_scores_of_candidates_are_those_of_the_list(self, make):
        recommender = make()
        found = recommender.recommend(HISTORIES, k=12)
        scores = recommender.score(HISTORIES, found.item_ids, batch_size=3)
        np.testing.assert_allclose(np.stack(scores), found.scores, rtol=1e-5, atol=1e-5)
        for_all = recommender.score(HISTORIES, [104, 103, 104])
        assert [len(values) for values in for_all] == [3] * 4
        assert all(values[0] == values[1] == values[2] for values in for_all)
        assert [len(values) for values in recommender.score(HISTORIES[:2], [[], [100]])] == [0, 1]

    @pytest.mark.parametrize(("kind", "scoring"), [("gpt2", "valid"), ("gpt2", "full_vocab"), ("t5", "valid")])
    def test_a_batch_is_its_users_one_by_one(self, make, kind, scoring):
        recommender = make(kind=kind, scoring=scoring)
        together = recommender.recommend(HISTORIES, k=3)
        for batch_size in (1, 3):
            apart = recommender.recommend(HISTORIES, k=3, batch_size=batch_size)
            assert apart.item_ids == together.item_ids
            np.testing.assert_allclose(apart.scores, together.scores, rtol=1e-5, atol=1e-5)
            assert apart.certified.tolist() == together.certified.tolist()

    def test_a_certified_list_is_exact(self, make):
        certified = 0
        for seed in range(4):
            recommender = make(seed=seed)
            for k, num_beams in ((1, 1), (1, 2), (3, 4)):
                found = recommender.recommend(HISTORIES, k=k, num_beams=num_beams)
                for user in np.flatnonzero(found.certified):
                    best = np.sort(exact(recommender, HISTORIES[user]))[::-1][:k]
                    np.testing.assert_allclose(found.scores[user], best, rtol=1e-5, atol=1e-4)
                certified += int(found.certified.sum())
        assert certified > 10

    def test_short_lists_are_searched_as_widely_as_lists_of_ten(self, make):
        recommender = make()
        recommender.trie = range(1000)  # all that is asked of it here is its length
        assert [recommender._num_beams(k, None) for k in (1, 3, 10, 11, 600)] == [20, 20, 20, 22, 1000]

    def test_a_history_becomes_tokens_once(self, make, monkeypatch):
        recommender, encoded = make(), []
        encode = type(recommender.prompt).encode_history
        monkeypatch.setattr(
            type(recommender.prompt), "encode_history", lambda self, rows: encoded.append(rows) or encode(self, rows)
        )
        recommender.recommend(HISTORIES, k=1)
        assert len(encoded) == len(HISTORIES)
        costs = [recommender._cost(recommender.catalog.rows(history)) for history in HISTORIES]
        assert costs == [len(encode(recommender.prompt, recommender.catalog.rows(history))) for history in HISTORIES]

    def test_nan_scores_are_counted_and_never_certified(self, make):
        recommender = make()
        weights = recommender.model.transformer.wpe.weight
        longest = max(recommender._cost(recommender.catalog.rows(history)) for history in HISTORIES)
        with torch.no_grad():
            weights[longest - 1] = torch.nan  # a position that the longest prompt alone reaches
        found = recommender.recommend(HISTORIES, k=3)
        reached = [recommender._cost(recommender.catalog.rows(history)) >= longest for history in HISTORIES]
        assert (found.nan_scores > 0).tolist() == reached and sum(reached) == 1
        assert found.item_ids[reached.index(True)] == []
        assert not found.certified[reached].any() and found.certified[~np.array(reached)].all()
        scores = recommender.score(HISTORIES, [100, 101])
        assert [bool(np.isnan(values).all()) for values in scores] == reached
        everything = recommender.recommend(HISTORIES, k=12, exclude=recommender.catalog.ids)
        assert everything.nan_scores.tolist() == [0] * 4  # nobody asks for them

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_a_certified_list_in_half_precision_is_the_best_by_its_own_scores(self, make, dtype):
        certified = 0
        for seed in range(3):
            recommender = make(seed=seed, kind="llama")
            recommender.model.to(dtype)
            own = np.stack(recommender.score(HISTORIES, recommender.catalog.ids))
            for k, num_beams in ((1, 2), (3, 4)):
                found = recommender.recommend(HISTORIES, k=k, num_beams=num_beams, batch_size=3)
                for user in np.flatnonzero(found.certified):
                    rows = recommender.catalog.rows(found.item_ids[user])
                    # Two passes of other batches round differently, by less than the margin
                    assert own[user, rows].min() >= np.delete(own[user], rows).max() - 2e-2
                certified += int(found.certified.sum())
        assert certified > 5

    def test_exclude_and_allow_do_not_change_scores(self, make):
        recommender = make()
        everything = recommender.recommend([[100]], k=12)
        every = dict(zip(everything.item_ids[0], everything.scores[0], strict=True))
        found = recommender.recommend([[100]] * 2, k=12, exclude=[[100, 103], [101, 102]])
        assert set(found.item_ids[0]) == set(range(100, 112)) - {100, 103}  # the other Solaris stays
        assert set(found.item_ids[1]) == set(range(100, 112)) - {101, 102}
        for items, scores in zip(found.item_ids, found.scores, strict=True):
            np.testing.assert_allclose(scores[:10], [every[item] for item in items], rtol=1e-5, atol=1e-5)
        found = recommender.recommend([[100]] * 2, k=4, exclude=[101], allow=[101, 104, "111"])
        assert [set(items) for items in found.item_ids] == [{104, 111}] * 2
        assert found.certified.all() and (found.scores[:, 2:] == -np.inf).all()

    def test_what_is_not_allowed_shortens_the_list(self, make):
        recommender = make()
        found = recommender.recommend([[100], [101]], k=20, allow=[[], [102]])
        assert found.item_ids == [[], [102]]
        assert found.scores.shape == (2, 20) and found.certified.tolist() == [True, True]
        assert len(recommender.recommend([[100]], k=100).item_ids[0]) == 12
        assert recommender.recommend([], k=3).item_ids == []

    def test_the_mode_of_every_module_is_kept(self, make):
        recommender = make()
        recommender.model.train()
        recommender.model.transformer.h[0].eval()
        first, second = (recommender.recommend(HISTORIES, k=3).scores for _ in range(2))
        np.testing.assert_array_equal(first, second)
        assert recommender.model.training and not recommender.model.transformer.h[0].attn.training

    def test_half_precision_has_the_wider_margin(self, make):
        recommender = make()
        recommender.model.bfloat16()
        assert recommender.recommend(HISTORIES, k=12).certified.all()

    @pytest.mark.parametrize("kind", ["gpt2", "t5"])
    def test_generate_with_its_processor_gives_its_scores(self, make, generated_scores, kind):
        recommender = make(kind=kind, tau=0.7)
        scores = recommender.recommend([[100, 103]], k=12).scores[0]
        found = generated_scores(recommender, [0, 3])
        np.testing.assert_allclose(found, np.unique(scores)[::-1], rtol=1e-5, atol=1e-4)

    def test_the_processor_of_an_encoder_decoder_model_begins_behind_one_token(self, make):
        with pytest.raises(ValueError, match="`prompt_length` must be 1 .* got 17"):
            make(kind="t5").logits_processor(17)

    def test_a_prompt_that_does_not_fit_the_model_is_refused(self, make):
        recommender = make()
        recommender.model.config.n_positions = 20
        with pytest.raises(ValueError, match="do not fit into the 20 positions of the model. Make the prompt"):
            recommender.recommend([[107, 108, 109]], k=1)

    def test_parts_that_do_not_belong_together_are_named(self, make, tiny_catalog, tiny_lm, bpe_tokenizer):
        one = make()
        with pytest.raises(ValueError, match="`model` has 20 tokens"):
            LanguageModelRecommender(tiny_lm(vocab_size=20), bpe_tokenizer, tiny_catalog, one.prompt, one.trie)
        with pytest.raises(ValueError, match="`catalog` has 2 items, `prompt` 12 and `trie` 12"):
            LanguageModelRecommender(one.model, bpe_tokenizer, tiny_catalog.subset([0, 1]), one.prompt, one.trie)


class TestArguments:
    @pytest.mark.parametrize(
        "call, message",
        [
            ({"histories": [[100], [99]]}, r"`histories\[1\]`: Item 99 is not among the 12 items"),
            ({"histories": [100]}, "for one user, wrap it"),
            ({"k": 0}, "`k` must be a whole number of at least 1, got 0"),
            ({"k": 2.0}, "`k` must be a whole number"),
            ({"num_beams": 3}, "`num_beams` must be at least `k`, 10, got 3"),
            ({"k": 10**12}, "`k` is 1000000000000, but the catalog has 12 items"),
            ({"batch_size": -1}, "`batch_size` must be a whole number of at least 1, got -1"),
            ({"batch_size": 0}, "`batch_size` must be a whole number of at least 1, got 0"),
            ({"exclude": [[100], [100]]}, "`exclude` must be a list of item ids, or one such list for each of the 1"),
            ({"exclude": [100, [100]]}, "2 entries, 1 of them lists"),
            ({"allow": "100"}, "`allow` must be a list"),
            ({"allow": ["nope"]}, "`allow`: Item 'nope' is not among"),
            ({"timestamps": [[1, 2]]}, "`timestamps` must hold one list a history"),
        ],
    )
    def test_wrong_ones_are_named(self, make, call, message):
        with pytest.raises(ValueError, match=message):
            make().recommend(**{"histories": [[100]], **call})

    def test_a_subclass_must_say_how(self, tiny_catalog):
        with pytest.raises(NotImplementedError, match="Recommender must define _recommend_rows"):
            Recommender(tiny_catalog).recommend([[100]])
        with pytest.raises(NotImplementedError, match="Recommender must define _score_rows"):
            Recommender(tiny_catalog).score([[100]], [101])

    @pytest.mark.parametrize("size", [0, -1, 2.5, True])
    def test_no_batch_size_means_the_default_by_accident(self, make, size):
        with pytest.raises(ValueError, match="`batch_size` must be a whole number of at least 1"):
            make(batch_size=size)
        with pytest.raises(ValueError, match="`batch_size` must be a whole number of at least 1"):
            make().score([[100]], [101], batch_size=size)
