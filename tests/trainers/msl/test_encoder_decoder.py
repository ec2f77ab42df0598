"""MSLTrainer on a tiny T5: the loss against a token-by-token sum, and everything else that a decoder can do."""

import json
import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from hf_rec.cli.main import main
from hf_rec.columns import HISTORY, INPUT_IDS, LABELS, TARGET
from hf_rec.data.catalog import Catalog
from hf_rec.data.encoder_decoder_collator import EncoderDecoderCollator
from hf_rec.data.prompts.next_item import Prompt
from hf_rec.hub import load_recommender
from hf_rec.trainers.msl.config import MSLConfig
from hf_rec.trainers.msl.trainer import MSLTrainer
from hf_rec.trainers.softmax_dpo.config import SoftmaxDPOConfig
from hf_rec.trainers.softmax_dpo.trainer import SoftmaxDPOTrainer
from hf_rec.trie.item_trie import ItemTrie

from .test_trainer import Gradients, brute_force_loss, rows


SETTINGS = {
    "max_steps": 2,
    "per_device_train_batch_size": 8,
    "learning_rate": 5e-3,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
}


@pytest.fixture
def make_trainer(tmp_path, tiny_lm, bpe_tokenizer, tiny_catalog):
    def build(model=None, folder="run", train=None, callbacks=None, peft_config=None, **settings):
        return MSLTrainer(
            model=tiny_lm("t5") if model is None else model,
            args=MSLConfig(str(tmp_path / folder), **(SETTINGS | settings)),
            train_dataset=rows() if train is None else train,
            eval_dataset=rows(10, seed=1),
            processing_class=bpe_tokenizer,
            catalog=tiny_catalog,
            callbacks=callbacks,
            peft_config=peft_config,
        )

    return build


def test_a_row_is_taken_apart_where_its_answer_begins():
    trie = ItemTrie.build([[7, 8, 2], [7, 9, 2], [6, 2]]).csr()
    batch = EncoderDecoderCollator(pad_token_id=0, trie=trie, drop_forced=True, start_token_id=1)(
        [
            {INPUT_IDS: [5, 6, 3, 7, 9, 2], LABELS: [-100] * 3 + [7, 9, 2]},
            {INPUT_IDS: [5, 6, 2], LABELS: [-100, 6, 2]},
            {INPUT_IDS: [5, 4], LABELS: [-100, -100]},
        ]
    )
    assert batch[INPUT_IDS].tolist() == [[5, 6, 3], [5, 0, 0], [5, 4, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert batch["decoder_input_ids"].tolist() == [[1, 7], [1, 6], [1, 0]]
    # Under the trie 2 is forced, and 6 against 7 is a choice
    assert batch[LABELS].tolist() == [[7, 9], [6, -100], [-100, -100]]
    assert sorted(zip(batch["target_positions"].tolist(), batch["target_tokens"].tolist(), strict=True)) == [
        (0, 7),
        (1, 9),
        (2, 6),
    ]


@pytest.mark.parametrize(("loss_type", "tau"), [("msl", 1.0), ("msl", 2.0), ("lml", 1.0)])
def test_the_loss_and_its_gradient_are_those_of_a_token_by_token_sum(
    make_trainer, tiny_lm, bpe_tokenizer, tiny_catalog, loss_type, tau
):
    trainer = make_trainer(loss_type=loss_type, tau=tau)
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(6)])
    trainer.model.eval()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    plain = tiny_lm("t5")
    prompt = Prompt(bpe_tokenizer, tiny_catalog, form="plain", max_length=512)
    trie = ItemTrie.build(prompt.encode_items())
    total, count = brute_force_loss(plain, prompt, trie, rows().select(range(6)), "last", tau, loss_type)
    (total / count).backward()
    torch.testing.assert_close(loss, total / count)
    found, expected = dict(trainer.model.named_parameters()), dict(plain.named_parameters())
    assert found.keys() == expected.keys()
    for name, weight in found.items():
        torch.testing.assert_close(weight.grad, expected[name].grad, msg=lambda text: f"{name}: {text}")  # noqa: B023


@pytest.mark.parametrize("loss_type", ["msl", "lml"])
def test_eight_rows_at_once_and_one_at_a_time_take_the_same_step(make_trainer, tiny_lm, loss_type):
    found = []
    for batch_size in (8, 1):
        gradients, model = Gradients(), tiny_lm("t5")
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if hasattr(module, "dropout") and isinstance(module.dropout, float):  # of the attention
                module.dropout = 0.0
        trainer = make_trainer(
            model,
            callbacks=[gradients],
            loss_type=loss_type,
            adaptive_tau=loss_type == "msl",
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=8 // batch_size,
            max_grad_norm=0.0,
        )
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        found.append((gradients.values, losses, trainer.tau))
    assert found[1][1] == pytest.approx(found[0][1], rel=1e-4)
    assert found[1][2] == pytest.approx(found[0][2], rel=1e-6)
    for value, expected in zip(found[1][0], found[0][0], strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-5)


def test_an_interrupted_run_resumes_to_the_same_weights(make_trainer):
    def weights(trainer):
        return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}

    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = make_trainer(folder="whole", **settings)
    whole.train()
    resumed = make_trainer(folder="again", **settings)
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-2")
    for name, weight in weights(resumed).items():
        assert torch.equal(weight, weights(whole)[name]), name


def test_evaluation_reports_the_likelihood_and_the_rank_that_exact_scores_give(make_trainer, tiny_catalog):
    trainer = make_trainer(tau=1.3)
    metrics = trainer.evaluate()
    test_rows = rows(10, seed=1)
    histories = [[tiny_catalog.ids[row] for row in history] for history in test_rows[HISTORY]]
    scores = np.stack(trainer.recommender().score(histories, [tiny_catalog.ids] * 10))
    targets = test_rows[TARGET]
    assert metrics["eval_nll"] == pytest.approx(float(-scores[range(10), targets].mean()), rel=1e-4)
    assert metrics["eval_loss"] == metrics["eval_nll"]
    assert 0 < metrics["eval_ndcg@10"] <= 1


class TestFolders:
    def test_a_trained_model_is_loaded_and_recommends_what_the_trainer_did(
        self, make_trainer, tiny_catalog, bpe_tokenizer, capsys
    ):
        trainer = make_trainer()
        trainer.train()
        trainer.save_model()
        expected = trainer.recommender().recommend([[100, 103], []], k=5)
        folder = trainer.args.output_dir
        loaded = load_recommender(folder)
        assert type(loaded.model).__name__ == "T5ForConditionalGeneration"
        found = loaded.recommend([[100, 103], []], k=5)
        assert found.item_ids == expected.item_ids
        np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5, atol=1e-5)
        capsys.readouterr()
        main(["recommend", "--model", folder, "--history", "Alien", "Solaris", "--k", "5", "--json"])
        answer = json.loads(capsys.readouterr().out)
        again = loaded.recommend([[100, 103]], k=5)
        assert [item["item_id"] for item in answer["items"]] == again.item_ids[0]
        # Training goes on from the folder, with its prompt and trie
        further = MSLTrainer(folder, MSLConfig(f"{folder}-2", **SETTINGS), train_dataset=rows())
        assert further.prompt.sha256 == trainer.prompt.sha256
        assert math.isfinite(further.train().training_loss)

    @pytest.mark.parametrize("task_type", ["SEQ_2_SEQ_LM", "CAUSAL_LM"])  # TRL's ModelConfig says the latter
    def test_an_adapter_is_trained_alone_and_loaded_on_its_base(self, make_trainer, tiny_lm, tmp_path, task_type):
        tiny_lm("t5").save_pretrained(tmp_path / "base")
        config = LoraConfig(r=2, target_modules=["q", "v"], task_type=task_type)
        trainer = make_trainer(str(tmp_path / "base"), peft_config=config)
        before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
        trainer.train()
        changed = {name for name, weight in trainer.model.named_parameters() if not torch.equal(weight, before[name])}
        assert changed and all("lora_" in name for name in changed)
        trainer.save_model()
        expected = trainer.recommender().recommend([[100, 103]], k=5)
        found = load_recommender(trainer.args.output_dir).recommend([[100, 103]], k=5)
        assert found.item_ids == expected.item_ids
        np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5, atol=1e-5)


def test_codes_are_written_with_and_without_an_adapter(tmp_path, tiny_lm, bpe_tokenizer):
    records = [{"item_id": row, "title": f"film {row}", "code": [row % 3, row // 3]} for row in range(12)]
    catalog = Catalog.from_records(records)
    for name in ("whole", "adapter"):
        base = tmp_path / f"{name}-base"
        tiny_lm("t5").save_pretrained(base)
        bpe_tokenizer.save_pretrained(base)
        adapter = LoraConfig(r=2, target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM")
        trainer = MSLTrainer(
            str(base),
            MSLConfig(str(tmp_path / name), item_path="codes:code", **SETTINGS),
            train_dataset=rows(),
            catalog=catalog,
            peft_config=adapter if name == "adapter" else None,
        )
        new = trainer.prompt.encode_item(0)[0]
        before = trainer.model.get_output_embeddings().weight[new].detach().clone()
        trainer.train()
        trainer.save_model()
        if name == "whole":
            assert not torch.equal(trainer.model.get_output_embeddings().weight[new], before)
        recommender = trainer.recommender()
        found = recommender.recommend([[0, 5]], k=12)
        np.testing.assert_allclose(np.exp(found.scores).sum(), 1, rtol=1e-4)
        again = load_recommender(trainer.args.output_dir, device="cpu").recommend([[0, 5]], k=12)
        assert again.item_ids == found.item_ids
        np.testing.assert_allclose(again.scores, found.scores, rtol=1e-5, atol=1e-5)


class TestWhatIsRefused:
    def test_a_history_as_labels(self, make_trainer):
        with pytest.raises(ValueError, match="`supervise` must be 'last' for an encoder-decoder model, got 'all'"):
            make_trainer(supervise="all")

    def test_rows_of_ones_own_with_a_history_as_labels(self, make_trainer, bpe_tokenizer, tiny_catalog):
        prompt = Prompt(bpe_tokenizer, tiny_catalog)
        encoded = [prompt.encode_example(row[HISTORY], row[TARGET], 1, "all") for row in rows().select(range(4, 8))]
        trainer = make_trainer(train=Dataset.from_list(encoded))
        with pytest.raises(
            ValueError, match="of the batch has . labelled items, but the decoder of this model writes"
        ):
            trainer.train()

    def test_packed_rows(self, make_trainer):
        with pytest.raises(ValueError, match="`packing` must be False for T5ForConditionalGeneration"):
            make_trainer(packing=True)

    def test_softmax_dpo(self, tiny_lm, bpe_tokenizer, tiny_catalog, tmp_path):
        with pytest.raises(ValueError, match="`model` is a T5ForConditionalGeneration, which has an encoder"):
            SoftmaxDPOTrainer(
                model=tiny_lm("t5"),
                args=SoftmaxDPOConfig(str(tmp_path), use_cpu=True, report_to="none", bf16=False),
                train_dataset=rows(),
                processing_class=bpe_tokenizer,
                catalog=tiny_catalog,
            )

    def test_a_decoder_that_begins_with_nobody_knows_what(self, make_trainer, tiny_lm):
        model = tiny_lm("t5")
        model.config.decoder_start_token_id = None
        with pytest.raises(ValueError, match="`decoder_start_token_id` is not set"):
            make_trainer(model)
