"""RerankTrainer on a tiny model: the loss by hand, orders of candidates, resume, folders and what is refused."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from hf_rec.hub import load_recommender
from hf_rec.models.sequence.sasrec import SASRecConfig, SASRecModel
from hf_rec.recommenders.sequence import SequenceRecommender
from hf_rec.trainers.rerank.config import RerankConfig
from hf_rec.trainers.rerank.trainer import RerankTrainer


def split_rows(count=12, seed=0):
    events = torch.randint(0, 12, (count, 4), generator=torch.Generator().manual_seed(seed)).tolist()
    return Dataset.from_dict(
        {
            "user_id": [f"u{row % 5}" for row in range(count)],
            "history": [event[: 1 + row % 3] for row, event in enumerate(events)],
            "target": [event[3] for event in events],
        }
    )


def rated_rows(count=12, seed=0):
    rows = split_rows(count, seed)
    return rows.add_column("liked", [row % 2 for row in range(count)]).add_column(
        "disliked", [[row] if row % 3 else [] for row in range(count)]
    )


@pytest.fixture(scope="module")
def sequence(tiny_catalog):
    torch.manual_seed(0)
    model = SASRecModel(SASRecConfig(num_items=12, hidden_size=8, initializer_range=0.9))
    return SequenceRecommender(model, tiny_catalog)


@pytest.fixture
def make_trainer(tmp_path, tiny_lm, bpe_tokenizer, tiny_catalog, sequence):
    def build(form="letters", model=None, folder="run", train=None, evaluation=None, peft_config=None, **kwargs):
        retriever = kwargs.pop("retriever", sequence if form == "letters" else None)
        prompt = kwargs.pop("prompt", None)
        settings = {
            "form": form,
            "max_length": 400,
            "max_steps": 3,
            "per_device_train_batch_size": 4,
            "learning_rate": 5e-3,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
        }
        settings |= {"num_candidates": 4} if form == "letters" else {"verbalizers": ["Y", "N"]}
        rows = split_rows if form == "letters" else rated_rows
        return RerankTrainer(
            tiny_lm("gpt2") if model is None else model,
            RerankConfig(str(tmp_path / folder), **settings | kwargs),
            train_dataset=rows() if train is None else train,
            eval_dataset=rows(8, seed=1) if evaluation is None else evaluation,
            processing_class=bpe_tokenizer,
            catalog=tiny_catalog,
            prompt=prompt,
            retriever=retriever,
            peft_config=peft_config,
        )

    return build


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


class TestLoss:
    @pytest.mark.parametrize("form", ["letters", "yes_no"])
    def test_it_is_the_cross_entropy_of_the_answer_among_the_answers(self, make_trainer, tiny_lm, form):
        trainer = make_trainer(form)
        rows = [trainer.train_dataset[row] for row in range(5)]
        trainer.model.eval()
        loss = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
        loss.backward()
        plain, prompt, total = tiny_lm("gpt2"), trainer.prompt, 0.0
        for row in rows:
            order, right = [0], row["labels"][0]
            if form == "letters":
                number = len(row["candidates"])
                order = np.random.default_rng([trainer.args.seed, row["row"], 0]).permutation(number).tolist()
                right = order.index(right)
            tokens = prompt.encode_user(row["history"], row["disliked"])
            tokens += prompt.encode_candidates([row["candidates"][place] for place in order])
            logits = plain(input_ids=torch.tensor([tokens])).logits[0, -1]
            answers = prompt.verbalizer_ids[: len(order) if form == "letters" else 2]
            total = total - logits[answers].log_softmax(0)[right]
        (total / 5).backward()
        torch.testing.assert_close(loss, total / 5)
        for (name, weight), other in zip(trainer.model.named_parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(weight.grad, other.grad, msg=lambda text: f"{name}: {text}")  # noqa: B023

    def test_one_by_four_and_four_by_one_take_the_same_steps(self, make_trainer, tiny_lm):
        found = []
        for batch, accumulation in ((4, 1), (1, 4)):
            trainer = make_trainer(
                model=tiny_lm("llama"),  # has no dropout
                max_steps=2,
                per_device_train_batch_size=batch,
                gradient_accumulation_steps=accumulation,
            )
            trainer.train()
            found.append(losses(trainer))
        np.testing.assert_allclose(found[0], found[1], rtol=1e-4)

    def test_training_lowers_it_and_a_small_set_is_learned(self, make_trainer, tiny_lm):
        settings = {"max_steps": 12, "per_device_train_batch_size": 8}
        trainer = make_trainer("yes_no", tiny_lm("llama"), train=rated_rows(8), evaluation=rated_rows(8), **settings)
        before = trainer.evaluate()
        trainer.train()
        after = trainer.evaluate()
        assert after["eval_auc"] > 0.9 > before["eval_auc"] and after["eval_loss"] < 0.6 < before["eval_loss"]


class TestOrders:
    def test_candidates_are_shuffled_by_seed_row_and_epoch(self, make_trainer):
        trainer = make_trainer()
        collator, rows = trainer.data_collator, [trainer.train_dataset[row] for row in range(12)]

        def shown(epoch):
            collator.epoch = epoch
            return collator(rows)["input_ids"].tolist()

        assert shown(0) == shown(0) != shown(1)
        collator.shuffles = False
        assert shown(0) == shown(1)

    def test_a_run_shows_each_epoch_another_order(self, make_trainer, monkeypatch):
        trainer, seen = make_trainer(max_steps=-1, num_train_epochs=2), []
        encode = type(trainer.data_collator).encode
        monkeypatch.setattr(
            type(trainer.data_collator), "encode", lambda self, row: seen.append(self.epoch) or encode(self, row)
        )
        trainer.train()
        assert seen == [0] * 12 + [1] * 12

    def test_a_resumed_run_takes_the_steps_of_the_whole_one(self, make_trainer, tmp_path):
        settings = {"max_steps": 5, "save_strategy": "steps", "save_steps": 3}
        whole = make_trainer(folder="whole", **settings)
        whole.train()
        resumed = make_trainer(folder="resumed", **settings)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
        np.testing.assert_allclose(losses(resumed), losses(whole), rtol=1e-6)


class TestCandidates:
    def test_they_are_the_retrievers_and_hold_the_target(self, make_trainer, sequence):
        trainer, rows = make_trainer(), split_rows()
        found = sequence.recommend([[100 + item for item in history] for history in rows["history"]], k=4)
        retrieved = 0
        for row, ids, target in zip(trainer.train_dataset, found.item_ids, rows["target"], strict=True):
            listed = [item - 100 for item in ids]
            retrieved += target in listed
            assert row["candidates"] == (listed if target in listed else [*listed[:3], target])
            assert row["candidates"][row["labels"][0]] == target
        assert trainer.retrieved_share == retrieved / 12 < 1

    def test_rows_that_were_not_retrieved_are_left_out_of_training_and_misses_in_evaluation(self, make_trainer):
        trainer = make_trainer(not_retrieved="skip")
        assert len(trainer.train_dataset) == round(12 * trainer.retrieved_share) < 12
        metrics = trainer.evaluate()
        ranks = [label[0] for label in trainer.eval_dataset["labels"]]
        assert metrics["eval_retrieved"] == metrics["eval_hit_rate@5"] == np.mean([rank >= 0 for rank in ranks]) < 1
        reranker = trainer.reranker()
        nll = [
            -reranker.judge([row["history"]], [row["candidates"]])[0][row["labels"][0]]
            for row in trainer.eval_dataset
            if row["labels"][0] >= 0
        ]
        assert metrics["eval_nll"] == pytest.approx(np.mean(nll), rel=1e-4)

    def test_items_of_the_history_can_be_left_out(self, make_trainer):
        for row in make_trainer(seen="mask", not_retrieved="skip").train_dataset:
            assert not set(row["candidates"]) & set(row["history"])

    def test_lists_of_a_folder_are_made_once(self, make_trainer, sequence, tmp_path, monkeypatch):
        from hf_rec.hub import save_recommender

        save_recommender(
            tmp_path / "sasrec", catalog=sequence.catalog, kind="sequence", scoring="exact", model=sequence.model
        )
        first = make_trainer(retriever=str(tmp_path / "sasrec"))
        monkeypatch.setattr(SequenceRecommender, "recommend", None)
        again = make_trainer(retriever=str(tmp_path / "sasrec"))
        assert again.train_dataset[:] == first.train_dataset[:] and again.eval_dataset[:] == first.eval_dataset[:]
        with pytest.raises(ValueError, match="were made with others of these than the run has: `list_length`"):
            make_trainer(retriever=str(tmp_path / "sasrec"), num_candidates=3)

    def test_there_are_as_many_as_the_prompt_that_comes_along_has_letters(self, make_trainer):
        prompt = make_trainer(num_candidates=3).prompt
        trainer = make_trainer(prompt=prompt)
        assert max(map(len, trainer.train_dataset["candidates"])) == 3 == trainer.recommender().n
        trainer.evaluate()
        with pytest.raises(ValueError, match="`permutations` is 4, but the prompt .* has 3 candidates"):
            make_trainer(prompt=prompt, permutations=4)

    def test_a_retriever_is_told_the_times_of_a_history(self, make_trainer, sequence, monkeypatch):
        rows, told = split_rows(), []
        times = [[7 + place for place, _ in enumerate(history)] for history in rows["history"]]
        recommend = sequence.recommend

        def noted(*args, **options):
            told.append(options["timestamps"])
            return recommend(*args, **options)

        monkeypatch.setattr(sequence, "recommend", noted)
        make_trainer(train=rows.add_column("history_timestamps", times))
        assert told == [times, None]

    def test_a_column_of_candidates_needs_no_retriever(self, make_trainer):
        rows = split_rows().add_column("candidates", [[11, 3, 5]] * 12)
        trainer = make_trainer(train=rows, evaluation=rows, retriever=None)
        assert trainer.train_dataset[0]["candidates"][0] == 11
        with pytest.raises(ValueError, match="`retriever` was not given"):
            trainer.recommender()


class TestFolder:
    def test_an_adapter_is_saved_and_judges_as_before(self, make_trainer, tiny_lm, bpe_tokenizer, tmp_path):
        tiny_lm("gpt2").save_pretrained(tmp_path / "base")
        bpe_tokenizer.save_pretrained(tmp_path / "base")
        adapter = LoraConfig(r=4, target_modules=["c_attn"], task_type="CAUSAL_LM")
        trainer = make_trainer(model=str(tmp_path / "base"), peft_config=adapter, permutations=2)
        trainer.train()
        trainer.save_model()
        expected = trainer.reranker().score([[100, 105]], [103, 107, 111])[0]
        loaded = load_recommender(tmp_path / "run")
        np.testing.assert_allclose(loaded.score([[100, 105]], [103, 107, 111])[0], expected, rtol=1e-5, atol=1e-5)
        assert (loaded.permutations, loaded.form) == (2, "letters")
        further = make_trainer(model=str(tmp_path / "run"), folder="further")
        assert further.prompt.sha256 == trainer.prompt.sha256

    def test_the_recommender_is_the_retriever_in_a_new_order(self, make_trainer, sequence):
        trainer = make_trainer()
        found = trainer.recommender().recommend([[100, 105]], k=6)
        retrieved = sequence.recommend([[100, 105]], k=6).item_ids[0]
        assert sorted(found.item_ids[0][:4]) == sorted(retrieved[:4]) and found.item_ids[0][4:] == retrieved[4:]


class TestBadInput:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"num_candidates": 30}, "`num_candidates` is 30, but there are 26 letters"),
            ({"permutations": 5}, "`permutations` must be from 1 to `num_candidates`, 4, got 5"),
            ({"retriever": None}, "`retriever` is required for rows without a column `candidates`"),
            ({"form": "yes_no", "permutations": 2}, "`permutations` is 2, which `form='yes_no'` has no use for"),
            ({"form": "yes_no", "verbalizers": None}, "'Yes' is 3 behind the prompt"),
            ({"form": "yes_no", "train": split_rows()}, "needs the columns history, target, liked; .* lacks .'liked'"),
            ({"metric_for_best_model": "auc", "eval_strategy": "epoch"}, "which evaluation does not measure"),
            ({"dataloader_persistent_workers": True, "dataloader_num_workers": 1}, "must be False: candidates are"),
        ],
    )
    def test_it_is_refused_before_training(self, make_trainer, settings, message):
        with pytest.raises(ValueError, match=message):
            make_trainer(**settings)

    def test_a_retriever_of_other_items_is_refused(self, make_trainer):
        from hf_rec.data.catalog import Catalog

        other = Catalog.from_records([{"item_id": row} for row in range(12)])
        retriever = SequenceRecommender(SASRecModel(SASRecConfig(num_items=12, hidden_size=8)), other)
        with pytest.raises(ValueError, match="`retriever` is over another catalog"):
            make_trainer(retriever=retriever)
