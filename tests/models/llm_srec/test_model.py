import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from hf_rec.columns import INPUT_IDS
from hf_rec.data.prompts.retrieval import RetrievalPrompt, pad_prompts
from hf_rec.models.language.prompt_states import length_groups
from hf_rec.models.llm_srec import model as model_module
from hf_rec.models.llm_srec.model import LLMSRecModel
from hf_rec.models.sequence.sasrec import SASRecConfig, SASRecModel


HISTORIES = [[0, 1, 2, 3], [], [7], [5, 6, 5, 6, 5, 6], [11, 0]]


@pytest.fixture(scope="module")
def prompt(bpe_tokenizer, tiny_catalog):
    return RetrievalPrompt(bpe_tokenizer, tiny_catalog)


@pytest.fixture(scope="module")
def folders(tiny_lm, tiny_catalog, tmp_path_factory):
    """Two language models and a teacher on disk."""
    root = tmp_path_factory.mktemp("frozen")
    torch.manual_seed(1)
    teacher = SASRecModel(SASRecConfig(num_items=len(tiny_catalog), hidden_size=8, catalog_sha256=tiny_catalog.sha256))
    torch.nn.init.normal_(teacher.item_embedding.weight)
    teacher.save_pretrained(root / "teacher")
    for kind in ("gpt2", "llama"):
        tiny_lm(kind).save_pretrained(root / kind)
    return root


def make(folders, kind="gpt2", seed=0, **kwargs):
    torch.manual_seed(seed)
    return LLMSRecModel.from_frozen(folders / kind, folders / "teacher", vector_size=6, head_size=16, **kwargs)


def users(prompt, histories=HISTORIES):
    inputs = pad_prompts([prompt.encode_user(history) for history in histories])
    return {**inputs, "prefix_ids": torch.tensor(prompt.user_prefix)}


def items(prompt, rows):
    return {**prompt.item_inputs(rows), "prefix_ids": torch.tensor(prompt.item_prefix)}


def plain_user_vector(model, prompt, history, language_model):
    """One user at a time: whole prompt, vectors spliced in one by one, last hidden state of the causal LM."""
    encoded = prompt.encode_user(history)
    ids = torch.tensor([prompt.user_prefix + encoded[INPUT_IDS]])
    words = language_model.get_input_embeddings()(ids)[0]
    for place, item in enumerate([-1] * len(prompt.user_prefix) + encoded["slot_items"]):
        if item >= 0:
            slot = model.item_projection(model.item_scale * model.sequence_model.item_vectors(torch.tensor([item])))
            words = torch.cat([words[:place], slot, words[place + 1 :]])
    words = torch.cat([words[:-1], model.user_query.weight])
    states = language_model(inputs_embeds=words[None], output_hidden_states=True).hidden_states[-1]
    return model.user_head(states[:, -1])[0]


class TestVectors:
    @pytest.mark.parametrize("kind", ["gpt2", "llama"])
    def test_they_equal_those_of_one_prompt_at_a_time(self, folders, prompt, tiny_lm, kind):
        model, language_model = make(folders, kind), tiny_lm(kind)
        with torch.no_grad():
            vectors = model.encode(query="user", **users(prompt))
            expected = [plain_user_vector(model, prompt, history, language_model) for history in HISTORIES]
        torch.testing.assert_close(vectors, torch.stack(expected), atol=1e-5, rtol=1e-4)

    def test_neither_padding_nor_company_changes_them(self, folders, prompt):
        model = make(folders)
        together = model.encode(query="item", **items(prompt, [7, 0, 8, 7]))
        for place, row in enumerate([7, 0, 8, 7]):
            alone = model.encode(query="item", **items(prompt, [row]))
            torch.testing.assert_close(together[place], alone[0], atol=1e-5, rtol=1e-4)

    def test_the_order_of_a_history_matters(self, folders, prompt):
        vectors = make(folders).encode(query="user", **users(prompt, [[0, 7], [7, 0]]))
        assert (vectors[0] - vectors[1]).abs().max() > 1e-3

    def test_small_item_vectors_of_a_teacher_are_brought_to_a_common_scale(self, folders, tmp_path):
        scales = []
        for factor in (1.0, 1e-3):
            teacher = SASRecModel.from_pretrained(folders / "teacher", trust_remote_code=False)
            teacher.item_embedding.weight.data *= factor
            teacher.save_pretrained(tmp_path / str(factor))
            model = LLMSRecModel.from_frozen(folders / "llama", tmp_path / str(factor))
            scales.append(model.sequence_model.item_vectors() * model.item_scale)
        torch.testing.assert_close(scales[0], scales[1])
        assert scales[0].square().mean().item() == pytest.approx(1)

    def test_an_item_that_the_teacher_has_not_seen_stands_as_a_zero_vector(self, folders, prompt):
        model = make(folders, seen_items=[0, 1])
        assert model.item_seen.sum() == 2
        slots = torch.tensor([0, 2, 99])
        vectors = model._slot_vectors(slots)
        assert vectors[0].abs().sum() > 0 and vectors[1:].abs().sum() == 0
        cold = items(prompt, [7])
        unknown = dict(cold, slot_items=cold["slot_items"].where(cold["slot_items"] < 0, 99))
        torch.testing.assert_close(model.encode(query="item", **cold), model.encode(query="item", **unknown))

    def test_slot_and_query_get_a_gradient_and_the_frozen_models_none(self, folders, prompt):
        model = make(folders).train()
        output = model(users(prompt), items(prompt, [0, 1]), torch.randn(len(HISTORIES), 8))
        (output.user_vectors.sum() + output.item_vectors.sum() + output.teacher_vectors.sum()).backward()
        for name, param in model.named_parameters():
            frozen = name.startswith(("language_model.", "sequence_model."))
            assert param.requires_grad != frozen, name
            assert frozen or param.grad.abs().sum() > 0, name

    def test_text_that_is_read_without_a_gradient_changes_none(self, folders, prompt, monkeypatch):
        gradients = []
        for alone in (True, False):
            model = make(folders, "llama")
            if not alone:
                monkeypatch.setattr(model_module, "_lengths", lambda mask, slots: (mask.sum(1).tolist(), [0] * 3))
            model.encode(query="item", **items(prompt, [7, 7, 0])).pow(2).sum().backward()
            gradients.append([param.grad for param in model.parameters() if param.grad is not None])
        assert len(gradients[0]) == len(gradients[1]) > 8
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)

    def test_with_sharded_weights_each_call_takes_two_passes_whatever_the_prompts(self, folders, prompt, monkeypatch):
        # A prompt much longer than the others, and text before the slots of items, are worth passes of their own
        model, counts = make(folders, "llama"), []
        model.language_model.register_forward_hook(lambda *args: counts.append(1))
        calls = [users(prompt, [[0] * 10, *[[]] * 30]), users(prompt, [[1]]), items(prompt, [7, 7, 0])]
        whole = [model(user_inputs=call).user_vectors for call in calls]
        assert len(counts) > 2 * len(calls)
        monkeypatch.setattr(model_module, "has_sharded_weights", lambda model: True)
        for call, expected in zip(calls, whole, strict=True):
            counts.clear()
            torch.testing.assert_close(model(user_inputs=call).user_vectors, expected, atol=1e-5, rtol=1e-4)
            assert len(counts) == 2  # the prefix, and all prompts

    def test_gradient_checkpointing_changes_no_number(self, folders, prompt):
        gradients = []
        for checkpointing in (False, True):
            model = make(folders, "llama")
            if checkpointing:
                model.gradient_checkpointing_enable()
            model.train()
            assert not any(
                module.training for module in model.language_model.modules() if not len([*module.children()])
            )
            model.encode(query="user", **users(prompt)).sum().backward()
            gradients.append(model.item_projection[0].weight.grad)
        torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-3)


class TestModes:
    def test_both_frozen_models_stay_in_eval_mode(self, folders, prompt):
        model = make(folders).train()
        assert model.user_head.training
        assert not any(part.training for part in (*model.language_model.modules(), *model.sequence_model.modules()))
        histories = torch.tensor([[0, 1, 2]])
        torch.testing.assert_close(
            model.sequence_model.user_vectors(histories), model.sequence_model.user_vectors(histories)
        )

    def test_with_an_adapter_the_language_model_is_trained_and_saved(self, folders, prompt, tmp_path):
        from peft import LoraConfig

        peft_config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        model = make(folders, "llama", peft_config=peft_config).train()
        assert model.language_model.training and not model.sequence_model.training
        model.encode(query="user", **users(prompt)).sum().backward()
        trained = [name for name, param in model.language_model.named_parameters() if param.grad is not None]
        assert len(trained) == 8 and all("lora_" in name for name in trained)
        model.save_pretrained(tmp_path)
        loaded = LLMSRecModel.from_pretrained(tmp_path, trust_remote_code=False)
        torch.testing.assert_close(
            loaded.encode(query="user", **users(prompt)), model.eval().encode(query="user", **users(prompt))
        )


class TestFiles:
    def test_only_what_was_trained_is_saved_and_all_of_it_comes_back(self, folders, prompt, tmp_path):
        model = make(folders, seen_items=range(10))
        model.save_pretrained(tmp_path)
        with safe_open(tmp_path / "model.safetensors", "pt") as file:
            names = set(file.keys())
        trained = {name for name, param in model.named_parameters() if param.requires_grad}
        assert names == trained | {"item_scale", "item_seen"}
        assert any(name.startswith("teacher_head.") for name in names)
        loaded = AutoModel.from_pretrained(tmp_path, trust_remote_code=False)
        assert isinstance(loaded, LLMSRecModel)
        for name, value in model.state_dict().items():
            torch.testing.assert_close(loaded.state_dict()[name], value, rtol=0, atol=0)
        config = json.loads((tmp_path / "config.json").read_text())
        assert config["language_model"] == str(folders / "gpt2") and len(config["sequence_model_sha256"]) == 64

    def test_other_frozen_weights_are_refused(self, folders, tiny_lm, tmp_path):
        tiny_lm("gpt2").save_pretrained(tmp_path / "lm")
        model = LLMSRecModel.from_frozen(tmp_path / "lm", folders / "teacher", vector_size=6, head_size=16)
        model.save_pretrained(tmp_path / "model")
        tiny_lm("gpt2", seed=5).save_pretrained(tmp_path / "lm")
        with pytest.raises(ValueError, match="not those that were trained with"):
            LLMSRecModel.from_pretrained(tmp_path / "model", trust_remote_code=False)
        assert LLMSRecModel.from_pretrained(tmp_path / "model", check=False, trust_remote_code=False) is not None

    def test_a_missing_frozen_model_is_named(self, folders, tmp_path):
        make(folders).save_pretrained(tmp_path)
        path = tmp_path / "config.json"
        path.write_text(path.read_text().replace(str(folders / "gpt2"), "gone/away"))
        with pytest.raises(OSError, match="`language_model` 'gone/away'"):
            LLMSRecModel.from_pretrained(tmp_path, trust_remote_code=False)

    def test_a_folder_that_is_gone_is_not_asked_of_the_hub(self, folders, tmp_path, monkeypatch):
        monkeypatch.setattr("hf_rec.models.weight_files.snapshot_download", lambda *_, **__: pytest.fail("asked"))
        make(folders).save_pretrained(tmp_path)
        path = tmp_path / "config.json"
        path.write_text(path.read_text().replace(str(folders / "gpt2"), "someone/model"))
        with pytest.raises(OSError, match="needs its `language_model` 'someone/model'.*there is no such folder"):
            LLMSRecModel.from_pretrained(tmp_path, trust_remote_code=False)

    def test_a_relative_folder_is_found_from_another_working_folder(self, folders, tmp_path, monkeypatch):
        monkeypatch.chdir(folders)
        LLMSRecModel.from_frozen("gpt2", "teacher", vector_size=6, head_size=16).save_pretrained(tmp_path / "model")
        monkeypatch.chdir(tmp_path)
        assert LLMSRecModel.from_pretrained("model", trust_remote_code=False) is not None

    @pytest.mark.parametrize("change", ["missing", "shape", "garbage"])
    def test_weights_that_do_not_fit_are_refused(self, folders, tmp_path, change):
        make(folders).save_pretrained(tmp_path)
        path = tmp_path / "model.safetensors"
        tensors = load_file(path)
        name = "user_query.weight"
        tensor = tensors.pop(name)
        save_file(
            tensors | ({name: tensor[:, 1:].clone()} if change == "shape" else {}), path, metadata={"format": "pt"}
        )
        if change == "garbage":
            path.write_bytes(b"x" * 100)
        with pytest.raises(ValueError, match="do not fit their config.json|model.safetensors is truncated"):
            LLMSRecModel.from_pretrained(tmp_path, trust_remote_code=False)

    def test_a_folder_is_found_beside_the_model_too(self, folders, tmp_path):
        make(folders).save_pretrained(tmp_path / "model")
        (tmp_path / "model" / "lm").symlink_to(folders / "gpt2")
        path = tmp_path / "model" / "config.json"
        path.write_text(path.read_text().replace(str(folders / "gpt2"), "lm"))
        assert LLMSRecModel.from_pretrained(tmp_path / "model", trust_remote_code=False).config.language_model == "lm"

    def test_a_frozen_model_inside_the_folder_moves_with_it(self, folders, tmp_path):
        teacher = AutoModel.from_pretrained(folders / "teacher", trust_remote_code=False)
        teacher.save_pretrained(tmp_path / "old" / "sequence_model")
        model = LLMSRecModel.from_frozen(
            folders / "gpt2", tmp_path / "old" / "sequence_model", vector_size=6, head_size=16
        )
        model.save_pretrained(tmp_path / "old")
        assert model.config.sequence_model == str(tmp_path / "old" / "sequence_model")
        (tmp_path / "old").rename(tmp_path / "new")
        assert (
            LLMSRecModel.from_pretrained(tmp_path / "new", trust_remote_code=False).config.sequence_model
            == "sequence_model"
        )

    def test_a_model_made_in_memory_cannot_be_referred_to(self, folders, tiny_lm, tmp_path):
        model = LLMSRecModel.from_frozen(tiny_lm(), folders / "teacher", vector_size=6, head_size=16)
        with pytest.raises(ValueError, match="`language_model` was made in memory"):
            model.save_pretrained(tmp_path)

    def test_a_teacher_that_is_no_sequence_model_is_refused(self, folders, tiny_lm):
        with pytest.raises(ValueError, match="`sequence_model`"):
            LLMSRecModel.from_frozen(tiny_lm(), tiny_lm())


def test_groups_hold_every_row_once_with_little_padding():
    lengths = torch.randint(1, 400, (500,), generator=torch.Generator().manual_seed(0)).tolist()
    groups = length_groups(lengths, on_cpu=True)
    assert sorted(row for group in groups for row in group) == list(range(500))
    real, size = sum(lengths), sum(lengths[group[0]] * len(group) for group in groups)
    assert size < 1.2 * real and len(groups) < 60
