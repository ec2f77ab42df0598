"""SequentialTrainer on a cycle of items: what it learns, what its numbers do not depend on, and what it refuses."""

from typing import get_args

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoConfig, AutoModel, TrainerCallback

from hf_rec import (
    BERT4RecConfig,
    BERT4RecModel,
    CaserConfig,
    CaserModel,
    FMLPRecConfig,
    FMLPRecModel,
    GRU4RecConfig,
    GRU4RecModel,
    LRURecConfig,
    LRURecModel,
    MFConfig,
    MFModel,
    SASRecConfig,
    SASRecModel,
)
from hf_rec.columns import HISTORY, SUPERVISE_FROM, TARGET
from hf_rec.data.catalog import Catalog
from hf_rec.hub import load_recommender
from hf_rec.losses import item_softmax
from hf_rec.metrics.ranking import ndcg, rank_bounds
from hf_rec.models.sequence import ragged
from hf_rec.trainers.seeded_draws import position_keys
from hf_rec.trainers.sequential.config import LossType, SequentialConfig
from hf_rec.trainers.sequential.trainer import SequentialTrainer
from tests.host_reads import host_reads


N = 20
CATALOG = Catalog.from_records([{"item_id": f"item-{item}"} for item in range(N)])


def rows(count=32, seed=0, num_items=N, longest=6):
    """Walks over a cycle of the items: after item i comes item i + 1."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(0, num_items, (count,), generator=generator).tolist()
    walks = [
        [(start + step) % num_items for step in range(2 + row % (longest - 1))] for row, start in enumerate(starts)
    ]
    return Dataset.from_dict(
        {HISTORY: [walk[:-1] for walk in walks], TARGET: [walk[-1] for walk in walks], SUPERVISE_FROM: [1] * count}
    )


def sasrec(dropout=0.0, **settings):
    torch.manual_seed(0)
    return SASRecModel(SASRecConfig(num_items=N, hidden_size=8, max_length=6, dropout=dropout, **settings))


@pytest.fixture
def make_trainer(tmp_path):
    def build(
        model=None, folder="run", train=None, evaluate=None, catalog=None, callbacks=None, metrics=None, **kwargs
    ):
        settings = {
            "max_steps": 4,
            "per_device_train_batch_size": 8,
            "learning_rate": 0.01,
            "num_negatives": 5,
            "logging_steps": 1,
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
        } | kwargs
        return SequentialTrainer(
            sasrec() if model is None else model,
            SequentialConfig(str(tmp_path / folder), **settings),
            train_dataset=rows() if train is None else train,
            eval_dataset=rows(11, seed=1) if evaluate is None else evaluate,
            catalog=catalog,
            callbacks=callbacks,
            compute_metrics=metrics,
        )

    return build


def weights(trainer):
    return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


class TestTraining:
    @pytest.mark.parametrize("loss_type", get_args(LossType))
    def test_every_loss_learns_the_cycle(self, make_trainer, loss_type):
        trainer = make_trainer(loss_type=loss_type, max_steps=40, learning_rate=0.03, num_negatives=8, seen="keep")
        before = trainer.evaluate()["eval_ndcg@10"]
        trainer.train()
        assert trainer.evaluate()["eval_ndcg@10"] > before + 0.15

    @pytest.mark.parametrize(
        ("model_class", "config"),
        [
            (GRU4RecModel, GRU4RecConfig(num_items=N, hidden_size=16, max_length=6, dropout=0.0)),
            (FMLPRecModel, FMLPRecConfig(num_items=N, hidden_size=16, max_length=6, dropout=0.0, num_hidden_layers=1)),
            (CaserModel, CaserConfig(num_items=N, hidden_size=16, dropout=0.0)),
            (LRURecModel, LRURecConfig(num_items=N, hidden_size=16, dropout=0.0)),
            (MFModel, MFConfig(num_items=N, hidden_size=16, dropout=0.0)),
            (
                BERT4RecModel,
                BERT4RecConfig(num_items=N, hidden_size=16, max_length=7, dropout=0.0, initializer_range=0.2),
            ),
        ],
        ids=lambda value: getattr(value, "model_type", ""),
    )
    def test_every_model_learns_the_cycle(self, make_trainer, model_class, config):
        torch.manual_seed(0)
        model = model_class(config)
        trainer = make_trainer(model, max_steps=120, learning_rate=0.01, last_mask_ratio=0.7, seen="keep")
        before = trainer.evaluate()["eval_ndcg@10"]
        trainer.train()
        assert trainer.evaluate()["eval_ndcg@10"] > before + 0.15

    @pytest.mark.parametrize(
        "settings",
        [
            {"share_negatives": True},
            {"share_negatives": True, "num_negative_sets": 3},
            {"share_negatives": False, "negative_pool": "unseen"},
        ],
    )
    def test_the_loss_is_that_of_the_labelled_positions(self, make_trainer, settings):
        trainer = make_trainer(loss_type="sce", alpha=3.0, **settings)
        batch = trainer._train_collator(trainer.train_dataset.__getitems__([0, 1, 2, 3]))
        found = trainer.compute_loss(trainer.model, dict(batch))
        hidden = trainer.model(batch["input_ids"]).last_hidden_state
        expected = []
        sampler = trainer.item_loss.sampler
        keys = position_keys(batch["input_ids"])
        for row, position in (batch["labels"] >= 0).nonzero().tolist():
            target = batch["labels"][row, position]
            if settings["share_negatives"]:
                num_sets = settings.get("num_negative_sets", 1)
                sets = sampler.shared(0, torch.device("cpu"), num_sets)
                negatives = sets[sampler.set_of(0, keys[row, position][None], num_sets).item()]
            else:
                seen = torch.cat([batch["input_ids"][row], batch["labels"][row, -1:]])[None]
                negatives = sampler.by_position(0, keys[row, position][None], target[None], seen)[0]
            negatives = negatives[negatives != target]
            scores = trainer.model.score_items(hidden[row, position][None])[0]
            expected.append(item_softmax.scaled_cross_entropy(scores[target][None], scores[negatives][None], 3.0))
        torch.testing.assert_close(found, torch.cat(expected).mean())

    def test_items_never_seen_in_training_are_pushed_away_but_ranked_like_all_others(self, make_trainer):
        # Items 15..19 occur nowhere: a softmax over all items lowers their scores for the users of a step
        trainer = make_trainer(
            train=rows(64, num_items=15), max_steps=1, catalog=CATALOG, per_device_train_batch_size=64
        )
        recommender = trainer.recommender()
        histories = [[CATALOG.ids[item] for item in row[HISTORY]] for row in rows(64, num_items=15)]
        before = recommender.score_all(histories)
        trainer.train()
        after = recommender.score_all(histories)
        assert after[:, 15:].mean() < before[:, 15:].mean() - 0.01
        assert after[:, :15].mean() > before[:, :15].mean()
        listed = recommender.recommend(histories[:1], k=N).item_ids[0]
        assert sorted(listed) == sorted(CATALOG.ids)  # none is left out

    def test_lazy_rows_train_too_and_untouched_ones_stay(self, make_trainer):
        trainer = make_trainer(
            loss_type="sce", item_optimizer="lazy", train=rows(8, num_items=6), max_steps=2, max_grad_norm=1.0
        )
        before = trainer.model.item_embedding.weight.detach().clone()
        negatives = {
            item
            for step in range(2)
            for item in trainer.item_loss.sampler.shared(step, torch.device("cpu"))[0].tolist()
        }
        trainer.train()
        changed = (trainer.model.item_embedding.weight != before).any(dim=1).nonzero().squeeze(1) - 1
        assert set(range(6)) <= set(changed.tolist()) <= set(range(6)) | negatives
        assert len(negatives) < N - 6  # or the line above says nothing


class TestHostReads:
    """On an accelerator each read of a value waits for all that was started before it."""

    @pytest.mark.parametrize(
        ("model_type", "settings", "expected"),
        [
            # One where the model lays real positions end to end
            ("sasrec", {"loss_type": "sce"}, 1),
            ("sasrec", {"loss_type": "ce"}, 1),
            ("esasrec", {"loss_type": "bce", "share_negatives": False, "negative_pool": "unseen"}, 1),
            ("sasrec", {"loss_type": "ssm", "popularity_power": 0.5, "log_q_correction": True}, 1),
            # One more for how many positions each set has
            ("sasrec", {"loss_type": "sce", "num_negative_sets": 3}, 2),
            # One more for how many rows take each step of the recurrence
            ("gru4rec", {"samples": "sequences"}, 2),
            # One more for how many events are hidden
            ("bert4rec", {}, 2),
            ("caser", {}, 0),
            ("fmlprec", {"loss_type": "sce"}, 0),
        ],
    )
    def test_a_micro_batch_takes_few_and_each_has_its_reason(
        self, make_trainer, monkeypatch, model_type, settings, expected
    ):
        monkeypatch.setattr(ragged, "reads_are_free", lambda tensor: False)
        config = AutoConfig.for_model(model_type, num_items=N, hidden_size=8, max_length=6)
        model = AutoModel.from_config(config, trust_remote_code=False)
        trainer = make_trainer(model, **settings)
        batch = trainer._train_collator(trainer.train_dataset.__getitems__(range(8)))
        model.train()
        with host_reads() as places:
            (batch,), count = trainer.get_batch_samples(iter([batch]), 1, torch.device("cpu"))
            trainer.compute_loss(model, batch, num_items_in_batch=count).backward()
        # The sizes of a packed sequence lie on the CPU once they are read
        on_cpu = ("aten.index ragged.py", "aten._local_scalar_dense gru4rec.py")
        waits = {place: count for place, count in places.items() if not place.startswith(on_cpu)}
        assert sum(waits.values()) == expected <= 3, waits


class TestInvariance:
    @pytest.mark.parametrize(
        "settings",
        [
            {"loss_type": "ce"},
            {"loss_type": "sce"},
            {"loss_type": "sce", "num_negative_sets": 3},
            {"loss_type": "bce", "num_negative_sets": 2},
            {"loss_type": "bce", "share_negatives": False, "negative_pool": "unseen"},
            {"loss_type": "ce", "samples": "prefixes"},
        ],
        ids=lambda settings: "-".join(map(str, settings.values())),
    )
    def test_accumulation_takes_the_steps_of_the_whole_batch(self, make_trainer, settings):
        results = []
        for batch_size in (8, 2, 1):
            trainer = make_trainer(
                max_steps=3,
                per_device_train_batch_size=batch_size,
                gradient_accumulation_steps=8 // batch_size,
                max_grad_norm=1.0,
                weight_decay_form="decoupled",
                optim="sgd",  # Adam would blow rounding errors up to whole steps where a gradient is zero
                learning_rate=0.1,
                **settings,
            )
            trainer.train()
            results.append((losses(trainer), weights(trainer)))
        for other_losses, other_weights in results[1:]:
            assert other_losses == pytest.approx(results[0][0], rel=1e-4)
            torch.testing.assert_close(other_weights, results[0][1], rtol=1e-4, atol=1e-6)

    def test_masks_of_accumulated_batches_are_those_of_the_whole_batch(self, make_trainer):
        found = []
        for batch_size in (8, 4):
            torch.manual_seed(0)
            model = BERT4RecModel(BERT4RecConfig(num_items=N, hidden_size=8, max_length=6, dropout=0.0))
            trainer = make_trainer(
                model, max_steps=2, per_device_train_batch_size=batch_size, gradient_accumulation_steps=8 // batch_size
            )
            trainer.train()
            found.append(losses(trainer))
        assert found[1] == pytest.approx(found[0], rel=1e-4)

    @pytest.mark.parametrize("settings", [{"loss_type": "sce"}, {"loss_type": "sce", "item_optimizer": "lazy"}])
    def test_a_resumed_run_is_the_uninterrupted_one(self, make_trainer, tmp_path, settings):
        settings = settings | {"max_steps": 7, "save_strategy": "steps", "save_steps": 3}
        whole = make_trainer(sasrec(dropout=0.3), "whole", **settings)
        whole.train()
        resumed = make_trainer(sasrec(dropout=0.3), "resumed", **settings)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
        assert losses(resumed) == pytest.approx(losses(whole), rel=1e-5)
        torch.testing.assert_close(weights(resumed), weights(whole), rtol=1e-4, atol=1e-5)

    def test_drawing_negatives_leaves_the_global_random_state_alone(self, make_trainer):
        found = []
        for loss_type in ("ce", "sce", "bce"):
            trainer = make_trainer(loss_type=loss_type, share_negatives=False, max_steps=2)
            trainer.train()
            found.append(torch.get_rng_state())
        assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])

    def test_adam_is_torchs_with_the_decay_in_the_gradient(self, make_trainer):
        trainer = make_trainer(weight_decay=0.1, adam_beta2=0.99, max_steps=1)
        optimizer = trainer.create_optimizer()
        assert type(optimizer) is torch.optim.Adam
        (group,) = optimizer.param_groups
        assert (group["weight_decay"], group["betas"], group["lr"]) == (0.1, (0.9, 0.99), 0.01)
        assert len(group["params"]) == len(list(trainer.model.parameters()))
        decoupled = make_trainer(weight_decay=0.1, weight_decay_form="decoupled").create_optimizer()
        assert type(decoupled) is torch.optim.AdamW and len(decoupled.param_groups) == 2


class TestEvaluation:
    @pytest.mark.parametrize("seen", ["mask", "keep"])
    def test_metrics_are_those_of_a_full_ranking(self, make_trainer, seen):
        trainer = make_trainer(seen=seen, per_device_eval_batch_size=4)
        metrics = trainer.evaluate()
        dataset, model = rows(11, seed=1), trainer.model.eval()
        scores = torch.cat([model.score_items(model.user_vectors(torch.tensor([row[HISTORY]]))) for row in dataset])
        targets = np.array(dataset[TARGET])
        nll = torch.nn.functional.cross_entropy(scores, torch.from_numpy(targets))
        scores = scores.detach().numpy().copy()
        if seen == "mask":
            for row, history in enumerate(dataset[HISTORY]):
                scores[row, history] = -np.inf
        assert metrics["eval_ndcg@10"] == pytest.approx(ndcg(*rank_bounds(scores, targets), 10).mean(), rel=1e-5)
        assert metrics["eval_nll"] == pytest.approx(nll.item(), rel=1e-5)
        assert metrics["eval_loss"] == pytest.approx(nll.item(), rel=1e-5)

    def test_the_loss_alone_is_given_where_nothing_else_is_asked_for(self, make_trainer):
        metrics = make_trainer(prediction_loss_only=True).evaluate()
        assert metrics["eval_loss"] > 0 and "eval_nll" not in metrics

    def test_a_model_that_knows_nothing_has_the_metrics_of_chance(self, make_trainer):
        model = sasrec()
        torch.nn.init.zeros_(model.item_embedding.weight)  # all items tie
        metrics = make_trainer(model, seen="keep").evaluate()
        assert metrics["eval_hit_rate@10"] == pytest.approx(10 / N)

    def test_several_sets_streams_and_metrics_of_ones_own(self, make_trainer):
        seen_by_user = []

        def own(prediction):
            seen_by_user.append([part.shape for part in prediction.predictions] + [prediction.label_ids.shape])
            return {"targets": float(prediction.label_ids.sum())}

        sets = {"a": rows(5, seed=1), "b": rows(6, seed=2).to_iterable_dataset()}
        trainer = make_trainer(evaluate=sets, train=rows().to_iterable_dataset(), metrics=own, loss_type="sce")
        trainer.train()
        metrics = trainer.evaluate()
        assert {"eval_a_ndcg@10", "eval_b_ndcg@10", "eval_b_targets"} <= metrics.keys()
        assert seen_by_user == [[(5,)] * 4, [(6,)] * 4]
        assert trainer.evaluate(rows(6, seed=2))["eval_ndcg@10"] == pytest.approx(metrics["eval_b_ndcg@10"])
        assert trainer.predict(rows(6, seed=2)).metrics["test_ndcg@10"] == pytest.approx(metrics["eval_b_ndcg@10"])

    def test_the_best_model_is_kept_and_training_stops_early(self, make_trainer, tmp_path):
        trainer = make_trainer(
            sasrec(),
            max_steps=40,
            learning_rate=0.03,
            eval_strategy="steps",
            eval_steps=2,
            save_strategy="steps",
            save_steps=2,
            save_total_limit=1,
            load_best_model_at_end=True,
            early_stopping_patience=1,
            seen="keep",
            catalog=CATALOG,
        )
        trainer.train()
        curve = [entry["eval_ndcg@10"] for entry in trainer.state.log_history if "eval_ndcg@10" in entry]
        assert trainer.state.global_step < 40
        assert trainer.state.best_metric == max(curve) > curve[-1]
        assert trainer.evaluate()["eval_ndcg@10"] == pytest.approx(max(curve))
        served = load_recommender(trainer.state.best_model_checkpoint, device="cpu")
        histories = [["item-3", "item-4"], ["item-11"]]
        np.testing.assert_allclose(
            served.score_all(histories), trainer.recommender().score_all(histories), rtol=1e-5, atol=1e-6
        )


class BreakWeights(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step:
            model.norm.weight.data.fill_(float("nan"))


class TestBadInput:
    def test_a_nan_loss_stops_with_its_step_and_keeps_the_last_good_checkpoint(self, make_trainer, tmp_path):
        trainer = make_trainer(
            callbacks=[BreakWeights(3)],
            save_strategy="steps",
            save_steps=2,
            gradient_accumulation_steps=2,
            max_steps=6,
        )
        with pytest.raises(FloatingPointError, match="The loss is not finite at optimizer step 4"):
            trainer.train()
        assert [folder.name for folder in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-2"]

    def test_weights_that_are_not_finite_are_not_saved(self, make_trainer, tmp_path):
        trainer = make_trainer(callbacks=[BreakWeights(2)], save_strategy="steps", save_steps=2)
        with pytest.raises(FloatingPointError, match="The weight norm.weight is not finite after optimizer step 2"):
            trainer.train()
        assert not list((tmp_path / "run").glob("checkpoint-*"))

    def test_an_item_outside_the_table(self, make_trainer):
        data = Dataset.from_dict({HISTORY: [[1], [2, N]], TARGET: [3, 4]})
        for name in ("train", "evaluate"):
            with pytest.raises(
                ValueError, match=f"Row 1 of the dataset has the item {N}, but the model knows the items"
            ):
                make_trainer(**{name: data})

    def test_users_with_one_item_give_no_label_and_no_error(self, make_trainer):
        data = Dataset.from_dict({HISTORY: [[], [1], [2]], TARGET: [3, 4, 5], SUPERVISE_FROM: [0, 1, 1]})
        trainer = make_trainer(train=data, evaluate=data)
        assert (len(trainer.train_dataset), trainer.train_dataset.num_dropped_rows) == (2, 1)
        trainer.train()
        assert trainer.evaluate()["eval_nll"] > 0  # a target without history is ranked all the same
        with pytest.raises(ValueError, match="`train_dataset` has no label"):
            make_trainer(train=data.select([0]))

    def test_more_negatives_than_items(self, make_trainer):
        with pytest.raises(ValueError, match=f"`num_negatives` must be at most the number of items, {N}, got 21"):
            make_trainer(loss_type="sce", num_negatives=21)

    def test_a_filter_model_at_all_positions(self, make_trainer):
        model = FMLPRecModel(FMLPRecConfig(num_items=N, hidden_size=8, max_length=6))
        with pytest.raises(ValueError, match="`samples='sequences'` needs a causal model"):
            make_trainer(model, samples="sequences")

    def test_a_shortest_prefix_where_rows_are_trained_whole(self, make_trainer):
        with pytest.raises(ValueError, match="`shortest_prefix` is 3, but SASRecModel is trained on whole rows here"):
            make_trainer(shortest_prefix=3)
        assert len(make_trainer(shortest_prefix=3, samples="prefixes").train_dataset) < len(
            make_trainer(samples="prefixes").train_dataset
        )

    def test_another_catalog(self, make_trainer, tmp_path):
        with pytest.raises(ValueError, match="`catalog` has 3 items, but the model was made for 20"):
            make_trainer(catalog=Catalog.from_records([{"item_id": item} for item in range(3)]))
        model = sasrec()
        make_trainer(model, catalog=CATALOG)
        other = Catalog.from_records([{"item_id": f"other-{item}"} for item in range(N)])
        with pytest.raises(ValueError, match="made for another catalog"):
            make_trainer(model, catalog=other)

    def test_popular_negatives_of_a_stream(self, make_trainer):
        with pytest.raises(ValueError, match="`popularity_power` needs the counts of a whole data set"):
            make_trainer(train=rows().to_iterable_dataset(), loss_type="sce", popularity_power=0.5)

    def test_a_model_of_another_kind(self, tmp_path, tiny_lm):
        with pytest.raises(
            ValueError, match="`model` must be a sequence model of `hf_rec.models`, got GPT2LMHeadModel"
        ):
            SequentialTrainer(tiny_lm("gpt2"), SequentialConfig(str(tmp_path), use_cpu=True), rows())
