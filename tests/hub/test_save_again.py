"""A checkpoint does not write catalog, prompt and trie anew."""

from hf_rec import Catalog, ItemTrie, Prompt
from hf_rec.hub import save_recommender


def test_the_second_save_copies_what_the_first_has_written(tiny_catalog, bpe_tokenizer, tmp_path, monkeypatch):
    catalog = tiny_catalog.subset(range(len(tiny_catalog)))
    prompt = Prompt(bpe_tokenizer, catalog)
    trie = ItemTrie.from_flat(*prompt.item_paths)
    parts = {"catalog": catalog, "prompt": prompt, "trie": trie, "tokenizer": bpe_tokenizer, "kind": "language_model"}
    save_recommender(tmp_path / "checkpoint-1", **parts)
    with monkeypatch.context() as patched:
        for written in (
            "data.catalog.Catalog._record",
            "data.prompts.next_item.save_paths",
            "trie.item_trie.save_safetensors",
        ):
            patched.setattr(f"hf_rec.{written}", None)
        save_recommender(tmp_path / "checkpoint-2", **parts)
    loaded = Catalog.load(tmp_path / "checkpoint-2")
    assert loaded.titles == catalog.titles
    assert Prompt.load(tmp_path / "checkpoint-2", bpe_tokenizer, loaded).encode_items() == prompt.encode_items()
    assert ItemTrie.load(tmp_path / "checkpoint-2").sha256 == trie.sha256
