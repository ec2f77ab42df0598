"""The prompt computed once against the prompt repeated, in float32, on several kinds of attention."""

from copy import deepcopy

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
)

from hf_rec.columns import ATTENTION_MASK
from hf_rec.data.preference_collator import PreferenceCollator
from hf_rec.models.language.compact_head import CompactHead
from hf_rec.trainers.packed_rows import attention_mask, attention_window, mask_dtype
from hf_rec.trainers.softmax_dpo.packed_answers import PackedAnswers
from hf_rec.trainers.softmax_dpo.prompt_sharing import probe_gap, refusal
from hf_rec.trainers.trie_logits import vocabulary_logits


SIZE = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
CONFIGS = {
    "gpt2": GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=2, n_positions=128, initializer_range=0.2),
    "llama": LlamaConfig(**SIZE),
    "qwen2": Qwen2Config(**SIZE),
    "gemma2": Gemma2Config(**SIZE, head_dim=8, sliding_window=128, final_logit_softcapping=5.0),
    "mistral": MistralConfig(**SIZE, sliding_window=128),
}


def make_model(name, implementation):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(
        deepcopy(CONFIGS[name]), attn_implementation=implementation, trust_remote_code=False
    ).eval()


def make_batch(pad=3):
    generator = torch.Generator().manual_seed(1)

    def tokens(count):
        return torch.randint(1, 60, (count,), generator=generator).tolist()

    sizes = [(30, (5, 1, 7, 4)), (1, (4, 4)), (17, (2, 6, 9))]
    rows = [
        {"prompt_ids": tokens(prompt), "chosen_ids": tokens(chosen), "rejected_ids": [tokens(n) for n in rejected]}
        for prompt, (chosen, *rejected) in sizes
    ]
    return PackedAnswers.from_batch(PreferenceCollator(pad)(rows)), rows


def log_probs(model, batch, packed, implementation):
    inputs, targets = batch.select(packed)
    if packed:
        inputs[ATTENTION_MASK] = attention_mask(batch.answers, implementation, mask_dtype(model))
    logits = vocabulary_logits(model, CompactHead.install(model), inputs, targets.positions)
    found = logits.log_softmax(1).gather(1, targets.tokens[:, None]).squeeze(1)
    shape = batch.answer_lengths.shape
    return torch.zeros(shape).flatten().index_add(0, targets.groups, found).view(shape)


# transformers offers Gemma-2 with eager attention only
@pytest.mark.parametrize(
    ("name", "implementation"),
    [(name, kind) for name in sorted(CONFIGS) for kind in ("sdpa", "eager") if (name, kind) != ("gemma2", "sdpa")],
)
def test_both_ways_give_the_log_probabilities_of_one_answer_at_a_time(name, implementation):
    model, (batch, rows) = make_model(name, implementation), make_batch()
    expected = torch.zeros(batch.answer_lengths.shape)
    with torch.no_grad():
        for number, row in enumerate(rows):
            for slot, answer in enumerate([row["chosen_ids"], *row["rejected_ids"]]):
                logits = model(input_ids=torch.tensor([row["prompt_ids"] + answer])).logits[0, -len(answer) - 1 : -1]
                expected[number, slot] = logits.log_softmax(1).gather(1, torch.tensor(answer)[:, None]).sum()
    gradients = []
    for packed in (True, False):
        found = log_probs(model, batch, packed, implementation)
        torch.testing.assert_close(found.detach(), expected, atol=1e-5, rtol=1e-5)
        gradients.append(torch.autograd.grad((found * torch.arange(1.0, 13.0).view(3, 4)).sum(), model.parameters()))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-3)


def test_the_mask_shows_a_token_its_prompt_and_its_own_answer_only():
    answers = torch.tensor([[0, 0, 1, 1, 2, -1]])
    expected = [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 1, 0, 0, 0, 1],
    ]
    assert attention_mask(answers, "sdpa", torch.float32)[0, 0].int().tolist() == expected
    eager = attention_mask(answers, "eager", torch.float16)
    assert eager.dtype == torch.float16 and (eager[0, 0] == 0).int().tolist() == expected


def test_the_prompts_alone_are_padded_on_the_left():
    batch, rows = make_batch()
    input_ids, mask = batch.prompts()
    for row, ids, real in zip(rows, input_ids, mask, strict=True):
        assert ids[real.bool()].tolist() == row["prompt_ids"]
        assert real.tolist() == sorted(real.tolist())


class TestWhetherAModelCan:
    @pytest.mark.parametrize("name", sorted(CONFIGS))
    def test_the_probe_finds_that_these_do(self, name):
        model, (batch, _) = make_model(name, "eager"), make_batch()
        assert refusal(model) is None
        assert probe_gap(model, CompactHead.install(model), batch, "eager") < 1e-5

    def test_the_probe_finds_a_window_that_the_configuration_does_not_tell(self):
        model, (batch, _) = make_model("llama", "eager"), make_batch()
        forward = type(model.model).forward

        def windowed(self, *args, **kwargs):
            mask = kwargs["attention_mask"]
            if mask is not None and mask.ndim == 4:  # as a layer that adds its own window to any mask
                kwargs["attention_mask"] = mask.masked_fill(torch.ones_like(mask).tril(-20) > 0, -1e30)
            return forward(self, *args, **kwargs)

        model.model.forward = windowed.__get__(model.model)
        assert probe_gap(model, CompactHead.install(model), batch, "eager") > 0.1

    def test_what_the_configuration_tells_is_not_tried(self):
        model = make_model("mistral", "eager")
        assert attention_window(model.config) == 128
        model.config.sliding_window = 64
        assert "window" in refusal(model)
        model.config._attn_implementation = "flash_attention_2"
        assert "flash_attention_2" in refusal(model)
        falcon = FalconConfig(vocab_size=60, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, alibi=True)
        model = AutoModelForCausalLM.from_config(falcon, attn_implementation="eager", trust_remote_code=False).eval()
        with pytest.raises(ValueError):  # takes no mask of this kind: the trainer falls back
            probe_gap(model, CompactHead.install(model), make_batch()[0], "eager")
