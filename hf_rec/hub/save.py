"""A recommender as a folder: written beside it first, then moved into it, `recommender.json` last."""

import json
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.numpy import save_file

import hf_rec
from hf_rec.data.catalog import Catalog
from hf_rec.data.prompts.next_item import Prompt
from hf_rec.data.prompts.rerank import RerankPrompt
from hf_rec.data.prompts.retrieval import RetrievalPrompt
from hf_rec.files import replacing_folder
from hf_rec.hub.base_model import base_of
from hf_rec.hub.card import model_card
from hf_rec.hub.files import (
    ADAPTER_FILES,
    CARD_FILE,
    CONTROL_ARRAYS_FILE,
    FORMAT_VERSION,
    FULL_WEIGHTS,
    PLACES,
    RECOMMENDER_FILE,
    hashes_of,
    index_text,
    tokenizer_sha256,
    weight_files,
    weights_format,
)
from hf_rec.hub.item_tokens import save_item_tokens
from hf_rec.models.language.item_tokens import ItemTokens
from hf_rec.models.weight_files import weights_sha256
from hf_rec.recommenders.controls import Control
from hf_rec.recommenders.item_index import ITEM_INDEX_FILE, index_weights
from hf_rec.recommenders.retrieval import RetrievalRecommender
from hf_rec.trie.item_trie import ItemTrie


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHECKED_PATHS = 256  # items whose path is looked up in the trie before a folder is written


def save_recommender(
    folder: str | os.PathLike,
    *,
    catalog: Catalog,
    kind: str,
    prompt: Prompt | RetrievalPrompt | RerankPrompt | None = None,
    trie: ItemTrie | None = None,
    tau: float = 1.0,
    scoring: str = "valid",
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    model: torch.nn.Module | None = None,
    trained: torch.nn.Module | None = None,
    extra: dict[str, Any] | None = None,
    arrays: dict[str, np.ndarray] | None = None,
    write_more: Callable[[Path], None] | None = None,
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
        trained (`torch.nn.Module`, *optional*): The model whose weights are there; tells what base an adapter needs.
        extra (`dict`, *optional*): Settings of the kind, JSON values.
        arrays (`dict[str, np.ndarray]`, *optional*): Arrays of the kind.
        write_more (`Callable[[Path], None]`, *optional*): Writes what else belongs to it into the folder it is given.

    Raises:
        `ValueError`: Where prompt and trie do not fit, or the folder holds an adapter and whole weights.
    """
    folder = Path(folder).absolute()
    _check_parts(catalog, prompt, trie)
    model_of_folder = model if model is not None else trained
    with replacing_folder(folder, last=RECOMMENDER_FILE) as partial:
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
            save_file(
                {name: np.ascontiguousarray(array) for name, array in arrays.items()}, partial / CONTROL_ARRAYS_FILE
            )
        item_tokens = None if model_of_folder is None else ItemTokens.of(model_of_folder)
        if item_tokens is not None:
            save_item_tokens(partial, item_tokens)
        if write_more is not None:
            write_more(partial)
        home = folder if model is None else partial  # where the weights are
        form = weights_format(home)
        kept = [] if model is not None else [*weight_files(folder, form), *_files_of_retrieval(folder, kind)]
        base = None if model_of_folder is None else base_of(model_of_folder)
        if base is not None and base["local"]:
            base |= {"path": os.path.relpath(base["name"], folder), "place": os.path.abspath(base["name"])}
        index = {
            "format": FORMAT_VERSION,
            "kind": kind,
            "tau": float(tau),
            "scoring": scoring,
            "hashes": {
                "catalog": catalog.sha256,
                "prompt": prompt and prompt.sha256,
                "trie": trie and trie.sha256,
                "tokenizer": tokenizer and tokenizer_sha256(tokenizer),
            },
            "weights": form,
            "base": base,
            "files": hashes_of(partial, _written(partial)) | hashes_of(folder, kept),
            "versions": {"hf_rec": hf_rec.__version__}
            | {name: version(name) for name in ("torch", "transformers", "peft")},
            "extra": extra or {},
        }
        (partial / CARD_FILE).write_text(model_card(folder, index, catalog), encoding="utf-8")
        (partial / RECOMMENDER_FILE).write_text(index_text(index), encoding="utf-8")
    for part in (catalog, prompt, trie):
        if isinstance(part, Catalog | Prompt | ItemTrie):
            part.standing.remember(folder)  # the next checkpoint copies the files
    if model is not None:
        _remove_unlisted_weights(folder, index)


def save_control(folder: str | os.PathLike, control: Control) -> None:
    """Write a control of `hf_rec.recommenders.controls` as a recommender folder."""
    extra, arrays = control.state()
    save_recommender(folder, catalog=control.catalog, kind=control.kind, scoring="exact", extra=extra, arrays=arrays)


def _check_parts(
    catalog: Catalog, prompt: Prompt | RetrievalPrompt | RerankPrompt | None, trie: ItemTrie | None
) -> None:
    """Refuse to write down parts that do not belong together; a sample of items will tell."""
    if not isinstance(prompt, Prompt) or trie is None:
        return
    for row in np.linspace(0, len(catalog) - 1, min(len(catalog), _CHECKED_PATHS)).astype(int).tolist():
        if len(prompt) != len(catalog) or row not in trie.items(prompt.encode_item(row)):
            raise ValueError(
                f"`trie` has no item {row} ({catalog.text(row)!r}) where `prompt` puts it. Make both from this "
                "catalog: ItemTrie.build(prompt.encode_items())."
            )


def _written(partial: Path) -> list[str]:
    """
    Names of all files in a folder, those in folders of it too; the card of the adapter library is not kept. A folder
    that is a recommender itself is listed by its `recommender.json`, which lists the rest of it.
    """
    parts = {path.parent for path in partial.rglob(RECOMMENDER_FILE)}
    paths = [path for path in partial.rglob("*") if path.is_file() and parts.isdisjoint(path.parents)]
    paths += [part / RECOMMENDER_FILE for part in parts if parts.isdisjoint(part.parents)]
    return sorted(name for name in (path.relative_to(partial).as_posix() for path in paths) if name != CARD_FILE)


def _files_of_retrieval(folder: Path, kind: str) -> list[str]:
    """What a retrieval model has beside its weights: vectors of the items, and frozen models in the folder itself."""
    if kind != RetrievalRecommender.kind or not (folder / "config.json").is_file():
        return []
    found = []
    if (folder / ITEM_INDEX_FILE).is_file():
        if index_weights(folder) == weights_sha256(folder):
            found.append(ITEM_INDEX_FILE)
        else:  # vectors by earlier weights; items are encoded again when they are needed
            (folder / ITEM_INDEX_FILE).unlink()
    config = json.loads((folder / "config.json").read_bytes())
    for role in PLACES["config.json"]:
        inside = (folder / str(config.get(role))).resolve()
        if inside.is_dir() and inside != folder.resolve() and inside.is_relative_to(folder.resolve()):
            name = inside.relative_to(folder.resolve())
            found += [(name / file).as_posix() for file in weight_files(inside, "full")]
    return found


def _remove_unlisted_weights(folder: Path, index: dict[str, Any]) -> None:
    """Delete the weight files of an earlier model, which would be read in place of the new ones or beside them."""
    for pattern in (*ADAPTER_FILES, *FULL_WEIGHTS):
        for path in folder.glob(pattern):
            if path.name not in index["files"]:
                path.unlink()
