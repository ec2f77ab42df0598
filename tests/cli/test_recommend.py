"""`hf-rec recommend` with a language model, two of whose films share their title and so their path."""

import json

import pytest

from hf_rec.cli import main as cli
from hf_rec.data.prompts.next_item import Prompt
from hf_rec.hub import save_recommender
from hf_rec.trie.item_trie import ItemTrie


@pytest.fixture
def folder(tmp_path, tiny_lm, tiny_catalog, bpe_tokenizer):
    prompt = Prompt(bpe_tokenizer, tiny_catalog)
    trie = ItemTrie.build(prompt.encode_items())
    parts = {"prompt": prompt, "trie": trie, "tokenizer": bpe_tokenizer, "model": tiny_lm()}
    save_recommender(tmp_path / "films", catalog=tiny_catalog, kind="language_model", **parts)
    return str(tmp_path / "films")


def recommend(folder, *words):
    return cli.main(
        ["recommend", "--model", folder, "--device", "cpu", "--history", "Alien", "--num-beams", "12", *words]
    )


def test_the_probability_of_a_shared_path_is_told_as_that_of_the_path(folder, capsys):
    assert recommend(folder, "--k", "12", "--json") == 0
    items = json.loads(capsys.readouterr().out)["items"]
    assert {item["item_id"]: item["items_on_path"] for item in items if item["items_on_path"] > 1} == {103: 2, 104: 2}
    paths = {item["title"]: item["probability"] for item in items}
    assert len(paths) == 11 and sum(paths.values()) == pytest.approx(1, abs=1e-5)  # each path once

    assert recommend(folder, "--k", "12") == 0
    out = " ".join(capsys.readouterr().out.split())
    places = [str(place) for place, item in enumerate(items, start=1) if item["title"] == "Solaris"]
    assert f"share their path with others (# {', '.join(places)}), score and probability are those of the path" in out

    assert recommend(folder, "--k", "3", "--exclude", "Solaris") == 0
    assert "share their path" not in capsys.readouterr().out
