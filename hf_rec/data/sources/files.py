"""Finding and opening what the sources read."""

import gzip
import io
import os
from pathlib import Path


def resolve_path(path: str | os.PathLike) -> Path:
    """
    Where `path` is: as given, or else, if it is relative, below the folder that the variable `HF_REC_DATA` names.

    Raises:
        `FileNotFoundError`: Names every place that was looked at.
    """
    path = Path(path).expanduser()
    tried = [path]
    root = os.environ.get("HF_REC_DATA")
    if root and not path.is_absolute():
        tried.append(Path(root) / path)
    for place in tried:
        if place.exists():
            return place
    hint = (
        "" if root else " Relative paths are also looked for below the folder that HF_REC_DATA names; it is not set."
    )
    raise FileNotFoundError(f"There is no {' nor '.join(map(str, tried))}.{hint}")


def open_text(path: Path, encoding: str = "utf-8") -> io.TextIOBase:
    """Open a text file, decompressed if its name ends in `.gz`; lines end at `\\n` alone."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding=encoding, newline="\n")
    return open(path, encoding=encoding, newline="\n")
