import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset, load_from_disk
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedTokenizerFast

from hf_rec.columns import HISTORY, HISTORY_TIMESTAMPS, SUPERVISE_FROM, TARGET, TEACHER_VECTOR, USER_ID
from hf_rec.hub import load_recommender
from hf_rec.metrics.ranking import rank_bounds, ranking_metrics
from hf_rec.models.llm_srec.model import LLMSRecModel
from hf_rec.models.sequence.sasrec import SASRecConfig, SASRecModel
from hf_rec.trainers.llm_srec import rows as retrieval_rows
from hf_rec.trainers.llm_srec.config import LLMSRecConfig
from hf_rec.trainers.llm_srec.negatives import RetrievalNegatives
from hf_rec.trainers.llm_srec.trainer import LLMSRecTrainer
from tests.host_reads import host_reads


DAY = 86_400


@pytest.fixture(scope="module")
def folders(tiny_lm, tiny_catalog, bpe_tokenizer, tmp_path_factory):
    root = tmp_path_factory.mktemp("frozen")
    torch.manual_seed(0)
    teacher = SASRecModel(SASRecConfig(num_items=len(tiny_catalog), hidden_size=8, catalog_sha256=tiny_catalog.sha256))
    torch.nn.init.normal_(teacher.item_embedding.weight)
    teacher.save_pretrained(root / "teacher")
    tiny_lm().save_pretrained(root / "lm")
    bpe_tokenizer.save_pretrained(root / "lm")
    return root


def make_rows(count, seed=0, items=10, times=True):
    """The item after the last one in a circle, so that order matters; items 10 and 11 never occur."""
    generator = np.random.default_rng(seed)
    histories = [generator.integers(0, items, generator.integers(1, 6)).tolist() for _ in range(count)]
    return Dataset.from_dict(
        {
            USER_ID: [f"u{row}" for row in range(count)],
            HISTORY: histories,
            HISTORY_TIMESTAMPS: [
                [place * DAY for place in range(len(history))] if times else [] for history in histories
            ],
            TARGET: [(history[-1] + 1) % items for history in histories],
            SUPERVISE_FROM: [1] * count,
        }
    )


def make_trainer(folders, catalog, out, train=None, eval_dataset=None, model=None, **kwargs):
    arguments = {
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "vector_size": 6,
        "head_size": 16,
        "logging_steps": 1,
    }
    arguments |= {"save_strategy": "no", "use_cpu": True, "disable_tqdm": True, "learning_rate": 1e-2} | kwargs
    trainer_arguments = {"sequence_model": folders / "teacher", "model": folders / "lm"}
    trainer_arguments |= {"model": model, "sequence_model": None} if model is not None else {}
    trainer_arguments |= {
        name: arguments.pop(name) for name in ("processing_class", "peft_config", "teacher_items") if name in arguments
    }
    return LLMSRecTrainer(
        args=LLMSRecConfig(str(out), **arguments),
        train_dataset=make_rows(24) if train is None else train,
        eval_dataset=eval_dataset,
        catalog=catalog,
        **trainer_arguments,
    )


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def published_loss(model, prompt, rows, negatives):
    """One user and its candidates at a time, as the released code has it."""
    users, items, teachers = [], [], []
    teacher = model.sequence_model
    prefixes = [torch.tensor(prefix) for prefix in (prompt.user_prefix, prompt.item_prefix)]
    for history, times, target, others in zip(
        rows[HISTORY], rows[HISTORY_TIMESTAMPS], rows[TARGET], negatives.tolist(), strict=True
    ):
        inputs = retrieval_rows.pad_prompts([prompt.encode_user(history, times)])
        users.append(model.encode(query="user", prefix_ids=prefixes[0], **inputs)[0])
        candidates = [prompt.item_inputs([item]) for item in [target, *others]]
        items.append(torch.cat([model.encode(query="item", prefix_ids=prefixes[1], **one) for one in candidates]))
        teachers.append(model.teacher_head(teacher.user_vectors(torch.tensor([history])))[0])
    users, items, teachers = torch.stack(users), torch.stack(items), torch.stack(teachers)
    scores = torch.einsum("bd,bkd->bk", users, items)
    users, teachers = F.normalize(users), F.normalize(teachers)
    uniformity = sum(torch.pdist(part).pow(2).mul(-2).exp().mean() for part in (users, teachers))
    retrieval = F.cross_entropy(scores, torch.zeros(len(scores), dtype=torch.long))
    return retrieval + F.mse_loss(users, teachers) + uniformity


class TestLoss:
    def test_it_is_the_published_one_sample_by_sample(self, folders, tiny_catalog, tmp_path):
        trainer = make_trainer(folders, tiny_catalog, tmp_path)
        rows = make_rows(24)[:6]
        batch = trainer.data_collator([trainer.train_dataset[row] for row in range(6)])
        negatives = trainer.negatives.by_user(0, torch.from_numpy(batch["seen"]))
        with torch.no_grad():
            loss = trainer.compute_loss(trainer.model, batch)
            expected = published_loss(trainer.model, trainer.prompt, rows, negatives)
        torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)

    def test_in_batch_negatives_leave_the_own_target_out(self, folders, tiny_catalog, tmp_path):
        trainer = make_trainer(
            folders, tiny_catalog, tmp_path, negatives="in_batch", match_weight=0.0, uniformity_weight=0.0
        )
        batch = trainer.data_collator([trainer.train_dataset[row] for row in (0, 1, 0)])
        with torch.no_grad():
            output = trainer.compute_loss(trainer.model, batch, return_outputs=True)
            shared = trainer.negatives.shared(0, 0)
            items = torch.cat([batch["labels"], shared])
            scores = output[1].user_vectors @ trainer.model.encode(query="item", **trainer._item_inputs(items)).t()
        keep = (items[None] != batch["labels"][:, None]) | (torch.arange(len(items)) == torch.arange(3)[:, None])
        expected = F.cross_entropy(scores.masked_fill(~keep, -torch.inf), torch.arange(3))
        torch.testing.assert_close(output[0], expected, atol=1e-5, rtol=1e-5)

    def test_accumulation_changes_nothing_while_no_term_couples_rows(self, folders, tiny_catalog, tmp_path):
        trainers = []
        for size, steps in ((8, 1), (2, 4)):
            trainers.append(
                make_trainer(
                    folders,
                    tiny_catalog,
                    tmp_path,
                    uniformity_weight=0.0,
                    per_device_train_batch_size=size,
                    gradient_accumulation_steps=steps,
                    optim="sgd",  # Adam blows up the rounding of gradients that are zero, such as an item bias
                    learning_rate=0.5,
                )
            )
            trainers[-1].train()
        assert losses(trainers[1]) == pytest.approx(losses(trainers[0]), rel=1e-4)
        for one, other in zip(*(trainer.model.parameters() for trainer in trainers), strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)

    @pytest.mark.parametrize(
        "arguments", [{}, {"negatives": "in_batch", "match_form": "infonce", "uniformity_of": "items"}]
    )
    def test_a_batch_of_one_trains(self, folders, tiny_catalog, tmp_path, arguments):
        trainer = make_trainer(folders, tiny_catalog, tmp_path, per_device_train_batch_size=1, **arguments)
        trainer.train()
        assert np.isfinite(losses(trainer)).all()
        assert trainer.state.log_history[0]["uniformity_loss"] == 0

    def test_without_a_term_that_reads_the_teacher_its_head_is_not_trained(self, folders, tiny_catalog, tmp_path):
        for arguments in ({"uniformity_weight": 0.0}, {"uniformity_of": "items"}):
            trainer = make_trainer(folders, tiny_catalog, tmp_path, match_weight=0.0, **arguments)
            calls = []
            trainer.model.teacher_head.register_forward_hook(lambda *args, calls=calls: calls.append(1))
            trainer.train()
            assert not calls and not any(param.requires_grad for param in trainer.model.teacher_head.parameters())
        make_trainer(
            folders, tiny_catalog, tmp_path, model=trainer.model
        )  # terms that do read it, from the same model
        assert all(param.requires_grad for param in trainer.model.teacher_head.parameters())

    def test_a_micro_batch_reads_twice_for_each_kind_of_prompt(self, folders, tiny_catalog, tmp_path):
        # The lengths of the prompts, and where their slots are; no loss, no term and no draw is read
        trainer = make_trainer(folders, tiny_catalog, tmp_path, cold_item_rate=0.5)
        batch = trainer.data_collator([trainer.train_dataset[row] for row in range(4)])
        trainer.model.train()
        with host_reads() as places:
            trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor(4)).backward()
        # Negatives and the texts of items are drawn and looked up on the host
        on_host = ("aten._unique2 trainer.py", "numpy ")
        waits = {place: count for place, count in places.items() if not place.startswith(on_host)}
        assert sum(waits.values()) == 4, waits

    def test_terms_are_logged_apart_and_add_up(self, folders, tiny_catalog, tmp_path):
        trainer = make_trainer(folders, tiny_catalog, tmp_path, match_weight=3.0)
        trainer.train()
        entry = trainer.state.log_history[0]
        total = entry["retrieval_loss"] + 3 * entry["match_loss"] + entry["uniformity_loss"]
        assert entry["loss"] == pytest.approx(total, rel=1e-3)


class TestNegatives:
    def draw(self, step=0, num_negatives=3, pool=range(10)):
        negatives = RetrievalNegatives(torch.tensor([*pool]), 12, num_negatives, seed=0)
        return negatives.by_user(step, torch.tensor([[-1, 0, -1, 1, 2, 3], [-1, -1, -1, -1, 5, 6]]))

    def test_they_are_distinct_and_outside_history_and_target(self):
        for step in range(50):
            first, second = self.draw(step).tolist()
            assert len({*first}) == 3 and not {0, 1, 2, 3, 10, 11} & {*first}
            assert len({*second}) == 3 and not {5, 6, 10, 11} & {*second}

    def test_they_depend_on_step_and_row_alone(self):
        assert self.draw(3).equal(self.draw(3)) and not self.draw(3).equal(self.draw(4))

    def test_they_avoid_items_of_the_history_that_do_not_fit_into_the_prompt(self, folders, tiny_catalog, tmp_path):
        rows = Dataset.from_dict({HISTORY: [[0, 1, 2, 3, 4, 5, 6]] * 4, TARGET: [7, 8, 9, 7]})
        trainer = make_trainer(
            folders, tiny_catalog, tmp_path, rows, max_history=2, teacher_items=range(12), num_negatives=2
        )
        batch = trainer.data_collator([trainer.train_dataset[row] for row in range(4)])
        assert (batch["slot_items"] >= 0).sum(dim=1).tolist() == [2] * 4
        for step in range(10):
            drawn = trainer._draw_negatives(step, torch.from_numpy(batch["seen"]))
            assert drawn.min() >= 7 and not (drawn == batch["labels"][:, None]).any()

    def test_a_user_who_has_seen_nearly_all_still_gets_a_row(self):
        assert self.draw(pool=[0, 1, 2, 3]).shape == (2, 3)

    def test_processes_share_out_the_shared_ones(self):
        negatives = RetrievalNegatives(torch.arange(10), 12, 5, seed=0)
        parts = [negatives.shared(1, 0, rank, 2) for rank in range(2)]
        assert [len(part) for part in parts] == [3, 3]
        assert torch.cat(parts)[:5].equal(negatives.shared(1, 0))


class TestTraining:
    def test_it_learns_what_follows_what(self, folders, tiny_catalog, tmp_path):
        rows = make_rows(48)
        trainer = make_trainer(
            folders,
            tiny_catalog,
            tmp_path,
            rows,
            rows,
            max_steps=25,
            per_device_train_batch_size=16,
            seen="keep",
            learning_rate=2e-2,
        )
        before = trainer.evaluate()["eval_ndcg@10"]
        trainer.train()
        assert trainer.evaluate()["eval_ndcg@10"] > before + 0.2

    def test_early_stopping_goes_on_counting_after_a_resume(self, folders, tiny_catalog, tmp_path):
        # A rate of 0: the first evaluation is the best, two more without progress end the run
        arguments = {
            "learning_rate": 0.0,
            "max_steps": 6,
            "eval_strategy": "steps",
            "eval_steps": 1,
            "save_strategy": "steps",
            "save_steps": 1,
            "load_best_model_at_end": True,
            "metric_for_best_model": "nll",
            "early_stopping_patience": 2,
            "eval_dataset": make_rows(5, seed=1),
        }
        whole = make_trainer(folders, tiny_catalog, tmp_path / "whole", **arguments)
        whole.train()
        resumed = make_trainer(folders, tiny_catalog, tmp_path / "resumed", **arguments)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
        assert whole.state.global_step == resumed.state.global_step == 3

    def test_an_interrupted_run_resumes_to_the_same_numbers(self, folders, tiny_catalog, tmp_path):
        arguments = dict(
            max_steps=6, save_strategy="steps", save_steps=3, cold_item_rate=0.3, evaluations_per_epoch=3, lr_decay=0.9
        )
        arguments |= {"eval_dataset": make_rows(5, seed=1)}
        whole = make_trainer(folders, tiny_catalog, tmp_path / "whole", **arguments)
        whole.train()
        resumed = make_trainer(folders, tiny_catalog, tmp_path / "resumed", **arguments)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
        assert losses(resumed) == pytest.approx(losses(whole), rel=1e-5)
        for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        rates = [entry["learning_rate"] for entry in whole.state.log_history if "loss" in entry]
        assert rates[-1] == pytest.approx(1e-2 * 0.9 ** (5 // 2))

    def test_the_teacher_is_never_in_training_mode(self, folders, tiny_catalog, tmp_path, monkeypatch):
        modes = []
        plain = retrieval_rows.teacher_vectors
        monkeypatch.setattr(
            retrieval_rows,
            "teacher_vectors",
            lambda model, rows: (modes.append(model.training), plain(model, rows))[1],
        )
        trainer = make_trainer(folders, tiny_catalog, tmp_path)
        trainer.train()
        assert modes == [False]
        assert not trainer.model.sequence_model.training and not trainer.model.language_model.training
        with pytest.raises(ValueError, match="noise"):
            plain(SASRecModel(SASRecConfig(num_items=3)).train(), [[0]])

    def test_teacher_vectors_are_computed_once_per_data_set_and_teacher(
        self, folders, tiny_catalog, tmp_path, monkeypatch
    ):
        make_rows(10).save_to_disk(tmp_path / "rows")
        calls = []
        plain = retrieval_rows.teacher_vectors
        monkeypatch.setattr(
            retrieval_rows, "teacher_vectors", lambda model, rows: (calls.append(len(rows)), plain(model, rows))[1]
        )
        for _ in range(2):
            trainer = make_trainer(folders, tiny_catalog, tmp_path / "out", load_from_disk(str(tmp_path / "rows")))
        assert calls == [10]
        expected = trainer.model.sequence_model.user_vectors(torch.tensor([make_rows(10)[4][HISTORY]]))[0]
        torch.testing.assert_close(torch.tensor(trainer.train_dataset[4][TEACHER_VECTOR]), expected)

    def test_all_events_can_be_samples(self, folders, tiny_catalog, tmp_path):
        trainer = make_trainer(folders, tiny_catalog, tmp_path, supervise="all")
        rows = make_rows(24)
        assert len(trainer.train_dataset) == sum(len(history) for history in rows[HISTORY])

    def test_fewer_batches_than_evaluations_are_evaluated_at_each_step(self, folders, tiny_catalog, tmp_path):
        trainer = make_trainer(
            folders,
            tiny_catalog,
            tmp_path,
            make_rows(8),
            make_rows(3),
            evaluations_per_epoch=10,
            num_train_epochs=1,
            max_steps=-1,
        )
        trainer.train()
        assert [entry["step"] for entry in trainer.state.log_history if "eval_nll" in entry] == [1, 2]

    def test_an_adapter_trains_along(self, folders, tiny_catalog, tmp_path):
        from peft import LoraConfig

        trainer = make_trainer(
            folders,
            tiny_catalog,
            tmp_path,
            peft_config=LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True),
        )
        trainer.train()
        adapters = [param for name, param in trainer.model.named_parameters() if "lora_B" in name]
        assert adapters and all(param.abs().sum() > 0 for param in adapters)


class TestEvaluation:
    def test_it_ranks_as_the_recommender_does(self, folders, tiny_catalog, tmp_path):
        rows = make_rows(7, seed=3)
        trainer = make_trainer(
            folders, tiny_catalog, tmp_path, eval_dataset=rows, per_device_eval_batch_size=3, seen="keep"
        )
        metrics = trainer.evaluate()
        histories = [[tiny_catalog.ids[item] for item in history] for history in rows[HISTORY]]
        scores = trainer.recommender().score_all(histories, rows[HISTORY_TIMESTAMPS])
        expected = ranking_metrics(*rank_bounds(scores, np.array(rows[TARGET])))
        assert {name: metrics[f"eval_{name}"] for name in expected} == pytest.approx(expected)
        nll = -torch.tensor(scores).log_softmax(1)[torch.arange(7), torch.tensor(rows[TARGET])].mean()
        assert metrics["eval_nll"] == pytest.approx(nll.item(), rel=1e-4)

    def test_validation_and_catalog_are_read_in_the_precision_of_training(self, folders, tiny_catalog, tmp_path):
        trainer = make_trainer(folders, tiny_catalog, tmp_path, eval_dataset=make_rows(3, seed=3), bf16=True)
        types = {"item": set(), "user": set()}
        for name, head in (("item", trainer.model.item_head), ("user", trainer.model.user_head)):
            head.register_forward_hook(lambda module, args, output, name=name: types[name].add(output.dtype))
        # torch's fused attention in bfloat16 packs its operands, which it cannot under ATEN_CPU_CAPABILITY=avx2
        with sdpa_kernel(SDPBackend.MATH):
            trainer.evaluate()
            assert types == {"item": {torch.bfloat16}, "user": {torch.bfloat16}}
            types["item"].clear()
            trainer.save_model()
        assert types["item"] == {torch.bfloat16}
        assert trainer.recommender().index.vectors.dtype == torch.float32

    def test_the_loss_alone_is_given_where_nothing_else_is_asked_for(self, folders, tiny_catalog, tmp_path):
        trainer = make_trainer(folders, tiny_catalog, tmp_path, eval_dataset=make_rows(3), prediction_loss_only=True)
        metrics = trainer.evaluate()
        assert metrics["eval_loss"] > 0 and "eval_nll" not in metrics


class TestFolder:
    def test_items_that_were_encoded_to_be_saved_serve_the_recommender_of_the_same_weights(
        self, folders, tiny_catalog, tmp_path
    ):
        trainer = make_trainer(folders, tiny_catalog, tmp_path)
        passes = []
        trainer.model.item_head.register_forward_hook(lambda *args: passes.append(1))
        trainer.save_model()
        encoded = len(passes)
        trainer.recommender().recommend([[100, 105]], k=2)
        assert len(passes) == encoded > 0
        with torch.no_grad():
            trainer.model.item_head[0].weight.data *= 2
        trainer.recommender().recommend([[100, 105]], k=2)
        assert len(passes) > encoded

    def test_the_saved_folder_is_the_trained_recommender(self, folders, tiny_catalog, tmp_path):
        trainer = make_trainer(folders, tiny_catalog, tmp_path)
        trainer.train()
        trainer.save_model()
        assert json.loads((tmp_path / "recommender.json").read_text())["kind"] == "llm_srec"
        assert (tmp_path / "item_index.safetensors").is_file()
        loaded = load_recommender(tmp_path, device="cpu")
        history, times = [[100, 105]], [[0, DAY]]
        expected = trainer.recommender().recommend(history, k=5, timestamps=times)
        found = loaded.recommend(history, k=5, timestamps=times)
        assert found.item_ids == expected.item_ids
        np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4)
        assert loaded.vectors.num_cold == 2
        for name, param in trainer.model.teacher_head.named_parameters():
            torch.testing.assert_close(loaded.model.teacher_head.get_parameter(name), param)

    def test_training_goes_on_from_a_folder(self, folders, tiny_catalog, tmp_path):
        make_trainer(folders, tiny_catalog, tmp_path).save_model()
        trainer = make_trainer(folders, tiny_catalog, tmp_path / "more", model=str(tmp_path))
        assert isinstance(trainer.model, LLMSRecModel) and trainer.model.item_seen.sum() == 10
        trainer.train()


class TestBadInput:
    def test_a_teacher_of_another_catalog_is_refused(self, folders, tiny_catalog, tmp_path):
        for rows, message in (([1, 0, *range(2, 12)], "another catalog"), (range(11), "11 items")):
            with pytest.raises(ValueError, match=message):
                make_trainer(folders, tiny_catalog.subset(rows), tmp_path)

    def test_a_language_model_without_a_padding_token_trains(self, folders, tiny_catalog, bpe_tokenizer, tmp_path):
        bare = PreTrainedTokenizerFast(tokenizer_object=bpe_tokenizer.backend_tokenizer, eos_token="</s>")
        trainer = make_trainer(folders, tiny_catalog, tmp_path, processing_class=bare)
        trainer.train()
        assert bare.pad_token is None and np.isfinite(losses(trainer)).all()

    def test_rows_without_times_and_without_history_train(self, folders, tiny_catalog, tmp_path):
        rows = make_rows(8, times=False).map(
            lambda row, index: {HISTORY: [] if index < 4 else row[HISTORY]}, with_indices=True
        )
        trainer = make_trainer(folders, tiny_catalog, tmp_path, rows)
        trainer.train()
        assert np.isfinite(losses(trainer)).all()

    def test_missing_columns_and_arguments_are_named(self, folders, tiny_catalog, tmp_path):
        with pytest.raises(ValueError, match="`target`"):
            make_trainer(folders, tiny_catalog, tmp_path, make_rows(3).remove_columns(TARGET))
        with pytest.raises(ValueError, match="`catalog`"):
            make_trainer(folders, None, tmp_path)
        with pytest.raises(ValueError, match="`sequence_model` is required"):
            make_trainer(folders, tiny_catalog, tmp_path, model=SASRecModel(SASRecConfig(num_items=12)))

    def test_a_context_longer_than_the_model_is_refused(self, folders, tiny_catalog, tmp_path):
        with pytest.raises(ValueError, match="512 positions"):
            make_trainer(folders, tiny_catalog, tmp_path, max_length=600, max_history=60)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"negatives": "hard"}, "`negatives`"),
            ({"match_weight": -1.0}, "`match_weight`"),
            ({"retrieval_weight": 0.0}, "`retrieval_weight`"),
            ({"num_negatives": 0}, "`num_negatives`"),
            ({"match_temperature": 0.0}, "`match_temperature`"),
            ({"cold_item_rate": 1.0}, "`cold_item_rate`"),
            ({"lr_decay": 0.5}, "no evaluation|there is none"),
            ({"lr_decay": 0.5, "eval_strategy": "epoch", "lr_scheduler_type": "linear"}, "`lr_scheduler_type`"),
            ({"evaluations_per_epoch": 0}, "`evaluations_per_epoch`"),
            ({"label_smoothing_factor": 0.1}, "`label_smoothing_factor`"),
        ],
    )
    def test_wrong_arguments_are_named(self, tmp_path, arguments, message):
        with pytest.raises(ValueError, match=message):
            LLMSRecConfig(str(tmp_path), use_cpu=True, **arguments)
