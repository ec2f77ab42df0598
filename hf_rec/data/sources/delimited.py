"""Lines of fields between a delimiter, without quotes, as GroupLens publishes them."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from hf_rec.data.sources.files import open_bytes
from hf_rec.data.sources.report import SourceReport


Rows = list[tuple[int, list[str]]]  # number of a line, its fields
_Parsed = TypeVar("_Parsed")


def read_fields(path: Path, delimiter: str) -> Rows:
    """
    Lines cut at a delimiter, each with its number; empty ones are left out.

    Old files are latin-1, newer ones UTF-8: what decodes as UTF-8 and holds more than ASCII is UTF-8.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}. Unpack the whole archive into one folder.")
    with open_bytes(path) as file:
        content = file.read()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    lines = enumerate(text.split("\n"), start=1)
    return [(number, line.rstrip("\r").split(delimiter)) for number, line in lines if line.strip()]


def parse_rows(
    path: Path, rows: Rows, what: str, make: Callable[[list[str]], _Parsed], report: SourceReport
) -> list[_Parsed]:
    """What `make` makes of the fields of each line. Of wrong lines the first is named, and all are counted."""
    made, wrong = [], []
    for number, fields in rows:
        try:
            made.append(make(fields))
        except (ValueError, IndexError, TypeError, OverflowError) as error:
            wrong.append(f"Line {number} of {path} is no {what}: {error}")
    if wrong:
        others = f" ({len(wrong):,} such lines)" if len(wrong) > 1 else ""
        raise ValueError(f"{wrong[0]}{others}. Download the file again.")
    report.note_file(path, len(made))
    return made


def whole_number(text: str) -> int:
    """An id or a count; a `ValueError` for what no column of 64 bits can hold."""
    number = int(text)
    if not 0 <= number < 2**63:
        raise ValueError(f"{text:.40} is no id")
    return number
