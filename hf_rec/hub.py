"""
One folder is a recommender: weights or an adapter, tokenizer, catalog, prompt, trie, and `recommender.json`, which
says how to rank with them and holds the hash of each. Safetensors and JSON alone: nothing in such a folder is code.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

import hf_rec
from hf_rec.data.catalog import Catalog
from hf_rec.data.prompts import Prompt
from hf_rec.generation.controls import CONTROLS
from hf_rec.generation.recommend import LanguageModelRecommender, Recommender
from hf_rec.generation.retrieval import RetrievalRecommender
from hf_rec.generation.sequence import SequenceRecommender
from hf_rec.trie.item_trie import ItemTrie


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT = 1
INDEX_FILE = "recommender.json"
ARRAYS_FILE = "recommender.safetensors"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
# What nobody needs to recommend, formats that can hold code, and predictions (parquet), which name users.
NOT_UPLOADED = "checkpoint-* runs/* .* *.parquet *.pt *.pth *.bin *.pkl *.pickle *.ckpt *.py".split()
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
                "arrays": _file_sha256(partial / ARRAYS_FILE) if arrays else None,
            },
            "versions": {"hf_rec": hf_rec.__version__}
            | {name: version(name) for name in ("torch", "transformers", "peft")},
            "extra": extra or {},
        }
        (partial / "README.md").write_text(_card(folder, partial, index, catalog), encoding="utf-8")
        (partial / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        _move_into(partial, folder, replaces_weights=model is not None)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def save_control(folder: str | os.PathLike, control: Recommender) -> None:
    """Write a control of `hf_rec.generation.controls` as a recommender folder."""
    extra, arrays = control.state()
    save_recommender(folder, catalog=control.catalog, kind=control.kind, scoring="exact", extra=extra, arrays=arrays)


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
        [`~hf_rec.generation.recommend.Recommender`]: With `recommend` and `score`.
    """
    folder = _local_folder(folder_or_hub_id, revision)
    index = read_index(folder)
    catalog = Catalog.load(folder)
    _check_hash("catalog", catalog.sha256, index, folder)
    return _LOADERS[index["kind"]](folder, index, catalog, _default_device() if device is None else device, dtype)


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


def push_recommender(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    commit_message: str = "Upload recommender",
) -> str:
    """
    Upload a recommender folder to the Hub, its model card included, without checkpoints and without pickled files.

    Args:
        folder (`str` or `os.PathLike`): Folder that [`load_recommender`] can load.
        repo_id (`str`): `"name"` or `"organisation/name"`; the repository is made if there is none.
        private (`bool`, *optional*): Whether a new repository is private.
        revision (`str`, *optional*): Branch; made if there is none.
        token (`str`, *optional*): Token with write access; by default the one of `hf auth login`.
        commit_message (`str`, *optional*): Message of the commit.

    Returns:
        `str`: URL of the commit.
    """
    read_index(folder)
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    return api.upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        revision=revision,
        commit_message=commit_message,
        ignore_patterns=NOT_UPLOADED,
    ).commit_url


def tokenizer_sha256(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Hash of the vocabulary and the special tokens."""
    state = [sorted(tokenizer.get_vocab().items()), sorted(tokenizer.all_special_tokens)]
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()


def _load_language_model(folder: Path, index: dict, catalog: Catalog, device, dtype) -> LanguageModelRecommender:
    tokenizer = AutoTokenizer.from_pretrained(folder)
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
        return AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, **options)
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
        return AutoPeftModelForCausalLM.from_pretrained(folder, use_safetensors=True, **options)
    except OSError as error:
        raise OSError(
            f"The adapter in {folder} needs the base model {base!r}, which could not be loaded: {error} Put it there, "
            f"or write its new place into `base_model_name_or_path` of {config}."
        ) from error


def _load_control(folder: Path, index: dict, catalog: Catalog, device, dtype) -> Recommender:
    path = folder / ARRAYS_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no {ARRAYS_FILE}. Copy the folder again.")
    _check_hash("arrays", _file_sha256(path), index, folder)
    try:
        arrays = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or corrupted ({error}). Copy the folder again.") from error
    return CONTROLS[index["kind"]].from_state(catalog, index["extra"], arrays)


def _load_sequence_model(folder: Path, index: dict, catalog: Catalog, device, dtype) -> SequenceRecommender:
    options = {} if dtype is None else {"dtype": dtype}
    model = AutoModel.from_pretrained(folder, use_safetensors=True, **options)
    return SequenceRecommender(model.to(device).eval(), catalog)


_LOADERS: dict[str, Callable] = {
    "language_model": _load_language_model,
    SequenceRecommender.kind: _load_sequence_model,
    RetrievalRecommender.kind: RetrievalRecommender.load,
} | dict.fromkeys(CONTROLS, _load_control)


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


def _check_hash(part: str, found: str, index: dict[str, Any], folder: Path) -> None:
    expected = index["hashes"].get(part)
    if found != expected:
        raise ValueError(
            f"The {part} in {folder} is not the one that the weights were saved with (its hash is {found[:12]}, "
            f"{INDEX_FILE} says {str(expected)[:12]}). Tokenizer, catalog, prompt and trie must be those of training: "
            "copy the whole folder again, or train again with the new ones."
        )


def _file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _default_device() -> torch.device:
    """The accelerator of this process, else the CPU."""
    if not torch.accelerator.is_available():
        return torch.device("cpu")
    return torch.device(torch.accelerator.current_accelerator().type, int(os.environ.get("LOCAL_RANK", "0")))


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


def _card(folder: Path, partial: Path, index: dict[str, Any], catalog: Catalog) -> str:
    """Model card: what the folder is, and how to use it."""
    config = next((path for path in (partial / ADAPTER_FILES[0], folder / ADAPTER_FILES[0]) if path.is_file()), None)
    base = json.loads(config.read_bytes()).get("base_model_name_or_path") if config else None
    is_hub_id = base and re.fullmatch(r"[\w.-]+/[\w.-]+", base) and not Path(base).exists()
    example = json.dumps(catalog.ids[: min(3, len(catalog))])
    settings = {
        "Items": len(catalog),
        "Kind": index["kind"],
        "Ranked by": index["scoring"],
        "Temperature": index["tau"],
        **({"Base model": base} if base else {}),
        **{f"{name} version": value for name, value in index["versions"].items()},
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in settings.items())
    return f"""---
library_name: hf_rec
tags:
- recommendation
- sequential-recommendation
{f"base_model: {base}" + chr(10) if is_hub_id else ""}---

# {folder.name}

Recommends the next item to a user from the items chosen so far.

```python
from hf_rec import load_recommender

recommender = load_recommender("{folder.name}")  # this folder, or the id of this repository
found = recommender.recommend([{example}], k=10)
print(found.item_ids[0], found.scores[0], found.certified[0])
```

| | |
|---|---|
{table}

`catalog.jsonl` lists the items. Scores are {_SCORES.get(index["scoring"], "those of the model")}.
"""


_SCORES = {
    "valid": "log-probabilities of items: each token of a title competes with the tokens that also lead to an item",
    "full_vocab": "log-probabilities of the items' tokens among all tokens",
}
