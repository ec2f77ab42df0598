"""A recommender as a folder: written beside it first, then moved into it, `recommender.json` last."""

import json
import os
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.numpy import save_file

import hf_rec
from hf_rec.data.catalog import Catalog
from hf_rec.data.prompts.next_item import Prompt
from hf_rec.files import file_sha256
from hf_rec.hub.card import model_card
from hf_rec.hub.files import ADAPTER_FILES, ARRAYS_FILE, FORMAT, INDEX_FILE, tokenizer_sha256
from hf_rec.recommenders.contract import Recommender
from hf_rec.trie.item_trie import ItemTrie


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHECKED_PATHS = 256  # items whose path is looked up in the trie before a folder is written


def save_recommender(
    folder: str | os.PathLike,
    *,
    catalog: Catalog,
    kind: str,
    prompt: Prompt | None = None,
    trie: ItemTrie | None = None,
    tau: float = 1.0,
    scoring: str = "valid",
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    model: torch.nn.Module | None = None,
    extra: dict[str, Any] | None = None,
    arrays: dict[str, np.ndarray] | None = None,
) -> None:
    """
    Write what makes a folder a recommender. Everything is written beside the folder first and then moved into it,
    `recommender.json` last; what else the folder holds stays.

    Args:
        folder (`str` or `os.PathLike`): New, or one that holds the weights already.
        catalog ([`Catalog`]): Items.
        kind (`str`): Which recommender the folder is: `"language_model"`, `"popularity"`, `"last_item"`, ...
        prompt ([`Prompt`]), trie ([`ItemTrie`]), tokenizer (*optional*): What a language model needs beside weights.
        tau (`float`, *optional*, defaults to `1.0`): Temperature that belongs to the weights.
        scoring (`str`, *optional*, defaults to `"valid"`): How items are ranked.
        model (`torch.nn.Module`, *optional*): Saved with `save_pretrained`; left out where the weights are there.
        extra (`dict`, *optional*): Settings of the kind, JSON values.
        arrays (`dict[str, np.ndarray]`, *optional*): Arrays of the kind.
    """
    folder = Path(folder).absolute()
    _check_parts(catalog, prompt, trie)
    partial = folder.parent / f".{folder.name}.{os.getpid()}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        if model is not None:
            model.save_pretrained(partial)
        for part in (
            tokenizer and tokenizer.save_pretrained,
            catalog.save,
            prompt and prompt.save,
            trie and trie.save,
        ):
            if part:
                part(partial)
        if arrays:
            save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, partial / ARRAYS_FILE)
        index = {
            "format": FORMAT,
            "kind": kind,
            "tau": float(tau),
            "scoring": scoring,
            "hashes": {
                "catalog": catalog.sha256,
                "prompt": prompt and prompt.sha256,
                "trie": trie and trie.sha256,
                "tokenizer": tokenizer and tokenizer_sha256(tokenizer),
                "arrays": file_sha256(partial / ARRAYS_FILE) if arrays else None,
            },
            "versions": {"hf_rec": hf_rec.__version__}
            | {name: version(name) for name in ("torch", "transformers", "peft")},
            "extra": extra or {},
        }
        (partial / "README.md").write_text(model_card(folder, partial, index, catalog), encoding="utf-8")
        (partial / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        _move_into(partial, folder, replaces_weights=model is not None)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def save_control(folder: str | os.PathLike, control: Recommender) -> None:
    """Write a control of `hf_rec.recommenders.controls` as a recommender folder."""
    extra, arrays = control.state()
    save_recommender(folder, catalog=control.catalog, kind=control.kind, scoring="exact", extra=extra, arrays=arrays)


def _check_parts(catalog: Catalog, prompt: Prompt | None, trie: ItemTrie | None) -> None:
    """Refuse to write down parts that do not belong together; a sample of items will tell."""
    if prompt is None or trie is None:
        return
    for row in np.linspace(0, len(catalog) - 1, min(len(catalog), _CHECKED_PATHS)).astype(int).tolist():
        if len(prompt) != len(catalog) or row not in trie.items(prompt.encode_item(row)):
            raise ValueError(
                f"`trie` has no item {row} ({catalog.text(row)!r}) where `prompt` puts it. Make both from this "
                "catalog: ItemTrie.build(prompt.encode_items())."
            )


def _move_into(partial: Path, folder: Path, replaces_weights: bool) -> None:
    if not folder.exists():
        partial.rename(folder)
        return
    new = sorted(partial.iterdir(), key=lambda path: path.name == INDEX_FILE)
    if replaces_weights:  # or an adapter of old would be loaded in their place
        stale = [*map(folder.joinpath, ADAPTER_FILES), *folder.glob("model*.safetensors*")]
        for path in stale:
            if path.exists() and not (partial / path.name).exists():
                path.unlink()
    for path in new:
        if path.is_dir():  # `save_pretrained` makes folders for further adapters and chat templates
            shutil.copytree(path, folder / path.name, dirs_exist_ok=True)
        else:
            os.replace(path, folder / path.name)
