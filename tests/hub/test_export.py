"""What other engines get: arrays that spell the same items, and merged weights that rank the same."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from peft import LoraConfig, get_peft_model
from safetensors.numpy import load_file

from hf_rec.cli import main as cli
from hf_rec.hub import load_recommender, save_recommender


ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(parts, tiny_lm, tmp_path):
    save_recommender(tmp_path / "model", model=tiny_lm(), **parts)
    return tmp_path / "model"


def export(*words):
    return cli.main(["export", *map(str, words)])


def test_the_reader_of_the_format_page_finds_every_item_by_its_tokens(folder, parts, tmp_path):
    assert export("--trie", "--model", folder, "--out", tmp_path / "trie") == 0
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs/trie_csr.md").read_text(), re.DOTALL)[1]
    reader = {}
    exec(code.replace('"runs/trie"', repr(str(tmp_path / "trie"))), reader)  # of our own page
    for row, path in enumerate(parts["prompt"].encode_items()):
        node = 0
        for token in path:
            assert token in reader["children"](node)
            node = reader["step"](node, token)
        assert row in reader["items_of"](node)
        assert reader["step"](node, path[0]) is None
    items = [json.loads(line) for line in (tmp_path / "trie" / "items.jsonl").read_text().splitlines()]
    assert [item["item_id"] for item in items] == parts["catalog"].ids
    assert [item["title"] for item in items] == parts["catalog"].titles


def test_the_arrays_are_those_of_the_trie(folder, parts, tmp_path):
    assert export("--trie", "--model", folder, "--out", tmp_path / "trie") == 0
    arrays, csr = load_file(tmp_path / "trie" / "trie_csr.safetensors"), parts["trie"].csr()
    assert all((array == getattr(csr, name).numpy()).all() for name, array in arrays.items())
    content = json.loads((tmp_path / "trie" / "trie_csr.json").read_text())
    assert content["hashes"]["trie"] == parts["trie"].sha256
    assert export("--trie", "--model", folder, "--out", tmp_path / "trie") == cli.BAD_INPUT, "it is not overwritten"


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"]])
def test_a_merged_adapter_ranks_as_before(parts, tiny_lm, tmp_path, targets, capsys):
    tiny_lm("llama").save_pretrained(tmp_path / "base")
    base = type(tiny_lm("llama")).from_pretrained(tmp_path / "base", trust_remote_code=False)
    model = get_peft_model(base, LoraConfig(target_modules=targets, init_lora_weights=False))
    save_recommender(tmp_path / "model", model=model, **parts)
    assert export("--merged", "--model", tmp_path / "model", "--out", tmp_path / "merged") == 0
    before, after = load_recommender(tmp_path / "model"), load_recommender(tmp_path / "merged")
    histories = [[100, 107], []]
    one, other = before.recommend(histories, k=5), after.recommend(histories, k=5)
    assert one.item_ids == other.item_ids
    np.testing.assert_allclose(one.scores, other.scores, rtol=1e-4, atol=1e-4)
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    assert export("--merged", "--model", tmp_path / "merged", "--out", tmp_path / "again") == cli.BAD_INPUT
    assert "has no adapter" in capsys.readouterr().err


def test_an_adapter_on_a_tied_head_is_not_merged(parts, tiny_lm, tmp_path, capsys):
    tiny_lm().save_pretrained(tmp_path / "base")
    base = type(tiny_lm()).from_pretrained(tmp_path / "base", trust_remote_code=False)
    model = get_peft_model(base, LoraConfig(target_modules=["c_attn", "lm_head"], init_lora_weights=False))
    save_recommender(tmp_path / "model", model=model, **parts)
    assert export("--merged", "--model", tmp_path / "model", "--out", tmp_path / "merged") == cli.BAD_INPUT
    assert "lm_head" in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()
