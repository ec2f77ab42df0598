"""Files that appear whole or not at all, and hashes of files."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def file_sha256(path: str | os.PathLike) -> str:
    """Hash of the content of a file, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def refuse_existing(path: str | os.PathLike, overwrite: bool = False) -> None:
    """
    Keep a result that stands: called before the work that would replace it.

    Raises:
        `FileExistsError`: Where `path` exists and `overwrite` is not set.
    """
    if not overwrite and Path(path).exists():
        raise FileExistsError(f"{path} exists. Choose another place, or give `--overwrite` to replace it.")


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """
    Write a file beside its place, then move it there: a reader, or a run that was killed, finds the old content or the
    new one, never half of it.

    Args:
        path (`str` or `os.PathLike`): Where the file is to stand. Its folder must exist.

    Yields:
        `Path`: The file to write, in the same folder. It takes the place of `path` when the block ends, and is removed
        where the block raises.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def replacing_folder(folder: str | os.PathLike, last: str) -> Iterator[Path]:
    """
    Write the content of a folder beside its place, then move it there. A folder that is new appears whole. Into one
    that exists, which may be a mount point, files are moved one after another; those of the same name are replaced,
    and what else it holds stays.

    Args:
        folder (`str` or `os.PathLike`): Where the content is to stand.
        last (`str`): The file that is moved last. Where it is the new one, all other files are.

    Yields:
        `Path`: An empty folder to write into. It is removed where the block raises.
    """
    folder = Path(folder).absolute()
    exists = folder.is_dir()
    partial = (folder if exists else folder.parent) / f".{folder.name}.{os.getpid()}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if exists:
            _move_content(partial, folder, last)
        else:
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _move_content(source: Path, folder: Path, last: str = "") -> None:
    for path in sorted(source.iterdir(), key=lambda path: path.name == last):
        if path.is_dir() and (folder / path.name).is_dir():
            _move_content(path, folder / path.name)
        else:
            os.replace(path, folder / path.name)


class StandingFiles:
    """
    Where the files of an object stand already, so that saving it again copies them. A folder in which one of them has
    been changed or deleted since is not used.

    Args:
        names (`str`): The files. The last one is copied last.
    """

    def __init__(self, *names: str):
        self.names = names
        self._folder: Path | None = None
        self._marks: list[tuple[int, int]] = []

    def __reduce__(self) -> tuple[type["StandingFiles"], tuple[str, ...]]:
        return StandingFiles, self.names  # a copy in another process, or a hash of its owner, knows of no place

    def remember(self, folder: str | os.PathLike) -> None:
        """`folder` holds the files as the object is now. A place that is known and still good is kept."""
        if not self._are_unchanged():
            self._folder = Path(folder).absolute()
            self._marks = self._marks_in(self._folder)

    def copy_to(self, folder: str | os.PathLike) -> bool:
        """Copy the files into `folder`; `False` where they stand nowhere as they were."""
        if self._folder is None or not self._are_unchanged():
            return False
        for name in self.names:
            with replacing(Path(folder) / name) as partial:
                shutil.copyfile(self._folder / name, partial)
        return True

    def _are_unchanged(self) -> bool:
        return self._folder is not None and bool(self._marks) and self._marks == self._marks_in(self._folder)

    def _marks_in(self, folder: Path) -> list[tuple[int, int]]:
        """Size and time of change of each file; none where one is missing."""
        try:
            stats = [(folder / name).stat() for name in self.names]
        except OSError:
            return []
        return [(stat.st_size, stat.st_mtime_ns) for stat in stats]
