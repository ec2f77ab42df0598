"""The items of a saved language model change without training, and never by halves."""

import json

import numpy as np
import pytest

from hf_rec.cli import main as cli
from hf_rec.data.catalog import Catalog
from hf_rec.data.prompts.next_item import Prompt
from hf_rec.hub import change_catalog, load_recommender, save_control, save_recommender
from hf_rec.hub.change_catalog import changing
from hf_rec.recommenders.controls import PopularityRecommender
from hf_rec.trie.item_trie import ItemTrie


NEW = [{"item_id": 200, "title": "Alien 4"}, {"item_id": 201, "title": "Brazil"}]


@pytest.fixture
def folder(parts, tiny_lm, tmp_path):
    save_recommender(tmp_path / "model", model=tiny_lm(), **parts)
    return tmp_path / "model"


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_same(found, expected, histories):
    one, other = found.recommend(histories, k=6), expected.recommend(histories, k=6)
    assert one.item_ids == other.item_ids
    np.testing.assert_allclose(one.scores, other.scores, rtol=1e-5, atol=1e-5)


def test_a_folder_with_new_items_is_the_one_that_would_have_been_saved_with_them(
    folder, tiny_catalog, bpe_tokenizer, tiny_lm, tmp_path
):
    before = content(folder)
    catalog = change_catalog(folder, lambda old: old.with_records(NEW), tmp_path / "new")
    prompt = Prompt(bpe_tokenizer, catalog)
    trie = ItemTrie.build(prompt.encode_items())
    parts = {"catalog": catalog, "prompt": prompt, "trie": trie, "tokenizer": bpe_tokenizer}
    save_recommender(tmp_path / "expected", model=tiny_lm(), kind="language_model", **parts)
    found, expected = load_recommender(tmp_path / "new"), load_recommender(tmp_path / "expected")
    assert_same(found, expected, [[100], [200, 201], []])
    hashes = [
        json.loads((tmp_path / name / "recommender.json").read_bytes())["hashes"] for name in ("new", "expected")
    ]
    assert hashes[0] == hashes[1]
    assert content(folder) == before, "the old folder is as it was"
    in_memory = load_recommender(folder).with_catalog(catalog)
    assert_same(in_memory, expected, [[100], [200, 201], []])


def test_commands_add_remove_and_rename_in_place(folder, tmp_path, capsys):
    weights = (folder / "model.safetensors").read_bytes()
    (tmp_path / "new.csv").write_text("item_id,title\n200,Alien 4\n201,Brazil\n")
    assert cli.main(["catalog", "add", "--model", str(folder), "--items", str(tmp_path / "new.csv")]) == 0
    assert "14 items" in capsys.readouterr().out
    assert cli.main(["catalog", "remove", "--model", str(folder), "--item", "Heat", "100"]) == 0
    assert cli.main(["catalog", "rename", "--model", str(folder), "--item", "201", "--title", "Brasil"]) == 0
    recommender = load_recommender(folder)
    found = recommender.recommend([[201]], k=12)
    assert set(found.item_ids[0]) == {*range(101, 111), 200, 201}
    assert recommender.catalog.title(201) == "Brasil"
    assert (folder / "model.safetensors").read_bytes() == weights
    capsys.readouterr()
    assert cli.main(["catalog", "add", "--model", str(folder), "--items", str(tmp_path / "new.csv")]) == cli.BAD_INPUT
    assert "Item 200 is in the catalog already, as are 1 others" in capsys.readouterr().err
    for words in (["rename", "--title", "x"], ["remove"]):
        assert cli.main(["catalog", *words, "--model", str(folder), "--item", "Solaris"]) == cli.BAD_INPUT
        assert "`--item` 'Solaris' is the title of 103, 104. Give an id." in capsys.readouterr().err


def test_of_two_that_change_a_folder_at_once_one_is_refused(folder, tmp_path, capsys):
    before = content(folder)
    with changing(folder):
        code = cli.main(["catalog", "remove", "--model", str(folder), "--item", "Heat", "--out", str(tmp_path / "x")])
        assert code == cli.BAD_INPUT
    assert "Another process changes" in capsys.readouterr().err
    assert content(folder) == before and not (tmp_path / "x").exists()
    assert len(change_catalog(folder, lambda old: old.subset(range(11)))) == 11, "the lock is gone"


def test_a_change_that_fails_leaves_the_folder_as_it_was(folder, tmp_path, monkeypatch):
    before = content(folder)

    def full(self, directory):
        raise OSError("no space left")

    monkeypatch.setattr(ItemTrie, "save", full)
    with pytest.raises(OSError, match="no space"):
        change_catalog(folder, lambda old: old.with_records(NEW))
    assert content(folder) == before


def test_weights_that_know_items_by_number_are_refused(tiny_catalog, bpe_tokenizer, tmp_path):
    save_control(tmp_path / "control", PopularityRecommender(tiny_catalog, [{"history": [0], "target": 1}]))
    with pytest.raises(ValueError, match="'popularity'"):
        change_catalog(tmp_path / "control", lambda old: old)
    numbered = Prompt(bpe_tokenizer, tiny_catalog, item_token_start=500)
    with pytest.raises(ValueError, match="collaborative tokens"):
        numbered.with_catalog(bpe_tokenizer, Catalog.from_records(NEW))
