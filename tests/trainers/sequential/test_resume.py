"""A run of SequentialTrainer that was cut off, has stopped, or broke down: what goes on, and what the user is told."""

import logging

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from hf_rec import SASRecConfig, SASRecModel
from hf_rec.columns import HISTORY, TARGET
from hf_rec.evaluation.cost import read_cost, write_cost
from hf_rec.trainers.sequential.config import SequentialConfig
from hf_rec.trainers.sequential.trainer import SequentialTrainer
from hf_rec.trainers.training_run import TrainingClock


N = 20


def cycle(count, length=5):
    walks = [[(start * 7 + step) % N for step in range(length)] for start in range(count)]
    return Dataset.from_dict({HISTORY: [walk[:-1] for walk in walks], TARGET: [walk[-1] for walk in walks]})


@pytest.fixture
def make_trainer(tmp_path):
    def build(folder, train=None, callbacks=None, **settings):
        torch.manual_seed(0)
        model = SASRecModel(SASRecConfig(num_items=N, hidden_size=8, max_length=6, dropout=0.3))
        settings = {
            "max_steps": 40,
            "per_device_train_batch_size": 8,
            "learning_rate": 0.03,
            "logging_steps": 1,
            "eval_strategy": "steps",
            "eval_steps": 1,
            "save_strategy": "steps",
            "save_steps": 1,
            "seen": "keep",
            "use_cpu": True,
            "disable_tqdm": True,
        } | settings
        args = SequentialConfig(str(tmp_path / folder), **settings)
        return SequentialTrainer(model, args, cycle(32) if train is None else train, cycle(9), callbacks=callbacks)

    return build


def weights(trainer):
    return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}


class TestEarlyStopping:
    SETTINGS = {"early_stopping_patience": 3, "load_best_model_at_end": True}

    @pytest.fixture
    def whole(self, make_trainer):
        trainer = make_trainer("whole", **self.SETTINGS)
        trainer.train()
        assert 4 < trainer.state.global_step < 40
        return trainer

    @pytest.mark.parametrize("steps_back", [1, 2])
    def test_a_resumed_run_stops_where_the_uninterrupted_one_does(self, make_trainer, tmp_path, whole, steps_back):
        last = whole.state.global_step
        resumed = make_trainer("resumed", **self.SETTINGS)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{last - steps_back}"))
        assert resumed.state.global_step == last
        torch.testing.assert_close(weights(resumed), weights(whole), rtol=1e-4, atol=1e-5)

    def test_a_run_that_had_stopped_stays_stopped(self, make_trainer, tmp_path, whole):
        last = whole.state.global_step
        again = make_trainer("again", **self.SETTINGS | {"eval_steps": 2, "save_steps": 2})
        again.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{last}"))
        assert again.state.global_step == last
        assert again.state.best_global_step == whole.state.best_global_step


class Break(TrainerCallback):
    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == 3:
            model.norm.weight.data.fill_(float("nan"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"save_steps": 2, "eval_strategy": "no"}, "The last checkpoint is .*checkpoint-2"),
        ({"save_strategy": "no", "eval_strategy": "no"}, "There is no checkpoint yet"),
    ],
)
def test_a_nan_loss_names_the_checkpoint_to_go_back_to(make_trainer, settings, message):
    with pytest.raises(FloatingPointError, match=message):
        make_trainer("broken", callbacks=[Break()], **settings).train()


def test_events_beyond_max_length_are_counted_in_a_warning(make_trainer, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with caplog.at_level(logging.WARNING):
        make_trainer("short", train=cycle(4, length=7))
        assert "not read" not in caplog.text
        make_trainer("long", train=cycle(4, length=10))
    assert "12 events of the 4 training samples are not read: the model reads the newest 6 of each" in caplog.text


def test_the_clock_goes_on_from_the_checkpoint(make_trainer, tmp_path):
    assert TrainingClock().earlier == 0
    trainer = make_trainer("timed", callbacks=[TrainingClock()], max_steps=2)
    trainer.train()
    checkpoint = tmp_path / "timed" / "checkpoint-2"
    assert read_cost(checkpoint)["seconds"] > 0
    write_cost(checkpoint, {"seconds": 100.0})
    clock = TrainingClock(str(checkpoint))
    resumed = make_trainer("timed", callbacks=[clock], max_steps=3)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert clock.earlier == 100
    assert 100 < read_cost(tmp_path / "timed" / "checkpoint-3")["seconds"] < 160
