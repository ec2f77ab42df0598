"""The search on models that read the prompt in an encoder: T5, and others that a decoder row a beam must do for."""

import pytest
import torch
import transformers as hf

from hf_rec.search import cache_probe
from hf_rec.search.beam_search import score_leaves, trie_beam_search
from hf_rec.search.logits_process import TrieLogitsProcessor
from hf_rec.search.prefix_cache import RowPrefixes, TreePrefixes
from hf_rec.search.priors import TriePrior

from .conftest import left_pad
from .test_logits_process import generate, leaf_of
from .test_priors import best_of_leaf, make_prior


SCORINGS = ["valid", "full_vocab"]


def right_pad(prompts, width=None):
    width = width or max(map(len, prompts))
    input_ids = torch.tensor([prompt + [0] * (width - len(prompt)) for prompt in prompts])
    attention_mask = torch.tensor([[1] * len(prompt) + [0] * (width - len(prompt)) for prompt in prompts])
    return input_ids, attention_mask


def search(model, problem, num_beams=12, **settings):
    return trie_beam_search(model, *right_pad(problem.prompts), problem.csr, num_beams, **settings)


def family(name):
    """A tiny model: distances by another rule (UMT5), positions of its own and a bias after the head (BART)."""
    sizes = {"vocab_size": 20, "eos_token_id": 18, "pad_token_id": 0, "decoder_start_token_id": 0, "d_model": 32}
    t5 = {"d_kv": 8, "d_ff": 64, "num_layers": 1, "num_decoder_layers": 2, "num_heads": 2}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    config = {
        "mt5": lambda: hf.MT5Config(**t5, **sizes),
        "umt5": lambda: hf.UMT5Config(**t5, **sizes),
        "bart": lambda: hf.BartConfig(
            encoder_layers=1, decoder_layers=2, max_position_embeddings=32, bos_token_id=18, **heads, **sizes
        ),
    }[name]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = hf.AutoModelForSeq2SeqLM.from_config(config, trust_remote_code=False).eval()
        for weight in [*model.parameters(), *model.buffers()]:
            if weight.dim() > 1:
                weight.data.normal_(std=0.3)
    return model


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("scoring", SCORINGS)
def test_enough_beams_are_brute_force(problem, tiny_lm, scoring, attention):
    model = tiny_lm("t5", vocab_size=20)
    model.set_attn_implementation(attention)
    assert cache_probe.cache_ability(model, problem.csr) == cache_probe.Ability(None, None)
    exact = problem.exact_scores(model, tau=1.3, scoring=scoring)
    found = search(model, problem, tau=1.3, scoring=scoring)
    torch.testing.assert_close(found.scores, exact.sort(dim=1, descending=True).values)
    torch.testing.assert_close(found.scores, exact.gather(1, found.leaves))
    assert found.pruned_bound.tolist() == [-torch.inf] * 3
    if scoring == "valid":
        torch.testing.assert_close(found.scores.exp().sum(dim=1), torch.ones(3))
        assert found.steps == 3  # none is spent on what the trie forces
    scores = score_leaves(model, *right_pad(problem.prompts), problem.csr, torch.tensor([[3, 0]] * 3), 1.3, scoring)
    torch.testing.assert_close(scores, exact[:, [3, 0]])


@pytest.mark.parametrize("scoring", SCORINGS)
def test_with_a_prior_enough_beams_are_late_fusion_and_few_are_bounded(problem, tiny_lm, scoring):
    model, prior = tiny_lm("t5", vocab_size=20), make_prior(3, 13, weight=0.6)
    exact = 0.6 * problem.exact_scores(model, scoring=scoring) + best_of_leaf(prior, problem.csr)
    of_trie = TriePrior.below_nodes(prior, problem.csr)
    found = search(model, problem, scoring=scoring, prior=of_trie)
    torch.testing.assert_close(found.scores, exact.sort(dim=1, descending=True).values, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.scores, exact.gather(1, found.leaves), atol=1e-5, rtol=1e-5)
    few = search(model, problem, num_beams=2, scoring=scoring, prior=of_trie)
    for user in range(3):
        listed = few.leaves[user][few.leaves[user] >= 0]
        torch.testing.assert_close(exact[user][listed], few.scores[user][: len(listed)])
        missing = exact[user].index_fill(0, listed, -torch.inf).max()
        assert missing <= few.pruned_bound[user] + 1e-5
    assert (few.pruned_bound > -torch.inf).any()


@pytest.mark.parametrize(("name", "kind"), [("mt5", TreePrefixes), ("umt5", RowPrefixes), ("bart", RowPrefixes)])
def test_model_families_are_brute_force(problem, name, kind):
    model = family(name)
    prefixes = cache_probe.open_prefixes(model, *right_pad(problem.prompts), problem.csr)
    assert isinstance(prefixes, kind) and (prefixes.head is None) == (name == "bart")
    exact = problem.exact_scores(model)
    found = search(model, problem)
    torch.testing.assert_close(found.scores, exact.gather(1, found.leaves), atol=1e-4, rtol=1e-4)
    assert found.leaves.sort(dim=1).values.tolist() == [list(range(12))] * 3


@pytest.mark.parametrize("scoring", SCORINGS)
def test_batch_and_padding_do_not_matter(problem, tiny_lm, scoring):
    model = tiny_lm("t5", vocab_size=20)
    together = search(model, problem, num_beams=4, scoring=scoring)
    for pad in (left_pad, right_pad):  # T5 goes by distances alone
        padded = trie_beam_search(model, *pad(problem.prompts, 15), problem.csr, 4, scoring=scoring)
        torch.testing.assert_close(padded.scores, together.scores)
        assert torch.equal(padded.leaves, together.leaves)
    for user in range(3):
        alone = trie_beam_search(model, **problem.prompt(user), trie=problem.csr, num_beams=4, scoring=scoring)
        assert torch.equal(alone.leaves[0], together.leaves[user])
        torch.testing.assert_close(alone.scores[0], together.scores[user])
        torch.testing.assert_close(alone.pruned_bound[0], together.pruned_bound[user])


@pytest.mark.parametrize(("scoring", "num_beams"), [("full_vocab", 3), ("full_vocab", 12), ("valid", 12)])
def test_generate_with_the_logits_processor_gives_the_lists_of_the_search(problem, tiny_lm, scoring, num_beams):
    for seed in range(2):
        model = tiny_lm("t5", vocab_size=20, seed=seed)
        found = search(model, problem, num_beams=num_beams, scoring=scoring)
        for user in range(3):
            processor = TrieLogitsProcessor(problem.csr, prompt_length=1, scoring=scoring)
            beams = {"num_beams": num_beams, "num_return_sequences": num_beams, "length_penalty": 0.0}
            rows = generate(model, problem, processor, user, **beams)
            assert [leaf_of(problem, row[1:]) for row in rows.sequences] == found.leaves[user].tolist()
            torch.testing.assert_close(rows.sequences_scores, found.scores[user])


def test_the_bound_covers_every_leaf_that_is_missing(problem, tiny_lm):
    certified = 0
    for seed in range(4):
        model = tiny_lm("t5", vocab_size=20, seed=seed)
        exact = problem.exact_scores(model)
        for num_beams, num_results in ((1, 1), (2, 1), (3, 2), (6, 3)):
            found = search(model, problem, num_beams=num_beams, num_results=num_results)
            missing = torch.nn.functional.pad(exact, (0, 1), value=-torch.inf)
            missing = missing.scatter(1, found.leaves % 13, -torch.inf).amax(dim=1)
            assert (missing <= found.pruned_bound + 1e-4).all()
            sure = found.scores[:, num_results - 1] >= found.pruned_bound + 1e-4
            torch.testing.assert_close(
                found.scores[sure, :num_results], exact.topk(num_results, dim=1).values[sure], atol=1e-4, rtol=1e-4
            )
            certified += int(sure.sum())
    assert certified > 10


def test_a_user_is_encoded_once_and_the_beams_share_what_the_decoder_sees_of_it(problem, tiny_lm, monkeypatch):
    model, encoded, rows = tiny_lm("t5", vocab_size=20), [], []
    search(model, problem)  # probed
    model.encoder.register_forward_hook(lambda *_: encoded.append(1))
    model.decoder.block[0].layer[1].register_forward_hook(lambda *call: rows.append(call[2][0].shape[0]))
    found = search(model, problem)
    assert len(encoded) == 1 and len(rows) == found.steps
    assert max(rows) == 3  # as many as users, not as beams


def test_an_adapter_counts(problem, tiny_lm):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(target_modules=["q", "lm_head"], init_lora_weights=False, task_type="SEQ_2_SEQ_LM")
    model = get_peft_model(tiny_lm("t5", vocab_size=20), config).eval()
    exact = problem.exact_scores(model)
    found = search(model, problem)
    torch.testing.assert_close(found.scores, exact.gather(1, found.leaves))
    with model.disable_adapter():
        assert not torch.allclose(search(model, problem).scores, found.scores)


def test_a_decoder_that_begins_with_nobody_knows_what_is_refused(problem, tiny_lm):
    model = tiny_lm("t5", vocab_size=20)
    model.config.decoder_start_token_id = None
    with pytest.raises(ValueError, match="`decoder_start_token_id` is not set"):
        search(model, problem)
