import shutil

import numpy as np
import pytest
import torch

from hf_rec.data.prompts.next_item import Prompt
from hf_rec.hub import load_recommender, read_index, save_control, save_recommender
from hf_rec.hub.files import index_text
from hf_rec.recommenders.controls import LastItemRecommender, PopularityRecommender
from hf_rec.recommenders.language_model import LanguageModelRecommender
from hf_rec.trie.item_trie import ItemTrie


HISTORIES = [[100, 105], [111], []]


@pytest.fixture
def folder(parts, tiny_lm, tmp_path):
    save_recommender(tmp_path / "films", **parts, model=tiny_lm(), tau=1.5)
    return tmp_path / "films"


def in_memory(parts, model, tau):
    csr = parts["trie"].csr()
    return LanguageModelRecommender(model, parts["tokenizer"], parts["catalog"], parts["prompt"], csr, tau=tau)


def assert_same(one, other):
    first, second = (recommender.recommend(HISTORIES, k=5) for recommender in (one, other))
    assert first.item_ids == second.item_ids
    np.testing.assert_allclose(first.scores, second.scores, rtol=1e-5, atol=1e-6)


class TestSaveAndLoad:
    def test_the_folder_recommends_as_its_parts_did(self, folder, parts, tiny_lm):
        loaded = load_recommender(str(folder), device="cpu")
        assert (loaded.tau, loaded.scoring) == (1.5, "valid")
        assert not loaded.model.training
        assert_same(loaded, in_memory(parts, tiny_lm(), tau=1.5))
        assert load_recommender(folder, device="cpu", dtype="bfloat16").model.dtype == torch.bfloat16

    def test_nothing_in_it_is_pickled_and_nothing_is_left_beside_it(self, folder):
        suffixes = {path.suffix for path in folder.iterdir()}
        assert suffixes <= {".json", ".jsonl", ".safetensors", ".marisa", ".md", ".jinja"}
        assert [path.name for path in folder.parent.iterdir()] == ["films"]

    def test_the_card_names_items_settings_and_a_call(self, folder):
        card = (folder / "README.md").read_text()
        assert card.startswith("---\nlibrary_name: hf_rec\n")
        assert "| Items | 12 |" in card and "| Temperature | 1.5 |" in card and "recommend([[100, 101, 102]]" in card

    def test_weights_that_are_there_stay(self, parts, tiny_lm, tmp_path):
        tiny_lm().save_pretrained(tmp_path)
        (tmp_path / "notes.txt").write_text("mine")
        save_recommender(tmp_path, **parts, tau=0.5)
        assert (tmp_path / "notes.txt").read_text() == "mine"
        assert_same(load_recommender(tmp_path, device="cpu"), in_memory(parts, tiny_lm(), tau=0.5))

    def test_a_failed_save_leaves_the_old_folder(self, folder, parts, monkeypatch):
        def fail(self, directory):
            raise OSError("disk full")

        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        monkeypatch.setattr(ItemTrie, "save", fail)
        for target in (folder, folder.parent / "new"):
            with pytest.raises(OSError, match="disk full"):
                save_recommender(target, **parts, tau=9.0)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
        assert [path.name for path in folder.parent.iterdir()] == ["films"]

    def test_parts_that_do_not_belong_together_are_not_saved(self, parts, tmp_path):
        reversed_trie = ItemTrie.build(parts["prompt"].encode_items()[::-1])
        with pytest.raises(ValueError, match="`trie` has no item 0 \\('Alien'\\) where `prompt` puts it"):
            save_recommender(tmp_path / "new", **{**parts, "trie": reversed_trie})
        assert not list(tmp_path.iterdir())

    def test_an_adapter_finds_its_base_model(self, parts, tiny_lm, tmp_path):
        from peft import LoraConfig, PeftModel, get_peft_model
        from transformers import AutoModelForCausalLM

        tiny_lm("llama").save_pretrained(tmp_path / "base")
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", trust_remote_code=False)
        config = LoraConfig(target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
        model = get_peft_model(base, config).eval()
        save_recommender(tmp_path / "adapter", **parts, model=model, tau=2.0)
        assert not list((tmp_path / "adapter").glob("model*.safetensors"))
        loaded = load_recommender(tmp_path / "adapter", device="cpu")
        assert isinstance(loaded.model, PeftModel)
        assert_same(loaded, in_memory(parts, model, tau=2.0))

        shutil.move(tmp_path / "base", tmp_path / "elsewhere")
        with pytest.raises(OSError, match="needs the base model .*base_model_name_or_path"):
            load_recommender(tmp_path / "adapter", device="cpu")
        # The whole model takes the place of the adapter, whose files would otherwise be loaded first.
        save_recommender(tmp_path / "adapter", **parts, model=model.merge_and_unload(), tau=2.0)
        assert not isinstance(load_recommender(tmp_path / "adapter", device="cpu").model, PeftModel)

    @pytest.mark.parametrize("make", [PopularityRecommender, LastItemRecommender])
    def test_controls_are_folders_too(self, make, tiny_catalog, tmp_path):
        control = make(tiny_catalog, [{"history": [0, 1, 2], "target": 1, "supervise_from": 1}])
        save_control(tmp_path / "control", control)
        loaded = load_recommender(tmp_path / "control")
        assert type(loaded) is make
        np.testing.assert_array_equal(loaded.score_all([[100], []]), control.score_all([[100], []]))
        (tmp_path / "control" / "recommender.safetensors").write_bytes(b"x")
        with pytest.raises(ValueError, match="recommender.safetensors is not as it was saved"):
            load_recommender(tmp_path / "control")


class TestFoldersThatAreNotWhole:
    def test_a_plain_model_folder_says_what_to_do(self, tiny_lm, folder):
        with pytest.raises(
            FileNotFoundError, match="holds no recommender.json. Did you mean .*films.*save_recommender"
        ):
            load_recommender(folder.parent)

    def test_a_missing_folder_and_a_missing_repository_are_named(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="There is no folder .*nowhere"):
            load_recommender(tmp_path / "nowhere")
        with pytest.raises(OSError, match="'nobody/nothing' is no folder here, and as a Hub repository"):
            load_recommender("nobody/nothing")

    @pytest.mark.parametrize("part", ["catalog", "prompt", "trie", "tokenizer"])
    def test_a_part_from_elsewhere_is_named(self, folder, part):
        index = read_index(folder)
        index["hashes"][part] = "0" * 64
        (folder / "recommender.json").write_text(index_text(index))
        with pytest.raises(ValueError, match=f"The {part} in .* is not the one .*copy the whole folder again"):
            load_recommender(folder, device="cpu")

    def test_another_catalog_and_its_trie_are_refused(self, folder, parts, bpe_tokenizer):
        other = parts["catalog"].subset(list(range(11, -1, -1)))
        other.save(folder)
        with pytest.raises(ValueError, match="catalog.json.* is not as it was saved"):
            load_recommender(folder, device="cpu")
        parts["catalog"].save(folder)
        ItemTrie.build(Prompt(bpe_tokenizer, other).encode_items()).save(folder)
        with pytest.raises(ValueError, match="trie.* is not as it was saved"):
            load_recommender(folder, device="cpu")

    @pytest.mark.parametrize(
        "change, message",
        [
            ({"kind": "oracle"}, "of the kind 'oracle', this version of hf_rec loads 'language_model', '"),
            ({"format": 99}, "has format 99, this version of hf_rec reads 2"),
            ({"format": 1}, "has format 1, which does not say what weights .* Train again, or save the folder anew"),
        ],
    )
    def test_an_index_of_another_time_is_named(self, folder, change, message):
        (folder / "recommender.json").write_text(index_text(read_index(folder) | change))
        with pytest.raises(ValueError, match=message):
            load_recommender(folder, device="cpu")

    def test_pickled_weights_are_not_read(self, folder, parts, tmp_path):
        torch.save({}, tmp_path / "pytorch_model.bin")
        save_recommender(tmp_path, **parts)
        with pytest.raises(FileNotFoundError, match="saved as a recommender without weights"):
            load_recommender(tmp_path, device="cpu")
        (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "x"}')
        torch.save({}, tmp_path / "adapter_model.bin")
        save_recommender(tmp_path, **parts)
        with pytest.raises(FileNotFoundError, match="no adapter_model.safetensors. Pickled adapters are not read"):
            load_recommender(tmp_path, device="cpu")
