"""The weight files of a model folder: their names, their hash, and where the folder of a Hub repository lies here."""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open

from hf_rec.files import file_sha256


WEIGHT_FILES = ("model*.safetensors", "adapter_model.safetensors")
SHARD_INDEX_FILE = "model.safetensors.index.json"
# All that a model needs to be loaded; no format that can hold code
DOWNLOADED = ("*.json", "*.jsonl", "*.safetensors", "*.marisa", "*.model", "*.txt", "*.jinja", "README.md")


def is_hub_id(name: str | os.PathLike) -> bool:
    """Whether a name can be that of a Hub repository: `"name"` or `"organisation/name"`."""
    return isinstance(name, str) and re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name) is not None


def local_folder(name: str | os.PathLike, revision: str | None = None) -> Path:
    """
    The folder of a model on this machine.

    Args:
        name (`str` or `os.PathLike`): A folder, or the id of a Hub repository, which is downloaded.
        revision (`str`, *optional*): Branch, tag or commit of the repository.

    Raises:
        `OSError`: Where there is neither.
    """
    if Path(name).is_dir():
        return Path(name)
    if not is_hub_id(name):
        raise FileNotFoundError(f"There is no folder {os.fspath(name)}. Give a folder, or the id of a Hub repository.")
    try:
        return Path(
            snapshot_download(
                str(name), revision=revision, allow_patterns=list(DOWNLOADED), ignore_patterns=["checkpoint-*"]
            )
        )
    except Exception as error:  # the Hub client has no common base for "not found", "offline" and "no such id"
        raise OSError(
            f"{os.fspath(name)!r} is no folder here, and as a Hub repository it could not be had: {error} Check the "
            "name; a private repository needs `hf auth login`."
        ) from error


def file_hashes(paths: Sequence[Path]) -> list[str]:
    """Hash of each file; several are read at once."""
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(file_sha256, paths))


def weights_sha256(folder: str | os.PathLike) -> str:
    """Hash of the names and contents of the safetensors weight files in a folder."""
    files = sorted({path for pattern in WEIGHT_FILES for path in Path(folder).glob(pattern)})
    if not files:
        raise FileNotFoundError(
            f"{folder} holds no safetensors weights ({' or '.join(WEIGHT_FILES)}). Pickled weights are not read: save "
            "the model again with `save_pretrained`."
        )
    lines = [f"{path.name} {content}\n" for path, content in zip(files, file_hashes(files), strict=True)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def check_weight_files(folder: str | os.PathLike) -> None:
    """
    Refuse weight files that cannot be read, and an index of shards that names a file outside the folder.

    Args:
        folder (`str` or `os.PathLike`): A local model folder.

    Raises:
        `ValueError`: The message names the file.
    """
    index = Path(folder, SHARD_INDEX_FILE)
    if index.is_file():
        try:
            shards = set(json.loads(index.read_bytes())["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{index} is no index of weight files ({error!r}). Copy the folder again.") from error
        if outside := sorted(str(name) for name in shards if Path(str(name)).name != name):
            raise ValueError(
                f"{index} names the weight file {outside[0]!r}, which is not in the folder. Weights are read from the "
                "model's own folder alone: get the model from someone you trust."
            )
    for path in sorted(Path(folder).glob(WEIGHT_FILES[0])):
        try:
            with safe_open(path, framework="np"):
                pass
        except SafetensorError as error:
            raise ValueError(f"{path} is truncated or corrupted ({error}). Copy the folder again.") from error
