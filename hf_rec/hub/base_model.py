"""The base model of an adapter: which one it was trained on, and finding that very one again."""

import json
import os
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from transformers import AutoTokenizer
from transformers.utils import logging

from hf_rec.hub.files import ADAPTER_CONFIG_FILE, ADAPTER_FILES, RECOMMENDER_FILE
from hf_rec.hub.item_tokens import load_projector, read_item_tokens
from hf_rec.models.language.path_tokens import resize_vocabulary, save_path_tokens_alone
from hf_rec.models.loading import check_stored_kwargs, load_language_model
from hf_rec.models.weight_files import WEIGHT_FILES, is_hub_id, local_folder, weights_sha256


logger = logging.get_logger(__name__)

_TIED = ("lm_head", "embed_tokens", "wte", "embed_in", "embed_out", "shared")


def base_of(model: torch.nn.Module) -> dict[str, Any] | None:
    """
    What `recommender.json` says of the base of an adapter; `None` for a whole model, or a base made in memory.

    Args:
        model (`torch.nn.Module`): The model as it was trained.

    Returns:
        `dict`: `name` (folder or Hub id), `local` (whether it is a folder), `sha256` of the weight files of a folder,
        `revision` (commit) of a Hub id, `dtype` and `quantization_config` as it was loaded for training.
    """
    if not isinstance(model, PeftModel):
        return None
    adapter = model.peft_config[model.active_adapter]
    _warn_of_tied_layers(model, adapter)
    name = adapter.base_model_name_or_path
    if not name:
        return None
    base, local = model.get_base_model(), Path(name).is_dir()
    quantization = None
    if getattr(base, "is_quantized", False) and not base.hf_quantizer.pre_quantized:
        quantization = base.hf_quantizer.quantization_config.to_dict()
    return {
        "name": os.fspath(name),
        "local": local,
        "sha256": _remembered_sha256(name) if local else None,
        "revision": None if local else getattr(base.config, "_commit_hash", None) or adapter.revision,
        "dtype": str(base.dtype).removeprefix("torch."),
        "quantization_config": quantization,
    }


def load_adapter(
    folder: str | os.PathLike,
    base: dict[str, Any] | None,
    *,
    trainable: bool = False,
    **options: Any,
) -> PeftModel:
    """
    Load an adapter on the base model that it was trained on.

    Args:
        folder (`str` or `os.PathLike`): Folder with the adapter.
        base (`dict` or `None`): What its `recommender.json` says of the base; `None` where there is none, so that
            `adapter_config.json` alone names it.
        trainable (`bool`, *optional*, defaults to `False`): Whether the adapter is to be trained further.
        options: Keyword arguments of `from_pretrained` of the base, in place of those of training.

    Raises:
        `OSError`, `ValueError`: Where the base is missing, or is another one.
    """
    folder = Path(folder)
    config = _read_config(folder)
    stored = {key: base[key] for key in ("dtype", "quantization_config") if base and base.get(key) is not None}
    check_stored_kwargs(stored, f"`base` of {folder / RECOMMENDER_FILE}")
    name, revision = _locate(folder, config, base)
    if revision is not None:
        stored["revision"] = revision
    try:
        model = load_language_model(name, **(stored | options))
    except OSError as error:
        raise OSError(_needs_base(folder, name, str(error))) from error
    if (folder / "tokenizer_config.json").is_file():
        resize_vocabulary(model, len(AutoTokenizer.from_pretrained(folder, trust_remote_code=False)))
    item_tokens = read_item_tokens(folder)
    if item_tokens is not None:
        item_tokens.attach(model)
        load_projector(model, name)  # of the base, which the adapter has a copy of its own of
    config.base_model_name_or_path = os.fspath(name)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        try:
            adapted = PeftModel.from_pretrained(model, folder, is_trainable=trainable, config=config)
        except UserWarning as error:
            raise ValueError(f"{folder / ADAPTER_FILES[1]} lacks tensors: {error} Copy the folder again.") from error
    save_path_tokens_alone(adapted)
    if item_tokens is not None:
        item_tokens.wrap(adapted)
    return adapted


def _read_config(folder: Path) -> PeftConfig:
    path = folder / ADAPTER_CONFIG_FILE
    if not (folder / ADAPTER_FILES[1]).is_file():
        raise FileNotFoundError(
            f"{folder} holds {path.name} but no {ADAPTER_FILES[1]}. Pickled adapters are not read: save the adapter "
            "again with `save_pretrained`."
        )
    try:
        json.loads(path.read_bytes())["peft_type"]
        config = PeftConfig.from_pretrained(folder)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no adapter configuration ({error!r}). Copy the folder again.") from error
    if not config.base_model_name_or_path:
        raise ValueError(
            f"{path} names no base model. Write its folder or Hub id into `base_model_name_or_path`, or merge the "
            "adapter into the model (`merge_and_unload`) and save the whole."
        )
    return config


def _locate(folder: Path, config: PeftConfig, base: dict[str, Any] | None) -> tuple[str | Path, str | None]:
    """Folder or Hub id of the base, and its commit. A base that was a folder in training is not asked of the Hub."""
    name = config.base_model_name_or_path
    is_named_anew = base is None or name != base["name"]
    if base is not None and not is_named_anew and not base["local"]:
        if Path(name).is_dir():
            raise ValueError(
                f"The adapter in {folder} was trained on {name!r} of the Hub, but there is a folder of that name "
                "here. Rename it, or work in another folder."
            )
        return name, base["revision"]
    # From the folder, from where it was in training, and as the adapter's own configuration says
    saved = [] if base is None or is_named_anew else [base.get("path"), base.get("place")]
    places = [folder / place for place in (*saved, name) if place is not None]
    places = [place for place in (*places, Path(name)) if place.is_dir()]
    if not places and is_named_anew and is_hub_id(name):
        if base is None or base["sha256"] is None:
            return name, config.revision
        places = [local_folder(name, config.revision)]
    if not places:
        raise FileNotFoundError(_needs_base(folder, name, "there is no such folder."))
    expected = None if base is None else base["sha256"]
    for place in places:
        if expected is None or _remembered_sha256(place) == expected:
            return place, None
    raise ValueError(
        f"The base model in {places[0]} is not the one that the adapter in {folder} was trained on: its weights "
        "differ. Put the original one back, or train the adapter again."
    )


def _needs_base(folder: Path, name: str | Path, reason: str) -> str:
    return (
        f"The adapter in {folder} needs the base model {os.fspath(name)!r}, which could not be loaded: {reason} Put "
        f"it there, or write its new place into `base_model_name_or_path` of {folder / ADAPTER_CONFIG_FILE}."
    )


def _remembered_sha256(folder: str | os.PathLike) -> str:
    """Hash of the weights in a folder, computed again only where a file has changed."""
    files = sorted(path for pattern in WEIGHT_FILES for path in Path(folder).glob(pattern))
    stamps = tuple((path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in files)
    return _sha256_of_version(str(Path(folder).resolve()), stamps)


@lru_cache(maxsize=16)
def _sha256_of_version(folder: str, stamps: tuple[tuple[str, int, int], ...]) -> str:
    return weights_sha256(folder)


def tied_layers(model: PeftModel, adapter: PeftConfig) -> list[str]:
    """Layers of an adapter that are on a head that is one matrix with the embeddings, or on these."""
    targets = getattr(adapter, "target_modules", None)
    tied = getattr(model.get_base_model().config.get_text_config(), "tie_word_embeddings", False)
    return [name for name in _TIED if tied and isinstance(targets, set | list) and name in targets]


def _warn_of_tied_layers(model: PeftModel, adapter: PeftConfig) -> None:
    found = tied_layers(model, adapter)
    if found:
        logger.warning_once(
            f"The adapter is on {', '.join(found)} of a model whose head and embeddings are one matrix. It is saved "
            "and loaded as trained, but `merge_and_unload` would write it into both, and scores would change: do not "
            "merge."
        )
