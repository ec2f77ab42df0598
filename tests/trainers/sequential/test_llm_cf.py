"""LLMCFTrainer: which rows may be examples for which label, what is learned from them, and what is refused."""

import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset

from hf_rec import LLMCFConfig, LLMCFModel, LLMCFModelConfig, LLMCFTrainer, SASRecConfig, SASRecModel
from hf_rec.columns import (
    EXAMPLES,
    HISTORY,
    HISTORY_TIMESTAMPS,
    INPUT_IDS,
    LABEL_PLACES,
    STORED_ROW,
    SUPERVISE_FROM,
    TARGET,
    TIMESTAMP,
    USER_ID,
)
from hf_rec.data.catalog import Catalog
from hf_rec.hub import load_recommender


N = 20
CATALOG = Catalog.from_records([{"item_id": f"item-{item}", "title": f"word{item} w{item % 3}"} for item in range(N)])


def walks(count, length=5, times="all", first=0):
    """Rows over a cycle of the items, each row later than the one before it; two rows a user."""
    events = [[(start * 7 + step) % N for step in range(length)] for start in range(first, first + count)]
    clock = [[100 * row + step for step in range(length)] for row in range(first, first + count)]
    return Dataset.from_dict(
        {
            USER_ID: [str(row // 2) for row in range(first, first + count)],
            HISTORY: [walk[:-1] for walk in events],
            HISTORY_TIMESTAMPS: [row[:-1] if times == "all" else [] for row in clock],
            TARGET: [walk[-1] for walk in events],
            TIMESTAMP: [row[-1] if times != "none" else -1 for row in clock],
            SUPERVISE_FROM: [1] * count,
        }
    )


@pytest.fixture
def make_trainer(tmp_path):
    def build(train=None, evaluate=None, folder="run", catalog=CATALOG, model=None, **settings):
        if model is None:
            torch.manual_seed(0)
            config = LLMCFModelConfig(num_items=N, hidden_size=8, max_length=6, example_length=6, dropout=0.0)
            model = LLMCFModel(config)
        settings = {
            "max_steps": 4,
            "per_device_train_batch_size": 8,
            "learning_rate": 0.03,
            "logging_steps": 1,
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
        } | settings
        args = LLMCFConfig(str(tmp_path / folder), **settings)
        train = walks(24) if train is None else train
        return LLMCFTrainer(model, args, train, walks(6, first=24) if evaluate is None else evaluate, catalog)

    return build


def labels_and_examples(trainer, train):
    """Row, history, time of the event before, and examples of each label."""
    batches = trainer.train_dataset
    for row in range(len(train)):
        batch = batches.__getitems__([row])
        for place, label in enumerate(batch["labels"][0].tolist()):
            if label >= 0:
                yield row, place, batch[EXAMPLES][0, place].tolist()


@pytest.mark.parametrize("times", ["all", "targets", "none"])
def test_examples_are_earlier_rows_of_other_users(make_trainer, times):
    train = walks(24, times=times)
    trainer = make_trainer(train, walks(6, first=24, times=times))
    found = list(labels_and_examples(trainer, train))
    assert len(found) == 24 * 4
    later = False
    for row, place, examples in found:
        for example in (example for example in examples if example >= 0):
            assert train[example][USER_ID] != train[row][USER_ID]
            later |= example > row
            if times == "all":
                assert train[example][TIMESTAMP] <= train[row][HISTORY_TIMESTAMPS][place]
            elif times == "targets":
                assert train[example][TIMESTAMP] < train[row][TIMESTAMP]
                assert place == 3, "of the other labels nobody knows when they were"
    assert any(example >= 0 for *_, examples in found for example in examples)
    assert later == (times == "none"), "without times all rows of others count as past"


def test_rows_to_evaluate_find_training_rows_alone(make_trainer):
    trainer = make_trainer()
    batch = trainer.eval_dataset.__getitems__(list(range(6)))
    assert batch[EXAMPLES].shape == (6, 4) and (batch[EXAMPLES] >= 0).any()
    assert len(trainer.model.examples) == 24 and batch[EXAMPLES].max() < 24


@pytest.mark.parametrize("samples", ["sequences", "prefixes"])
def test_it_learns_the_cycle_and_a_saved_folder_recommends_alike(make_trainer, tmp_path, samples):
    trainer = make_trainer(max_steps=40, samples=samples, logging_steps=20)
    before = trainer.evaluate()["eval_ndcg@10"]
    trainer.train()
    measured = trainer.evaluate()["eval_ndcg@10"]
    assert measured > before + 0.15
    trainer.save_model()
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    loaded = load_recommender(tmp_path / "elsewhere", device="cpu")
    rows = walks(6, first=24)
    histories = [[CATALOG.ids[item] for item in history] for history in rows[HISTORY]]
    scores = loaded.score_all(histories, timestamps=rows[HISTORY_TIMESTAMPS])
    ranks = [(values > values[target]).sum() for values, target in zip(scores, rows[TARGET], strict=True)]
    assert np.mean([1 / np.log2(2 + rank) if rank < 10 else 0 for rank in ranks]) == pytest.approx(measured, abs=1e-6)
    # A history from before any stored row has no examples; scores of single candidates are those of the list
    early = loaded.score_all(histories[:1], timestamps=[[0, 1, 2, 3]])
    assert not np.allclose(early, scores[:1])
    found = loaded.recommend(histories[:1], k=3, timestamps=rows[HISTORY_TIMESTAMPS][:1])
    again = loaded.score(histories[:1], found.item_ids, timestamps=rows[HISTORY_TIMESTAMPS][:1])[0]
    np.testing.assert_allclose(again, found.scores[0], rtol=1e-5)


def test_the_reconstruction_is_one_minus_the_cosine_at_targets(make_trainer):
    torch.manual_seed(1)
    plain = make_trainer()
    trainer = make_trainer(reconstruction_weight=0.3)
    batch = trainer._train_collator(trainer.train_dataset.__getitems__([20, 21]))
    found = trainer.compute_loss(trainer.model, dict(batch)) - plain.compute_loss(trainer.model, dict(batch))
    model, places = trainer.model, batch[LABEL_PLACES]
    examples = batch[EXAMPLES].flatten(0, 1)[places]
    feature = model(batch[INPUT_IDS], examples=examples, places=places).feature
    rows = batch[STORED_ROW].flatten()[places]
    assert sorted(rows[rows >= 0].tolist()) == [20, 21]
    at = rows >= 0
    cosine = F.cosine_similarity(model.text_output(feature[at]), model.examples.texts[rows[at]])
    torch.testing.assert_close(found, 0.3 * (1 - cosine).sum() / len(places), rtol=1e-4, atol=1e-6)


def test_a_resumed_run_takes_the_steps_of_the_whole_one(make_trainer, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2, "reconstruction_weight": 0.1}
    whole = make_trainer(folder="whole", **settings)
    whole.train()
    resumed = make_trainer(folder="resumed", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    for (name, one), two in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6, msg=name)


class TestTexts:
    def test_a_column_of_text_is_read_and_one_that_names_the_labels_is_spoken_of(self, make_trainer, caplog):
        train = walks(24)
        kind = train.add_column("about", [f"likes w{history[0] % 3}" for history in train[HISTORY]])
        with caplog.at_level(logging.WARNING):
            trainer = make_trainer(kind, example_text_column="about")
            assert trainer.model.examples.texts.any(dim=1).all() and "name the target" not in caplog.text
            told = train.add_column("about", [f"next comes {CATALOG.titles[target]}" for target in train[TARGET]])
            make_trainer(told, example_text_column="about")
        assert "24 of 24 texts name the target of their own row" in caplog.text

    def test_without_a_column_they_are_the_titles_of_the_history(self, make_trainer):
        texts = make_trainer().model.examples.texts
        same = make_trainer(
            walks(24).add_column("about", [" ".join(CATALOG.titles[i] for i in h) for h in walks(24)[HISTORY]]),
            example_text_column="about",
        ).model.examples.texts
        torch.testing.assert_close(texts, same)

    def test_a_catalog_of_bare_ids_has_none(self, make_trainer):
        bare = Catalog.from_records([{"item_id": item} for item in range(N)])
        trainer = make_trainer(catalog=bare)
        assert trainer.model.examples.texts.shape[1] == 0 and trainer.model.text_input is None
        with pytest.raises(ValueError, match="`reconstruction_weight` needs texts"):
            make_trainer(catalog=bare, reconstruction_weight=0.1)


@pytest.mark.parametrize(
    ("found", "message"),
    [(np.zeros((23, 5)), "has 23 rows, the training split 24 rows"), (np.full((24, 5), np.nan), "not finite numbers")],
)
def test_vectors_that_do_not_fit_the_rows_are_refused(make_trainer, tmp_path, found, message):
    np.save(tmp_path / "bad.npy", found)
    with pytest.raises(ValueError, match=f"`example_text_vectors`: .*{message}"):
        make_trainer(example_text_vectors=str(tmp_path / "bad.npy"))


def test_what_it_cannot_learn_from_is_refused(make_trainer, tmp_path):
    with pytest.raises(ValueError, match="`model` must be an LLMCFModel, got SASRecModel"):
        make_trainer(model=SASRecModel(SASRecConfig(num_items=N, hidden_size=8)))
    with pytest.raises(ValueError, match="must be a whole data set, got IterableDataset"):
        make_trainer(walks(24).to_iterable_dataset())
    with pytest.raises(ValueError, match="lacks the column 'user_id'"):
        make_trainer(walks(24).remove_columns(USER_ID))
    with pytest.raises(ValueError, match="names 'about', which the training rows do not have"):
        make_trainer(example_text_column="about")
    with pytest.raises(ValueError, match="`reconstruction_weight` must be at least 0"):
        LLMCFConfig(str(tmp_path), use_cpu=True, reconstruction_weight=-1.0)
