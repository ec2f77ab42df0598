"""A model folder, or a Hub repository, as a recommender: nothing loads unless its files belong together."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.numpy import load_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from hf_rec.data.catalog import Catalog
from hf_rec.data.prompts.next_item import Prompt
from hf_rec.files import file_sha256
from hf_rec.hub.files import (
    ADAPTER_FILES,
    ARRAYS_FILE,
    FORMAT,
    INDEX_FILE,
    NOT_UPLOADED,
    tokenizer_sha256,
)
from hf_rec.recommenders.contract import Recommender
from hf_rec.recommenders.controls import CONTROL_KINDS
from hf_rec.recommenders.language_model import LanguageModelRecommender
from hf_rec.recommenders.retrieval import RetrievalRecommender
from hf_rec.recommenders.sequence import SequenceRecommender
from hf_rec.trie.item_trie import ItemTrie


def load_recommender(
    folder_or_hub_id: str | os.PathLike,
    revision: str | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> Recommender:
    """
    Load a recommender, after a check that its files belong together.

    Args:
        folder_or_hub_id (`str` or `os.PathLike`): Folder written by a trainer or by [`save_recommender`], or the id of
            a Hub repository that holds such files.
        revision (`str`, *optional*): Branch, tag or commit of the repository.
        device (`str` or `torch.device`, *optional*): Where the model goes; an accelerator by default if there is one.
        dtype (`str` or `torch.dtype`, *optional*): Of the weights, e.g. `"bfloat16"`; by default as saved.

    Returns:
        [`~hf_rec.recommenders.contract.Recommender`]: With `recommend` and `score`.
    """
    folder = _local_folder(folder_or_hub_id, revision)
    index = read_index(folder)
    catalog = Catalog.load(folder)
    _check_hash("catalog", catalog.sha256, index, folder)
    return _LOADERS[index["kind"]](folder, index, catalog, default_device() if device is None else device, dtype)


def read_index(folder: str | os.PathLike) -> dict[str, Any]:
    """The content of `recommender.json`."""
    path = Path(folder) / INDEX_FILE
    if not path.is_file():
        found = sorted(str(other.parent) for other in path.parent.glob(f"*/{INDEX_FILE}"))
        raise FileNotFoundError(
            f"{path.parent} is no recommender: it holds no {INDEX_FILE}. "
            + (f"Did you mean {' or '.join(found)}? " if found else "")
            + "Trainers of hf_rec write it beside the weights; for a model of your own call "
            "hf_rec.hub.save_recommender(folder, catalog=..., prompt=..., trie=..., tokenizer=..., "
            "kind='language_model')."
        )
    try:
        index = json.loads(path.read_bytes())
        found = index["format"]
        index["kind"], index["hashes"]["catalog"], index["tau"], index["scoring"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not as it was saved ({error!r}). Copy the folder again or save it anew."
        ) from error
    if found != FORMAT:
        raise ValueError(f"{path} has format {found}, this version of hf_rec reads {FORMAT}.")
    if index["kind"] not in _LOADERS:
        raise ValueError(
            f"{path} is of the kind {index['kind']!r}, this version of hf_rec loads {', '.join(map(repr, _LOADERS))}."
        )
    return index


def _load_language_model(folder: Path, index: dict, catalog: Catalog, device, dtype) -> LanguageModelRecommender:
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    _check_hash("tokenizer", tokenizer_sha256(tokenizer), index, folder)
    prompt = Prompt.load(folder, tokenizer, catalog)
    _check_hash("prompt", prompt.sha256, index, folder)
    trie = ItemTrie.load(folder)
    _check_hash("trie", trie.sha256, index, folder)
    model = _load_causal_lm(folder, dtype)
    if not getattr(model, "is_quantized", False):  # a quantized model has placed itself
        model = model.to(device)
    return LanguageModelRecommender(
        model.eval(), tokenizer, catalog, prompt, trie.csr(), tau=index["tau"], scoring=index["scoring"]
    )


def _load_causal_lm(folder: Path, dtype) -> torch.nn.Module:
    options = {} if dtype is None else {"dtype": dtype}
    config, weights = (folder / name for name in ADAPTER_FILES)
    if not config.is_file():
        return AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, **options, trust_remote_code=False)
    from peft import AutoPeftModelForCausalLM

    if not weights.is_file():
        raise FileNotFoundError(
            f"{folder} holds {config.name} but no {weights.name}. Pickled adapters are not read: save the adapter "
            "again with `save_pretrained`."
        )
    base = json.loads(config.read_bytes()).get("base_model_name_or_path")
    if not base:
        raise ValueError(
            f"{config} names no base model. Write its folder or Hub id into `base_model_name_or_path`, or merge the "
            "adapter into the model (`merge_and_unload`) and save the whole."
        )
    try:
        return AutoPeftModelForCausalLM.from_pretrained(
            folder, use_safetensors=True, **options, trust_remote_code=False
        )
    except OSError as error:
        raise OSError(
            f"The adapter in {folder} needs the base model {base!r}, which could not be loaded: {error} Put it there, "
            f"or write its new place into `base_model_name_or_path` of {config}."
        ) from error


def _load_control(folder: Path, index: dict, catalog: Catalog, device, dtype) -> Recommender:
    path = folder / ARRAYS_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no {ARRAYS_FILE}. Copy the folder again.")
    _check_hash("arrays", file_sha256(path), index, folder)
    try:
        arrays = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or corrupted ({error}). Copy the folder again.") from error
    return CONTROL_KINDS[index["kind"]].from_state(catalog, index["extra"], arrays)


def _load_sequence_model(folder: Path, index: dict, catalog: Catalog, device, dtype) -> SequenceRecommender:
    options = {} if dtype is None else {"dtype": dtype}
    model = AutoModel.from_pretrained(folder, use_safetensors=True, **options, trust_remote_code=False)
    return SequenceRecommender(model.to(device).eval(), catalog)


_LOADERS: dict[str, Callable] = {
    "language_model": _load_language_model,
    SequenceRecommender.kind: _load_sequence_model,
    RetrievalRecommender.kind: RetrievalRecommender.load,
} | dict.fromkeys(CONTROL_KINDS, _load_control)


def _local_folder(folder_or_hub_id: str | os.PathLike, revision: str | None) -> Path:
    path = Path(folder_or_hub_id)
    if path.is_dir():
        return path
    name = str(folder_or_hub_id)
    if isinstance(folder_or_hub_id, os.PathLike) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name[0] == ".":
        raise FileNotFoundError(f"There is no folder {name}. Give a folder with a {INDEX_FILE}, or a Hub id.")
    try:
        return Path(snapshot_download(name, revision=revision, ignore_patterns=NOT_UPLOADED))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError) as error:
        raise OSError(
            f"{name!r} is no folder here, and as a Hub repository it could not be had: {error} Check the name; a "
            "private repository needs `hf auth login`."
        ) from error


def _check_hash(part: str, found: str, index: dict[str, Any], folder: Path) -> None:
    expected = index["hashes"].get(part)
    if found != expected:
        raise ValueError(
            f"The {part} in {folder} is not the one that the weights were saved with (its hash is {found[:12]}, "
            f"{INDEX_FILE} says {str(expected)[:12]}). Tokenizer, catalog, prompt and trie must be those of training: "
            "copy the whole folder again, or train again with the new ones."
        )


def default_device() -> torch.device:
    """The accelerator of this process, else the CPU."""
    if not torch.accelerator.is_available():
        return torch.device("cpu")
    return torch.device(torch.accelerator.current_accelerator().type, int(os.environ.get("LOCAL_RANK", "0")))
