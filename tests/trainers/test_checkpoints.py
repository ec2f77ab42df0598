"""Which checkpoint a run goes on from: whole ones, exactly; torn ones are passed over or refused by name."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback, TrainingArguments

from hf_rec import MSLConfig, MSLTrainer, SASRecConfig, SASRecModel
from hf_rec.columns import HISTORY, TARGET
from hf_rec.data.catalog import Catalog
from hf_rec.trainers.checkpoints import checkpoint_to_resume, what_is_missing
from hf_rec.trainers.sequential.config import SequentialConfig
from hf_rec.trainers.sequential.trainer import SequentialTrainer
from hf_rec.trainers.training_run import train_and_save


N = 12  # items of the tiny catalog
SETTINGS = {
    "max_steps": 6,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "save_strategy": "steps",
    "save_steps": 2,
    "use_cpu": True,
    "disable_tqdm": True,
}


def rows(count, length=4):
    walks = [[(start * 7 + step) % N for step in range(length)] for start in range(count)]
    return Dataset.from_dict({HISTORY: [walk[:-1] for walk in walks], TARGET: [walk[-1] for walk in walks]})


@pytest.fixture(params=["sequential", "msl"])
def make_trainer(request, tmp_path, tiny_catalog, tiny_lm, bpe_tokenizer):
    """`make_trainer(folder, **settings)`: a trainer of one of two methods with dropout, all else being equal."""

    def sequential(folder, callbacks=None, train_rows=None, **settings):
        torch.manual_seed(0)
        model = SASRecModel(SASRecConfig(num_items=N, hidden_size=8, max_length=6, dropout=0.3))
        args = SequentialConfig(str(tmp_path / folder), **SETTINGS | settings)
        return SequentialTrainer(model, args, train_rows or rows(16), rows(4), tiny_catalog, callbacks=callbacks)

    def msl(folder, callbacks=None, train_rows=None, **settings):
        settings = {"adaptive_tau": True, "max_length": 64, "eval_num_beams": 0} | SETTINGS | settings
        args = MSLConfig(str(tmp_path / folder), **settings)
        data = {"train_dataset": train_rows or rows(16), "eval_dataset": rows(4), "catalog": tiny_catalog}
        return MSLTrainer(tiny_lm(), args, processing_class=bpe_tokenizer, callbacks=callbacks, **data)

    return {"sequential": sequential, "msl": msl}[request.param]


def weights(trainer):
    return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}


def losses(trainer):
    return {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES = [
    (Path.unlink, "optimizer.pt", "is missing"),
    (Path.unlink, "scheduler.pt", "is missing"),
    (Path.unlink, "rng_state.pth", "is missing"),
    (Path.unlink, "trainer_state.json", "is missing"),
    (Path.unlink, "model.safetensors", "the weights are missing"),
    (half, "optimizer.pt", "cannot be read"),
    (half, "model.safetensors", "cannot be read"),
    (half, "trainer_state.json", "cannot be read"),
    (half, "recommender.json", "cannot be read"),
    (empty, "rng_state.pth", "cannot be read"),
    (empty, "scheduler.pt", "cannot be read"),
    (empty, "model.safetensors", "cannot be read"),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A whole checkpoint of a sequence model."""
    root = tmp_path_factory.mktemp("whole")
    model = SASRecModel(SASRecConfig(num_items=N, hidden_size=4, max_length=6))
    catalog = Catalog.from_records([{"item_id": item} for item in range(N)])
    args = SequentialConfig(str(root), **SETTINGS | {"max_steps": 1, "save_steps": 1})
    SequentialTrainer(model, args, rows(8), catalog=catalog).train()
    return root / "checkpoint-1"


class TestDamagedCheckpoints:
    @pytest.mark.parametrize(("damage", "name", "what"), DAMAGES, ids=lambda value: getattr(value, "__name__", value))
    def test_what_is_wrong_is_named(self, tmp_path, checkpoint, damage, name, what):
        assert what_is_missing(str(checkpoint)) is None
        folder = tmp_path / "checkpoint-1"
        shutil.copytree(checkpoint, folder)
        damage(folder / name)
        problem = what_is_missing(str(folder))
        assert what in problem and (name in problem or name == "model.safetensors")

    def test_a_changed_byte_in_the_weights_is_named(self, make_trainer, tmp_path):
        make_trainer("flipped", max_steps=2).train()
        path = tmp_path / "flipped/checkpoint-2/model.safetensors"
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert "model.safetensors is not as it was saved" in what_is_missing(str(path.parent))

    def test_random_states_of_another_number_of_processes_are_named(self, checkpoint):
        problem = what_is_missing(str(checkpoint), processes=2)
        assert problem == "`rng_state_0.pth` is missing (1 processes wrote it, 2 would go on)"


class TestTheLastCheckpoint:
    def arguments(self, folder, **settings):
        return TrainingArguments(str(folder), use_cpu=True, report_to="none", **settings)

    def test_an_empty_folder_starts_from_scratch_and_says_so(self, tmp_path, caplog):
        args = self.arguments(tmp_path / "new", resume_from_checkpoint="last")
        assert checkpoint_to_resume(args) is None
        assert "starts from scratch" in caplog.text

    def test_nothing_is_resumed_unasked(self, tmp_path):
        assert checkpoint_to_resume(self.arguments(tmp_path)) is None

    def test_a_folder_that_does_not_exist_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match="`resume_from_checkpoint` is '.*none', but there is no such folder"):
            checkpoint_to_resume(self.arguments(tmp_path, resume_from_checkpoint=str(tmp_path / "none")))

    def test_checkpoints_of_weights_alone_cannot_be_gone_on_from(self, tmp_path):
        with pytest.raises(ValueError, match="with `save_only_model` no checkpoint holds what training needs"):
            checkpoint_to_resume(self.arguments(tmp_path, resume_from_checkpoint="last", save_only_model=True))


class Kill(TrainerCallback):
    """Ends a run at step 5, as a signal does between two checkpoints."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5:
            raise KeyboardInterrupt


class TestGoingOn:
    @pytest.fixture
    def whole(self, make_trainer):
        trainer = make_trainer("whole")
        train_and_save(trainer)
        return trainer

    def test_a_torn_checkpoint_is_passed_over_and_the_run_goes_on_exactly(self, make_trainer, whole, caplog):
        killed = make_trainer("killed", callbacks=[Kill()])
        with pytest.raises(KeyboardInterrupt):
            killed.train()
        folder = Path(killed.args.output_dir)
        (folder / "checkpoint-4" / "optimizer.pt").unlink()
        (folder / ".checkpoint-5.partial").mkdir()
        resumed = make_trainer("killed", resume_from_checkpoint="last")
        train_and_save(resumed)
        assert "checkpoint-4 is passed over: `optimizer.pt` is missing." in caplog.text
        assert "goes on from " in caplog.text and "checkpoint-2" in caplog.text
        assert losses(resumed) == pytest.approx(losses(whole), rel=1e-5)  # another dropout mask changes them by .1
        torch.testing.assert_close(weights(resumed), weights(whole), rtol=1e-4, atol=1e-5)
        assert getattr(resumed, "tau", 0.0) == pytest.approx(getattr(whole, "tau", 0.0), rel=1e-6)
        assert what_is_missing(str(folder / "checkpoint-4")) is None  # written again, whole
        assert not list(folder.glob(".checkpoint-*"))

    def test_a_checkpoint_that_lacks_something_is_no_starting_point(self, make_trainer, whole):
        folder = Path(whole.args.output_dir) / "checkpoint-4"
        (folder / "rng_state.pth").unlink()
        with pytest.raises(ValueError, match=r"checkpoint-4', but `rng_state.pth` is missing"):
            make_trainer("again").train(resume_from_checkpoint=str(folder))
        with pytest.raises(ValueError, match=r"no whole checkpoint"):
            make_trainer("again").train(resume_from_checkpoint=True)

    @pytest.mark.parametrize("ends", [{"max_steps": 6}, {"max_steps": -1, "num_train_epochs": 1.5}], ids=str)
    def test_a_finished_run_takes_no_further_step(self, make_trainer, caplog, ends):
        best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2}
        first = make_trainer("finished", **ends, **best)
        train_and_save(first)
        expected = weights(first)
        again = make_trainer("finished", resume_from_checkpoint="last", **ends, **best)
        train_and_save(again)
        assert again.state.global_step == first.state.global_step == 6
        assert "Nothing is left to train: step 6 of 6 is done." in caplog.text
        torch.testing.assert_close(weights(again), expected, rtol=0, atol=0)

    def test_a_checkpoint_appears_when_it_is_whole(self, make_trainer, monkeypatch):
        trainer = make_trainer("full_disk", load_best_model_at_end=True, eval_strategy="steps", eval_steps=2)
        folder, save = Path(trainer.args.output_dir), type(trainer)._save_optimizer_and_scheduler

        def run_out_of_space(self, output_dir):
            save(self, output_dir)
            assert not (folder / f"checkpoint-{self.state.global_step}").exists()
            if self.state.global_step == 4:
                raise OSError("no space left on device")

        monkeypatch.setattr(type(trainer), "_save_optimizer_and_scheduler", run_out_of_space)
        with pytest.raises(OSError, match="no space left"):
            trainer.train()
        assert [path.name for path in folder.glob("*checkpoint-*")] == ["checkpoint-2"]
        state = json.loads((folder / "checkpoint-2" / "trainer_state.json").read_text())
        assert state["best_model_checkpoint"] == str(folder / "checkpoint-2")

    def test_the_oldest_checkpoints_go(self, make_trainer):
        trainer = make_trainer("few", save_total_limit=1)
        trainer.train()
        assert [path.name for path in Path(trainer.args.output_dir).glob("*checkpoint-*")] == ["checkpoint-6"]

    @pytest.mark.parametrize(
        ("settings", "named"),
        [
            ({"seed": 7}, "`seed` .42 there, 7 here."),
            ({"learning_rate": 0.5}, "`learning_rate`"),
            ({"per_device_train_batch_size": 8}, "rows of a step"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_a_run_with_other_settings_does_not_go_on(self, make_trainer, settings, named):
        make_trainer("changed", max_steps=2).train()
        again = make_trainer("changed", max_steps=4, **settings)
        with pytest.raises(ValueError, match=f"other settings: {named}"):
            again.train(resume_from_checkpoint=str(Path(again.args.output_dir, "checkpoint-2")))

    def test_a_run_with_another_catalog_does_not_go_on(self, make_trainer):
        make_trainer("catalog", max_steps=2).train()
        again = make_trainer("catalog", max_steps=4)
        again.catalog = Catalog.from_records([{"item_id": row, "title": f"other {row}"} for row in range(N)])
        with pytest.raises(ValueError, match="other settings: the catalog. Go on with those, start anew"):
            again.train(resume_from_checkpoint=True)

    def test_a_run_with_other_rows_does_not_go_on(self, make_trainer):
        make_trainer("rows", max_steps=2).train()
        again = make_trainer("rows", max_steps=4, train_rows=rows(15))
        with pytest.raises(ValueError, match="other settings: the training rows"):
            again.train(resume_from_checkpoint=True)

    def test_a_run_that_may_change_goes_on_and_says_what_has_changed(self, make_trainer, caplog):
        make_trainer("allowed", max_steps=2).train()
        again = make_trainer("allowed", max_steps=4, learning_rate=0.5, allow_changed=True)
        with caplog.at_level(logging.WARNING, logger="hf_rec"):
            again.train(resume_from_checkpoint=True)
        assert again.state.global_step == 4
        assert "`learning_rate` (0.01 there, 0.5 here)" in caplog.text

    def test_a_run_that_is_longer_or_logs_more_goes_on(self, make_trainer):
        make_trainer("longer", max_steps=2).train()
        again = make_trainer("longer", max_steps=4, logging_steps=2, save_steps=4)
        again.train(resume_from_checkpoint=True)
        assert again.state.global_step == 4


class Break(TrainerCallback):
    """Makes the weights NaN once step 3 is done."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == 3:
            next(model.parameters()).data.fill_(float("nan"))


class TestLossesThatAreNotFinite:
    @pytest.mark.parametrize("settings", [{}, {"logging_nan_inf_filter": True}], ids=["as_is", "filtered"])
    def test_training_stops_and_keeps_the_last_whole_checkpoint(self, make_trainer, settings):
        trainer = make_trainer("broken", callbacks=[Break()], save_total_limit=1, **settings)
        with pytest.raises(FloatingPointError, match="at optimizer step .*checkpoint-2.*Lower `learning_rate`"):
            trainer.train()
        folder = Path(trainer.args.output_dir)
        assert [path.name for path in folder.glob("*checkpoint-*")] == ["checkpoint-2"]
        assert what_is_missing(str(folder / "checkpoint-2")) is None

    def test_weights_that_a_step_broke_are_not_saved(self, make_trainer):
        trainer = make_trainer("broken", callbacks=[Break()], save_steps=3)
        with pytest.raises(FloatingPointError, match="not finite after optimizer step 3: not saved. There is no"):
            trainer.train()
        assert not list(Path(trainer.args.output_dir).glob("*checkpoint-*"))

    def test_a_run_that_logs_nothing_stops_at_its_end(self, make_trainer):
        trainer = make_trainer("broken", callbacks=[Break()], save_strategy="no", logging_strategy="no")
        with pytest.raises(FloatingPointError, match="There is no checkpoint yet"):
            trainer.train()

    def test_a_last_step_that_breaks_the_weights_is_noticed(self, make_trainer):
        trainer = make_trainer("broken", callbacks=[Break()], max_steps=3, save_strategy="no")
        with pytest.raises(FloatingPointError, match="not finite after optimizer step 3"):
            trainer.train()


@pytest.mark.parametrize("metric", ["ndcg@20", "accuracy"])
def test_a_metric_that_is_not_measured_is_refused_before_training(make_trainer, metric):
    with pytest.raises(ValueError, match=f"`metric_for_best_model` is '{metric}', which evaluation does not measure"):
        make_trainer("metric", eval_strategy="steps", metric_for_best_model=metric)


@pytest.fixture(autouse=True)
def heard(monkeypatch):
    """Warnings of transformers reach pytest."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
