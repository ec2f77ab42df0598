"""
The token paths of a catalog's items as a file, so that a prompt is loaded without tokenising anything.

Paths stand end to end in one array, which is mapped into memory; nothing is copied, and processes share the pages.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save as save_safetensors

from hf_rec.data.prompts.item_paths import EncodedPaths
from hf_rec.files import file_sha256, replacing


PATHS_FILE = "item_paths.safetensors"
HISTORY = "history_"  # begins the names of the arrays of histories
DTYPES: dict[str, np.dtype] = {"I32": np.dtype("<i4"), "I64": np.dtype("<i8")}


def save_paths(directory: Path, answers: EncodedPaths, history: EncodedPaths) -> str:
    """
    Write `item_paths.safetensors`.

    Args:
        directory (`Path`): Where to.
        answers ([`EncodedPaths`]): What the model writes.
        history ([`EncodedPaths`]): What stands in histories; written only where it is not `answers`.

    Returns:
        `str`: SHA-256 of the file.
    """
    kinds = {"": answers} | ({} if history is answers else {HISTORY: history})
    arrays = {
        kind + name: np.ascontiguousarray(getattr(paths, name))
        for kind, paths in kinds.items()
        for name in ("tokens", "offsets")
    }
    content = save_safetensors(arrays)
    with replacing(directory / PATHS_FILE) as partial:
        partial.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def load_paths(directory: Path, sha256: str, num_items: int) -> tuple[EncodedPaths, EncodedPaths]:
    """
    Map what [`save_paths`] wrote into memory.

    Args:
        directory (`Path`): Where it stands.
        sha256 (`str`): The hash that the file must have.
        num_items (`int`): The number of paths that it must hold.

    Returns:
        `tuple[EncodedPaths, EncodedPaths]`: Of answers and of histories, read-only; one object where they are alike.
    """
    path = directory / PATHS_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{directory} holds no {PATHS_FILE}. Copy the folder again.")
    if file_sha256(path) != sha256:
        raise ValueError(
            f"{path} is truncated, corrupted or of another prompt: its sha256 is not the one that prompt.json says. "
            "Copy the folder again."
        )
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    answers = _mapped(path, header, 8 + size, "", num_items)
    history = answers
    if f"{HISTORY}tokens" in header:
        history = _mapped(path, header, 8 + size, HISTORY, num_items)
    return answers, history


def _mapped(path: Path, header: dict[str, Any], start_of_data: int, kind: str, num_items: int) -> EncodedPaths:
    arrays = []
    for name in ("tokens", "offsets"):
        start, stop = header[kind + name]["data_offsets"]
        dtype = DTYPES[header[kind + name]["dtype"]]
        shape = ((stop - start) // dtype.itemsize,)
        # As plain arrays they pickle, and hash, like those of a prompt that was just made.
        arrays.append(np.asarray(np.memmap(path, dtype, mode="r", offset=start_of_data + start, shape=shape)))
    tokens, offsets = arrays
    if len(offsets) != num_items + 1 or offsets[-1] != len(tokens):
        raise ValueError(
            f"{path} holds {len(offsets) - 1} paths, the catalog {num_items} items. Copy the folder again."
        )
    return EncodedPaths(tokens, offsets)
