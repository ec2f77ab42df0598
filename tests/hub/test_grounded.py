"""A grounded recommender as a folder: whole, portable, hashed, and refused where a part is not as it was saved."""

import json
import shutil

import numpy as np
import pytest

from hf_rec.hub import load_recommender, push_recommender, save_recommender
from hf_rec.hub.load import load_base
from hf_rec.recommenders.controls import PopularityRecommender
from hf_rec.recommenders.fused import FusedRecommender
from hf_rec.recommenders.grounded import GroundedRecommender


HISTORIES = [[100, 105, 103], [], [111]]


@pytest.fixture
def grounded(tmp_path, parts, tiny_lm, bpe_tokenizer, tiny_catalog):
    save_recommender(tmp_path / "writer", **parts, model=tiny_lm())
    tiny_lm("llama", seed=1).save_pretrained(tmp_path / "lm")
    bpe_tokenizer.save_pretrained(tmp_path / "lm")
    writer = load_recommender(tmp_path / "writer", device="cpu")
    weight = PopularityRecommender(tiny_catalog, [{"history": [], "target": 4}])
    fit = {"metric": "ndcg@10", "split": "validation", "rows": 7}
    base = load_base(tmp_path / "lm", device="cpu")
    return GroundedRecommender(writer, *base, weight=weight, gamma=0.7, num_beams=2, fit=fit)


def test_a_folder_that_is_moved_gives_the_same_scores(grounded, tmp_path):
    expected = grounded.score_all(HISTORIES)
    grounded.save(tmp_path / "new" / "grounded")
    for gone in ("writer", "lm"):
        shutil.rmtree(tmp_path / gone)
    shutil.move(tmp_path / "new" / "grounded", tmp_path / "moved")
    loaded = load_recommender(tmp_path / "moved", device="cpu")
    assert type(loaded) is GroundedRecommender and loaded.weight.catalog is loaded.catalog
    assert (loaded.gamma, loaded.num_beams, loaded.fit) == (0.7, 2, grounded.fit)
    assert loaded._vectors is not None  # nothing is encoded again
    np.testing.assert_array_equal(loaded.score_all(HISTORIES), expected)
    card = (tmp_path / "moved" / "README.md").read_text()
    assert "| Weight of `part-1` (gamma) | 0.7 |" in card and "| Gamma chosen by | ndcg@10 of 7 rows" in card


def test_a_fusion_of_it_is_a_folder_too(grounded, tmp_path, fake_hub):
    grounded.save(tmp_path / "grounded")
    fused = FusedRecommender([load_recommender(tmp_path / "grounded", device="cpu"), grounded.weight], [1, 0.2])
    fused.save(tmp_path / "fused")
    expected = fused.score_all(HISTORIES)
    np.testing.assert_array_equal(load_recommender(tmp_path / "fused", device="cpu").score_all(HISTORIES), expected)
    push_recommender(tmp_path / "fused", "fused")
    assert {"part-0/base/model.safetensors", "part-0/part-0/model.safetensors"} <= set(fake_hub.files)
    down = tmp_path / "down"
    for name, content in fake_hub.files.items():
        (down / name).parent.mkdir(parents=True, exist_ok=True)
        (down / name).write_bytes(content)
    np.testing.assert_array_equal(load_recommender(down, device="cpu").score_all(HISTORIES), expected)


def test_every_file_is_checked(grounded, tmp_path):
    grounded.save(tmp_path / "grounded")
    for name in ("item_texts.safetensors", "base/model.safetensors", "base/config.json", "part-0/model.safetensors"):
        shutil.copytree(tmp_path / "grounded", tmp_path / "damaged")
        place = tmp_path / "damaged" / name
        place.write_bytes(place.read_bytes()[:-9] + b"}")
        with pytest.raises(ValueError, match=place.name):
            load_recommender(tmp_path / "damaged", device="cpu")
        shutil.rmtree(tmp_path / "damaged")


def test_a_base_from_the_hub_is_named_by_its_commit(grounded, tmp_path, monkeypatch):
    from hf_rec.hub import load

    config = grounded.base.model.config
    config._name_or_path, config._commit_hash = "someone/base", "c0ffee"
    grounded.save(tmp_path / "grounded")
    assert not (tmp_path / "grounded" / "base").exists()
    index = json.loads((tmp_path / "grounded" / "recommender.json").read_text())
    assert index["extra"]["base"] == {"name": "someone/base", "revision": "c0ffee"}
    asked = []

    def from_hub(name, revision=None, **options):
        asked.append((name, revision))
        return load_base(tmp_path / "lm", **options)

    monkeypatch.setattr(load, "load_base", from_hub)
    loaded = load_recommender(tmp_path / "grounded", device="cpu")
    assert asked == [("someone/base", "c0ffee")]
    np.testing.assert_array_equal(loaded.score_all(HISTORIES), grounded.score_all(HISTORIES))


def test_an_adapter_is_no_base(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="is an adapter. The base model compares texts"):
        load_base(tmp_path, device="cpu")


def test_nothing_is_written_over(grounded, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").touch()
    with pytest.raises(FileExistsError, match="not empty"):
        grounded.save(tmp_path / "taken")
