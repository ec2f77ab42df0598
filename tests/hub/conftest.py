"""A recommender of a tiny language model, and a Hub that remembers what it was given."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from hf_rec.data.prompts.next_item import Prompt
from hf_rec.hub import push
from hf_rec.trie.item_trie import ItemTrie


@pytest.fixture(scope="session")
def parts(tiny_catalog, bpe_tokenizer):
    """What a language model folder holds beside weights."""
    prompt = Prompt(bpe_tokenizer, tiny_catalog)
    return {
        "catalog": tiny_catalog,
        "prompt": prompt,
        "trie": ItemTrie.build(prompt.encode_items()),
        "tokenizer": bpe_tokenizer,
        "kind": "language_model",
    }


class FakeHub:
    """
    Stands in for the Hub.

    Attributes:
        calls (`dict`): Keyword arguments of the calls that make a repository, a branch and a commit.
        present (`list[str]`): Files of the repository before.
        files (`dict[str, bytes]`): Files of the last commit.
        deleted (`list[str]`): Files that the last commit removes.
    """

    def __init__(self):
        self.calls, self.present, self.files, self.deleted = {}, [], {}, []

    def create_repo(self, repo_id, **kwargs):
        self.calls["repo"] = kwargs
        return SimpleNamespace(repo_id=f"me/{repo_id}")

    def create_branch(self, repo_id, **kwargs):
        self.calls["branch"] = kwargs

    def list_repo_files(self, repo_id, **kwargs):
        return self.present

    def create_commit(self, repo_id, operations, **kwargs):
        self.calls["commit"] = {"repo_id": repo_id, **kwargs}
        self.files, self.deleted = {}, []
        for operation in operations:
            if hasattr(operation, "path_or_fileobj"):
                content = operation.path_or_fileobj
                content = content if isinstance(content, bytes) else Path(content).read_bytes()
                self.files[operation.path_in_repo] = content
            else:
                self.deleted.append(operation.path_in_repo)
        return SimpleNamespace(commit_url="https://hub/commit/1", is_done=lambda: True, done=lambda: True)


@pytest.fixture
def fake_hub(monkeypatch):
    """[`FakeHub`] in place of `HfApi`."""
    hub = FakeHub()
    for name in ("create_repo", "create_branch", "list_repo_files", "create_commit"):
        monkeypatch.setattr(push.HfApi, name, _without_self(getattr(hub, name)))
    return hub


def _without_self(call):
    return lambda self, *args, **kwargs: call(*args, **kwargs)
