"""MSLTrainer on a tiny model: the loss against brute force, and equal results under accumulation and resume."""

import json
import math
import re

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import EarlyStoppingCallback, TrainerCallback

from hf_rec.columns import HISTORY, SUPERVISE_FROM, TARGET
from hf_rec.data.catalog import Catalog
from hf_rec.data.prompts.next_item import Prompt
from hf_rec.data.splits import distinct_labels
from hf_rec.hub import load_recommender
from hf_rec.losses.trie_softmax import masked_softmax_loss
from hf_rec.trainers.msl import rows as msl_rows
from hf_rec.trainers.msl import trainer as msl_trainer
from hf_rec.trainers.msl.config import MSLConfig
from hf_rec.trainers.msl.trainer import MSLTrainer
from hf_rec.trie.item_trie import ItemTrie


def rows(count=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    events = torch.randint(0, 12, (count, 5), generator=generator).tolist()
    lengths = [1 + row % 4 for row in range(count)]
    return Dataset.from_dict(
        {
            HISTORY: [event[:length] for event, length in zip(events, lengths, strict=True)],
            TARGET: [event[length] for event, length in zip(events, lengths, strict=True)],
            SUPERVISE_FROM: [max(1, length - 1) for length in lengths],
        }
    )


@pytest.fixture
def make_trainer(tmp_path, tiny_lm, bpe_tokenizer, tiny_catalog):
    def build(model=None, folder="run", train=None, callbacks=None, peft_config=None, compute_metrics=None, **kwargs):
        settings = {
            "max_steps": 4,
            "per_device_train_batch_size": 8,
            "learning_rate": 5e-3,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
        } | kwargs
        return MSLTrainer(
            model=tiny_lm("gpt2") if model is None else model,
            args=MSLConfig(str(tmp_path / folder), **settings),
            train_dataset=rows() if train is None else train,
            eval_dataset=rows(10, seed=1),
            processing_class=bpe_tokenizer,
            catalog=tiny_catalog,
            callbacks=callbacks,
            peft_config=peft_config,
            compute_metrics=compute_metrics,
        )

    return build


def logits_of_row(model, encoded):
    """Row `i` of the logits is what token `i + 1` is chosen from; an encoder reads what has no label."""
    input_ids = encoded["input_ids"]
    if not model.config.is_encoder_decoder:
        return model(input_ids=torch.tensor([input_ids])).logits[0]
    start = encoded["labels"].count(-100)
    decoder_ids = [model.config.decoder_start_token_id, *input_ids[start:]]
    logits = model(input_ids=torch.tensor([input_ids[:start]]), decoder_input_ids=torch.tensor([decoder_ids])).logits[
        0
    ]
    return torch.cat([logits.new_zeros(start - 1, logits.shape[1]), logits])


def brute_force_loss(model, prompt, trie, examples, supervise, tau, loss_type="msl"):
    """Sum of the loss over all labels, and their number, one row and one token at a time."""
    csr, total, count = trie.csr(), 0.0, 0
    for example in examples:
        encoded = prompt.encode_example(example[HISTORY], example[TARGET], example[SUPERVISE_FROM], supervise)
        logits = logits_of_row(model, encoded)
        node = torch.tensor([csr.root])
        for position, label in enumerate(encoded["labels"]):
            if label == -100:
                continue
            row = logits[position - 1 : position]
            children, target = csr.children(node), torch.tensor([label])
            if loss_type == "lml":
                total, count = total + tau * torch.nn.functional.cross_entropy(row / tau, target), count + 1
            elif (children >= 0).sum() > 1:
                total, count = total + masked_softmax_loss(row, target, children, tau)[0], count + 1
            node = csr.step(node, target)
            node = torch.tensor([csr.root]) if csr.leaf(node) >= 0 else node
    return total, count


@pytest.mark.parametrize("supervise", ["last", "all"])
@pytest.mark.parametrize(("loss_type", "tau"), [("msl", 1.0), ("msl", 2.0), ("lml", 1.0)])
def test_the_loss_and_its_gradient_are_those_of_a_token_by_token_sum(
    make_trainer, tiny_lm, bpe_tokenizer, tiny_catalog, loss_type, tau, supervise
):
    trainer = make_trainer(loss_type=loss_type, tau=tau, supervise=supervise)
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(6)])
    trainer.model.eval()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    plain = tiny_lm("gpt2")
    prompt = Prompt(bpe_tokenizer, tiny_catalog, form="plain", max_length=512)
    trie = ItemTrie.build(prompt.encode_items())
    total, count = brute_force_loss(plain, prompt, trie, rows().select(range(6)), supervise, tau, loss_type)
    (total / count).backward()
    torch.testing.assert_close(loss, total / count)
    for (name, weight), other in zip(trainer.model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(weight.grad, other.grad, msg=lambda text: f"{name}: {text}")  # noqa: B023


class Gradients(TrainerCallback):
    """Remembers the gradient of the last optimizer step before it is applied."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.values = [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]


@pytest.mark.parametrize("loss_type", ["msl", "lml"])
def test_eight_rows_at_once_and_one_at_a_time_take_the_same_step(make_trainer, loss_type):
    found = []
    for batch_size in (8, 2, 1):
        gradients = Gradients()
        trainer = make_trainer(
            callbacks=[gradients],
            loss_type=loss_type,
            supervise="all",
            adaptive_tau=loss_type == "msl",
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=8 // batch_size,
            max_steps=2,
            max_grad_norm=0.0,
        )
        trainer.model.config.resid_pdrop = 0.0
        for module in trainer.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        found.append((gradients.values, losses, trainer.tau))
    for gradient, losses, tau in found[1:]:
        assert losses == pytest.approx(found[0][1], rel=1e-4)
        assert tau == pytest.approx(found[0][2], rel=1e-6)
        for one, other in zip(gradient, found[0][0], strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)


def test_an_interrupted_run_resumes_to_the_same_weights_and_temperature(make_trainer):
    settings = {"adaptive_tau": True, "supervise": "all", "save_strategy": "steps", "save_steps": 2, "max_steps": 5}
    settings |= {"tau_min": 0.25, "eta": 0.5}  # so that the temperature moves
    whole = make_trainer(folder="whole", **settings)
    whole.train()
    resumed = make_trainer(folder="resumed", **settings)
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-2")
    assert resumed.tau == pytest.approx(whole.tau, rel=1e-6) and whole.tau != 1
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_best_model_by_constrained_ranking_is_kept(make_trainer):
    trainer = make_trainer(
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="ndcg@10",
        max_steps=3,
    )
    trainer.train()
    values = [entry["eval_ndcg@10"] for entry in trainer.state.log_history if "eval_ndcg@10" in entry]
    assert trainer.state.best_metric == max(values)
    assert trainer.evaluate()["eval_ndcg@10"] == pytest.approx(max(values))


def test_the_temperature_of_the_best_weights_comes_back_with_them(make_trainer):
    trainer = make_trainer(
        adaptive_tau=True,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="nll",
        eval_num_beams=0,
        learning_rate=0.5,  # so large that the first step is the best one
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
    )
    trainer.train()
    values = [entry["eval_nll"] for entry in trainer.state.log_history if "eval_nll" in entry]
    best = values.index(min(values)) + 1
    assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{best}")
    saved = json.loads(open(f"{trainer.state.best_model_checkpoint}/recommender.json").read())["tau"]
    assert trainer.tau == saved
    assert best < trainer.state.global_step


def test_evaluation_reports_the_likelihood_and_the_rank_that_brute_force_finds(make_trainer, tiny_catalog):
    trainer = make_trainer(tau=2.0)
    metrics = trainer.evaluate()
    recommender = trainer.recommender()
    examples = rows(10, seed=1)
    histories = [[tiny_catalog.ids[row] for row in history] for history in examples[HISTORY]]
    everything = recommender.score(histories, [tiny_catalog.ids] * len(histories))
    targets = examples[TARGET]
    nll = -sum(scores[target] for scores, target in zip(everything, targets, strict=True)) / len(targets)
    assert metrics["eval_nll"] == pytest.approx(nll, rel=1e-5)
    titles = tiny_catalog.titles
    hits = 0
    for scores, target in zip(everything, targets, strict=True):
        leaves = {title: score for title, score in zip(titles, scores, strict=True)}
        hits += sum(score > leaves[titles[target]] for score in leaves.values()) < 5
    assert metrics["eval_hit_rate@5"] == pytest.approx(hits / len(targets))
    assert {"eval_loss", "eval_ndcg@10", "eval_ndcg@5", "eval_mrr@10"} <= metrics.keys()


@pytest.mark.parametrize(("loss_type", "tau"), [("msl", 0.5), ("msl", 3.0), ("lml", 3.0)])
def test_the_loss_of_evaluation_is_the_mean_likelihood_at_any_temperature(make_trainer, tiny_catalog, loss_type, tau):
    trainer = make_trainer(tau=tau, loss_type=loss_type, eval_num_beams=0, per_device_eval_batch_size=4)
    metrics, examples = trainer.evaluate(), rows(10, seed=1)
    histories = [[tiny_catalog.ids[row] for row in history] for history in examples[HISTORY]]
    scores = trainer.recommender().score(histories, tiny_catalog.ids)
    nll = -sum(values[target] for values, target in zip(scores, examples[TARGET], strict=True)) / 10
    assert metrics["eval_loss"] == pytest.approx(nll, rel=1e-5)
    assert metrics["eval_loss"] == metrics["eval_nll"]


def test_a_best_model_without_a_metric_is_chosen_by_the_likelihood(make_trainer):
    trainer = make_trainer(
        adaptive_tau=True,
        tau_min=0.25,
        eval_num_beams=0,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
    )
    trainer.train()
    logged = [entry["eval_nll"] for entry in trainer.state.log_history if "eval_nll" in entry]
    assert trainer.state.best_metric == min(logged) and len(set(logged)) > 1


def test_the_rules_of_the_ranking_are_logged_beside_its_metrics(make_trainer):
    metrics = make_trainer().evaluate()
    assert metrics["eval_protocol"] == "full/search=beam20/seen=keep"


def test_a_loss_alone_and_what_goes_into_it_are_given_where_they_are_asked_for(make_trainer):
    alone = make_trainer(prediction_loss_only=True)
    alone.rank_prompts = None  # nothing is searched
    metrics, seen = make_trainer(eval_num_beams=0).evaluate(), {}
    assert alone.evaluate()["eval_loss"] == pytest.approx(metrics["eval_loss"], rel=1e-5)

    def own(prediction):
        seen.update(inputs=prediction.inputs, losses=prediction.losses)
        return {}

    make_trainer(compute_metrics=own, include_for_metrics=["inputs", "loss"], eval_num_beams=0).evaluate()
    assert len(seen["inputs"]) == len(seen["losses"]) == 10


class TestTemperatureAdvice:
    @pytest.mark.parametrize(
        ("limits", "advice"),
        [
            ((400.0, 500.0), "mostly `tau_min` 400.* Lower `tau_min`"),
            ((1e-4, 2e-4), "mostly `tau_max` 0.0002.* Raise `tau_max`"),
        ],
    )
    def test_a_limit_that_sets_the_temperature_is_named_once_at_the_end(self, make_trainer, warnings, limits, advice):
        make_trainer(adaptive_tau=True, eta=0.9, tau_min=limits[0], tau_max=limits[1]).train()
        assert len(warnings) == 1 and re.search(advice, warnings[0])

    def test_a_temperature_that_the_data_sets_is_not_worth_a_word(self, make_trainer, warnings):
        make_trainer(adaptive_tau=True, tau_min=0.01, tau_max=1000.0).train()
        assert warnings == []

    @pytest.fixture
    def warnings(self, monkeypatch):
        lines = []
        monkeypatch.setattr(msl_trainer.logger, "warning", lines.append)
        return lines


class TestDistinctLabels:
    LONG = Dataset.from_dict({HISTORY: [[1, 2, 3, 4, 5] * 10], TARGET: [6], SUPERVISE_FROM: [1]})

    def test_events_that_the_prompt_drops_are_counted_out_and_named(self, make_trainer, monkeypatch):
        lines = []
        monkeypatch.setattr(msl_rows.logger, "warning", lines.append)
        trainer = make_trainer(train=self.LONG, supervise="all", max_history=15)
        assert trainer.distinct_labels == 16  # the fifteen that are kept and the target
        labels = trainer.train_dataset[0]["labels"]
        separator = trainer.prompt.separator_ids[-1]
        assert sum(label == separator for label in labels) == 16
        assert len(lines) == 1 and "34 of 50 labelled events" in lines[0] and "`max_history` 15" in lines[0]

    def test_targets_alone_are_never_dropped(self, make_trainer):
        assert make_trainer(train=self.LONG, max_history=15).distinct_labels == 1
        assert make_trainer(supervise="all").distinct_labels == distinct_labels(rows(), "all")
        assert make_trainer(train=rows().to_iterable_dataset()).distinct_labels is None


def test_the_likelihood_of_warm_targets_is_told_apart(make_trainer, tiny_catalog):
    train = rows(3)  # few enough that some items never occur
    trainer = make_trainer(train=train)
    examples = rows(10, seed=1)
    # By title: two items with one title are one to the model
    known = {tiny_catalog.titles[item] for row in train for item in [*row[HISTORY], row[TARGET]]}
    warm = [place for place, target in enumerate(examples[TARGET]) if tiny_catalog.titles[target] in known]
    assert 0 < len(warm) < 10
    alone = trainer.evaluate(examples.select(warm))
    metrics = trainer.evaluate()
    assert metrics["eval_nll_warm"] == pytest.approx(alone["eval_nll"], rel=1e-5)
    assert metrics["eval_nll_warm"] != pytest.approx(metrics["eval_nll"])


def test_several_evaluation_sets_and_a_users_own_metrics_are_served(make_trainer):
    seen = {}

    def own(prediction):
        seen["shapes"] = [part.shape for part in prediction.predictions] + [prediction.label_ids.shape]
        return {"mine": 1.0}

    trainer = make_trainer(compute_metrics=own)
    metrics = trainer.evaluate({"a": rows(4, seed=2), "b": rows(3, seed=3)})
    assert metrics["eval_a_mine"] == metrics["eval_b_mine"] == 1.0
    assert "eval_a_nll" in metrics
    assert seen["shapes"] == [(3, 10), (3, 10), (3,)]


def test_an_adapter_is_trained_alone_and_saved_beside_the_recommender_files(make_trainer, tiny_lm, tmp_path):
    base = tiny_lm("llama")
    base.save_pretrained(tmp_path / "base")
    trainer = make_trainer(
        model=str(tmp_path / "base"),
        peft_config=LoraConfig(r=2, target_modules=["q_proj", "lm_head"]),
        adaptive_tau=True,
    )
    trainer.train()
    trainer.save_model()
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "recommender.json", "tokenizer.json"} <= files
    assert "model.safetensors" not in files
    assert "training_args.json" in files
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in files)  # nothing pickled
    changed = [name for name, weight in trainer.model.named_parameters() if weight.requires_grad]
    assert changed and all("lora_" in name for name in changed)


def test_rows_that_are_tokenised_already_are_taken_as_they_are(make_trainer, bpe_tokenizer, tiny_catalog):
    prompt = Prompt(bpe_tokenizer, tiny_catalog, form="plain", max_length=512)
    encoded = Dataset.from_list([prompt.encode_example([1, 2], 3), prompt.encode_example([4], 5)])
    trainer = make_trainer(train=encoded, max_steps=1)
    assert trainer.train_dataset is encoded
    trainer.train()
    assert math.isfinite(trainer.state.log_history[0]["loss"])


def test_the_log_tells_the_temperature_and_where_sft_sends_its_gradient(make_trainer):
    trainer = make_trainer(loss_type="lml")
    trainer.train()
    entry = trainer.state.log_history[0]
    assert entry["tau"] == 1.0
    assert 0 < entry["invalid_gradient_share"] < 1
    assert entry["invalid_loss"] > 0 and entry["valid_loss"] > 0


def test_rows_are_tokenised_anew_for_another_catalog(make_trainer, tiny_lm, bpe_tokenizer, tiny_catalog, tmp_path):
    rows(4).save_to_disk(tmp_path / "rows")
    turned = Catalog.from_records(
        [{"item_id": row, "title": title} for row, title in enumerate(reversed(tiny_catalog.titles))]
    )
    args = MSLConfig(str(tmp_path / "run"), use_cpu=True, report_to="none")
    found = []
    for catalog in (tiny_catalog, turned):
        train = Dataset.load_from_disk(str(tmp_path / "rows"))
        trainer = MSLTrainer(tiny_lm(), args, train, processing_class=bpe_tokenizer, catalog=catalog)
        found.append([trainer.prompt.encode_item(target) for target in train[TARGET]])
        labels = [[label for label in row if label != -100] for row in trainer.train_dataset["labels"]]
        assert labels == found[-1]
    assert found[0] != found[1]


def test_a_streamed_data_set_trains(make_trainer):
    trainer = make_trainer(train=rows().to_iterable_dataset(), supervise="all")
    trainer.train()
    assert trainer.state.global_step == 4


def test_an_adapter_folder_recommends_what_the_trainer_did(make_trainer, tiny_lm, tmp_path, tiny_catalog):
    tiny_lm("llama").save_pretrained(tmp_path / "base")
    trainer = make_trainer(model=str(tmp_path / "base"), peft_config=LoraConfig(r=2, target_modules=["q_proj"]))
    before = trainer.evaluate()["eval_nll"]
    trainer.train()
    assert trainer.evaluate()["eval_nll"] != before
    trainer.save_model()
    histories = [tiny_catalog.ids[1:3], tiny_catalog.ids[5:6]]
    expected = trainer.recommender().recommend(histories, k=5)
    found = load_recommender(tmp_path / "run", device="cpu").recommend(histories, k=5)
    assert found.item_ids == expected.item_ids
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5)


class TestWhatIsRefused:
    def test_a_prompt_longer_than_the_positions_of_the_model(self, make_trainer):
        with pytest.raises(ValueError, match="`max_length` is 1024, but the model has 512 positions"):
            make_trainer(max_length=1024)

    @pytest.mark.parametrize("train", [[{HISTORY: [1], TARGET: 2}], {HISTORY: [[1]], TARGET: [2]}])
    def test_a_list_or_a_dict_in_place_of_a_data_set(self, make_trainer, train):
        with pytest.raises(TypeError, match="`train_dataset` must be a `datasets.Dataset` .*`catalog.rows"):
            make_trainer(train=train)

    @pytest.mark.parametrize("metric", ["ndcg@10", "eval_ndcg@10"])
    def test_a_model_chosen_by_a_ranking_that_is_left_out(self, make_trainer, metric):
        with pytest.raises(ValueError, match="`metric_for_best_model` is .*`eval_num_beams=0`"):
            make_trainer(eval_strategy="epoch", metric_for_best_model=metric, eval_num_beams=0)

    def test_a_model_chosen_by_a_metric_that_nobody_measures(self, make_trainer):
        with pytest.raises(ValueError, match="'ndcg@20', which evaluation does not measure, did you mean 'ndcg@"):
            make_trainer(eval_strategy="epoch", metric_for_best_model="ndcg@20")
        make_trainer(eval_strategy="epoch", metric_for_best_model="mine", compute_metrics=lambda _: {"mine": 1.0})

    def test_metrics_of_batches(self, tmp_path):
        with pytest.raises(ValueError, match="`batch_eval_metrics`"):
            MSLConfig(str(tmp_path), batch_eval_metrics=True)

    def test_an_evaluation_row_without_a_label(self, make_trainer):
        trainer = make_trainer()
        rows = Dataset.from_dict({"input_ids": [[1, 5]], "labels": [[-100, -100]]})
        with pytest.raises(ValueError, match="Row 0 of the batch has no label"):
            trainer.evaluate(rows)

    @pytest.mark.parametrize("metric", ["nll", "eval_nll", "eval_warm_nll", "nll_warm"])
    def test_a_likelihood_is_never_taken_for_larger_is_better(self, tmp_path, metric):
        assert MSLConfig(str(tmp_path), metric_for_best_model=metric).greater_is_better is False

    def test_an_argument_that_the_loss_would_ignore(self, tmp_path):
        with pytest.raises(ValueError, match="`label_smoothing_factor`"):
            MSLConfig(str(tmp_path), label_smoothing_factor=0.1)
        with pytest.raises(ValueError, match="`use_liger_kernel`"):
            MSLConfig(str(tmp_path), use_liger_kernel=True)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("loss_type", "sft"),
            ("supervise", "some"),
            ("scoring", "both"),
            ("tau", 0.0),
            ("eta", 1.0),
            ("eval_num_beams", 5),
        ],
    )
    def test_a_value_out_of_range(self, tmp_path, name, value):
        with pytest.raises(ValueError, match=f"`{name}`"):
            MSLConfig(str(tmp_path), **{name: value})

    @pytest.mark.parametrize(("name", "value"), [("tau", "warm"), ("eval_num_beams", 2.5), ("adaptive_tau", 1)])
    def test_a_value_of_the_wrong_type(self, tmp_path, name, value):
        with pytest.raises(TypeError, match=f"`{name}`"):
            MSLConfig(str(tmp_path), **{name: value})

    def test_an_adaptive_temperature_for_plain_sft(self, tmp_path):
        with pytest.raises(ValueError, match="`adaptive_tau`"):
            MSLConfig(str(tmp_path), adaptive_tau=True, loss_type="lml")

    def test_a_missing_catalog(self, tiny_lm, bpe_tokenizer, tmp_path):
        with pytest.raises(ValueError, match="`catalog`"):
            MSLTrainer(tiny_lm(), MSLConfig(str(tmp_path), use_cpu=True), rows(), processing_class=bpe_tokenizer)

    def test_rows_without_the_columns_it_needs(self, make_trainer):
        with pytest.raises(ValueError, match="`target`"):
            make_trainer(train=Dataset.from_dict({"history": [[1]]}))

    def test_all_events_as_labels_without_the_column_that_counts_them_once(self, make_trainer):
        with pytest.raises(ValueError, match="`supervise_from`"):
            make_trainer(train=rows().remove_columns(SUPERVISE_FROM), supervise="all")

    def test_a_loss_function_of_ones_own(self, tiny_lm, bpe_tokenizer, tiny_catalog, tmp_path):
        with pytest.raises(TypeError, match="compute_loss_func"):
            MSLTrainer(tiny_lm(), MSLConfig(str(tmp_path), use_cpu=True), rows(), compute_loss_func=lambda *_: 0)
