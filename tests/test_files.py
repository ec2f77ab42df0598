"""Files and folders that appear whole, also where the folder is a mount point."""

import errno
import os
import pickle

import pytest
from datasets import Dataset, DatasetDict

from hf_rec.data.prepare import write_prepared
from hf_rec.files import StandingFiles, replacing, replacing_folder
from hf_rec.hub import load_recommender, save_control
from hf_rec.recommenders.controls import PopularityRecommender


@pytest.fixture
def mount_point(tmp_path, monkeypatch):
    """A folder whose parent takes no new entries and belongs to another file system."""
    folder, mkdir, rename = tmp_path / "mounted", os.mkdir, os.rename
    folder.mkdir()

    def read_only(path, *args, **kwargs):
        if os.path.dirname(os.path.abspath(path)) == str(tmp_path):
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return mkdir(path, *args, **kwargs)

    def same_system(source, target, *args, **kwargs):
        if str(target).startswith(str(folder)) != str(source).startswith(str(folder)):
            raise OSError(errno.EXDEV, "Invalid cross-device link", str(source))
        return rename(source, target, *args, **kwargs)

    monkeypatch.setattr(os, "mkdir", read_only)
    monkeypatch.setattr(os, "rename", same_system)
    return folder


def test_a_recommender_is_saved_into_a_mount_point(mount_point, tiny_catalog):
    control = PopularityRecommender(tiny_catalog, [{"history": [0, 1], "target": 1, "supervise_from": 1}])
    for _ in range(2):
        save_control(mount_point, control)
    assert load_recommender(mount_point).recommend([[]], k=1).item_ids == [[101]]
    assert not [path for path in mount_point.iterdir() if path.name.startswith(".")]


def test_data_are_prepared_into_a_mount_point(mount_point, tiny_catalog, monkeypatch):
    monkeypatch.setattr("hf_rec.data.prepare.data_card_markdown", lambda card: "card")
    write_prepared(mount_point, tiny_catalog, DatasetDict(train=Dataset.from_dict({"a": [1]})), {"splits": {}})
    assert {"data.json", "splits", "catalog.jsonl", "README.md"} <= {path.name for path in mount_point.iterdir()}


@pytest.mark.parametrize("exists", [False, True])
def test_a_folder_is_filled_at_the_end_its_last_file_last(tmp_path, exists):
    folder = tmp_path / "out"
    if exists:
        (folder / "inner").mkdir(parents=True)
        (folder / "inner/mine").write_text("kept")
        (folder / "a").write_text("old")
    with replacing_folder(folder, last="a") as partial:
        (partial / "a").write_text("new")
        (partial / "inner").mkdir()
        (partial / "inner/b").write_text("new")
        assert (folder / "a").exists() == exists
    assert (folder / "a").read_text() == (folder / "inner/b").read_text() == "new"
    assert (folder / "inner/mine").exists() == exists
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_fails_leaves_nothing_behind(tmp_path):
    for write in (lambda: replacing(tmp_path / "file"), lambda: replacing_folder(tmp_path / "folder", last="a")):
        with pytest.raises(OSError, match="disk full"), write() as partial:
            if partial.is_dir():
                (partial / "a").write_text("half")
            else:
                partial.write_text("half")
            raise OSError("disk full")
    assert not list(tmp_path.iterdir())


def test_files_that_stand_unchanged_are_copied_and_others_are_not(tmp_path):
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    for folder in (first, second, third):
        folder.mkdir()
    standing = StandingFiles("a", "b")
    assert not standing.copy_to(second)
    for name in ("a", "b"):
        (first / name).write_text(name)
    standing.remember(first)
    assert standing.copy_to(second)
    assert [(second / name).read_text() for name in ("a", "b")] == ["a", "b"]
    assert not pickle.loads(pickle.dumps(standing)).copy_to(third), "a copy of the object knows of no place"
    (first / "b").write_text("edited")
    assert not standing.copy_to(third)
    standing.remember(second)
    assert standing.copy_to(third) and (third / "b").read_text() == "b"
    (second / "a").unlink()
    assert not standing.copy_to(first)
