"""Rows packed end to end train as rows of their own do."""

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, GPTNeoXConfig, MistralConfig, RecurrentGemmaConfig

from hf_rec.columns import HISTORY, SUPERVISE_FROM, TARGET
from hf_rec.trainers.msl.config import MSLConfig
from hf_rec.trainers.msl.trainer import MSLTrainer


ROWS = Dataset.from_dict(
    {
        HISTORY: [[1, 2, 7], [3], [4, 5, 6, 8, 1], [7, 8], [], [2, 2, 11, 0]],
        TARGET: [9, 10, 2, 5, 3, 6],
        SUPERVISE_FROM: [1, 1, 2, 1, 0, 1],
    }
)


@pytest.fixture
def make_trainer(tmp_path, bpe_tokenizer, tiny_catalog):
    def build(model, **kwargs):
        args = MSLConfig(
            str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no", **kwargs
        )
        return MSLTrainer(model, args, ROWS, processing_class=bpe_tokenizer, catalog=tiny_catalog)

    return build


def loss_and_gradients(trainer):
    trainer.model.eval()
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(len(ROWS))])
    loss = trainer.compute_loss(trainer.model, batch)
    return loss, torch.autograd.grad(loss, list(trainer.model.parameters()), allow_unused=True), batch


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("kind", "loss_type", "supervise"), [("llama", "msl", "all"), ("gpt2", "lml", "last")])
def test_packed_rows_have_the_loss_and_the_gradient_of_rows_on_their_own(
    make_trainer, tiny_lm, kind, loss_type, supervise, attention
):
    found = []
    for packing in (False, True):
        model = tiny_lm(kind)
        model.set_attn_implementation(attention)
        found.append(
            loss_and_gradients(make_trainer(model, packing=packing, loss_type=loss_type, supervise=supervise))
        )
    (loss, gradients, padded), (other_loss, other_gradients, packed) = found
    assert packed["input_ids"].shape[0] < padded["input_ids"].shape[0]
    torch.testing.assert_close(loss, other_loss, rtol=1e-6, atol=1e-6)
    for one, other in zip(gradients, other_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_a_packed_run_takes_the_steps_of_an_unpacked_one(make_trainer, tiny_lm):
    settings = {"max_steps": 3, "per_device_train_batch_size": 3, "logging_steps": 1, "supervise": "all"}
    runs = []
    for packing in (False, True):
        trainer = make_trainer(tiny_lm("llama"), packing=packing, **settings)
        trainer.train()
        runs.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert runs[1] == pytest.approx(runs[0], rel=1e-4)


class TestWhatIsRefused:
    def test_rows_longer_than_the_attention_window(self, make_trainer, bpe_tokenizer):
        config = MistralConfig(
            vocab_size=len(bpe_tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            sliding_window=128,
        )
        with pytest.raises(
            ValueError, match="`packing` must be False for MistralForCausalLM: rows may have 512 tokens"
        ):
            make_trainer(AutoModelForCausalLM.from_config(config, trust_remote_code=False), packing=True)

    def test_a_model_that_carries_a_state_past_the_mask(self, make_trainer, bpe_tokenizer):
        config = RecurrentGemmaConfig(
            vocab_size=len(bpe_tokenizer),
            hidden_size=32,
            lru_width=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            attention_window_size=512,
            block_types=["recurrent", "recurrent"],
        )
        trainer = make_trainer(
            AutoModelForCausalLM.from_config(config, trust_remote_code=False), packing=True, max_steps=1
        )
        with pytest.raises(ValueError, match="`packing` must be False for RecurrentGemmaForCausalLM: it"):
            trainer.train()

    def test_attention_that_takes_no_mask_of_ones_own(self, make_trainer, bpe_tokenizer):
        config = GPTNeoXConfig(
            vocab_size=len(bpe_tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=512,
        )
        model = AutoModelForCausalLM.from_config(config, attn_implementation="flex_attention", trust_remote_code=False)
        with pytest.raises(ValueError, match="its attention 'flex_attention' takes no mask"):
            make_trainer(model, packing=True)
