"""What goes to the Hub: the files of a recommender, and nothing else."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from hf_rec import Catalog, MSLConfig, MSLTrainer, SASRecConfig, SASRecModel
from hf_rec.hub import load, load_recommender, push_recommender, read_index, save_recommender
from hf_rec.models import weight_files
from hf_rec.models.llm_srec.model import LLMSRecModel


def clutter(folder):
    """What trainers and commands leave in an output folder."""
    for name in (
        "test/predictions.parquet",
        "checkpoint-5/optimizer.pt",
        "runs/events.out",
        "training_args.json",
        "training_args.bin",
        "trainer_state.json",
        "reference.json",
        "evil.py",
        "notes.txt",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"user 7 {folder.resolve()}")


def write(files: dict[str, bytes], folder: Path) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def folder(parts, tiny_lm, tmp_path):
    save_recommender(tmp_path / "films", **parts, model=tiny_lm(), tau=1.5)
    clutter(tmp_path / "films")
    return tmp_path / "films"


def test_a_push_makes_the_repository_the_branch_and_one_commit(folder, fake_hub):
    url = push_recommender(folder, "films", private=True, revision="v1", commit_message="First")
    assert url == "https://hub/commit/1"
    assert fake_hub.calls["repo"] == {"private": True, "exist_ok": True}
    assert fake_hub.calls["branch"] == {"branch": "v1", "exist_ok": True}
    commit = fake_hub.calls["commit"]
    assert (commit["repo_id"], commit["revision"], commit["commit_message"]) == ("me/films", "v1", "First")


def test_only_files_of_the_recommender_are_uploaded_and_they_load(folder, fake_hub, tmp_path):
    push_recommender(folder, "films")
    assert set(fake_hub.files) == {*read_index(folder)["files"], "recommender.json", "README.md"}
    assert not [name for name in fake_hub.files if name.endswith((".parquet", ".pt", ".py", ".bin", ".txt"))]
    copy = write(fake_hub.files, tmp_path / "copy")
    histories = [[100, 105], []]
    found, expected = (load_recommender(path, device="cpu").recommend(histories, k=5) for path in (copy, folder))
    assert found.item_ids == expected.item_ids


@pytest.mark.parametrize("adapter", [False, True])
def test_a_model_that_writes_codes_goes_to_the_hub_and_comes_back(
    tiny_lm, bpe_tokenizer, fake_hub, tmp_path, monkeypatch, adapter
):
    catalog = Catalog.from_records(
        {"item_id": row, "title": f"film {row}", "code": [row % 3, row // 3]} for row in range(12)
    )
    tiny_lm("llama").save_pretrained(tmp_path / "base")
    bpe_tokenizer.save_pretrained(tmp_path / "base")
    quiet = {"save_strategy": "no", "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    trainer = MSLTrainer(
        str(tmp_path / "base"),
        MSLConfig(str(tmp_path / "codes"), item_path="codes:code", max_steps=1, learning_rate=1e-2, **quiet),
        train_dataset=Dataset.from_dict({"history": [[1, 2], [3]], "target": [4, 5]}),
        catalog=catalog,
        peft_config=LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM") if adapter else None,
    )
    trainer.train()
    trainer.save_model()
    push_recommender(tmp_path / "codes", "codes")
    copy = write(fake_hub.files, tmp_path / "cache")
    if adapter:  # a base that is no model of the Hub goes by hand
        shutil.copytree(tmp_path / "base", copy / "base")

    def downloaded(name, *file, **_):
        assert name == "me/codes"
        return str(copy.joinpath(*file))

    monkeypatch.setattr(load, "hf_hub_download", downloaded)
    monkeypatch.setattr(weight_files, "snapshot_download", downloaded)
    found = load_recommender("me/codes", device="cpu")
    assert found.prompt.item_path == "codes:code" and found.catalog.attributes == catalog.attributes
    expected = trainer.recommender().recommend([[0, 5], []], k=12)
    again = found.recommend([[0, 5], []], k=12)
    assert again.item_ids == expected.item_ids and again.certified.all()
    np.testing.assert_allclose(again.scores, expected.scores, rtol=1e-5, atol=1e-5)


def test_no_path_of_this_machine_is_uploaded_with_an_adapter(parts, tiny_lm, fake_hub, tmp_path):
    tiny_lm("llama").save_pretrained(tmp_path / "base")
    parts["tokenizer"].save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base", trust_remote_code=False)
    model = get_peft_model(model, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    save_recommender(tmp_path / "adapter", **parts, model=model)
    assert str(tmp_path) not in (tmp_path / "adapter/README.md").read_text()
    push_recommender(tmp_path / "adapter", "films")
    assert not [name for name, content in fake_hub.files.items() if str(tmp_path).encode() in content]
    assert not [name for name, content in fake_hub.files.items() if b".." + str(tmp_path).encode() in content]
    copy = write(fake_hub.files, tmp_path / "far/away/copy")
    with pytest.raises(FileNotFoundError, match="needs the base model 'base'"):
        load_recommender(copy, device="cpu")
    (tmp_path / "base").rename(copy / "base")
    load_recommender(copy, device="cpu")


def test_frozen_models_of_llm_srec_are_named_without_their_place(tiny_lm, fake_hub, tiny_catalog, tmp_path):
    from hf_rec.hub.push import published_files

    tiny_lm("llama").save_pretrained(tmp_path / "lm")
    SASRecModel(SASRecConfig(num_items=12, hidden_size=8)).save_pretrained(tmp_path / "student/sequence_model")
    model = LLMSRecModel.from_frozen(tmp_path / "lm", tmp_path / "student/sequence_model", vector_size=4, head_size=8)
    model.save_pretrained(tmp_path / "student")
    save_recommender(tmp_path / "student", catalog=tiny_catalog, kind="llm_srec", scoring="exact")
    files = published_files(tmp_path / "student", "me/student")
    config = json.loads(files["config.json"])
    assert (config["language_model"], config["sequence_model"]) == ("lm", "sequence_model")
    assert {"sequence_model/config.json", "sequence_model/model.safetensors"} <= set(files)
    copy = tmp_path / "copy"
    write({name: Path(f).read_bytes() if isinstance(f, str) else f for name, f in files.items()}, copy)
    with pytest.raises(OSError, match="needs its `language_model` 'lm'"):
        LLMSRecModel.from_pretrained(copy, trust_remote_code=False)


def test_weights_of_an_earlier_model_are_taken_out_of_the_repository(folder, fake_hub):
    fake_hub.present = ["adapter_config.json", "adapter_model.safetensors", "model.safetensors", "notes.md"]
    push_recommender(folder, "films")
    assert fake_hub.deleted == ["adapter_config.json", "adapter_model.safetensors"]


def test_the_card_is_valid_and_names_the_repository(folder, fake_hub):
    push_recommender(folder, "films")
    card = ModelCard(fake_hub.files["README.md"].decode())
    assert card.data.library_name == "hf_rec" and card.data.base_model is None
    assert 'load_recommender("me/films")' in card.text
    assert 'load_recommender(".")' in (folder / "README.md").read_text()


def test_what_is_no_whole_recommender_is_not_uploaded(folder, fake_hub, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no recommender.json"):
        push_recommender(tmp_path / "empty", "films")
    (folder / "trie.marisa").unlink()
    with pytest.raises(FileNotFoundError, match="trie.marisa is missing"):
        push_recommender(folder, "films")
    assert not fake_hub.calls
