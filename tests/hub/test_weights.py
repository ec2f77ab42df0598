"""A folder knows its weights, and an adapter its base."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from hf_rec.hub import base_model, load_recommender, read_index, save_recommender
from hf_rec.hub.base_model import base_of
from hf_rec.hub.files import check_folder, index_text
from hf_rec.trainers.starting_point import RecommenderFolder


def adapted(base, targets=("q_proj",), **options):
    model = AutoModelForCausalLM.from_pretrained(base, trust_remote_code=False)
    config = LoraConfig(target_modules=list(targets), init_lora_weights=False, task_type="CAUSAL_LM")
    return get_peft_model(model, config, **options).eval()


def change_one_number(path):
    tensors = load_file(path)
    name = sorted(tensors)[0]
    tensors[name].view(-1)[0] += 1
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.fixture
def base(tmp_path, tiny_lm):
    tiny_lm("llama").save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def adapter(base, parts, tmp_path):
    save_recommender(tmp_path / "adapter", **parts, model=adapted(base), tau=2.0)
    return tmp_path / "adapter"


def test_the_index_holds_format_and_hash_of_every_file(adapter, parts, tiny_lm, tmp_path):
    index = read_index(adapter)
    assert index["format"] == 2 and index["weights"] == "adapter"
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "trie.marisa"} <= set(index["files"])
    save_recommender(tmp_path / "full", **parts, model=tiny_lm())
    index = read_index(tmp_path / "full")
    assert index["weights"] == "full" and index["base"] is None
    assert {"config.json", "model.safetensors", "catalog.jsonl", "prompt.json"} <= set(index["files"])


def test_other_weights_are_refused_with_their_temperature(parts, tiny_lm, tmp_path):
    tiny_lm().save_pretrained(tmp_path)
    save_recommender(tmp_path, **parts, tau=1.5)
    tiny_lm(seed=1).save_pretrained(tmp_path)
    for load in (lambda: load_recommender(tmp_path, device="cpu"), lambda: RecommenderFolder.find(str(tmp_path))):
        with pytest.raises(ValueError, match="model.safetensors is not as it was saved"):
            load()
    save_recommender(tmp_path, **parts, tau=0.5)
    assert load_recommender(tmp_path, device="cpu").tau == 0.5


def test_sharded_weights_are_listed_one_by_one(parts, tiny_lm, tmp_path):
    tiny_lm().save_pretrained(tmp_path, max_shard_size="50KB")
    save_recommender(tmp_path, **parts)
    shards = [name for name in read_index(tmp_path)["files"] if name.startswith("model-")]
    assert len(shards) > 1
    load_recommender(tmp_path, device="cpu")
    change_one_number(tmp_path / shards[-1])
    with pytest.raises(ValueError, match=shards[-1]):
        load_recommender(tmp_path, device="cpu")


def test_weights_that_are_not_listed_are_refused(adapter, parts, tiny_lm, tmp_path):
    tiny_lm().save_pretrained(adapter)
    with pytest.raises(ValueError, match="model.safetensors does not belong to this recommender"):
        load_recommender(adapter, device="cpu")
    with pytest.raises(ValueError, match="holds an adapter and whole weights"):
        save_recommender(adapter, **parts)


def test_a_file_outside_the_folder_is_not_read(adapter):
    index = read_index(adapter)
    index["files"]["../base/config.json"] = "0" * 64
    with pytest.raises(ValueError, match="names '../base/config.json', which is not in the folder"):
        check_folder(adapter, index)


class TestBase:
    def test_an_exchanged_base_is_refused(self, adapter, base):
        change_one_number(base / "model.safetensors")
        with pytest.raises(ValueError, match="base is not the one|base model in .* is not the one that the adapter"):
            load_recommender(adapter, device="cpu")

    def test_a_base_beside_the_adapter_moves_with_it_and_from_everywhere(self, parts, tiny_lm, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        tiny_lm("llama").save_pretrained("runs/base")
        save_recommender("runs/adapter", **parts, model=adapted("runs/base"))
        assert read_index("runs/adapter")["base"]["path"] == "../base"
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        assert isinstance(load_recommender(tmp_path / "runs/adapter", device="cpu").model, PeftModel)
        shutil.move("../runs/adapter", tmp_path / "elsewhere/adapter")  # alone: the base is where it was
        assert isinstance(load_recommender("adapter", device="cpu").model, PeftModel)
        shutil.move("adapter", tmp_path / "runs/adapter")
        shutil.move(tmp_path / "runs", tmp_path / "moved")
        assert isinstance(load_recommender(tmp_path / "moved/adapter", device="cpu").model, PeftModel)

    def test_a_local_base_that_is_gone_is_not_asked_of_the_hub(self, parts, tiny_lm, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        tiny_lm("llama").save_pretrained("runs/base")
        save_recommender("runs/adapter", **parts, model=adapted("runs/base"))
        shutil.move("runs/base", "elsewhere")
        for place in ("transformers.utils.hub.cached_file", "hf_rec.models.weight_files.snapshot_download"):
            monkeypatch.setattr(place, lambda *_, **__: pytest.fail("the Hub was asked"))
        with pytest.raises(FileNotFoundError, match="needs the base model 'runs/base'.*there is no such folder"):
            load_recommender("runs/adapter", device="cpu")

    def test_a_new_place_in_the_adapter_config_is_taken_if_it_is_the_same_base(self, adapter, base, tiny_lm):
        shutil.move(base, base.parent / "new")
        tiny_lm("llama", seed=1).save_pretrained(base.parent / "other")
        path = adapter / "adapter_config.json"
        config = json.loads(path.read_text())
        for name, fits in (("new", True), ("other", False)):
            path.write_text(json.dumps(config | {"base_model_name_or_path": str(base.parent / name)}))
            if fits:
                load_recommender(adapter, device="cpu")
            else:
                with pytest.raises(ValueError, match="is not the one that the adapter"):
                    load_recommender(adapter, device="cpu")

    def test_the_commit_of_a_hub_base_is_kept_and_asked_for(self, adapter, base, monkeypatch):
        model = adapted(base, revision="main")
        model.peft_config["default"].base_model_name_or_path = "someone/model"
        model.get_base_model().config._commit_hash = "abc123"
        found = base_of(model)
        assert (found["name"], found["local"], found["revision"]) == ("someone/model", False, "abc123")
        index = read_index(adapter) | {"base": found}
        (adapter / "recommender.json").write_text(index_text(index))
        path = adapter / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "someone/model"}))
        asked = []

        def load(name, **options):
            asked.append((name, options))
            return AutoModelForCausalLM.from_pretrained(base, trust_remote_code=False)

        monkeypatch.setattr("hf_rec.hub.base_model.load_language_model", load)
        load_recommender(adapter, device="cpu")
        assert asked == [("someone/model", {"dtype": "float32", "revision": "abc123"})]

    def test_type_and_quantisation_of_the_base_are_those_of_training(self, adapter, base, monkeypatch):
        model = adapted(base)
        model.get_base_model().to(torch.bfloat16)
        assert base_of(model)["dtype"] == "bfloat16"
        index = read_index(adapter)
        index["base"] |= {"dtype": "bfloat16", "quantization_config": {"load_in_4bit": True}}
        (adapter / "recommender.json").write_text(index_text(index))
        asked = []

        def load(name, **options):
            asked.append(options)
            return AutoModelForCausalLM.from_pretrained(base, trust_remote_code=False)

        monkeypatch.setattr("hf_rec.hub.base_model.load_language_model", load)
        load_recommender(adapter, device="cpu")
        load_recommender(adapter, device="cpu", dtype="float32")
        quantized = {"quantization_config": {"load_in_4bit": True}}
        assert asked == [{"dtype": "bfloat16", **quantized}, {"dtype": "float32", **quantized}]

    def test_a_saved_base_cannot_ask_for_code(self, adapter, monkeypatch):
        asked, load = [], base_model.load_language_model

        def watched(*args, **options):
            asked.append(options)
            return load(*args, **options)

        monkeypatch.setattr(base_model, "load_language_model", watched)
        index = read_index(adapter)
        index["base"]["quantization_config"] = None
        index["base"]["trust_remote_code"] = True  # not among the entries that are read
        (adapter / "recommender.json").write_text(index_text(index))
        load_recommender(adapter, device="cpu")
        assert len(asked) == 1 and "trust_remote_code" not in asked[0]

    @pytest.mark.parametrize("kind, targets, warns", [("gpt2", ["wte"], True), ("llama", ["embed_tokens"], False)])
    def test_an_adapter_on_tied_embeddings_is_not_to_be_merged(
        self, kind, targets, warns, tiny_lm, tmp_path, monkeypatch
    ):
        tiny_lm(kind).save_pretrained(tmp_path)
        messages = []
        monkeypatch.setattr(base_model, "logger", SimpleNamespace(warning_once=messages.append))
        base_of(adapted(tmp_path, targets))
        assert any("do not merge" in message for message in messages) == warns


def test_missing_adapter_tensors_are_an_error(adapter, parts):
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, path, metadata={"format": "pt"})
    save_recommender(adapter, **parts)  # hashes are those of the file without the tensor
    with pytest.raises(ValueError, match="adapter_model.safetensors lacks tensors"):
        load_recommender(adapter, device="cpu")
