"""A model folder is data: whatever it says, nothing in it is run and nobody is asked."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM

from hf_rec import SASRecConfig, SASRecModel
from hf_rec.models.llm_srec.model import LLMSRecModel
from hf_rec.models.loading import load_weights
from hf_rec.models.weight_files import weights_sha256
from hf_rec.trainers.msl.config import MSLConfig


AUTO_CLASSES = ("AutoConfig", "AutoModel", "AutoModelForCausalLM")


@pytest.fixture(autouse=True)
def someone_who_says_yes(monkeypatch):
    """A user who would answer `y` to every question, and fails the test if one is asked."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    monkeypatch.setattr("sys.stdin.readline", lambda *_: pytest.fail("a question was asked"), raising=False)


def make_evil(folder, mark, model_type=None):
    """Code beside the weights that leaves a mark, and a configuration that asks for it."""
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Evil: pass\n")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = dict.fromkeys(AUTO_CLASSES, "evil.Evil")
    config["trust_remote_code"] = True
    config["model_type"] = model_type or config["model_type"]
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture
def folders(tmp_path, tiny_lm, bpe_tokenizer):
    tiny_lm("llama").save_pretrained(tmp_path / "lm")
    bpe_tokenizer.save_pretrained(tmp_path / "lm")
    SASRecModel(SASRecConfig(num_items=12, hidden_size=8, num_attention_heads=1)).save_pretrained(tmp_path / "teacher")
    return tmp_path


@pytest.mark.parametrize("model_type", [None, "no_such_type"])
@pytest.mark.parametrize("name, auto_class", [("lm", AutoModelForCausalLM), ("teacher", AutoModel)])
def test_a_folder_with_code_loads_without_it_or_not_at_all(folders, name, auto_class, model_type):
    make_evil(folders / name, folders / "mark", model_type)
    if model_type is None:
        load_weights(auto_class, folders / name)
    else:
        with pytest.raises(ValueError, match="custom code"):
            load_weights(auto_class, folders / name)
    assert not (folders / "mark").exists()


@pytest.mark.parametrize("model_type", [None, "no_such_type"])
@pytest.mark.parametrize("role", ["language_model", "sequence_model"])
def test_the_frozen_models_of_llm_srec_bring_no_code(folders, role, model_type):
    model = LLMSRecModel.from_frozen(folders / "lm", folders / "teacher", vector_size=4, head_size=8)
    model.save_pretrained(folders / "student")
    frozen = folders / {"language_model": "lm", "sequence_model": "teacher"}[role]
    make_evil(frozen, folders / "mark", model_type)
    shutil.copytree(frozen, folders / "student" / role)
    config = json.loads((folders / "student/config.json").read_text())
    config |= {role: role, f"{role}_sha256": weights_sha256(frozen)}
    for kwargs, message in ((None, "custom code"), ({"trust_remote_code": True}, "got 'trust_remote_code'")):
        config["language_model_kwargs"] = kwargs
        (folders / "student/config.json").write_text(json.dumps(config))
        if kwargs is None and model_type is None:
            LLMSRecModel.from_pretrained(folders / "student", trust_remote_code=False)
        else:
            with pytest.raises(ValueError, match=message):
                LLMSRecModel.from_pretrained(folders / "student", trust_remote_code=False)
    assert not (folders / "mark").exists()


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"trust_remote_code": True}, "got 'trust_remote_code'"),
        ({"device_map": "auto"}, "got 'device_map'"),
        ({"attn_implementation": "someone/kernel"}, "`attn_implementation` 'someone/kernel'"),
    ],
)
def test_keyword_arguments_that_are_kept_are_the_few_known_ones(folders, kwargs, message):
    with pytest.raises(ValueError, match=f"`language_model_kwargs` .*{message}"):
        LLMSRecModel.from_frozen(folders / "lm", folders / "teacher", language_model_kwargs=kwargs)


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_configuration_that_asks_for_a_kernel_is_refused(folders, key):
    config = json.loads((folders / "lm/config.json").read_text())
    (folders / "lm/config.json").write_text(json.dumps({**config, key: "someone/kernel"}))
    with pytest.raises(ValueError, match="the kernel 'someone/kernel' of a Hub repository"):
        load_weights(AutoModelForCausalLM, folders / "lm")


def test_an_index_of_shards_stays_in_its_folder(folders, tiny_lm):
    tiny_lm("llama").save_pretrained(folders / "sharded", max_shard_size="50KB")
    load_weights(AutoModelForCausalLM, folders / "sharded")
    path = folders / "sharded/model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] = {key: f"../lm/{name}" for key, name in index["weight_map"].items()}
    path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"names the weight file '\.\./lm/model.*not in the folder"):
        load_weights(AutoModelForCausalLM, folders / "sharded")


@pytest.mark.parametrize("name, auto_class", [("lm", AutoModelForCausalLM), ("teacher", AutoModel)])
def test_tensors_that_are_missing_or_of_another_shape_are_named(folders, name, auto_class):
    path = folders / name / "model.safetensors"
    tensors = load_file(path)
    lost = sorted(tensors)[0]
    for changed in (
        {key: tensor for key, tensor in tensors.items() if key != lost},
        {**tensors, lost: tensors[lost][:-1].clone()},
    ):
        save_file(changed, path, metadata={"format": "pt"})
        with pytest.raises((ValueError, RuntimeError), match="lack 1 tensors|mismatch|size"):
            load_weights(auto_class, folders / name)


def test_a_tied_head_is_not_missing(tmp_path, tiny_lm):
    tiny_lm("gpt2").save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    assert load_weights(AutoModelForCausalLM, tmp_path).lm_head.weight is not None


def test_trainers_refuse_to_trust_code(tmp_path):
    with pytest.raises(ValueError, match="`trust_remote_code` is never set here"):
        MSLConfig(str(tmp_path), model_init_kwargs={"trust_remote_code": True})
