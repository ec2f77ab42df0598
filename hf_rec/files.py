"""Files that appear whole or not at all, and hashes of files."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def file_sha256(path: str | os.PathLike) -> str:
    """Hash of the content of a file, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
