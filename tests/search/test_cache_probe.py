"""Which models a search can run on: told by a probe of the model itself."""

from concurrent.futures import ThreadPoolExecutor
from itertools import product

import pytest
import torch
import transformers as hf
from datasets import Dataset

from hf_rec.search import cache_probe
from hf_rec.search.beam_search import trie_beam_search
from hf_rec.search.prefix_cache import RowPrefixes, TreePrefixes
from hf_rec.trie.item_trie import ItemTrie

from .conftest import SEP, Problem, left_pad


SIZES = {"vocab_size": 20, "bos_token_id": 18, "eos_token_id": 18, "pad_token_id": 0, "hidden_size": 32}
LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 64}
RECURRENT = {
    "Mamba": lambda: hf.MambaConfig(num_hidden_layers=2, state_size=8, **SIZES),
    "Mamba2": lambda: hf.Mamba2Config(
        num_hidden_layers=2, num_heads=4, head_dim=16, state_size=8, n_groups=1, chunk_size=8, **SIZES
    ),
    "RecurrentGemma": lambda: hf.RecurrentGemmaConfig(
        **{**LAYERS, "num_hidden_layers": 3}, lru_width=32, head_dim=16, attention_window_size=64, **SIZES
    ),
    "Rwkv": lambda: hf.RwkvConfig(num_hidden_layers=2, attention_hidden_size=32, **SIZES),
}


def make(config):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = hf.AutoModelForCausalLM.from_config(config, trust_remote_code=False).eval()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.data.normal_(std=0.3)
    return model


def search(model, problem, num_beams=12, **settings):
    return trie_beam_search(model, problem.input_ids, problem.attention_mask, problem.csr, num_beams, **settings)


class TestRefusal:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("name", RECURRENT)
    def test_a_model_whose_cache_goes_wrong_is_named_with_the_reason(self, problem, name, dtype):
        model = make(RECURRENT[name]()).to(dtype)
        for _ in range(2):
            with pytest.raises(ValueError, match=f"cannot run on {name}ForCausalLM: .* whole forward pass by"):
                search(model, problem)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("kind", ["llama", "gpt2"])
    def test_attention_passes(self, problem, tiny_lm, kind, dtype):
        model = tiny_lm(kind, vocab_size=20).to(dtype)
        assert cache_probe.cache_ability(model, problem.csr) == cache_probe.Ability(None, None)

    def test_a_cache_that_cannot_be_used_at_all_is_named(self, problem, tiny_lm, monkeypatch):
        model = tiny_lm("llama", vocab_size=20)
        forward = type(model).forward

        def no_cache(self, *args, past_key_values=None, **inputs):
            if past_key_values is not None:
                raise NotImplementedError("no cache here")
            return forward(self, *args, **inputs)

        monkeypatch.setattr(type(model), "forward", no_cache)
        with pytest.raises(ValueError, match="NotImplementedError: no cache here"):
            search(model, problem)

    def test_weights_that_are_nan_refuse_nothing(self, problem, tiny_lm):
        model = tiny_lm(vocab_size=20)
        weights = model.transformer.ln_f.bias.data.clone()
        model.transformer.ln_f.bias.data[0] = torch.nan
        assert cache_probe.cache_ability(model, problem.csr) == cache_probe.Ability(None, None)
        model.transformer.ln_f.bias.data.copy_(weights)
        assert search(model, problem).leaves[0, 0] >= 0


def test_a_model_is_probed_once_whatever_asks(problem, tiny_lm):
    model, passes = tiny_lm("llama", vocab_size=20), []
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    model.train()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: cache_probe.cache_ability(model, problem.csr), range(8)))
    assert len(passes) == 8 and model.training  # two caches: three steps and a whole pass each


def wide_problem():
    """Thirty-six items, two or three choices at each of four places, after prompts of 18 and of 5 tokens."""
    choices = product(range(3), range(3), range(2), range(2))
    paths = [[1 + a, 5, 4 + b, 7 + c, 10 + d, SEP] for a, b, c, d in choices]
    csr = ItemTrie.build(paths).csr()
    prompts = [[1 + token % 17 for token in range(length)] for length in (18, 5)]
    return Problem(csr, sorted(paths), prompts, *left_pad(prompts))


@pytest.mark.parametrize("method", ["msl", "softmax_dpo"])
def test_trainers_that_would_search_refuse_before_training(tiny_catalog, bpe_tokenizer, tmp_path, method):
    from hf_rec import MSLConfig, MSLTrainer, SoftmaxDPOConfig, SoftmaxDPOTrainer

    vocabulary = {**SIZES, "vocab_size": len(bpe_tokenizer)}
    rows = Dataset.from_list([{"user_id": "1", "history": [1, 2], "target": 3}])
    settings = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": "none", "max_length": 200}
    config, trainer = {"msl": (MSLConfig, MSLTrainer), "softmax_dpo": (SoftmaxDPOConfig, SoftmaxDPOTrainer)}[method]
    if method == "softmax_dpo":
        settings |= {"shared_prefix": False, "num_negatives": 2}
    for beams in (0, None):
        arguments = {
            "model": make(
                hf.Mamba2Config(
                    num_hidden_layers=1, num_heads=4, head_dim=16, state_size=8, n_groups=1, chunk_size=8, **vocabulary
                )
            ),
            "args": config(**settings, bf16=False, eval_num_beams=beams, gradient_checkpointing=False),
            "train_dataset": rows,
            "eval_dataset": rows,
            "processing_class": bpe_tokenizer,
            "catalog": tiny_catalog,
        }
        if beams == 0:
            trainer(**arguments)
            continue
        with pytest.raises(ValueError, match="cannot run on Mamba2ForCausalLM"):
            trainer(**arguments)


class TestSlidingWindows:
    @pytest.mark.parametrize(
        "window, kind", [(30, TreePrefixes), (24, TreePrefixes), (23, RowPrefixes), (12, RowPrefixes)]
    )
    @pytest.mark.parametrize("attention", ["sdpa", "eager"])
    def test_a_window_counts_positions_not_beams(self, window, kind, attention):
        problem = wide_problem()
        model = make(hf.MistralConfig(sliding_window=window, **SIZES, **LAYERS))
        model.set_attn_implementation(attention)
        exact = problem.exact_scores(model)
        prefixes = cache_probe.open_prefixes(model, problem.input_ids, problem.attention_mask, problem.csr)
        assert type(prefixes) is kind
        for num_beams in (20, 36):
            found = search(model, problem, num_beams)
            torch.testing.assert_close(found.scores, exact.gather(1, found.leaves), atol=1e-4, rtol=1e-4)
        assert found.leaves.sort(dim=1).values.tolist() == [list(range(36))] * 2

    def test_layers_with_and_without_a_window_share_one_cache(self):
        problem = wide_problem()
        config = hf.Gemma2Config(head_dim=16, sliding_window=30, **SIZES, **LAYERS)
        model = make(config)
        exact = problem.exact_scores(model)
        found = search(model, problem, 20)
        torch.testing.assert_close(found.scores, exact.gather(1, found.leaves), atol=1e-4, rtol=1e-4)


def test_a_configuration_that_asks_for_the_router_loss_is_searched_all_the_same(problem):
    config = hf.MixtralConfig(num_local_experts=4, output_router_logits=True, **SIZES, **LAYERS)
    model = make(config)
    found = search(model, problem)
    model.config.output_router_logits = False
    torch.testing.assert_close(found.scores, problem.exact_scores(model).gather(1, found.leaves), atol=1e-4, rtol=1e-4)
