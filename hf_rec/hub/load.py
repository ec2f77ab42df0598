"""A model folder, or a Hub repository, as a recommender: nothing loads unless its files belong together."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from safetensors.numpy import load_file
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hf_rec.data.catalog import Catalog
from hf_rec.data.prompts.next_item import Prompt
from hf_rec.data.prompts.rerank import RerankPrompt
from hf_rec.hub.base_model import load_adapter
from hf_rec.hub.files import (
    ADAPTER_CONFIG_FILE,
    CONTROL_ARRAYS_FILE,
    RECOMMENDER_FILE,
    check_folder,
    parts_of,
    read_index,
    tokenizer_sha256,
)
from hf_rec.hub.item_tokens import load_whole_model
from hf_rec.hub.parts import part_name
from hf_rec.hub.save_grounded import BASE_FOLDER, load_item_vectors
from hf_rec.models.loading import load_weights
from hf_rec.models.weight_files import local_folder
from hf_rec.recommenders.contract import Recommender
from hf_rec.recommenders.controls import CONTROL_KINDS
from hf_rec.recommenders.fused import FusedRecommender
from hf_rec.recommenders.grounded import GroundedRecommender
from hf_rec.recommenders.language_model import LanguageModelRecommender
from hf_rec.recommenders.reranked import RerankedRecommender
from hf_rec.recommenders.reranker import Reranker
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
    folder = local_folder(folder_or_hub_id, revision)
    index = checked_index(folder)
    catalog = Catalog.load(folder)
    return _load(folder, index, catalog, default_device() if device is None else device, dtype)


def _load(
    folder: Path, index: dict[str, Any], catalog: Catalog, device: torch.device | str, dtype: str | torch.dtype | None
) -> Recommender:
    """A recommender from a folder whose files are known to be as they were saved, over a catalog in memory."""
    _check_hash("catalog", catalog.sha256, index, folder)
    recommender: Recommender = _LOADERS[index["kind"]](folder, index, catalog, device, dtype)
    recommender.folder = folder
    return recommender


def checked_index(folder: Path) -> dict[str, Any]:
    """The content of `recommender.json`, once every file that it lists is known to be as it was saved."""
    index = read_index(folder)
    _check_kind(folder, index)
    check_folder(folder, index)
    return index


def _check_kind(folder: Path, index: dict[str, Any]) -> None:
    if index["kind"] not in _LOADERS:
        raise ValueError(
            f"{folder / RECOMMENDER_FILE} is of the kind {index['kind']!r}, this version of hf_rec loads "
            f"{', '.join(map(repr, _LOADERS))}."
        )


def recommender_folder(name: str | os.PathLike, revision: str | None = None) -> Path | None:
    """The local folder of a model that is a recommender; `None` where it is none, or nothing is known of it."""
    if not Path(name).is_dir():
        try:
            hf_hub_download(os.fspath(name), RECOMMENDER_FILE, revision=revision)
        except Exception:  # no such file or repository, or no connection: whoever loads the model next will say so
            return None
    folder = local_folder(name, revision)
    return folder if (folder / RECOMMENDER_FILE).is_file() else None


def _load_language_model(
    folder: Path, index: dict[str, Any], catalog: Catalog, device: torch.device | str, dtype: str | torch.dtype | None
) -> LanguageModelRecommender:
    tokenizer, prompt, trie = load_language_parts(folder, index, catalog)
    model = _load_causal_lm(folder, index, dtype)
    if not getattr(model, "is_quantized", False):  # a quantized model has placed itself
        model = model.to(device)
    return LanguageModelRecommender(
        model.eval(), tokenizer, catalog, prompt, trie.csr(), tau=index["tau"], scoring=index["scoring"]
    )


def load_language_parts(
    folder: Path, index: dict[str, Any], catalog: Catalog
) -> tuple[PreTrainedTokenizerBase, Prompt, ItemTrie]:
    """
    What a language model was trained with beside its catalog, each checked against `recommender.json`.

    Args:
        folder (`Path`): The model folder.
        index (`dict`): Content of its `recommender.json`.
        catalog ([`Catalog`]): Of the folder.
    """
    _check_hash("catalog", catalog.sha256, index, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    _check_hash("tokenizer", tokenizer_sha256(tokenizer), index, folder)
    prompt = Prompt.load(folder, tokenizer, catalog)
    _check_hash("prompt", prompt.sha256, index, folder)
    trie = ItemTrie.load(folder)
    _check_hash("trie", trie.sha256, index, folder)
    return tokenizer, prompt, trie


def _load_causal_lm(folder: Path, index: dict[str, Any], dtype: str | torch.dtype | None) -> PreTrainedModel:
    options: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
    if index["weights"] == "adapter":
        return load_adapter(folder, index["base"], **options)
    _check_weights(folder, index)
    return load_whole_model(folder, **options)


def _check_weights(folder: Path, index: dict[str, Any]) -> None:
    if index["weights"] is None:
        raise FileNotFoundError(
            f"{folder} was saved as a recommender without weights (safetensors). Save the model there with "
            "`save_pretrained`, and then the recommender again."
        )


def _load_control(
    folder: Path, index: dict[str, Any], catalog: Catalog, device: torch.device | str, dtype: str | torch.dtype | None
) -> Recommender:
    path = folder / CONTROL_ARRAYS_FILE
    try:
        arrays = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or corrupted ({error}). Copy the folder again.") from error
    return CONTROL_KINDS[index["kind"]].from_state(catalog, index["extra"], arrays)


def _load_sequence_model(
    folder: Path, index: dict[str, Any], catalog: Catalog, device: torch.device | str, dtype: str | torch.dtype | None
) -> SequenceRecommender:
    _check_weights(folder, index)
    options = {} if dtype is None else {"dtype": dtype}
    model = load_weights(AutoModel, folder, **options)
    return SequenceRecommender(model.to(device).eval(), catalog)


def _load_fused(
    folder: Path, index: dict[str, Any], catalog: Catalog, device: torch.device | str, dtype: str | torch.dtype | None
) -> FusedRecommender:
    extra = index["extra"]
    parts = _load_parts(folder, index, catalog, device, dtype)
    return FusedRecommender(parts, extra["weights"], extra["lengths"], fit=extra["fit"])


def _load_grounded(
    folder: Path, index: dict[str, Any], catalog: Catalog, device: torch.device | str, dtype: str | torch.dtype | None
) -> GroundedRecommender:
    extra = index["extra"]
    writer, *weight = _load_parts(folder, index, catalog, device, dtype)
    if not isinstance(writer, LanguageModelRecommender):
        raise ValueError(f"{folder / part_name(0)} is a {type(writer).__name__}, which writes no text.")
    place = extra["base"] or {"name": folder / BASE_FOLDER}
    base, tokenizer = load_base(**place, device=device, dtype=dtype)
    recommender = GroundedRecommender(
        writer,
        base,
        tokenizer,
        load_item_vectors(folder),
        weight[0] if weight else None,
        extra["gamma"],
        extra["num_beams"],
        fit=extra["fit"],
    )
    if recommender.texts_sha256 != extra["texts_sha256"]:
        raise ValueError(
            f"The tokenizers in {folder} read the items' texts in another way than when their vectors were made. Make "
            "the folder anew with `hf-rec ground`."
        )
    return recommender


def load_base(
    name: str | os.PathLike,
    revision: str | None = None,
    *,
    device: torch.device | str,
    dtype: str | torch.dtype | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """
    A causal LM without its head, and its tokenizer, for [`GroundedRecommender`].

    Args:
        name (`str` or `os.PathLike`): Folder with whole weights, or Hub id.
        revision (`str`, *optional*): Commit of the repository.
        device (`torch.device`), dtype (`str` or `torch.dtype`, *optional*): As of [`load_recommender`].
    """
    if Path(name, ADAPTER_CONFIG_FILE).is_file():
        raise ValueError(
            f"{name} is an adapter. The base model compares texts as it did before any fine-tuning: name the model "
            "that the adapter was trained on."
        )
    options: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
    if revision is not None:
        options["revision"] = revision
    model = load_weights(AutoModel, name, **options)
    tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    return model.to(device).eval(), tokenizer


def _load_parts(
    folder: Path, index: dict[str, Any], catalog: Catalog, device: torch.device | str, dtype: str | torch.dtype | None
) -> list[Recommender]:
    """The recommenders in the folders inside a folder."""
    parts = []
    for place in range(len(parts_of(index))):
        part = folder / part_name(place)
        part_index = read_index(part)
        _check_kind(part, part_index)
        is_shared = part_index["hashes"]["catalog"] == catalog.sha256  # else it is one of bare ids
        parts.append(_load(part, part_index, catalog if is_shared else Catalog.load(part), device, dtype))
    return parts


def load_reranker_parts(
    folder: Path, index: dict[str, Any], catalog: Catalog
) -> tuple[PreTrainedTokenizerBase, RerankPrompt]:
    """Tokenizer and prompt of a re-ranker; arguments are those of [`load_language_parts`]."""
    _check_hash("catalog", catalog.sha256, index, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    _check_hash("tokenizer", tokenizer_sha256(tokenizer), index, folder)
    prompt = RerankPrompt.load(folder, tokenizer, catalog)
    _check_hash("prompt", prompt.sha256, index, folder)
    return tokenizer, prompt


def _load_reranker(
    folder: Path, index: dict[str, Any], catalog: Catalog, device: torch.device | str, dtype: str | torch.dtype | None
) -> Reranker:
    tokenizer, prompt = load_reranker_parts(folder, index, catalog)
    model = _load_causal_lm(folder, index, dtype)
    if not getattr(model, "is_quantized", False):  # a quantized model has placed itself
        model = model.to(device)
    return Reranker(model.eval(), tokenizer, catalog, prompt, **index["extra"])


def _load_reranked(
    folder: Path, index: dict[str, Any], catalog: Catalog, device: torch.device | str, dtype: str | torch.dtype | None
) -> RerankedRecommender:
    retriever, reranker = _load_parts(folder, index, catalog, device, dtype)
    if not isinstance(reranker, Reranker):
        raise ValueError(f"{folder / part_name(1)} is a {type(reranker).__name__}, which judges no candidates.")
    return RerankedRecommender(retriever, reranker, index["extra"]["n"])


_LOADERS: dict[str, Callable] = {
    "language_model": _load_language_model,
    Reranker.kind: _load_reranker,
    SequenceRecommender.kind: _load_sequence_model,
    RetrievalRecommender.kind: RetrievalRecommender.load,
    FusedRecommender.kind: _load_fused,
    GroundedRecommender.kind: _load_grounded,
    RerankedRecommender.kind: _load_reranked,
} | dict.fromkeys(CONTROL_KINDS, _load_control)


def _check_hash(part: str, found: str, index: dict[str, Any], folder: Path) -> None:
    expected = index["hashes"].get(part)
    if found != expected:
        raise ValueError(
            f"The {part} in {folder} is not the one that the weights were saved with (its hash is {found[:12]}, "
            f"{RECOMMENDER_FILE} says {str(expected)[:12]}). Tokenizer, catalog, prompt and trie must be those of "
            "training: copy the whole folder again, or train again with the new ones."
        )


def default_device() -> torch.device:
    """The accelerator of this process, else the CPU."""
    if not torch.accelerator.is_available():
        return torch.device("cpu")
    return torch.device(torch.accelerator.current_accelerator().type, int(os.environ.get("LOCAL_RANK", "0")))
