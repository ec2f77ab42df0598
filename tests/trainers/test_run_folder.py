"""What a run may do in a folder in which there is one already."""

import json
from pathlib import Path

import pytest
from datasets import Dataset

from hf_rec.evaluation.cost import write_cost
from hf_rec.trainers.changed_settings import rows_sha256
from hf_rec.trainers.run_folder import claim_run_folder
from hf_rec.trainers.sequential.config import SequentialConfig


@pytest.fixture
def make_args(tmp_path):
    def make(**settings):
        settings = {"num_train_epochs": 2, "do_predict": True, "use_cpu": True} | settings
        return SequentialConfig(str(tmp_path / "run"), **settings)

    return make


@pytest.fixture
def finished(make_args):
    """The folder of a finished run, its test rows ranked."""
    args = make_args()
    folder = Path(args.output_dir)
    for name in ("checkpoint-4", "test"):
        (folder / name).mkdir(parents=True)
    (folder / "training_args.json").write_text(args.to_json_string())
    (folder / "test" / "metrics.json").write_text("{}")
    (folder / "notes.txt").write_text("mine")
    write_cost(folder, {"seconds": 1.0})
    return folder


def kept(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_new_folder_is_free(make_args):
    assert claim_run_folder(make_args())
    assert claim_run_folder(make_args(resume_from_checkpoint="last"))


def test_a_finished_run_is_not_replaced_unasked(make_args, finished):
    before = kept(finished)
    with pytest.raises(FileExistsError, match="holds a finished run. `--resume_from_checkpoint last` goes on"):
        claim_run_folder(make_args())
    assert kept(finished) == before


def test_a_run_that_was_cut_off_is_not_replaced_unasked(make_args, finished):
    (finished / "cost.json").unlink()
    with pytest.raises(FileExistsError, match="holds a run that was cut off"):
        claim_run_folder(make_args())
    assert claim_run_folder(make_args(resume_from_checkpoint="last"))


def test_overwrite_removes_what_the_earlier_run_left_and_nothing_else(make_args, finished):
    assert claim_run_folder(make_args(), overwrite=True)
    assert kept(finished) == ["notes.txt", "test", "training_args.json"]


def test_a_finished_run_that_is_started_again_has_nothing_to_do(make_args, finished):
    assert not claim_run_folder(make_args(resume_from_checkpoint="last"))


def test_a_trained_run_that_was_killed_before_its_test_rows_were_ranked_goes_on(make_args, finished):
    (finished / "test" / "metrics.json").unlink()
    assert claim_run_folder(make_args(resume_from_checkpoint="last"))


def test_a_longer_run_does_not_replace_the_results_of_a_finished_one_unasked(make_args, finished):
    longer = make_args(resume_from_checkpoint="last", num_train_epochs=3)
    with pytest.raises(FileExistsError, match=r"`num_train_epochs` \(2 there, 3 here\)"):
        claim_run_folder(longer)
    assert claim_run_folder(longer, overwrite=True)
    assert (finished / "checkpoint-4").is_dir()


def test_the_hash_of_rows_tells_other_rows_and_other_numbers_of_rows():
    rows = [{"history": [row, row + 1], "target": row % 7, "note": "x"} for row in range(1500)]
    whole = rows_sha256(Dataset.from_list(rows))
    assert whole == rows_sha256(Dataset.from_list([row | {"note": "y"} for row in rows]))  # not what is learnt
    assert whole != rows_sha256(Dataset.from_list(rows[:-1]))
    assert whole != rows_sha256(Dataset.from_list([{**rows[0], "target": 6}, *rows[1:]]))
    assert rows_sha256(iter(rows)) is None


def test_settings_are_kept_as_json_beside_the_hash_of_the_rows(tmp_path, tiny_catalog):
    from hf_rec import SASRecConfig, SASRecModel, SequentialTrainer

    rows = Dataset.from_dict({"history": [[0, 1], [2, 3]], "target": [4, 5]})
    args = SequentialConfig(str(tmp_path), max_steps=1, use_cpu=True, disable_tqdm=True)
    model = SASRecModel(SASRecConfig(num_items=len(tiny_catalog), hidden_size=8, max_length=4))
    trainer = SequentialTrainer(model, args, rows, catalog=tiny_catalog)
    trainer.save_model()
    settings = json.loads((tmp_path / "training_args.json").read_text())
    assert settings["max_steps"] == 1
    assert settings["rows_sha256"] == rows_sha256(trainer.train_dataset)
    other = SequentialTrainer(model, args, rows.select([0, 0]), catalog=tiny_catalog)
    assert settings["rows_sha256"] != rows_sha256(other.train_dataset)
