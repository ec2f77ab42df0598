"""Stage 1 of A-LLMRec: the loss by hand, its draws, and what a run leaves behind."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset

from hf_rec.columns import HISTORY, SUPERVISE_FROM, TARGET
from hf_rec.data.catalog import Catalog
from hf_rec.hub import load_recommender, save_recommender
from hf_rec.models.a_llmrec.model import ALLMRecModel
from hf_rec.models.sequence.caser import CaserConfig, CaserModel
from hf_rec.models.sequence.sasrec import SASRecConfig, SASRecModel
from hf_rec.trainers.a_llmrec.config import ALLMRecConfig
from hf_rec.trainers.a_llmrec.trainer import ALLMRecTrainer


N = 20
CATALOG = Catalog.from_records([{"item_id": row, "title": f"word{row % 7} thing{row % 3}"} for row in range(N)])


def walks(count, length=5):
    """Walks over 18 of the 20 items."""
    rows = [[(start * 7 + step) % 18 for step in range(length)] for start in range(count)]
    columns = {HISTORY: [row[:-1] for row in rows], TARGET: [row[-1] for row in rows], SUPERVISE_FROM: [1] * count}
    return Dataset.from_dict(columns)


def sequence_model(kind=SASRecModel, config=SASRecConfig, **settings):
    torch.manual_seed(0)
    return kind(config(num_items=N, hidden_size=8, max_length=6, dropout=0.3, **settings))


@pytest.fixture
def make(tmp_path):
    def build(folder="run", model=None, train=None, **settings):
        given = {name: settings.pop(name) for name in ("text_vectors", "catalog") if name in settings}
        settings = {
            "max_steps": 6,
            "per_device_train_batch_size": 4,
            "learning_rate": 0.03,
            "joint_size": 6,
            "logging_steps": 1,
            "save_strategy": "steps",
            "save_steps": 3,
            "use_cpu": True,
            "disable_tqdm": True,
        } | settings
        args = ALLMRecConfig(str(tmp_path / folder), **settings)
        model, train = sequence_model() if model is None else model, walks(24) if train is None else train
        return ALLMRecTrainer(model, args, train, walks(5), **({"catalog": CATALOG} | given))

    return build


def batch_of(trainer, count=3):
    return trainer.data_collator(trainer.train_dataset.__getitems__(range(count)))


class TestLoss:
    def test_by_hand(self, make):
        weights = {"recommendation_weight": 1.5, "matching_weight": 0.7, "alpha": 0.3, "beta": 0.2}
        trainer = make(**weights)
        batch, model = batch_of(trainer, 2), trainer.model
        negatives = trainer._negatives(batch["input_ids"], batch["labels"], batch["label_places"])
        found = trainer.compute_loss(model, batch)
        teacher = model.sequence_model
        total, count = 0.0, 0
        for row in range(2):
            events = [*walks(2)[row][HISTORY], walks(2)[row][TARGET]]
            users = teacher(torch.tensor([events[:-1]])).last_hidden_state[0]
            for user, target in zip(users, events[1:], strict=True):
                for item, sign in ((target, 1), (int(negatives[count]), -1)):
                    vector = teacher.item_vectors(torch.tensor(item)) * model.item_scale
                    text = model.text_vectors[item] * model.text_scale
                    z, z_text = model.item_encoder(vector).sigmoid(), model.text_encoder(text).sigmoid()
                    rebuilt, rebuilt_text = model.item_decoder(z), model.text_decoder(z_text)
                    total += 1.5 * F.softplus(-sign * (user @ rebuilt) / model.item_scale)
                    total += 0.7 * F.mse_loss(z, z_text)
                    total += 0.3 * F.mse_loss(rebuilt, vector) + 0.2 * F.mse_loss(rebuilt_text, text)
                count += 1
        torch.testing.assert_close(found, total / count)

    def test_negatives_are_seen_items_outside_of_the_row(self, make):
        trainer = make()
        batch = batch_of(trainer, 24)
        drawn = set()
        for step in range(60):
            trainer.state.global_step = step
            negatives = trainer._negatives(batch["input_ids"], batch["labels"], batch["label_places"])
            rows = torch.cat([batch["input_ids"], batch["labels"][:, -1:]], dim=1)[batch["label_places"] // 4]
            assert not (rows == negatives[:, None]).any()
            drawn |= set(negatives.tolist())
        assert drawn == set(range(18))  # 18 and 19 occur in no training row

    def test_a_draw_depends_on_the_row_and_not_on_its_batch(self, make):
        trainer = make()
        whole, part = batch_of(trainer, 3), batch_of(trainer, 1)
        first = trainer._negatives(whole["input_ids"], whole["labels"], whole["label_places"])[:4]
        assert first.tolist() == trainer._negatives(part["input_ids"], part["labels"], part["label_places"]).tolist()
        trainer.state.global_step = 1
        assert first.tolist() != trainer._negatives(part["input_ids"], part["labels"], part["label_places"]).tolist()

    def test_micro_batches_take_the_step_of_one_batch(self, make):
        found = []
        for settings in ({}, {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}):
            trainer = make(max_steps=2, save_strategy="no", **settings)
            trainer.train()
            found.append(trainer.model.item_encoder.weight.detach())
        torch.testing.assert_close(*found)

    def test_a_model_that_is_not_causal_is_read_prefix_by_prefix(self, make):
        trainer = make(model=sequence_model(CaserModel, CaserConfig), save_strategy="no")
        assert len(trainer.train_dataset) == 24 * 4
        trainer.train()


class TestRun:
    def test_items_and_texts_come_together_and_the_rest_stays_frozen(self, make):
        trainer = make(max_steps=60, save_strategy="no", learning_rate=0.1, logging_steps=20)
        before = {name: value.clone() for name, value in trainer.model.sequence_model.state_dict().items()}
        trainer.train()
        logs = [entry for entry in trainer.state.log_history if "matching_loss" in entry]
        for name in ("matching_loss", "item_reconstruction_loss", "text_reconstruction_loss"):
            assert logs[-1][name] < 0.7 * max(entry[name] for entry in logs)
        for name, value in trainer.model.sequence_model.state_dict().items():
            torch.testing.assert_close(value, before[name], rtol=0, atol=0)

    def test_a_resumed_run_is_the_uninterrupted_one(self, make, tmp_path):
        whole = make("whole")
        whole.train()
        resumed = make("resumed")
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
        for name, value in whole.model.state_dict().items():
            torch.testing.assert_close(resumed.model.state_dict()[name], value, rtol=0, atol=0)

    def test_a_folder_is_a_recommender(self, make, tmp_path):
        trainer = make()
        trainer.train()
        metrics = trainer.evaluate()
        assert {"eval_ndcg@10", "eval_nll"} <= set(metrics) and metrics["eval_loss"] == metrics["eval_nll"]
        trainer.save_model()
        loaded = load_recommender(tmp_path / "run", device="cpu")
        histories = [[3, 4], [19, 5]]  # 19 is known by its text alone
        np.testing.assert_array_equal(loaded.score_all(histories), trainer.recommender().score_all(histories))
        again = ALLMRecTrainer(str(tmp_path / "run"), ALLMRecConfig(str(tmp_path / "more")), catalog=CATALOG)
        assert isinstance(again.model, ALLMRecModel)
        trained = {name.split(".")[0] for name, param in again.model.named_parameters() if param.requires_grad}
        assert trained == {"item_encoder", "item_decoder", "text_encoder", "text_decoder"}

    def test_a_folder_of_a_sequence_model_is_taken_as_well(self, make, tmp_path):
        model = sequence_model(catalog_sha256=CATALOG.sha256)
        save_recommender(tmp_path / "sasrec", catalog=CATALOG, kind="sequence", scoring="exact", model=model)
        trainer = make(model=str(tmp_path / "sasrec"))
        assert not any(param.requires_grad for param in trainer.model.sequence_model.parameters())
        torch.testing.assert_close(trainer.model.sequence_model.item_vectors(), model.item_vectors())
        assert trainer.model.item_seen.tolist() == [True] * 18 + [False] * 2


class TestTexts:
    def test_sources_of_text(self, make, tmp_path, tiny_lm, bpe_tokenizer):
        assert make().model.text_vectors.shape == (N, 20)
        np.save(tmp_path / "own.npy", np.arange(N * 3.0).reshape(N, 3))
        own = make(text_source="file", text_model=str(tmp_path / "own.npy"))
        assert own.model.text_vectors[2].tolist() == [6, 7, 8]
        tiny_lm().save_pretrained(tmp_path / "lm")
        bpe_tokenizer.save_pretrained(tmp_path / "lm")
        states = make(text_source="language_model", text_model=str(tmp_path / "lm")).model.text_vectors
        ids = bpe_tokenizer(f"{bpe_tokenizer.bos_token}{CATALOG.titles[4]}", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            expected = tiny_lm().transformer(ids).last_hidden_state[0, 1:].mean(dim=0)
        torch.testing.assert_close(states[4], expected, rtol=0, atol=1e-4)

    def test_vectors_that_are_given(self, make):
        vectors = np.random.default_rng(0).normal(size=(N, 4)).astype(np.float32)
        np.testing.assert_array_equal(make(text_vectors=vectors).model.text_vectors.numpy(), vectors)


class TestBadInput:
    @pytest.mark.parametrize(
        "settings, message",
        [
            ({"alpha": -1.0}, "`alpha` must be a number of at least 0"),
            ({"alpha": 0.0, "beta": 0.0, "recommendation_weight": 0.0, "matching_weight": 0.0}, "nothing to learn"),
            ({"joint_size": 0}, "`joint_size` must be at least 1"),
            ({"text_source": "language_model"}, "`text_model` None does not go with"),
            ({"text_model": "lm"}, "does not go with `text_source` 'tfidf'"),
            ({"text_source": "file", "text_model": "x.npy", "text_columns": ["title"]}, "reads no text"),
            ({"text_columns": ["plot"]}, "names 'plot', which no item has"),
            ({"text_vectors": np.ones((N, 3), np.float32)[:-1]}, r"shape \(20, width\)"),
            ({"text_vectors": np.full((N, 3), np.nan, np.float32)}, "NaN or infinity for 20 items"),
            ({"catalog": None}, "`catalog` is required"),
            ({"catalog": CATALOG.subset(range(19))}, "has 19 items, but `model` was made for 20"),
        ],
    )
    def test_settings(self, make, settings, message):
        with pytest.raises(ValueError, match=message):
            make(**settings)

    def test_a_row_with_every_item_leaves_no_negative(self, make):
        rows = Dataset.from_dict({HISTORY: [[0, 1], [1, 0]], TARGET: [2, 2]})
        with pytest.raises(ValueError, match="a row with all 3 items of the training rows: no negative is left"):
            make(train=rows)

    def test_a_sequence_model_of_another_catalog(self, make):
        with pytest.raises(ValueError, match="made for another catalog"):
            make(model=sequence_model(catalog_sha256="0" * 64))

    def test_texts_for_a_model_that_has_its_own(self, make):
        with pytest.raises(ValueError, match="`model` has its own"):
            make(model=make().model, text_vectors=np.ones((N, 3), np.float32))
