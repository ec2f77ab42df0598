"""What other engines need of a language model folder: its trie as flat arrays, and an adapter merged into its base."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from peft import PeftModel
from safetensors.numpy import save_file

from hf_rec.data.catalog import Catalog
from hf_rec.files import replacing_folder
from hf_rec.hub.base_model import tied_layers
from hf_rec.hub.load import checked_index, load_language_parts, load_recommender
from hf_rec.hub.parts import save_language_model
from hf_rec.models.weight_files import local_folder
from hf_rec.recommenders.language_model import LanguageModelRecommender


TRIE_FORMAT, TRIE_VERSION = "hf_rec.trie_csr", 1
TRIE_ARRAYS_FILE, TRIE_INDEX_FILE, TRIE_ITEMS_FILE = "trie_csr.safetensors", "trie_csr.json", "items.jsonl"
TRIE_ARRAYS = ("ptr", "tokens", "num_children", "num_leaves", "first_leaf", "depth", "leaf_ptr", "leaf_rows")


def export_trie(folder: str | os.PathLike, out: str | os.PathLike) -> dict[str, Any]:
    """
    Write the item trie of a language model as flat arrays, for a decoder of another engine; see `docs/trie_csr.md`.

    Args:
        folder (`str` or `os.PathLike`): Folder of a language model; its weights are not loaded.
        out (`str` or `os.PathLike`): New folder of `trie_csr.safetensors`, `items.jsonl` and `trie_csr.json`.

    Returns:
        `dict`: Content of `trie_csr.json`.
    """
    _check_new(out)
    folder = local_folder(folder)
    index = checked_index(folder)
    if index["kind"] != "language_model":
        raise ValueError(f"{folder} is of the kind {index['kind']!r}, which has no trie. Give a language model.")
    catalog = Catalog.load(folder)
    _, prompt, trie = load_language_parts(folder, index, catalog)
    csr = trie.csr()
    content = {
        "format": TRIE_FORMAT,
        "version": TRIE_VERSION,
        "items": len(catalog),
        "leaves": len(csr),
        "nodes": len(csr.depth),
        "vocab_size": csr.vocab_size,
        "max_depth": csr.max_depth,
        "max_children": csr.max_children,
        "separator_ids": prompt.separator_ids,
        "tau": index["tau"],
        "scoring": index["scoring"],
        "hashes": index["hashes"],
    }
    with replacing_folder(out, last=TRIE_INDEX_FILE) as partial:
        arrays = {name: np.ascontiguousarray(getattr(csr, name).numpy()) for name in TRIE_ARRAYS}
        save_file(arrays, partial / TRIE_ARRAYS_FILE)
        with open(partial / TRIE_ITEMS_FILE, "w", encoding="utf-8", errors="surrogatepass") as file:
            for item_id in catalog.ids:
                file.write(
                    json.dumps({"item_id": item_id, "title": catalog.title(item_id)}, ensure_ascii=False) + "\n"
                )
        (partial / TRIE_INDEX_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return content


def export_merged(folder: str | os.PathLike, out: str | os.PathLike) -> None:
    """
    Write a language model whose adapter is merged into its base: whole weights, which any engine loads, in a folder
    that is a recommender as before.

    Args:
        folder (`str` or `os.PathLike`): Folder of a language model with an adapter.
        out (`str` or `os.PathLike`): New folder.

    Raises:
        `ValueError`: Where there is no adapter, or merging would change scores: the base is quantized, or the adapter
            is on a head that is one matrix with the embeddings.
    """
    _check_new(out)
    recommender = load_recommender(folder, device="cpu")
    if not isinstance(recommender, LanguageModelRecommender) or not isinstance(recommender.model, PeftModel):
        raise ValueError(f"{os.fspath(folder)} has no adapter: its weights are whole, and need not be merged.")
    model = recommender.model
    if getattr(model.get_base_model(), "is_quantized", False):
        raise ValueError(
            "The base is quantized: merging would round the adapter to its few bits. Load the base in full precision."
        )
    tied = tied_layers(model, model.peft_config[model.active_adapter])
    if tied:
        raise ValueError(
            f"The adapter is on {', '.join(tied)} of a model whose head and embeddings are one matrix: merging would "
            "write it into both, and scores would change. Serve it as an adapter."
        )
    save_language_model(out, recommender, model.merge_and_unload())


def _check_new(out: str | os.PathLike) -> None:
    path = Path(out)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} is not empty. Choose a new folder.")
