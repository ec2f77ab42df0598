"""Logs and items of one object a line, as JSON or as a Python literal; wrong lines are counted, the first is named."""

import ast
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.json

from hf_rec.data.sources.files import open_text, reading
from hf_rec.data.sources.report import SourceReport


BLOCK_BYTES = 1 << 24  # no line of a jsonl file may be longer
LONGEST_LITERAL = 1 << 20  # characters of a Python literal: its tree takes a hundred times as much memory
PARSING_ERRORS = (ValueError, SyntaxError, KeyError, TypeError, MemoryError, RecursionError)


def python_literal(line: str) -> Any:
    """The value that a line spells as a Python literal. Nothing is evaluated: names and calls are errors."""
    if len(line) > LONGEST_LITERAL:
        raise ValueError(f"{len(line):,} characters are more than the {LONGEST_LITERAL:,} that are read")
    return ast.literal_eval(line.strip())


def read_json_columns(
    path: Path, types: Mapping[str, pa.DataType], needed: Collection[str], what: str, report: SourceReport
) -> pa.Table:
    """
    Fields of a file of JSON lines.

    Args:
        path (`Path`): The file, `.gz` or not.
        types (`dict[str, pyarrow.DataType]`): The fields to read, as text or numbers. Others are passed over, whatever
            they hold; one that a line lacks is missing there.
        needed (collection of `str`): Those of them that some line must have.
        what (`str`): What the lines are, such as "reviews of Yelp", for the message.
        report ([`SourceReport`]): Is told how many lines were read.

    Raises:
        `ValueError`: Says how many lines are wrong and which is the first, or which field no line has.
    """
    with reading(path, f"file of {what}"):
        try:
            with pa.input_stream(path, compression="detect") as stream:
                table = pyarrow.json.read_json(
                    stream,
                    read_options=pyarrow.json.ReadOptions(block_size=BLOCK_BYTES),
                    parse_options=pyarrow.json.ParseOptions(
                        explicit_schema=pa.schema(list(types.items())), unexpected_field_behavior="ignore"
                    ),
                )
        except pa.ArrowInvalid:
            _raise_for_wrong_lines(path, types, what)
            raise
    return _finished(table, path, needed, what, report).select(list(types))


def read_literal_columns(
    path: Path, types: Mapping[str, pa.DataType], needed: Collection[str], what: str, report: SourceReport
) -> pa.Table:
    """As [`read_json_columns`], of a file whose lines are Python literals."""
    columns: dict[str, list] = {name: [] for name in types}
    wrong = _WrongLines(path, what)
    with reading(path, f"file of {what}"), open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = _checked(python_literal(line), types)
            except PARSING_ERRORS as error:
                wrong.add(number, error)
                continue
            for name, values in columns.items():
                values.append(record.get(name))
        wrong.raise_if_any()
        table = pa.table({name: pa.array(values, types[name]) for name, values in columns.items()})
    return _finished(table, path, needed, what, report)


def read_items(
    path: Path, key: str, wanted: Collection[str], parse: Callable[[str], Any], what: str
) -> Iterator[dict[str, Any]]:
    """
    The first line about each of the wanted items.

    Args:
        path (`Path`): File of one item a line, `.gz` or not.
        key (`str`): The field with the id, which is text.
        wanted (collection of `str`): Ids of the items.
        parse (callable): Makes an object of a line: `json.loads` or [`python_literal`].
        what (`str`): What a line is, such as "item of 2014", for the message.
    """
    # Most lines are about items that nobody in the log has met; parsing a Python literal costs far more than this.
    quick = re.compile(rf"""['"]{key}['"]:\s*u?['"]([^'"]+)['"]""")
    wanted = set(wanted)
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            found = quick.findall(line)
            if not line.strip() or (found and wanted.isdisjoint(found)):
                continue
            try:
                item = parse(line)
                item_id = item[key]
            except PARSING_ERRORS as error:
                raise ValueError(
                    f"Line {number} of {path} is no {what} ({type(error).__name__}: {error}). Download it again."
                ) from None
            if isinstance(item_id, str) and item_id in wanted:
                wanted.remove(item_id)
                yield item


class _WrongLines:
    """The lines that are not what they should be: how many, and the first of them with its reason."""

    def __init__(self, path: Path, what: str):
        self.path, self.what, self.count, self.first = path, what, 0, ""

    def add(self, number: int, error: BaseException) -> None:
        self.count += 1
        reason = " ".join(str(error).split())[:200]
        self.first = self.first or f"line {number} ({type(error).__name__}: {reason})"

    def raise_if_any(self) -> None:
        if self.count:
            lines = "1 line is wrong," if self.count == 1 else f"{self.count:,} lines are wrong, the first is"
            raise ValueError(
                f"{self.path} is no file of {self.what}: {lines} {self.first}. Repair or drop what is wrong, or "
                "download the file again."
            )


def _finished(table: pa.Table, path: Path, needed: Collection[str], what: str, report: SourceReport) -> pa.Table:
    report.note_file(path, len(table))
    for name in needed:
        if len(table) and table[name].null_count == len(table):
            raise ValueError(f"No line of {path} has a field {name!r}. Is it a file of {what}?")
    return table


def _raise_for_wrong_lines(path: Path, types: Mapping[str, pa.DataType], what: str) -> None:
    """Looks for the lines that a fast reader stumbled over, whose own message counts within a block."""
    wrong = _WrongLines(path, what)
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                if line.strip():
                    _checked(json.loads(line), types)
            except PARSING_ERRORS as error:
                wrong.add(number, error)
    wrong.raise_if_any()


def _checked(record: Any, types: Mapping[str, pa.DataType]) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise TypeError(f"{type(record).__name__} in place of an object")
    for name, kind in types.items():
        value = record.get(name)
        expected: tuple[type, ...] = (str,) if pa.types.is_string(kind) else (int, float)
        if value is not None and (isinstance(value, bool) or not isinstance(value, expected)):
            raise TypeError(f"{name!r} is {str(value)[:40]!r}, not {'text' if expected == (str,) else 'a number'}")
    return record
