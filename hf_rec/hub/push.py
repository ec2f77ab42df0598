"""A model folder as a repository on the Hub: only what a recommender needs, and no path of this machine."""

import json
import os
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from hf_rec.hub.card import LOAD_CALL
from hf_rec.hub.files import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_FILES,
    CARD_FILE,
    CONFIG_FILES,
    FULL_WEIGHTS,
    PLACES,
    RECOMMENDER_FILE,
    check_folder,
    index_text,
    matches_any,
    parts_of,
    read_index,
)


# Of a model that is no recommender; of a recommender, what its recommender.json lists
PLAIN_MODEL_FILES = (
    *FULL_WEIGHTS,
    *ADAPTER_FILES,
    *CONFIG_FILES,
    *("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.jinja", CARD_FILE),
)


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
    Upload a recommender folder to the Hub: the files that its `recommender.json` lists, and its model card. Nothing
    else of the folder, such as checkpoints or predictions, and no path of this machine.

    Args:
        folder (`str` or `os.PathLike`): Folder that [`load_recommender`] can load.
        repo_id (`str`): `"name"` or `"organisation/name"`; the repository is made if there is none.
        private (`bool`, *optional*): Whether a new repository is private.
        revision (`str`, *optional*): Branch; made if there is none.
        token (`str`, *optional*): Token with write access; by default the one of `hf auth login`.
        commit_message (`str`, *optional*): Message of the commit.

    Returns:
        `str`: URL of the commit.

    Raises:
        `FileNotFoundError`, `ValueError`: Where the folder is no recommender, or a file is not as it was saved.
    """
    check_folder(Path(folder), read_index(folder))
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    operations = commit_operations(api, folder, repo_id, revision)
    return api.create_commit(repo_id, operations, commit_message=commit_message, revision=revision).commit_url


def commit_operations(
    api: HfApi, folder: str | os.PathLike, repo_id: str, revision: str | None
) -> list[CommitOperationAdd | CommitOperationDelete]:
    """
    What one commit of a model folder does: it adds the files, and takes out weight files of an earlier model.

    Args:
        api (`HfApi`): The Hub.
        folder (`str` or `os.PathLike`): A recommender, or the model of a trainer without a catalog.
        repo_id (`str`): A repository that exists.
        revision (`str` or `None`): Branch that exists.
    """
    files = published_files(Path(folder), repo_id)
    folders = {".", *_parts(Path(folder))}
    stale = [
        name
        for name in api.list_repo_files(repo_id, revision=revision)
        if name not in files
        and str(PurePosixPath(name).parent) in folders
        and matches_any(PurePosixPath(name).name, (*FULL_WEIGHTS, *ADAPTER_FILES))
    ]
    return [
        *(CommitOperationAdd(name, content) for name, content in files.items()),
        *(CommitOperationDelete(name) for name in stale),
    ]


def published_files(folder: Path, repo_id: str) -> dict[str, str | bytes]:
    """
    What is uploaded of a model folder.

    Returns:
        `dict`: Name in the repository -> path of the file, or its content where it is not uploaded as it is.
    """
    if not (folder / RECOMMENDER_FILE).is_file():
        names = [path.name for path in folder.iterdir() if path.is_file()]
        names = [name for name in names if matches_any(name, PLAIN_MODEL_FILES)]
    else:
        names = [*read_index(folder)["files"], CARD_FILE, RECOMMENDER_FILE]
    files: dict[str, str | bytes] = {name: str(folder / name) for name in names if (folder / name).is_file()}
    for part in _parts(folder):
        inside = published_files(folder / part, repo_id)
        files |= {f"{part}/{name}": content for name, content in inside.items() if name != CARD_FILE}
    if ADAPTER_CONFIG_FILE in files:
        files[ADAPTER_CONFIG_FILE] = _adapter_config(folder)
    if "config.json" in files:
        files["config.json"] = _model_config(folder)
    if RECOMMENDER_FILE in files:
        files[RECOMMENDER_FILE] = _recommender_index(folder)
        if CARD_FILE in files:
            card = (folder / CARD_FILE).read_text(encoding="utf-8")
            files[CARD_FILE] = card.replace(LOAD_CALL, f"load_recommender({json.dumps(repo_id)})").encode()
    return files


def _parts(folder: Path) -> list[str]:
    """Folders inside a recommender folder that are recommenders themselves."""
    return parts_of(read_index(folder)) if (folder / RECOMMENDER_FILE).is_file() else []


def _adapter_config(folder: Path) -> bytes:
    config = _read(folder / ADAPTER_CONFIG_FILE)
    name = config.get("base_model_name_or_path")
    if name and _is_place_here(name, folder):
        config["base_model_name_or_path"] = Path(name).name
    return _text(config)


def _recommender_index(folder: Path) -> bytes:
    index = read_index(folder)
    if index["base"] is not None and index["base"]["local"]:
        index["base"] |= {"name": Path(index["base"]["name"]).name, "path": None, "place": None}
    return index_text(index).encode()


def _model_config(folder: Path) -> bytes:
    """Frozen models that lie in the folder are named from it; of others that are folders, the last part is kept."""
    config = _read(folder / "config.json")
    for role in PLACES["config.json"]:
        name = config.get(role)
        if not isinstance(name, str) or config.get(f"{role}_revision") is not None:
            continue
        inside = (folder / name).resolve()
        if inside.is_dir() and inside.is_relative_to(folder.resolve()):
            config[role] = inside.relative_to(folder.resolve()).as_posix()
        else:
            config[role] = Path(name).name
    return _text(config)


def _is_place_here(name: str, folder: Path) -> bool:
    return Path(name).is_absolute() or Path(name).is_dir() or (folder / name).is_dir()


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_bytes())
    return content


def _text(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
