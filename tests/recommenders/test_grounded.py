"""Grounding against brute force: each text read alone, each distance taken in float64."""

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hf_rec.data.catalog import Catalog
from hf_rec.data.prompts.next_item import Prompt
from hf_rec.recommenders.controls import LastItemRecommender, PopularityRecommender
from hf_rec.recommenders.fused import FusedRecommender
from hf_rec.recommenders.grounded import GroundedRecommender, _cut, _EndsWith, weighted
from hf_rec.recommenders.language_model import LanguageModelRecommender
from hf_rec.recommenders.text_states import TextStates
from hf_rec.trie.item_trie import ItemTrie


HISTORIES = [[100, 105, 103], [], [111], [107, 108, 109, 110, 100]]
ROWS = [{"history": [0, 1, 2, 3], "target": 5, "supervise_from": 0}, {"history": [5, 1], "target": 2}]


@pytest.fixture(scope="module")
def writer(tiny_catalog, bpe_tokenizer, tiny_lm):
    def build(catalog=tiny_catalog, kind="gpt2", **settings):
        prompt = Prompt(bpe_tokenizer, catalog, **settings)
        csr = ItemTrie.build(prompt.encode_items()).csr()
        return LanguageModelRecommender(tiny_lm(kind), bpe_tokenizer, catalog, prompt, csr)

    return build


@pytest.fixture(scope="module")
def grounded(writer, tiny_lm, bpe_tokenizer):
    def build(**settings):
        return GroundedRecommender(writer(), tiny_lm("llama", seed=1), bpe_tokenizer, **settings)

    return build


@pytest.fixture(scope="module")
def popularity(tiny_catalog):
    return PopularityRecommender(tiny_catalog, ROWS)


def state(model, tokenizer, text):
    """The last-layer state at the last token of a text that is read alone."""
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]])
    with torch.no_grad():
        return model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0, -1].double()


def brute_force(recommender, model, tokenizer):
    """Scaled distances `(U, N)` between what was written and each title."""
    items = torch.stack([state(model, tokenizer, title) for title in recommender.catalog.titles])
    histories = [recommender.catalog.rows(history) for history in HISTORIES]
    rows = []
    for text in recommender.write(histories):
        distance = (items - state(model, tokenizer, text)).square().sum(dim=1).sqrt()
        rows.append((distance - distance.min()) / (distance.max() - distance.min()))
    return torch.stack(rows).numpy()


class TestScores:
    def test_distances_are_those_of_texts_read_one_by_one(self, grounded, tiny_lm, bpe_tokenizer):
        recommender = grounded()
        expected = -brute_force(recommender, tiny_lm("llama", seed=1), bpe_tokenizer)
        # States differ by the rounding of a batch, near 1e-6 of their size
        np.testing.assert_allclose(recommender.score_all(HISTORIES), expected, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("gamma", [0.3, 40.0])
    def test_a_weight_divides_the_distance(self, grounded, popularity, tiny_lm, bpe_tokenizer, gamma):
        recommender = grounded(weight=popularity, gamma=gamma)
        counts = popularity.counts / popularity.counts.max()
        expected = -brute_force(recommender, tiny_lm("llama", seed=1), bpe_tokenizer) / (1 + counts) ** gamma
        np.testing.assert_allclose(recommender.score_all(HISTORIES), expected, rtol=1e-4, atol=1e-5)

    def test_gamma_0_is_unweighted(self, grounded, popularity):
        np.testing.assert_array_equal(
            grounded(weight=popularity).score_all(HISTORIES), grounded().score_all(HISTORIES)
        )

    def test_the_weight_of_a_personal_recommender_is_that_of_the_user(self, grounded, tiny_catalog):
        last = LastItemRecommender(tiny_catalog, ROWS)
        scores, plain = (r.score_all(HISTORIES) for r in (grounded(weight=last, gamma=2), grounded()))
        raw = last.score_all(HISTORIES)
        preference = (raw - raw.min(1, keepdims=True)) / (raw.max(1, keepdims=True) - raw.min(1, keepdims=True))
        np.testing.assert_allclose(scores, plain / (1 + preference) ** 2, rtol=1e-5)

    def test_what_is_an_items_own_text_has_the_distance_0(self, grounded, monkeypatch):
        recommender = grounded()
        monkeypatch.setattr(recommender, "write", lambda histories: ["Solaris"] * len(histories))
        found = recommender.recommend(HISTORIES, k=3)
        assert [items[:2] for items in found.item_ids] == [[103, 104]] * 4  # one title: in row order
        assert (found.scores[:, :2] == 0).all() and (found.scores[:, 2] < 0).all()
        assert found.certified.all()

    def test_batches_change_nothing_beyond_rounding(self, grounded):
        recommender = grounded()
        alone = np.concatenate([recommender.score_all([history]) for history in HISTORIES])
        np.testing.assert_allclose(recommender.score_all(HISTORIES), alone, rtol=0, atol=1e-5)

    def test_exclude_and_allow_leave_the_other_scores(self, grounded, popularity):
        recommender = grounded(weight=popularity, gamma=1.0)
        everything = dict(zip(recommender.catalog.ids, recommender.score_all(HISTORIES)[1], strict=True))
        best = recommender.recommend([[]], k=1).item_ids[0][0]
        found = recommender.recommend([[]], k=12, exclude=[best, 105])
        assert len(found.item_ids[0]) == 10 and not {best, 105} & set(found.item_ids[0])
        for item, score in zip(found.item_ids[0], found.scores[0], strict=False):
            assert score == pytest.approx(everything[item], abs=1e-5)
        assert recommender.recommend([[]], k=3, allow=[104, 103]).item_ids == [[103, 104]]

    def test_candidates_have_the_scores_of_the_list(self, grounded):
        scores = grounded().score(HISTORIES, [111, 100])
        everything = grounded().score_all(HISTORIES)
        np.testing.assert_array_equal(np.stack(scores), everything[:, [11, 0]])

    def test_a_catalog_of_one_text_has_no_distances(self, writer, tiny_lm, bpe_tokenizer):
        twins = Catalog.from_records([{"item_id": row, "title": "Heat"} for row in range(3)])
        recommender = GroundedRecommender(writer(twins), tiny_lm(), bpe_tokenizer)
        assert recommender.item_vectors.shape == (1, 32)
        assert recommender.recommend([[]], k=3).item_ids == [[0, 1, 2]]

    def test_the_nearest_item_scores_0_without_a_sign(self):
        scores = weighted(torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 1.0]]), 100.0)
        assert not scores[0, 0].signbit() and scores[0, 1] == -(2.0**-100)


class TestText:
    def test_the_text_is_what_greedy_search_by_hand_writes(self, grounded, bpe_tokenizer):
        recommender = grounded(num_beams=1)
        model, prompt = recommender.writer.model, recommender.writer.prompt
        for history, text in zip([[0, 5], [11]], recommender.write([[0, 5], [11]]), strict=True):
            ids, written = prompt.encode_history(history), []
            while len(written) < recommender.writer.trie.max_depth:
                token = int(model(input_ids=torch.tensor([ids + written])).logits[0, -1].argmax())
                if [token] == prompt.separator_ids or token == bpe_tokenizer.eos_token_id:
                    break
                written.append(token)
            assert text == " ".join(bpe_tokenizer.decode(written, skip_special_tokens=True).split())

    def test_settings_for_chats_are_left_aside(self, grounded):
        recommender = grounded(num_beams=1)
        expected = recommender.write([[0, 5]])
        config = recommender.writer.model.generation_config
        config.update(repetition_penalty=3.0, do_sample=True, temperature=5.0, no_repeat_ngram_size=1)
        assert recommender.write([[0, 5]]) == expected

    def test_an_encoder_decoder_model_writes_too(self, writer, tiny_lm, bpe_tokenizer):
        recommender = GroundedRecommender(writer(kind="t5"), tiny_lm(), bpe_tokenizer, num_beams=2)
        assert recommender.score_all(HISTORIES).shape == (4, 12)

    def test_an_end_is_found_in_what_was_written_alone(self):
        ends = _EndsWith([7, 8], before=2)
        assert ends(torch.tensor([[1, 7, 8]]), None).tolist() == [False]
        assert ends(torch.tensor([[1, 1, 7, 8], [1, 1, 8, 7]]), None).tolist() == [True, False]
        assert _cut([3, 7, 1, 7, 8, 5], [[7, 8], [2]]) == [3, 7, 1] and _cut([2, 3], [[2]]) == []


class TestStates:
    def test_padding_and_the_order_of_texts_change_nothing_beyond_rounding(self, tiny_lm, bpe_tokenizer):
        states = TextStates(tiny_lm("llama"), bpe_tokenizer)
        tokens = states.tokens(["Heat", "", 'The "Great" Escape, Part 1', "<s>Heat</s>"])
        assert bpe_tokenizer.eos_token_id not in tokens[3] and tokens[1] == (bpe_tokenizer.bos_token_id,)
        for pooling in ("last", "mean"):
            alone = torch.cat([states.vectors([text], pooling) for text in tokens])
            torch.testing.assert_close(states.vectors(tokens[::-1], pooling).flip(0), alone, rtol=0, atol=1e-5)

    def test_the_mean_leaves_the_first_token_out(self, tiny_lm, bpe_tokenizer):
        model = tiny_lm("llama")
        states = TextStates(model, bpe_tokenizer)
        (tokens,) = states.tokens(["Stalker"])
        with torch.no_grad():
            expected = model.base_model(input_ids=torch.tensor([tokens])).last_hidden_state[0, 1:].mean(dim=0)
        torch.testing.assert_close(states.vectors([tokens], "mean")[0], expected, rtol=0, atol=1e-5)

    def test_a_text_that_is_too_long_is_refused(self, tiny_lm, bpe_tokenizer):
        with pytest.raises(ValueError, match="does not fit into the 512 positions"):
            TextStates(tiny_lm(), bpe_tokenizer).tokens(["Heat " * 600])

    def test_other_models_are_refused(self, tiny_lm, bpe_tokenizer):
        with pytest.raises(ValueError, match="causal language model, got a T5"):
            TextStates(tiny_lm("t5"), bpe_tokenizer)


def test_processes_share_the_items_out(grounded, monkeypatch):
    shares = []
    for rank in (0, 1):
        state = SimpleNamespace(process_index=rank, num_processes=2, device="cpu")
        monkeypatch.setattr("hf_rec.recommenders.grounded.process_state", lambda state=state: state)
        monkeypatch.setattr("accelerate.utils.gather", lambda own: shares.append(own) or own)
        grounded().encode_items()
    assert list(map(len, shares)) == [6, 6]  # of 11 texts
    torch.testing.assert_close(torch.cat(shares)[:11], grounded().item_vectors, rtol=0, atol=1e-5)


def test_threads_get_the_lists_that_one_gets(grounded, popularity):
    recommender = grounded(weight=popularity, gamma=0.5)
    expected = recommender.score_all(HISTORIES)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: recommender.score_all(HISTORIES), range(6)):
            np.testing.assert_array_equal(found, expected)


def test_a_fusion_takes_it(grounded, popularity):
    fused = FusedRecommender([grounded(), popularity], [1, 0.5])
    log_q = grounded().score_all(HISTORIES)
    log_q = log_q - np.log(np.exp(log_q).sum(axis=1, keepdims=True))
    expected = log_q + 0.5 * popularity.log_probabilities([[]] * 4, None).numpy()
    np.testing.assert_allclose(fused.score_all(HISTORIES), expected, rtol=1e-5)


class TestBadInput:
    @pytest.mark.parametrize(
        "settings, message",
        [
            ({"item_vectors": torch.zeros(12, 32)}, r"shape \(11, 32\), .* got \(12, 32\)"),
            ({"item_vectors": torch.full((11, 32), torch.nan)}, "NaN or infinite"),
            ({"gamma": 1.0}, "there is no `weight`"),
            ({"gamma": -1.0}, "from 0 to 100, got -1.0"),
            ({"gamma": float("nan")}, "from 0 to 100, got nan"),
            ({"weight": "popularity"}, "`weight` must be a recommender, got 'popularity'"),
            ({"num_beams": 0}, "`num_beams` must be a whole number of at least 1"),
        ],
    )
    def test_settings(self, grounded, settings, message):
        with pytest.raises(ValueError, match=message):
            grounded(**settings)

    def test_a_weight_over_other_items(self, grounded):
        other = PopularityRecommender(Catalog.from_records([{"item_id": 1, "title": "Heat"}]), [])
        with pytest.raises(ValueError, match="over another catalog"):
            grounded(weight=other)

    def test_a_weight_that_is_damaged(self, grounded, popularity, monkeypatch):
        recommender = grounded(weight=popularity, gamma=1)
        monkeypatch.setattr(popularity, "counts", np.full(12, np.nan))
        with pytest.raises(ValueError, match="48 scores that are NaN or infinite"):
            recommender.score_all(HISTORIES)

    def test_a_writer_that_writes_no_text(self, writer, popularity, tiny_lm, bpe_tokenizer):
        with pytest.raises(ValueError, match="got a PopularityRecommender"):
            GroundedRecommender(popularity, tiny_lm(), bpe_tokenizer)
        with pytest.raises(ValueError, match="'digits', which is no text"):
            GroundedRecommender(writer(item_path="digits"), tiny_lm(), bpe_tokenizer)
