"""Finding, opening and reading the files of the sources: whatever goes wrong names the file."""

import csv
import gzip
import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa


# What a damaged file makes its reader raise. pyarrow's own errors of input and output are OSErrors.
READING_ERRORS = (
    ValueError,
    TypeError,
    OSError,
    EOFError,
    OverflowError,
    RecursionError,
    zlib.error,
    csv.Error,
    pa.ArrowException,
)


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


def find_file(folder: Path, *names: str) -> Path:
    """
    The first file of a folder that has one of these names, with `.gz` behind it or not.

    Raises:
        `FileNotFoundError`: Names what was looked for.
    """
    for name in names:
        for file in (folder / name, folder / f"{name}.gz"):
            if file.is_file():
                return file
    looked_for = " nor ".join(f"{name}[.gz]" for name in names)
    raise FileNotFoundError(f"There is no {looked_for} in {folder}. Give the folder of the files as published.")


def open_text(path: Path, encoding: str = "utf-8") -> io.TextIOBase:
    """Open a text file, decompressed if its name ends in `.gz`; lines end at `\\n` alone."""
    return io.TextIOWrapper(open_bytes(path), encoding=encoding, newline="\n")


def open_bytes(path: Path) -> BinaryIO:
    """Open a file, decompressed if its name ends in `.gz`."""
    return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")  # type: ignore[return-value]


@contextmanager
def reading(path: Path, what: str = "good file") -> Iterator[None]:
    """Turn whatever goes wrong while `path` is read into one line that names it, and the line where it can be told."""
    try:
        yield
    except READING_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        named = str(path) in str(error) and "\n" not in str(error)
        if named or getattr(error, "filename", None) or isinstance(error, FileNotFoundError):
            raise
        if isinstance(error, UnicodeError) or "utf8" in reason.lower().replace("-", ""):
            line = _first_bad_line(path)
            reason = f"line {line} is not UTF-8" if line else reason
        raise ValueError(f"{path} is no {what}: {reason.rstrip('.')}. Repair it, or get it again.") from error


def _first_bad_line(path: Path) -> int | None:
    """Number of the first line that is not UTF-8."""
    try:
        with open_bytes(path) as file:
            for number, line in enumerate(file, start=1):
                try:
                    line.decode("utf-8")
                except UnicodeDecodeError:
                    return number
    except (OSError, EOFError, zlib.error):
        pass
    return None
