"""SoftmaxDPOTrainer on tiny models: against TRL's DPO, against one row at a time, and every kind of reference."""

import inspect
import json
import math

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer

from hf_rec import load_recommender
from hf_rec.columns import HISTORY, REJECTED, TARGET
from hf_rec.data.prompts.next_item import Prompt
from hf_rec.losses.trie_softmax import masked_softmax_loss
from hf_rec.trainers.msl.config import MSLConfig
from hf_rec.trainers.msl.trainer import MSLTrainer
from hf_rec.trainers.softmax_dpo import prompt_sharing
from hf_rec.trainers.softmax_dpo.config import SoftmaxDPOConfig
from hf_rec.trainers.softmax_dpo.packed_answers import PackedAnswers
from hf_rec.trainers.softmax_dpo.reference import describe_reference, frozen_copy
from hf_rec.trainers.softmax_dpo.trainer import SoftmaxDPOTrainer


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
                if "lora_" in name:
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
        kwargs = {"beta": 0.5, "max_length": 200, "max_steps": 3, "train_sampling_strategy": "random"}
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
        # Sums of about ten float32 terms of size 5, in another order: 1e-5 of their size, and of 10 near 0
        assert found[0][0] == pytest.approx(found[1][0], rel=1e-5, abs=1e-4)
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
        found = trainer._score_answers(trainer.model, PackedAnswers.from_batch(batch), trainer.accelerator)
        assert trainer._score_answers.sharing.works is shared_prefix
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
            log_probs = whole._score_answers(whole.model, PackedAnswers.from_batch(batch), whole.accelerator)[0]
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


class TestReference:
    def test_a_loaded_adapter_is_copied_and_the_copy_never_changes(self, make_trainer, adapter_model):
        trainer = make_trainer(adapter_model(), item_rows(num_rejected=2))
        before = {name: weight.clone() for name, weight in trainer.model.named_parameters() if ".ref." in name}
        assert before and not any(trainer.model.get_parameter(name).requires_grad for name in before)
        assert trained_losses(trainer)[0] == pytest.approx(math.log(3), abs=1e-5)
        for name, weight in before.items():
            assert torch.equal(weight, trainer.model.get_parameter(name))
            assert not torch.equal(weight, trainer.model.get_parameter(name.replace(".ref.", ".default.")))
        batch = first_batch(trainer)
        chosen, rejected = trainer.compute_ref_log_probs(trainer.model, batch)
        expected = plain_log_probs(adapter_model(), trainer, "valid", 1.0)
        torch.testing.assert_close(torch.cat([chosen[:, None], rejected], 1), expected, atol=1e-5, rtol=1e-5)

    def test_a_new_adapter_is_measured_against_its_base(self, make_trainer, tiny_lm):
        trainer = make_trainer(train=item_rows(num_rejected=2), peft_config=LoraConfig(**LORA))
        trainer.train()
        chosen, rejected = trainer.compute_ref_log_probs(trainer.model, first_batch(trainer))
        expected = plain_log_probs(tiny_lm("llama"), trainer, "valid", 1.0)
        torch.testing.assert_close(torch.cat([chosen[:, None], rejected], 1), expected, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("with_adapter", [True, False])
    def test_precomputed_and_live_references_train_alike(self, make_trainer, adapter_model, with_adapter):
        found = []
        for precompute in (True, False):
            trainer = make_trainer(
                adapter_model() if with_adapter else None,
                item_rows(num_rejected=2),
                precompute_ref_log_probs=precompute,
                per_device_train_batch_size=16,  # all rows, as the two runs draw another order
                max_steps=3,
            )
            found.append(trained_losses(trainer))
            assert (trainer.ref_model is None) is (precompute or with_adapter)
        assert found[0] == pytest.approx(found[1], rel=1e-4, abs=1e-5)

    def test_the_copy_of_a_model_that_was_trained_in_memory_does_not_follow_it(
        self, make_trainer, tiny_lm, bpe_tokenizer, tiny_catalog, tmp_path
    ):
        """TRL would read the weights of `config._name_or_path`, and a deep copy would keep a patched `forward`."""
        tiny_lm("llama").save_pretrained(tmp_path / "base")
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "base", trust_remote_code=False)
        first = MSLTrainer(
            model,
            MSLConfig(**settings(tmp_path / "msl", max_steps=2)),
            item_rows(),
            processing_class=bpe_tokenizer,
            catalog=tiny_catalog,
        )
        first.train()
        second = make_trainer(first.model, item_rows(num_rejected=1), folder="second")
        second.train()
        third = make_trainer(second.model, item_rows(num_rejected=1), folder="third")
        losses = trained_losses(third)
        assert losses[0] == pytest.approx(math.log(2), abs=1e-5)
        assert losses[1] != pytest.approx(math.log(2), abs=1e-5)

    def test_a_second_model_has_the_weights_buffers_and_ties_of_the_first_and_draws_none(self, tiny_lm):
        for kind in ("gpt2", "llama"):  # tied and untied
            model = tiny_lm(kind)
            model.get_input_embeddings().to(torch.bfloat16)  # not all of one dtype
            model.forward = None  # patched by what trained it before
            state = torch.random.get_rng_state()
            copied = frozen_copy(model)
            assert torch.equal(torch.random.get_rng_state(), state)
            for mine, own in (
                (model.named_parameters, copied.named_parameters),
                (model.named_buffers, copied.named_buffers),
            ):
                for (name, one), (twin, other) in zip(mine(), own(), strict=True):
                    assert name == twin and one.dtype == other.dtype and torch.equal(one, other)
                    assert one.data_ptr() != other.data_ptr() and not other.requires_grad
            tied = copied.get_input_embeddings().weight is copied.get_output_embeddings().weight
            assert tied is (kind == "gpt2")
            tokens = torch.tensor([[5, 6]])
            torch.testing.assert_close(
                copied.float()(tokens).logits, type(model).forward(model.float(), tokens).logits
            )

    def test_it_is_described_alike_whatever_wraps_the_models_later(self, make_trainer, tiny_lm, monkeypatch):
        expected = make_trainer(ref_model=tiny_lm("llama", seed=1))._reference
        prepare = Accelerator.prepare_model
        monkeypatch.setattr(
            Accelerator,
            "prepare_model",
            lambda self, model, **_: nn.Sequential(prepare(self, model, evaluation_mode=True)),
        )  # an engine puts a name before those of all weights
        assert make_trainer(ref_model=tiny_lm("llama", seed=1))._reference == expected
        assert make_trainer(ref_model=tiny_lm("llama", seed=2))._reference != expected

    def test_a_reference_without_values_is_refused(self, tiny_lm):
        with torch.device("meta"):
            empty = type(tiny_lm("llama"))(tiny_lm("llama").config)
        with pytest.raises(ValueError, match="of the reference holds no values"):
            describe_reference(tiny_lm("llama"), empty)

    @pytest.mark.parametrize("reference", ["adapter", "base", "precomputed"])
    def test_an_adapter_on_the_head_trains_as_whole_logits_say(self, make_trainer, adapter_model, tiny_lm, reference):
        lora = LORA | {"target_modules": ["q_proj", "lm_head"]}
        trainer = make_trainer(
            tiny_lm("llama") if reference == "base" else adapter_model(target_modules=lora["target_modules"]),
            item_rows(num_rejected=2),
            peft_config=LoraConfig(**lora) if reference == "base" else None,
            precompute_ref_log_probs=reference == "precomputed",
            learning_rate=0.05,
        )
        assert trained_losses(trainer)[0] == pytest.approx(math.log(3), rel=1e-5)
        batch = first_batch(trainer)
        loss = trainer.compute_loss(trainer.model.eval(), batch)
        log_probs = plain_log_probs(trainer.model, trainer, "valid", 1.0)
        start = tiny_lm("llama") if reference == "base" else adapter_model(target_modules=lora["target_modules"])
        ratios = log_probs - plain_log_probs(start, trainer, "valid", 1.0)
        expected = -ratios.log_softmax(1)[:, 0].mean()
        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
        names = [
            name for name, weight in trainer.model.named_parameters() if "lm_head" in name and weight.requires_grad
        ]
        assert names and all(".ref." not in name for name in names)
        found = torch.autograd.grad(loss, [trainer.model.get_parameter(name) for name in names])
        wanted = torch.autograd.grad(expected, [trainer.model.get_parameter(name) for name in names])
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


class TestFolders:
    @pytest.fixture
    def start(self, tmp_path, tiny_lm, bpe_tokenizer, tiny_catalog):
        """The folder of an MSL adapter that was trained at another temperature than 1."""
        tiny_lm("llama").save_pretrained(tmp_path / "base")
        trainer = MSLTrainer(
            str(tmp_path / "base"),
            MSLConfig(**settings(tmp_path / "msl", tau=2.0, learning_rate=0.1)),
            item_rows(),
            processing_class=bpe_tokenizer,
            catalog=tiny_catalog,
            peft_config=LoraConfig(**LORA),
        )
        trainer.train()
        trainer.save_model()
        return str(tmp_path / "msl")

    def test_an_msl_adapter_is_trained_on_at_its_temperature_and_saved_without_the_reference(self, start, tmp_path):
        args = SoftmaxDPOConfig(**settings(tmp_path / "sdpo", max_steps=3, eval_strategy="steps", eval_steps=1))
        trainer = SoftmaxDPOTrainer(start, args=args, train_dataset=item_rows(), eval_dataset=item_rows(6, seed=3))
        assert trainer.tau == 2.0
        before = load_recommender(start, device="cpu")
        assert trained_losses(trainer)[0] == pytest.approx(math.log(4), abs=1e-5)
        trainer.save_model()
        files = {path.name for path in (tmp_path / "sdpo").iterdir()}
        assert {"adapter_config.json", "adapter_model.safetensors", "recommender.json", "reference.json"} <= files
        assert "ref" not in files
        after = load_recommender(tmp_path / "sdpo", device="cpu")
        assert after.tau == 2.0
        assert list(after.model.peft_config) == ["default"]
        histories, candidates = [[100], [101, 102]], list(range(100, 112))
        served = after.score(histories, candidates)
        for one, other in zip(served, trainer.recommender().score(histories, candidates), strict=True):
            assert one == pytest.approx(other, abs=1e-5)
        assert served[0] != pytest.approx(before.score(histories, candidates)[0], abs=1e-3)
        assert torch.tensor(served[0]).exp()[[row for row in range(12) if row != 4]].sum() == pytest.approx(
            1, abs=1e-4
        )

    def test_a_resumed_run_ends_as_the_whole_one_and_another_reference_is_refused(
        self, start, tmp_path, adapter_model
    ):
        def run(folder, model=start, resume=None, **kwargs):
            args = SoftmaxDPOConfig(
                **settings(tmp_path / folder, max_steps=4, save_strategy="steps", save_steps=2, **kwargs)
            )
            trainer = SoftmaxDPOTrainer(model, args=args, train_dataset=item_rows(num_rejected=2))
            trainer.train(resume_from_checkpoint=resume)
            return trainer

        whole = run("whole")
        checkpoint = f"{whole.args.output_dir}/checkpoint-2"
        resumed = run("resumed", resume=checkpoint)
        for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        with pytest.raises(ValueError, match="reference does not match"):
            run("other", model=f"{whole.args.output_dir}/checkpoint-4", resume=checkpoint)
        with pytest.raises(FileNotFoundError, match="reference.json"):
            (tmp_path / "whole/checkpoint-2/reference.json").unlink()
            run("foreign", resume=checkpoint)

    def test_a_catalog_that_is_not_the_folders_is_refused(self, start, tmp_path):
        from hf_rec import Catalog

        other = Catalog.from_records([{"item_id": row, "title": f"Film {row}"} for row in range(12)])
        with pytest.raises(ValueError, match="`catalog` is not the one"):
            SoftmaxDPOTrainer(
                start, args=SoftmaxDPOConfig(**settings(tmp_path)), train_dataset=item_rows(), catalog=other
            )


class TestEvaluation:
    @pytest.mark.parametrize("scoring", ["valid", "full_vocab"])
    def test_it_measures_likelihood_and_rank_of_the_target_as_the_recommender_does(
        self, make_trainer, tiny_catalog, scoring
    ):
        rows = item_rows(7, num_rejected=2, seed=4)
        trainer = make_trainer(eval_dataset=rows, eval_num_beams=None, scoring=scoring)
        metrics = trainer.evaluate()
        recommender = trainer.recommender()
        histories = [[tiny_catalog.ids[row] for row in history] for history in rows[HISTORY]]
        scores = recommender.score(histories, tiny_catalog.ids)
        scores = [values[target] for values, target in zip(scores, rows[TARGET], strict=True)]
        assert metrics["eval_nll"] == pytest.approx(-sum(scores) / 7, rel=1e-5)
        listed = recommender.recommend(histories, k=10, num_beams=20)
        twins = {104: 103}
        hits = [
            twins.get(tiny_catalog.ids[target], tiny_catalog.ids[target])
            in list(dict.fromkeys(twins.get(item, item) for item in items))[:5]
            for items, target in zip(listed.item_ids, rows[TARGET], strict=True)
        ]
        assert metrics["eval_hit_rate@5"] == pytest.approx(sum(hits) / 7)
        assert {"eval_loss", "eval_ndcg@10", "eval_rewards/accuracies", "eval_logps/chosen"} <= metrics.keys()

    @pytest.mark.parametrize("scoring", ["valid", "full_vocab"])
    def test_warm_values_are_those_of_targets_that_occur_in_training(self, make_trainer, scoring):
        train = item_rows(4, num_rejected=2).map(lambda row: {HISTORY: [1], TARGET: 2, REJECTED: [5, 6]})
        rows = Dataset.from_list(
            [{HISTORY: [3], TARGET: target, REJECTED: [0, 9]} for target in (2, 7, 1, 8)]  # 1 and 2 are warm
        )
        trainer = make_trainer(train=train, eval_dataset=rows, scoring=scoring)
        trainer.train()
        rewards = torch.from_numpy(trainer.predict(trainer.eval_dataset).predictions)
        losses = -rewards.log_softmax(1)[:, 0]
        metrics = trainer.evaluate()
        assert metrics["eval_loss"] == pytest.approx(losses.mean().item(), abs=1e-5)
        assert metrics["eval_loss_warm"] == pytest.approx(losses[[0, 2]].mean().item(), abs=1e-5)
        assert metrics["eval_nll_warm"] < metrics["eval_nll"]
        assert SoftmaxDPOConfig("run", metric_for_best_model="loss_warm").greater_is_better is False

    def test_the_best_model_may_be_chosen_by_what_it_logs(self, make_trainer):
        trainer = make_trainer(
            eval_dataset={"a": item_rows(5, seed=7), "b": item_rows(4, seed=8)},
            eval_strategy="steps",
            eval_steps=1,
            save_strategy="steps",
            save_steps=1,
            load_best_model_at_end=True,
            metric_for_best_model="a_nll",
            greater_is_better=False,
        )
        trainer.train()
        logged = [entry["eval_a_nll"] for entry in trainer.state.log_history if "eval_a_nll" in entry]
        assert trainer.state.best_metric == min(logged)

    def test_a_users_metrics_see_the_rewards(self, make_trainer):
        seen = {}

        def own(prediction):
            seen["shape"], seen["labels"] = prediction.predictions.shape, prediction.label_ids
            return {"mine": 1.0}

        trainer = make_trainer(compute_metrics=own, eval_dataset=item_rows(5, num_rejected=3))
        assert trainer.evaluate()["eval_mine"] == 1.0
        assert seen["shape"] == (5, 4) and not seen["labels"].any()

    def test_eight_rows_at_once_and_one_at_a_time_take_the_same_step(self, make_trainer):
        weights = []
        for batch_size in (8, 1):
            trainer = make_trainer(
                train=item_rows(num_rejected=3),
                per_device_train_batch_size=batch_size,
                gradient_accumulation_steps=8 // batch_size,
                optim="sgd",
            )
            trainer.train()
            weights.append(list(trainer.model.parameters()))
        for one, other in zip(*weights, strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


class TestNegatives:
    def test_items_are_drawn_where_the_rows_have_none(self, make_trainer, bpe_tokenizer, tiny_catalog):
        trainer = make_trainer(num_negatives=5, negatives="popularity", eval_dataset=item_rows(5, seed=2))
        prompt = Prompt(bpe_tokenizer, tiny_catalog)
        for row, source in zip(trainer.train_dataset, item_rows(), strict=True):
            assert row["prompt_ids"] == prompt.encode_history(source[HISTORY])
            assert row["chosen_ids"] == prompt.encode_item(source[TARGET])
            assert len({tuple(answer) for answer in [row["chosen_ids"], *row["rejected_ids"]]}) == 6
        assert all(len(row["rejected_ids"]) == 5 for row in trainer.eval_dataset)

    def test_in_batch_negatives_are_the_other_targets(self, make_trainer):
        trainer = make_trainer(negatives="in_batch", eval_dataset=item_rows(5, seed=2))
        assert all(row["rejected_ids"] == [] for row in trainer.train_dataset)
        assert all(len(row["rejected_ids"]) == 3 for row in trainer.eval_dataset)
        assert all(math.isfinite(loss) for loss in trained_losses(trainer))
        same = trainer.data_collator([trainer.train_dataset[0]] * 2)
        loss = trainer.compute_loss(trainer.model, same | {})
        assert loss == 0


class TestTextRows:
    def test_a_list_of_rejected_texts_and_of_messages_is_taken(self, make_trainer, bpe_tokenizer):
        rows = dict(TEXT, rejected=[[one, " Heat and Heat"] for one in TEXT["rejected"]])
        trainer = make_trainer(train=Dataset.from_dict(rows), catalog=None, scoring="full_vocab")
        assert [len(row["rejected_ids"]) for row in trainer.train_dataset] == [2] * 6
        assert trained_losses(trainer)[0] == pytest.approx(math.log(3), abs=1e-5)
        bpe_tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
        try:
            talk = {
                key: [[{"role": "user" if key == "prompt" else "assistant", "content": one}] for one in values]
                for key, values in TEXT.items()
            }
            talk["rejected"] = [[one, [{"role": "assistant", "content": "Heat, Heat"}]] for one in talk["rejected"]]
            trainer = make_trainer(train=Dataset.from_dict(talk), catalog=None, scoring="full_vocab")
            assert [len(row["rejected_ids"]) for row in trainer.train_dataset] == [2] * 6
        finally:
            bpe_tokenizer.chat_template = None

    def test_text_rows_do_without_items(self, make_trainer, adapter_model, tmp_path):
        rows = Dataset.from_dict(dict(TEXT, rejected=[[one, " Heat and Heat"] for one in TEXT["rejected"]]))
        trainer = make_trainer(adapter_model(), rows, eval_dataset=rows, catalog=None, scoring="full_vocab")
        assert trained_losses(trainer)[0] == pytest.approx(math.log(3), abs=1e-5)
        assert trainer.evaluate()["eval_nll"] > 0
        trainer.save_model()
        assert not (tmp_path / "run/ref").exists()
        assert json.loads((tmp_path / "run/reference.json").read_text())["kind"] == "adapter"

    def test_a_text_model_is_saved_as_trl_saves_it(self, make_trainer, tmp_path):
        trainer = make_trainer(
            train=Dataset.from_dict(TEXT), catalog=None, scoring="full_vocab", save_strategy="steps"
        )
        trainer.train()
        trainer.save_model()
        assert not (tmp_path / "run/recommender.json").exists()
        assert json.loads((tmp_path / "run/reference.json").read_text())["kind"] == "model"
        assert "2406.09215" in (tmp_path / "run/README.md").read_text()


class TestPromptSharing:
    def test_a_model_that_cannot_is_run_the_plain_way_with_one_log_line(self, make_trainer, monkeypatch):
        trainer = make_trainer(train=item_rows(num_rejected=2))
        body, lines = type(trainer.model.model), []
        forward = body.forward

        def ignores_the_mask(self, *args, **kwargs):
            mask = kwargs.get("attention_mask")
            return forward(
                self, *args, **kwargs | {"attention_mask": None if mask is None or mask.ndim == 4 else mask}
            )

        monkeypatch.setattr(body, "forward", ignores_the_mask)
        monkeypatch.setattr(prompt_sharing.logger, "warning", lines.append)
        assert trained_losses(trainer)[0] == pytest.approx(math.log(3), abs=1e-5)
        assert trainer._score_answers.sharing.works is False
        assert len(lines) == 1 and "gives other log-probabilities" in lines[0]

    @pytest.mark.parametrize(("window", "works"), [(100, True), (64, False)])
    def test_rows_longer_than_the_window_are_run_the_plain_way(self, make_trainer, bpe_tokenizer, window, works):
        from transformers import MistralConfig, MistralForCausalLM

        torch.manual_seed(0)
        config = MistralConfig(
            vocab_size=len(bpe_tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            sliding_window=window,
            max_position_embeddings=512,
            initializer_range=0.2,
        )
        model = MistralForCausalLM(config).eval()
        rows = item_rows(4, num_rejected=9).map(lambda row: {HISTORY: row[HISTORY] * 20})
        trainer = make_trainer(model, rows)
        batch = first_batch(trainer)
        assert batch["input_ids"].shape[1] > window
        found = trainer._score_answers(trainer.model, PackedAnswers.from_batch(batch), trainer.accelerator)
        assert trainer._score_answers.sharing.works is works
        expected = plain_log_probs(model, trainer, "valid", 1.0)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("beta", 0.0),
            ("beta", -1.0),
            ("tau", 0.0),
            ("num_negatives", 0),
            ("scoring", "both"),
            ("negatives", "some"),
        ],
    )
    def test_a_value_out_of_range(self, tmp_path, name, value):
        with pytest.raises(ValueError, match=f"`{name}`"):
            SoftmaxDPOConfig(str(tmp_path), **{name: value})

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("loss_type", "ipo"),
            ("label_smoothing", 0.1),
            ("ld_alpha", 0.5),
            ("use_weighting", True),
            ("pad_to_multiple_of", 64),
            ("pad_token", "</s>"),
            ("sync_ref_model", True),
            ("ref_model_sync_steps", 5),
        ],
    )
    def test_an_argument_of_dpo_that_the_loss_would_ignore(self, tmp_path, name, value):
        with pytest.raises(ValueError, match=f"`{name}`"):
            SoftmaxDPOConfig(str(tmp_path), **{name: value})

    def test_hard_negatives_without_lists_and_precomputed_references_of_in_batch_ones(self, tmp_path):
        with pytest.raises(ValueError, match="`ranked_lists`"):
            SoftmaxDPOConfig(str(tmp_path), negatives="hard")
        with pytest.raises(ValueError, match="`precompute_ref_log_probs`"):
            SoftmaxDPOConfig(str(tmp_path), negatives="in_batch", precompute_ref_log_probs=True)

    def test_an_empty_rejected_list(self, make_trainer):
        rows = item_rows(4, num_rejected=2).to_list()
        rows[2][REJECTED] = []
        with pytest.raises(ValueError, match="Row 2 has no `rejected`"):
            make_trainer(train=Dataset.from_list(rows))

    def test_a_rejected_answer_that_equals_the_chosen_one(self, make_trainer):
        rows = item_rows(4, num_rejected=2).to_list()
        rows[1][REJECTED][1] = rows[1][TARGET]
        with pytest.raises(ValueError, match="Row 1: `rejected` answer 1 equals the chosen one"):
            make_trainer(train=Dataset.from_list(rows))

    def test_an_item_that_shares_its_title_with_the_chosen_one(self, make_trainer):
        with pytest.raises(ValueError, match="share a title"):
            make_trainer(train=Dataset.from_list([{HISTORY: [1], TARGET: 3, REJECTED: [4]}]))

    def test_an_answer_that_is_not_in_the_trie(self, make_trainer, bpe_tokenizer, tiny_catalog):
        prompt = Prompt(bpe_tokenizer, tiny_catalog)
        row = {"prompt_ids": prompt.encode_history([1]), "chosen_ids": prompt.encode_item(2)}
        for wrong in (prompt.encode_item(5)[:-1], prompt.encode_item(5) + prompt.encode_item(6), [7, 7, 7]):
            rows = Dataset.from_list(
                [row | {"rejected_ids": [prompt.encode_item(3)]}, row | {"rejected_ids": [wrong]}]
            )
            with pytest.raises(ValueError, match="Row 1: the answer .* is no item of the trie"):
                make_trainer(train=rows)
            make_trainer(train=rows, scoring="full_vocab")

    def test_no_items_under_valid_scoring(self, make_trainer):
        with pytest.raises(ValueError, match="`catalog`"):
            make_trainer(train=Dataset.from_dict(TEXT), catalog=None)

    def test_rows_of_no_known_kind(self, make_trainer):
        with pytest.raises(ValueError, match="`history`"):
            make_trainer(train=Dataset.from_dict({"text": ["a"]}))

    def test_an_adapter_that_cannot_be_the_reference(self, make_trainer, adapter_model, tiny_lm):
        model = adapter_model()
        model.add_adapter("ref", LoraConfig(**LORA))
        with pytest.raises(ValueError, match="already has an adapter 'ref'"):
            make_trainer(model)
        named = get_peft_model(tiny_lm("llama"), LoraConfig(**LORA), adapter_name="mine")
        with pytest.raises(ValueError, match="'mine'"):
            make_trainer(named)
        with pytest.raises(ValueError, match="`ref_model` has 500 tokens"):
            make_trainer(ref_model=tiny_lm("llama", vocab_size=500))

    def test_a_prompt_longer_than_the_context(self, make_trainer, tiny_lm):
        with pytest.raises(ValueError, match="the model has 512 positions"):
            make_trainer(max_length=600)
        long = {key: values[:3] for key, values in TEXT.items()}
        long["prompt"] = ["Alien and " * 300, *long["prompt"][1:]]
        kept = make_trainer(train=Dataset.from_dict(long), catalog=None, scoring="full_vocab")
        assert len(kept.train_dataset) == 2
        with pytest.raises(ValueError, match="No row fits"):
            make_trainer(train=Dataset.from_dict(long), catalog=None, scoring="full_vocab", max_length=2)


def test_training_stops_at_a_loss_that_is_not_finite(make_trainer, adapter_model):
    model = adapter_model()
    with torch.no_grad():
        # torch's masked attention on CPUs takes a query of NaN for one that may look at nothing; a value stays NaN
        next(weight for name, weight in model.named_parameters() if "v_proj.lora_B" in name).fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="The loss is not finite at optimizer step 1. There is no checkpoint"):
        make_trainer(model, item_rows(num_rejected=2)).train()
