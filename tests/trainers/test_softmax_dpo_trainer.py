"""SoftmaxDPOTrainer on tiny models: against TRL's DPO, against one row at a time, and every kind of reference."""

import inspect
import json
import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer

from hf_rec import load_recommender
from hf_rec.columns import HISTORY, REJECTED, TARGET
from hf_rec.data.prompts import Prompt
from hf_rec.losses.trie_softmax import masked_softmax_loss
from hf_rec.trainers.msl_config import MSLConfig
from hf_rec.trainers.msl_trainer import MSLTrainer
from hf_rec.trainers.softmax_dpo_config import SoftmaxDPOConfig
from hf_rec.trainers.softmax_dpo_trainer import SoftmaxDPOTrainer
from hf_rec.trie.item_trie import ItemTrie


LORA = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}


def item_rows(count=16, num_rejected=None, seed=0):
    """Histories of 1 to 4 films; rejected films, where asked for, are neither the target nor share its title."""
    generator = torch.Generator().manual_seed(seed)
    events = torch.randint(0, 12, (count, 5), generator=generator).tolist()
    rows = {
        HISTORY: [event[: 1 + row % 4] for row, event in enumerate(events)],
        TARGET: [event[1 + row % 4] for row, event in enumerate(events)],
    }
    if num_rejected is not None:
        twins = {3: 4, 4: 3}
        rows[REJECTED] = [
            [item for item in range(12) if item not in (target, twins.get(target))][:num_rejected]
            for target in rows[TARGET]
        ]
    return Dataset.from_dict(rows)


TEXT = {
    "prompt": ["Solaris, then Stalker, then", "Alien and", "The Fly, or"] * 2,
    "chosen": [" Heat", " Aliens", " Solaris and more"] * 2,
    "rejected": [" Alien", " Amélie is it", " The"] * 2,
}


def settings(folder, **kwargs):
    defaults = {
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "learning_rate": 5e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "lr_scheduler_type": "constant",
    }
    return {"output_dir": str(folder)} | defaults | kwargs


@pytest.fixture
def make_trainer(tmp_path, tiny_lm, bpe_tokenizer, tiny_catalog):
    def build(model=None, train=None, folder="run", eval_dataset=None, catalog=tiny_catalog, **kwargs):
        extra = {
            name: kwargs.pop(name)
            for name in ("peft_config", "ref_model", "compute_metrics", "prompt")
            if name in kwargs
        }
        return SoftmaxDPOTrainer(
            model=tiny_lm("llama") if model is None else model,
            args=SoftmaxDPOConfig(**settings(tmp_path / folder, **kwargs)),
            train_dataset=item_rows() if train is None else train,
            eval_dataset=eval_dataset,
            processing_class=bpe_tokenizer,
            catalog=catalog,
            **extra,
        )

    return build


@pytest.fixture
def adapter_model(tiny_lm):
    """A function that makes a PEFT model with an adapter that has been trained, so that it is not the base model."""

    def build(base=None, **config):
        model = get_peft_model(tiny_lm("llama") if base is None else base, LoraConfig(**LORA | config))
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_B" in name:
                    weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
        return model

    return build


def first_batch(trainer, count=4):
    return trainer.data_collator([trainer.train_dataset[row] for row in range(count)])


def plain_log_probs(model, trainer, scoring, tau):
    """Log-probability of each answer of the first rows, one sequence and one token at a time."""
    csr, rows = trainer.csr, []
    for row in trainer.train_dataset.select(range(4)):
        rows.append([])
        for answer in [row["chosen_ids"], *row["rejected_ids"]]:
            logits = model(input_ids=torch.tensor([row["prompt_ids"] + answer])).logits[0, -len(answer) - 1 : -1]
            total, node = 0.0, None if csr is None else torch.tensor([csr.root])
            for place, token in enumerate(answer):
                target = torch.tensor([token])
                if scoring == "valid":
                    loss = masked_softmax_loss(logits[place : place + 1], target, csr.children(node), tau)[0] / tau
                    node = csr.step(node, target)
                else:
                    loss = torch.nn.functional.cross_entropy(logits[place : place + 1] / tau, target)
                total = total - loss
            rows[-1].append(total)
    return torch.stack([torch.stack(row) for row in rows])


def trained_losses(trainer):
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


class TestAgainstTRL:
    @pytest.mark.parametrize("reference", ["model", "new_adapter", "loaded_adapter", "precomputed"])
    def test_one_rejected_answer_gives_the_numbers_of_dpo(
        self, tmp_path, tiny_lm, adapter_model, bpe_tokenizer, make_trainer, reference
    ):
        kwargs = {"beta": 0.5, "max_length": 200, "max_steps": 3}
        found = []
        for ours in (True, False):
            model = adapter_model() if reference == "loaded_adapter" else tiny_lm("llama")
            extra = {"ref_model": tiny_lm("llama")} if reference in ("model",) else {}
            if reference == "new_adapter":
                extra["peft_config"] = LoraConfig(**LORA)
            options = kwargs | {"precompute_ref_log_probs": reference == "precomputed"}
            if ours:
                trainer = make_trainer(
                    model,
                    Dataset.from_dict(TEXT),
                    catalog=None,
                    scoring="full_vocab",
                    folder="ours",
                    **options,
                    **extra,
                )
            else:
                args = DPOConfig(**settings(tmp_path / "theirs", **options), bf16=False, gradient_checkpointing=False)
                trainer = DPOTrainer(
                    model, args=args, train_dataset=Dataset.from_dict(TEXT), processing_class=bpe_tokenizer, **extra
                )
            losses = trained_losses(trainer)
            log = trainer.state.log_history[1]
            names = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen")
            found.append(([*losses, *(log[name] for name in (*names, "logps/rejected"))], trainer.model))
        assert found[0][0] == pytest.approx(found[1][0], abs=1e-5)
        for one, other in zip(found[0][1].parameters(), found[1][1].parameters(), strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)

    def test_the_names_of_trl_that_are_built_upon_are_still_there(self):
        moved = (
            "TRL has moved `{}`: SoftmaxDPOTrainer builds on trl~=1.16.0; look at DPOTrainer before raising the pin."
        )
        signatures = {
            "_prepare_dataset": ["self", "dataset", "processing_class", "args", "dataset_name"],
            "_set_signature_columns_if_needed": ["self"],
            "_precompute_ref_logps": ["self", "dataset", "name", "batch_size"],
            "compute_ref_log_probs": ["self", "model", "inputs"],
            "_compute_loss": ["self", "model", "inputs", "return_outputs"],
            "compute_loss": ["self", "model", "inputs", "return_outputs", "num_items_in_batch"],
            "prediction_step": ["self", "model", "inputs", "prediction_loss_only", "ignore_keys"],
        }
        for name, parameters in signatures.items():
            found = getattr(DPOTrainer, name, None)
            assert found is not None, moved.format(name)
            assert list(inspect.signature(found).parameters) == parameters, moved.format(name)
        source = inspect.getsource(DPOTrainer)
        for use in (
            'self._metrics = {"train"',
            "self.precompute_ref_logps = ",
            "self.beta = ",
            'model.add_adapter("ref"',
            "self.compute_ref_log_probs(model, padded_batch)",
            "self._compute_loss(model, inputs, return_outputs)",
        ):
            assert use in source, moved.format(use)
        from trl import data_utils
        from trl.trainer import utils

        for module, name in (
            (utils, "use_adapter"),
            (data_utils, "_tokenize"),
            (data_utils, "common_prefix_length"),
            (data_utils, "extract_prompt"),
            (data_utils, "is_conversational"),
        ):
            assert hasattr(module, name), moved.format(name)


class TestLogProbabilities:
    @pytest.mark.parametrize("shared_prefix", [True, False])
    @pytest.mark.parametrize(("scoring", "tau"), [("valid", 1.0), ("valid", 2.0), ("full_vocab", 1.0)])
    @pytest.mark.parametrize("kind", ["llama", "gpt2"])
    def test_they_are_those_of_one_answer_and_one_token_at_a_time(
        self, make_trainer, tiny_lm, kind, scoring, tau, shared_prefix
    ):
        trainer = make_trainer(
            tiny_lm(kind), item_rows(num_rejected=3), scoring=scoring, tau=tau, shared_prefix=shared_prefix
        )
        trainer.model.eval()
        batch = first_batch(trainer)
        found = trainer._answer_log_probs(trainer.model, batch)
        assert trainer._shares_prompt.works is shared_prefix
        plain = tiny_lm(kind)
        expected = plain_log_probs(plain, trainer, scoring, tau)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
        (found * weights).sum().backward()
        (expected * weights).sum().backward()
        for one, other in zip(trainer.model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, atol=1e-4, rtol=1e-4)

    def test_rows_may_have_different_numbers_of_rejected_answers(self, make_trainer):
        rows = item_rows(4, num_rejected=3)
        mixed = Dataset.from_list([row | {REJECTED: row[REJECTED][: 1 + n % 3]} for n, row in enumerate(rows)])
        whole, part = make_trainer(train=rows), make_trainer(train=mixed)
        losses = []
        for number in range(4):
            batch = whole.data_collator([whole.train_dataset[number]])
            log_probs = whole._answer_log_probs(whole.model, batch)[0]
            rewards = (log_probs - log_probs.detach() + torch.arange(4.0))[: 2 + number % 3]
            losses.append(-rewards.log_softmax(0)[0])
        batch = first_batch(part)
        chosen, rejected = part.compute_ref_log_probs(part.ref_model, batch)
        shift = torch.arange(4.0)
        batch["ref_chosen_logps"], batch["ref_rejected_logps"] = chosen - shift[0], rejected - shift[1:]
        part.precompute_ref_logps = True
        loss = part.compute_loss(part.model, batch)
        torch.testing.assert_close(loss, torch.stack(losses).mean())

    def test_a_new_policy_equals_its_reference_so_the_loss_is_log_of_the_number_of_answers(self, make_trainer):
        trainer = make_trainer(train=item_rows(num_rejected=3))
        assert trained_losses(trainer)[0] == pytest.approx(math.log(4), abs=1e-5)
        assert trainer.state.log_history[0]["rewards/margins"] == pytest.approx(0, abs=1e-5)
