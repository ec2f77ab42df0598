"""Softmax-DPO on a folder with collaborative tokens: shared prompts, and every reference, know them."""

import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from hf_rec import SASRecConfig, SASRecModel, load_recommender
from hf_rec.columns import HISTORY, REJECTED, TARGET
from hf_rec.trainers.msl.config import MSLConfig
from hf_rec.trainers.msl.trainer import MSLTrainer
from hf_rec.trainers.softmax_dpo.config import SoftmaxDPOConfig
from hf_rec.trainers.softmax_dpo.trainer import SoftmaxDPOTrainer


ROWS = Dataset.from_dict(
    {
        HISTORY: [[1, 2, 7, 4, 5, 1], [3], [4, 5, 6, 8, 1], [7, 8]],
        TARGET: [9, 10, 2, 5],
        REJECTED: [[0, 3], [1, 2], [9, 11], [6, 1]],
    }
)
SETTINGS = {
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "learning_rate": 5e-3,
    "logging_steps": 1,
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
    "save_strategy": "no",
}
LORA = {"target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}


@pytest.fixture(scope="module", params=["whole", "adapter"])
def start(request, tiny_lm, bpe_tokenizer, tiny_catalog, tmp_path_factory):
    """A trained folder with states and user tokens."""
    root = tmp_path_factory.mktemp("start")
    tiny_lm("llama").save_pretrained(root / "base")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        sequence_model = SASRecModel(SASRecConfig(num_items=12, hidden_size=8, max_length=4))
    trainer = MSLTrainer(
        str(root / "base"),
        MSLConfig(str(root / request.param), collaborative="state", user_token=True, **SETTINGS),
        train_dataset=ROWS,
        processing_class=bpe_tokenizer,
        catalog=tiny_catalog,
        peft_config=LoraConfig(**LORA) if request.param == "adapter" else None,
        sequence_model=sequence_model,
    )
    trainer.train()
    trainer.save_model()
    return root / request.param


def test_the_first_step_sees_policy_and_reference_alike_and_the_second_does_not(start, tmp_path):
    """With equal log-ratios the loss of a row with K rejected items is log(1 + K)."""
    found = {}
    for shared_prefix in (True, False):
        args = SoftmaxDPOConfig(str(tmp_path / str(shared_prefix)), shared_prefix=shared_prefix, **SETTINGS)
        trainer = SoftmaxDPOTrainer(str(start), args=args, train_dataset=ROWS)
        trainer.train()
        found[shared_prefix] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert found[True][0] == pytest.approx(math.log(3), abs=1e-5)
    assert abs(found[True][1] - math.log(3)) > 1e-4
    assert found[True] == pytest.approx(found[False], rel=1e-4)
    trainer.save_model()
    histories = [[101, 102, 107], [103]]
    expected = trainer.recommender().recommend(histories, k=5)
    assert load_recommender(tmp_path / "False", device="cpu").recommend(histories, k=5).item_ids == expected.item_ids


@pytest.mark.parametrize("start", ["whole"], indirect=True)
def test_a_new_adapter_is_held_against_its_base(start, tmp_path):
    args = SoftmaxDPOConfig(str(tmp_path), **SETTINGS)
    trainer = SoftmaxDPOTrainer(str(start), args=args, train_dataset=ROWS, peft_config=LoraConfig(**LORA))
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx(math.log(3), abs=1e-5) and abs(losses[1] - math.log(3)) > 1e-4
