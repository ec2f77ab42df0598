import numpy as np
import pytest
import torch

from hf_rec.models.language.compact_head import CompactHead
from hf_rec.search import beam_search, cache_probe, prefix_cache
from hf_rec.search.beam_search import score_leaves, trie_beam_search
from hf_rec.search.leaf_filter import LeafFilter
from hf_rec.search.logits_process import TrieLogitsProcessor
from hf_rec.trie.item_trie import ItemTrie

from .conftest import SEP, left_pad
from .test_logits_process import generate, leaf_of


SCORINGS = ["valid", "full_vocab"]


def search(model, problem, num_beams=12, **settings):
    return trie_beam_search(model, problem.input_ids, problem.attention_mask, problem.csr, num_beams, **settings)


def leaf_filter(allowed, named="allowed"):
    lists = [np.flatnonzero(row if named == "allowed" else ~row) for row in allowed.numpy()]
    return LeafFilter.from_lists(lists, allowed.shape[1], named == "allowed", "cpu")


def family(name):
    """A tiny model of a family: other positions, soft-capped logits, sliding windows, ALiBi, no head to wrap."""
    import transformers as hf

    sizes = {"vocab_size": 20, "bos_token_id": 18, "eos_token_id": 18, "pad_token_id": 0}
    layers = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    grouped = {"num_key_value_heads": 1, "intermediate_size": 64, **layers}
    configs = {
        "qwen3": lambda: hf.Qwen3Config(head_dim=16, **grouped, **sizes),
        "gemma2": lambda: hf.Gemma2Config(head_dim=16, final_logit_softcapping=3.0, **grouped, **sizes),
        "gemma2_short_window": lambda: hf.Gemma2Config(head_dim=16, sliding_window=4, **grouped, **sizes),
        "mistral_short_window": lambda: hf.MistralConfig(sliding_window=4, **grouped, **sizes),
        "gpt_neox": lambda: hf.GPTNeoXConfig(intermediate_size=64, **layers, **sizes),
        "opt": lambda: hf.OPTConfig(ffn_dim=64, word_embed_proj_dim=32, **layers, **sizes),
        "bloom": lambda: hf.BloomConfig(hidden_size=32, n_layer=2, n_head=2, **sizes),
        "falcon_alibi": lambda: hf.FalconConfig(alibi=True, **layers, **sizes),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = hf.AutoModelForCausalLM.from_config(configs[name](), trust_remote_code=False).eval()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.data.normal_(std=0.3)
    return model


class TestTrieBeamSearch:
    @pytest.mark.parametrize("scoring", SCORINGS)
    @pytest.mark.parametrize("kind", ["gpt2", "llama"])
    def test_enough_beams_are_brute_force(self, problem, tiny_lm, scoring, kind):
        model = tiny_lm(kind, vocab_size=20)
        exact = problem.exact_scores(model, tau=1.3, scoring=scoring)
        found = search(model, problem, tau=1.3, scoring=scoring)
        torch.testing.assert_close(found.scores, exact.sort(dim=1, descending=True).values)
        torch.testing.assert_close(found.scores, exact.gather(1, found.leaves))
        assert found.pruned_bound.tolist() == [-torch.inf] * 3
        if scoring == "valid":
            torch.testing.assert_close(found.scores.exp().sum(dim=1), torch.ones(3))

    @pytest.mark.parametrize(
        "name, tree",
        [
            ("qwen3", True),
            ("gemma2", True),
            ("gemma2_short_window", False),
            ("mistral_short_window", False),
            ("gpt_neox", True),
            ("opt", True),
            ("bloom", False),
            ("falcon_alibi", False),
        ],
    )
    def test_model_families_are_brute_force(self, problem, name, tree):
        model = family(name)
        prefixes = cache_probe.open_prefixes(model, problem.input_ids, problem.attention_mask, problem.csr)
        assert isinstance(prefixes, prefix_cache.TreePrefixes) == tree
        for attention in ("eager", "sdpa") if model._supports_sdpa and "gemma2" not in name else ("eager",):
            model.set_attn_implementation(attention)
            exact = problem.exact_scores(model)
            found = search(model, problem)
            torch.testing.assert_close(found.scores, exact.gather(1, found.leaves), atol=1e-4, rtol=1e-4)
            assert found.leaves.sort(dim=1).values.tolist() == [list(range(12))] * 3

    @pytest.mark.parametrize("kind", ["llama", "t5"])
    @pytest.mark.parametrize("scoring", SCORINGS)
    def test_both_caches_and_plain_logits_agree(self, problem, tiny_lm, monkeypatch, scoring, kind):
        model = tiny_lm(kind, vocab_size=20)
        expected = search(model, problem, num_beams=12, scoring=scoring)
        monkeypatch.setattr(CompactHead, "install", lambda model: None)
        without_head = search(model, problem, num_beams=12, scoring=scoring)
        only_rows = cache_probe.Ability(tree="not now", rows=None)
        monkeypatch.setattr(cache_probe, "cache_ability", lambda *args: only_rows)
        one_row_a_beam = search(model, problem, num_beams=12, scoring=scoring)
        for other in (without_head, one_row_a_beam):
            torch.testing.assert_close(other.scores, expected.scores)
            assert torch.equal(other.leaves, expected.leaves)

    def test_no_step_is_spent_on_what_the_trie_forces(self, problem, tiny_lm):
        # After the prompt: one step below [1], [3, 10] and [5 .. 9], one below [1, 4, 5] and [1, 2].
        assert search(tiny_lm(vocab_size=20), problem).steps == 3
        assert search(tiny_lm(vocab_size=20), problem, scoring="full_vocab").steps == problem.csr.max_depth

    def test_a_trie_whose_items_all_start_alike(self, problem, tiny_lm):
        model = tiny_lm(vocab_size=20)
        csr = ItemTrie.build([[4, 4, *path] for path in problem.paths]).csr()
        started = [prompt + [4, 4] for prompt in problem.prompts]
        expected = trie_beam_search(model, *left_pad(started), problem.csr, 12)
        found = trie_beam_search(model, problem.input_ids, problem.attention_mask, csr, 12)
        torch.testing.assert_close(found.scores, expected.scores)
        assert torch.equal(found.leaves, expected.leaves) and found.steps == expected.steps

    def test_a_trie_of_one_item_gives_it_for_sure(self, problem, tiny_lm):
        csr = ItemTrie.build([[3, 9, SEP]]).csr()
        found = trie_beam_search(tiny_lm(vocab_size=20), problem.input_ids, problem.attention_mask, csr, 4)
        assert found.leaves.tolist() == [[0, -1, -1, -1]] * 3
        assert found.scores.tolist() == [[0.0] + [-torch.inf] * 3] * 3

    @pytest.mark.parametrize("scoring", SCORINGS)
    def test_batch_and_padding_do_not_matter(self, problem, tiny_lm, scoring):
        model = tiny_lm(vocab_size=20)
        together = search(model, problem, num_beams=4, scoring=scoring)
        input_ids, attention_mask = left_pad(problem.prompts, width=15)
        padded = trie_beam_search(model, input_ids, attention_mask, problem.csr, 4, scoring=scoring)
        torch.testing.assert_close(padded.scores, together.scores)
        for user in range(3):
            alone = trie_beam_search(model, **problem.prompt(user), trie=problem.csr, num_beams=4, scoring=scoring)
            assert torch.equal(alone.leaves[0], together.leaves[user])
            torch.testing.assert_close(alone.scores[0], together.scores[user])
            torch.testing.assert_close(alone.pruned_bound[0], together.pruned_bound[user])

    @pytest.mark.parametrize("num_beams", [2, 3, 5])
    def test_full_vocab_takes_the_steps_of_generate(self, problem, tiny_lm, num_beams):
        for seed in range(4):
            model = tiny_lm(vocab_size=20, seed=seed)
            found = search(model, problem, num_beams=num_beams, scoring="full_vocab")
            for user, prompt in enumerate(problem.prompts):
                processor = TrieLogitsProcessor(problem.csr, len(prompt), scoring="full_vocab")
                beams = {"num_beams": num_beams, "num_return_sequences": num_beams, "length_penalty": 0.0}
                listed = generate(model, problem, processor, user, **beams)
                leaves = [leaf_of(problem, row[len(prompt) :]) for row in listed.sequences]
                assert found.leaves[user].tolist() == leaves
                torch.testing.assert_close(found.scores[user], listed.sequences_scores)

    @pytest.mark.parametrize("scoring", SCORINGS)
    def test_forbidden_leaves_leave_the_other_scores_alone(self, problem, tiny_lm, scoring):
        model = tiny_lm(vocab_size=20)
        exact = problem.exact_scores(model, scoring=scoring)
        allowed = torch.rand(3, 12, generator=torch.Generator().manual_seed(1)) < 0.5
        allowed[2] = False
        found = search(model, problem, num_beams=12, scoring=scoring, allowed_leaves=leaf_filter(allowed))
        expected = exact.masked_fill(~allowed, -torch.inf).sort(dim=1, descending=True)
        torch.testing.assert_close(found.scores, expected.values)
        assert torch.equal(found.leaves, expected.indices.masked_fill(expected.values == -torch.inf, -1))
        for_all = search(model, problem, num_beams=12, scoring=scoring, allowed_leaves=leaf_filter(allowed[:1]))
        torch.testing.assert_close(for_all.scores[0], found.scores[0])
        assert set(for_all.leaves[1].tolist()) == set(found.leaves[0].tolist())

    @pytest.mark.parametrize("scoring", SCORINGS)
    def test_the_bound_covers_every_leaf_that_is_missing(self, problem, tiny_lm, scoring):
        certified = 0
        for seed in range(6):
            model = tiny_lm(vocab_size=20, seed=seed)
            exact = problem.exact_scores(model, scoring=scoring)
            allowed = torch.rand(3, 12, generator=torch.Generator().manual_seed(seed)) < 0.7
            for num_beams, num_results in ((1, 1), (2, 1), (3, 2), (6, 3)):
                filtered = leaf_filter(allowed, named="forbidden" if seed % 2 else "allowed")
                settings = {"scoring": scoring, "allowed_leaves": filtered, "num_results": num_results}
                found = search(model, problem, num_beams=num_beams, **settings)
                best = exact.masked_fill(~allowed, -torch.inf).topk(num_results, dim=1).values
                missing = torch.nn.functional.pad(exact.masked_fill(~allowed, -torch.inf), (0, 1), value=-torch.inf)
                missing = missing.scatter(1, found.leaves % 13, -torch.inf).amax(dim=1)
                assert (missing <= found.pruned_bound + 1e-4).all()
                sure = found.scores[:, num_results - 1] >= found.pruned_bound + 1e-4
                torch.testing.assert_close(found.scores[sure, :num_results], best[sure])
                certified += int(sure.sum())
        assert certified > 10

    def test_logits_that_are_nan_find_nothing(self, problem, tiny_lm):
        model = tiny_lm(vocab_size=20)
        model.transformer.ln_f.bias.data[0] = torch.nan
        found = search(model, problem)
        assert (found.leaves == -1).all() and (found.scores == -torch.inf).all()
        assert found.nan_scores.tolist() == [len(problem.csr.children(torch.tensor([0]))[0])] * 3

    def test_an_adapter_counts(self, problem, tiny_lm):
        from peft import LoraConfig, PromptTuningConfig, get_peft_model

        config = LoraConfig(target_modules=["q_proj", "lm_head"], init_lora_weights=False, task_type="CAUSAL_LM")
        model = get_peft_model(tiny_lm("llama", vocab_size=20), config).eval()
        exact = problem.exact_scores(model)
        found = search(model, problem)
        torch.testing.assert_close(found.scores, exact.gather(1, found.leaves))
        with model.disable_adapter():
            assert not torch.allclose(search(model, problem).scores, found.scores)
        prompt_tuned = get_peft_model(
            tiny_lm("llama", vocab_size=20), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
        )
        with pytest.raises(ValueError, match="virtual tokens"):
            search(prompt_tuned, problem)

    def test_half_precision_stays_near(self, problem, tiny_lm):
        model = tiny_lm("llama", vocab_size=20)
        exact = problem.exact_scores(model)
        found = search(model.bfloat16(), problem)
        torch.testing.assert_close(found.scores, exact.gather(1, found.leaves), atol=0.3, rtol=0.05)

    def test_a_process_that_is_done_keeps_step_with_the_others(self, problem, tiny_lm, monkeypatch):
        flags = []

        def any_process(live, device):  # another process needs seven steps
            flags.append(live)
            return 1 < len(flags) < 8

        monkeypatch.setattr(beam_search, "_runs_in_step", lambda model: True)
        monkeypatch.setattr(beam_search, "_any_process", any_process)
        model, passes = tiny_lm(vocab_size=20), []
        cache_probe.cache_ability(model, problem.csr)
        model.register_forward_pre_hook(lambda *_: passes.append(1))
        found = search(model, problem)
        assert flags == [False] + [True, True] + [False] * 5  # first: whether anyone must still probe the model
        assert found.steps == 3 and len(passes) == 7

    def test_wrong_arguments_are_named(self, problem, tiny_lm):
        with pytest.raises(ValueError, match="`num_beams` must be at least 1, got 0"):
            search(None, problem, num_beams=0)


class TestScoreLeaves:
    @pytest.mark.parametrize("scoring", SCORINGS)
    @pytest.mark.parametrize("chunk_size", [1, 2, 512])
    def test_scores_are_brute_force_in_the_order_asked(self, problem, tiny_lm, scoring, chunk_size):
        model = tiny_lm(vocab_size=20)
        exact = problem.exact_scores(model, tau=0.8, scoring=scoring)
        leaves = torch.tensor([[3, 1, -1, 11], [5, 5, 0, 5], [-1, -1, -1, -1]])
        scores = score_leaves(
            model, problem.input_ids, problem.attention_mask, problem.csr, leaves, 0.8, scoring, chunk_size
        )
        expected = exact.gather(1, leaves.clamp(min=0)).masked_fill(leaves < 0, -torch.inf)
        torch.testing.assert_close(scores, expected)
