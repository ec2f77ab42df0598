"""What a model folder is made of: the names of its files, their hashes, and `recommender.json`, which lists them."""

import fnmatch
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from hf_rec.models.weight_files import SHARD_INDEX_FILE, file_hashes


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT_VERSION = 2
RECOMMENDER_FILE = "recommender.json"
CARD_FILE = "README.md"
CONTROL_ARRAYS_FILE = "recommender.safetensors"
ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_FILES = (ADAPTER_CONFIG_FILE, "adapter_model.safetensors")
FULL_WEIGHTS = ("model*.safetensors", SHARD_INDEX_FILE)
CONFIG_FILES = ("config.json", "generation_config.json")
# Where other models lie. A folder may be moved, so the hash of the file leaves these entries out; what they lead to
# has a hash of its own. `recommender.json` of a part of a fused recommender keeps the hash of the rest of it, too.
PLACES = {
    RECOMMENDER_FILE: ("base", "sha256"),
    ADAPTER_CONFIG_FILE: ("base_model_name_or_path", "revision"),
    "config.json": ("language_model", "sequence_model"),
}


def weights_format(folder: Path) -> str | None:
    """`"adapter"`, `"full"`, or `None` where a folder holds no weights."""
    found = [
        name
        for name, patterns in {"adapter": ADAPTER_FILES, "full": FULL_WEIGHTS}.items()
        if any(any(folder.glob(pattern)) for pattern in patterns)
    ]
    if len(found) > 1:
        raise ValueError(
            f"{folder} holds an adapter and whole weights, so it could be two models. Delete "
            f"{', '.join(ADAPTER_FILES)} or {FULL_WEIGHTS[0]}."
        )
    if (folder / "model.safetensors").is_file() and (folder / SHARD_INDEX_FILE).is_file():
        raise ValueError(
            f"{folder} holds model.safetensors and {SHARD_INDEX_FILE}, so it could be two models. Delete the older "
            "one."
        )
    return found[0] if found else None


def weight_files(folder: Path, form: str | None) -> list[str]:
    """Names of the files in a folder that hold weights of a format, and how to read them."""
    patterns = {"adapter": ADAPTER_FILES, "full": (*FULL_WEIGHTS, *CONFIG_FILES), None: ()}[form]
    return sorted({path.name for pattern in patterns for path in folder.glob(pattern)})


def remove_other_weights(folder: str | os.PathLike, form: str) -> None:
    """Delete weight files that are not of a format, and nothing else."""
    for pattern in FULL_WEIGHTS if form == "adapter" else ADAPTER_FILES:
        for path in Path(folder).glob(pattern):
            path.unlink()


def hashes_of(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Name -> hash of files in a folder."""
    return dict(zip(names, _hashes([folder / name for name in names]), strict=True))


def _hashes(paths: list[Path]) -> list[str]:
    found = file_hashes(paths)
    for i, path in enumerate(paths):
        if path.name in PLACES:
            content = _without_places(path)
            found[i] = found[i] if content is None else hashlib.sha256(content).hexdigest()
    return found


def _without_places(path: Path) -> bytes | None:
    try:
        content = json.loads(path.read_bytes())
        return _canonical({key: value for key, value in content.items() if key not in PLACES[path.name]})
    except (ValueError, AttributeError):
        return None


def check_folder(folder: Path, index: dict[str, Any]) -> None:
    """
    Refuse a folder unless every file of it is as it was saved.

    Args:
        folder (`Path`): The folder.
        index (`dict`): Its `recommender.json`.

    Raises:
        `FileNotFoundError`, `ValueError`: The message names the file.
    """
    names = list(index["files"])
    for name in names:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ValueError(f"{folder / RECOMMENDER_FILE} names {name!r}, which is not in the folder.")
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing. Copy the whole folder again, or save it anew.")
    for name, found in hashes_of(folder, names).items():
        if found != index["files"][name]:
            raise ValueError(
                f"{folder / name} is not as it was saved: it is damaged, or from another model. Copy the whole folder "
                "again, or save it anew."
            )
    for part in parts_of(index):
        check_folder(folder / part, read_index(folder / part))
    for pattern in (*ADAPTER_FILES, *FULL_WEIGHTS):
        for path in folder.glob(pattern):
            if path.name not in names:
                raise ValueError(
                    f"{path} does not belong to this recommender: {RECOMMENDER_FILE} does not list it. Delete it, or "
                    "save the folder anew."
                )


def parts_of(index: dict[str, Any]) -> list[str]:
    """Names of the folders inside a recommender folder that are recommenders themselves."""
    paths = map(PurePosixPath, index["files"])
    return sorted(path.parent.as_posix() for path in paths if path.name == RECOMMENDER_FILE)


def index_text(index: dict[str, Any]) -> str:
    """The text of `recommender.json`, with the hash of its own content."""
    content = {key: value for key, value in index.items() if key != "sha256"}
    return json.dumps(content | {"sha256": _content_hash(content)}, indent=2) + "\n"


def read_index(folder: str | os.PathLike) -> dict[str, Any]:
    """
    The content of `recommender.json`.

    Raises:
        `FileNotFoundError`, `ValueError`: Where there is none, or it is damaged or of another format.
    """
    path = Path(folder) / RECOMMENDER_FILE
    if not path.is_file():
        found = sorted(str(other.parent) for other in path.parent.glob(f"*/{RECOMMENDER_FILE}"))
        raise FileNotFoundError(
            f"{path.parent} is no recommender: it holds no {RECOMMENDER_FILE}. "
            + (f"Did you mean {' or '.join(found)}? " if found else "")
            + "Trainers of hf_rec write it beside the weights; for a model of your own call "
            "hf_rec.hub.save_recommender(folder, catalog=..., prompt=..., trie=..., tokenizer=..., "
            "kind='language_model')."
        )
    try:
        index = json.loads(path.read_bytes())
        found_format, sha256 = index["format"], index.pop("sha256", None)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not as it was saved ({error!r}). Copy the folder again or save it anew."
        ) from error
    if found_format == 1:
        raise ValueError(
            f"{path} has format 1, which does not say what weights it belongs to; this version of hf_rec reads "
            f"{FORMAT_VERSION}. Train again, or save the folder anew from its parts with "
            "hf_rec.hub.save_recommender, which leaves the weights as they are."
        )
    if found_format != FORMAT_VERSION:
        raise ValueError(f"{path} has format {found_format}, this version of hf_rec reads {FORMAT_VERSION}.")
    if sha256 != _content_hash(index):
        raise ValueError(
            f"{path} is not as it was saved (its own hash differs). Copy the folder again, or save it anew."
        )
    return index


def matches_any(name: str, patterns: Sequence[str]) -> bool:
    """Whether a file name fits one of the patterns."""
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def tokenizer_sha256(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Hash of the vocabulary and the special tokens."""
    state = [sorted(tokenizer.get_vocab().items()), sorted(tokenizer.all_special_tokens)]
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()


def _content_hash(index: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical(index)).hexdigest()


def _canonical(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True).encode()
