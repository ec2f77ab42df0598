"""A model folder as a repository on the Hub."""

import os

from huggingface_hub import HfApi

from hf_rec.hub.files import NOT_UPLOADED
from hf_rec.hub.load import read_index


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
