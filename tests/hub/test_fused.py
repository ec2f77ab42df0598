"""A fused recommender as a folder: whole, portable, hashed, and refused where a part is not as it was saved."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_rec.data.catalog import Catalog
from hf_rec.data.prompts.retrieval import RetrievalPrompt
from hf_rec.hub import load_recommender, push_recommender, save_control, save_recommender
from hf_rec.models.llm_srec.model import LLMSRecModel
from hf_rec.models.sequence.sasrec import SASRecConfig, SASRecModel
from hf_rec.recommenders.controls import PopularityRecommender
from hf_rec.recommenders.fused import FusedRecommender


HISTORIES = [[100, 105, 103], [], [111]]


def scores_of(recommender):
    return recommender.score_all(HISTORIES)


@pytest.fixture
def adapter(tmp_path, parts, tiny_lm):
    """Folder of a language model that is an adapter on a base which lies elsewhere."""
    from peft import LoraConfig, get_peft_model

    tiny_lm().save_pretrained(tmp_path / "base")
    model = type(tiny_lm()).from_pretrained(tmp_path / "base", trust_remote_code=False)
    config = LoraConfig(target_modules=["c_attn"], init_lora_weights=False, fan_in_fan_out=True)
    save_recommender(tmp_path / "language", **parts, tau=1.5, model=get_peft_model(model, config).eval())
    return tmp_path / "language"


@pytest.fixture
def sequence(tmp_path, tiny_catalog):
    torch.manual_seed(0)
    model = SASRecModel(SASRecConfig(num_items=12, hidden_size=8, initializer_range=0.5))
    save_recommender(tmp_path / "sasrec", catalog=tiny_catalog, kind="sequence", scoring="exact", model=model)
    return tmp_path / "sasrec"


@pytest.fixture
def control(tmp_path, tiny_catalog):
    save_control(tmp_path / "control", PopularityRecommender(tiny_catalog, [{"history": [], "target": 4}]))
    return tmp_path / "control"


@pytest.fixture
def fused(adapter, sequence, control):
    return FusedRecommender(
        [load_recommender(folder, device="cpu") for folder in (adapter, sequence, control)], [1, 0.5, -0.1]
    )


class TestFolder:
    def test_a_folder_that_is_moved_gives_the_same_scores(self, fused, tmp_path, adapter):
        expected, found = scores_of(fused), fused.recommend(HISTORIES, k=4)
        fused.save(tmp_path / "new" / "fused")
        for gone in (adapter, tmp_path / "sasrec", tmp_path / "control"):
            shutil.rmtree(gone)
        (tmp_path / "other").mkdir()
        shutil.move(tmp_path / "new" / "fused", tmp_path / "other" / "fused")
        loaded = load_recommender(tmp_path / "other" / "fused", device="cpu")
        assert type(loaded) is FusedRecommender and loaded.weights.tolist() == [[1, 0.5, -0.1]]
        assert len({id(part.catalog) for part in loaded.recommenders}) == 1
        np.testing.assert_array_equal(scores_of(loaded), expected)
        assert loaded.recommend(HISTORIES, k=4).item_ids == found.item_ids
        again = tmp_path / "again"
        loaded.save(again)
        np.testing.assert_array_equal(scores_of(load_recommender(again, device="cpu")), expected)

    def test_parts_from_memory_weights_by_length_and_the_fit_are_kept(self, fused, tmp_path):
        for part in fused.recommenders:
            part.folder = None
        fit = {"metric": "ndcg@10", "split": "validation", "rows": 7}
        saved = FusedRecommender(fused.recommenders, [[1, 0.5, 0], [0.2, 1, 0.1]], lengths=[0, 2], fit=fit)
        saved.save(tmp_path / "fused")
        loaded = load_recommender(tmp_path / "fused", device="cpu")
        np.testing.assert_array_equal(scores_of(loaded), scores_of(saved))
        assert loaded.lengths == [0, 2] and loaded.fit == fit
        card = (tmp_path / "fused" / "README.md").read_text()
        assert "| Weights from 2 items of history on | 0.2, 1, 0.1 |" in card
        assert "| Weights chosen by | ndcg@10 of 7 rows of `validation` |" in card

    def test_a_retrieval_model_finds_its_frozen_models_from_the_new_place(
        self, tmp_path, tiny_catalog, tiny_lm, bpe_tokenizer, control
    ):
        teacher = SASRecModel(SASRecConfig(num_items=12, hidden_size=8, catalog_sha256=tiny_catalog.sha256))
        teacher.save_pretrained(tmp_path / "teacher")
        tiny_lm().save_pretrained(tmp_path / "frozen")
        model = LLMSRecModel.from_frozen(tmp_path / "frozen", tmp_path / "teacher", vector_size=6, head_size=16)
        prompt = RetrievalPrompt(bpe_tokenizer, tiny_catalog)
        settings = {"catalog": tiny_catalog, "prompt": prompt, "tokenizer": bpe_tokenizer, "scoring": "exact"}
        save_recommender(tmp_path / "retrieval", kind="llm_srec", model=model, **settings)
        parts = [load_recommender(folder, device="cpu") for folder in (tmp_path / "retrieval", control)]
        fused = FusedRecommender(parts, [1, 0.3])
        assert fused.is_exact
        fused.save(tmp_path / "deep" / "fused")
        shutil.rmtree(tmp_path / "retrieval")
        loaded = load_recommender(tmp_path / "deep" / "fused", device="cpu")
        np.testing.assert_array_equal(scores_of(loaded), scores_of(fused))
        name = json.loads((tmp_path / "deep" / "fused" / "part-0" / "config.json").read_text())["language_model"]
        assert not Path(name).is_absolute()

    def test_the_temperature_of_now_is_saved(self, fused, tmp_path):
        fused.recommenders[0].tau = 3.0
        fused.save(tmp_path / "fused")
        loaded = load_recommender(tmp_path / "fused", device="cpu")
        assert loaded.tau == 3.0
        np.testing.assert_array_equal(scores_of(loaded), scores_of(fused))

    def test_a_fusion_of_a_fusion(self, fused, tmp_path, sequence):
        FusedRecommender([fused, load_recommender(sequence, device="cpu")], [1, 1]).save(tmp_path / "outer")
        loaded = load_recommender(tmp_path / "outer", device="cpu")
        expected = scores_of(FusedRecommender([fused, load_recommender(sequence, device="cpu")], [1, 1]))
        np.testing.assert_array_equal(scores_of(loaded), expected)

    def test_a_part_that_knows_its_items_without_titles(self, fused, tmp_path, tiny_catalog):
        bare = Catalog.from_records([{"item_id": item_id} for item_id in tiny_catalog.ids])
        control = PopularityRecommender(bare, [{"history": [], "target": 4}])
        saved = FusedRecommender([control, fused.recommenders[0]], [1, 1])
        saved.save(tmp_path / "fused")
        loaded = load_recommender(tmp_path / "fused", device="cpu")
        assert loaded.catalog.titles == tiny_catalog.titles and loaded.recommenders[0].catalog.titles is None
        np.testing.assert_array_equal(scores_of(loaded), scores_of(saved))

    def test_a_folder_by_its_name_is_a_prior(self, fused, sequence):
        language = fused.recommenders[0]
        found = language.recommend(HISTORIES, k=4, priors={sequence: 0.5})
        expected = language.recommend(HISTORIES, k=4, priors={fused.recommenders[1]: 0.5})
        assert found.item_ids == expected.item_ids

    def test_nothing_is_written_over(self, fused, tmp_path):
        (tmp_path / "taken").mkdir()
        (tmp_path / "taken" / "thesis.txt").touch()
        with pytest.raises(FileExistsError, match="not empty"):
            fused.save(tmp_path / "taken")
        fused.recommenders[2].__class__ = type("Own", (type(fused.recommenders[2]).__mro__[2],), {})
        fused.recommenders[2].folder = None
        with pytest.raises(ValueError, match="A Own is saved by what made it"):
            fused.save(tmp_path / "fused")
        assert not (tmp_path / "fused").exists()


class TestDamage:
    def test_every_file_of_every_part_is_checked(self, fused, tmp_path):
        whole = tmp_path / "fused"
        fused.save(whole)
        for path in sorted(path for path in whole.rglob("*") if path.is_file() and path.name != "README.md"):
            damaged = tmp_path / "damaged"
            shutil.copytree(whole, damaged)
            place = damaged / path.relative_to(whole)
            place.write_bytes(place.read_bytes()[:-9] + b"}")
            with pytest.raises(ValueError, match=path.name):
                load_recommender(damaged, device="cpu")
            place.unlink()
            with pytest.raises(FileNotFoundError):
                load_recommender(damaged, device="cpu")
            shutil.rmtree(damaged)

    def test_another_part_in_its_place_or_weights_beside_it(self, fused, tmp_path, sequence):
        fused.save(tmp_path / "fused")
        (tmp_path / "fused" / "part-1" / "adapter_model.safetensors").touch()
        with pytest.raises(ValueError, match="does not belong"):
            load_recommender(tmp_path / "fused", device="cpu")
        shutil.rmtree(tmp_path / "fused" / "part-1")
        shutil.copytree(tmp_path / "control", tmp_path / "fused" / "part-1")
        with pytest.raises(ValueError, match="recommender.json is not as it was saved"):
            load_recommender(tmp_path / "fused", device="cpu")

    def test_a_list_of_files_that_leads_outside(self, fused, tmp_path):
        from hf_rec.hub.files import index_text

        fused.save(tmp_path / "fused")
        path = tmp_path / "fused" / "recommender.json"
        index = json.loads(path.read_text())
        index["files"]["../sasrec/recommender.json"] = "0" * 64
        path.write_text(index_text(index))
        with pytest.raises(ValueError, match="not in the folder"):
            load_recommender(tmp_path / "fused", device="cpu")


def test_a_push_uploads_all_parts_and_no_path_of_this_machine(fused, tmp_path, fake_hub):
    fused.save(tmp_path / "fused")
    fake_hub.present = ["part-0/model.safetensors", "notes/model.safetensors", "model.safetensors"]
    push_recommender(tmp_path / "fused", "fused")
    assert fake_hub.deleted == ["part-0/model.safetensors", "model.safetensors"]
    assert not any(str(tmp_path).encode() in content for content in fake_hub.files.values())
    down = tmp_path / "down"
    for name, content in fake_hub.files.items():
        (down / name).parent.mkdir(parents=True, exist_ok=True)
        (down / name).write_bytes(content)
    with pytest.raises(FileNotFoundError, match="needs the base model"):  # which was a folder here
        load_recommender(down, device="cpu")
    config = down / "part-0" / "adapter_config.json"
    content = json.loads(config.read_bytes())
    config.write_text(json.dumps(content | {"base_model_name_or_path": str(tmp_path / "base")}))
    np.testing.assert_array_equal(scores_of(load_recommender(down, device="cpu")), scores_of(fused))
