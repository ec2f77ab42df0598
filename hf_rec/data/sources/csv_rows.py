"""
The rows of a csv file, counted line by line, so that no reader can lose one without a word.

A quoted field may hold line breaks. So a quote that was meant as a letter opens a field that goes on over the next
rows, up to the next quote or to the end of the file, and csv readers take that for one long field. Here every quote
that opens a field must close it, and what closes it must be followed by a delimiter or the end of a line; and a field
whose further lines all look like rows is refused too. A quote within a field that began without one is a letter.
"""

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NoReturn

from hf_rec.data.sources.files import open_bytes


if TYPE_CHECKING:
    from hf_rec.data.sources.report import SourceReport

BLOCK_BYTES = 1 << 24


@dataclass(frozen=True)
class RowCounts:
    """
    What the lines of a csv file say.

    Attributes:
        lines (`int`): Lines of the file.
        rows (`int`): Rows behind the header.
        rows_over_lines (`int`): Rows of which a quoted field holds line breaks.
    """

    lines: int
    rows: int
    rows_over_lines: int


def count_rows(path: Path, delimiter: str = ",", header: bool = True) -> RowCounts:
    """
    Count lines and rows of a csv file, and refuse quotes that would swallow rows.

    Args:
        path (`Path`): The file; `.gz` is decompressed.
        delimiter (`str`, *optional*, defaults to `","`): Between two fields.
        header (`bool`, *optional*, defaults to `True`): Whether the first row holds the names of the columns.

    Returns:
        [`RowCounts`]

    Raises:
        `ValueError`: Names the line of the first quote that is not closed as it should be.
    """
    quotes = _Quotes(path, delimiter)
    with open_bytes(path) as file:
        for lines in _blocks_of_lines(file):
            quotes.read(lines)
    quotes.end()
    return RowCounts(quotes.lines, max(quotes.rows - header, 0), quotes.rows_over_lines)


def read_dicts(
    path: Path, columns: Sequence[str], report: "SourceReport | None" = None
) -> Iterator[tuple[int, dict[str, str]]]:
    """
    Rows of a csv file with a header, after a check of its quotes.

    Args:
        path (`Path`): The file, UTF-8.
        columns (`Sequence[str]`): Names that the header must hold.
        report ([`~hf_rec.data.sources.report.SourceReport`], *optional*): Is told how many rows were read.

    Yields:
        `tuple[int, dict[str, str]]`: The line at which a row ends, and its fields by name.
    """
    counts = count_rows(path)
    rows = 0
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        missing = [name for name in columns if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{path} has no column {missing[0]!r}; it has {reader.fieldnames}.")
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(
                    f"Line {reader.line_num} of {path} has {'more' if None in row else 'fewer'} fields than the "
                    f"{len(reader.fieldnames or ())} of the header. Repair or drop it."
                )
            rows += 1
            yield reader.line_num, row
    check_count(path, rows, counts.rows)
    if report is not None:
        report.note_file(path, rows, counts)


def check_count(path: Path, found: int, expected: int) -> None:
    """Refuse a file of which a reader has made fewer or more rows than its lines hold."""
    if found != expected:
        raise ValueError(
            f"{path} holds {expected} rows by its lines, but {found} were read. Write each row on one line, with "
            "quotes around fields that hold a delimiter."
        )


def _blocks_of_lines(file: BinaryIO) -> Iterator[list[bytes]]:
    """Lines as csv readers see them, many at once: they end at a newline, a carriage return, or both."""
    rest = b""
    while block := file.read(BLOCK_BYTES):
        *lines, rest = (rest + block).splitlines(keepends=True)
        yield [line.rstrip(b"\r\n") for line in lines]
    if rest:
        yield [rest.rstrip(b"\r\n")]


class _Quotes:
    """Walks over lines; knows in which of them a quoted field began that is still open."""

    def __init__(self, path: Path, delimiter: str):
        mark = re.escape(delimiter.encode())
        closed = rb'"(?:[^"]|"")*+"'
        self._closed_field = re.compile(rb"(^|%b)%b[^%b]*" % (mark, closed, mark))
        self._opening = re.compile(rb'(?:^|%b)"' % mark)
        self._up_to_close = re.compile(rb'(?:[^"]|"")*+"')
        self._after_close = re.compile(rb"[ \t]*(?:%b|$)" % mark)
        self.path, self.delimiter = path, delimiter.encode()
        self.lines = self.rows = self.rows_over_lines = 0
        self._num_fields = 0  # of the header
        self._opened = 0  # line of the quote that is open; 0 if none is
        self._row_lines = 0  # lines of the open field that look like rows
        self._last_over_lines = 0  # line at which the row began that was counted last as one over lines

    def read(self, lines: list[bytes]) -> None:
        if not self.lines and lines:
            lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")
            self._num_fields = lines[0].count(self.delimiter) + 1
        for number, line in enumerate(lines, start=self.lines + 1):
            if self._opened:
                self._go_on(number, line)
            elif line:
                self.rows += 1
                if b'"' in line:
                    self._open(number, line)
        self.lines += len(lines)

    def end(self) -> None:
        if self._opened:
            self._refuse(self.lines, f"nothing closes it up to the last line, {self.lines}")

    def _open(self, number: int, text: bytes) -> None:
        if self._opening.search(self._closed_field.sub(rb"\1", text)):
            self._opened, self._row_lines = number, 0

    def _go_on(self, number: int, text: bytes) -> None:
        self._row_lines += text.count(self.delimiter) + 1 == self._num_fields
        close = self._up_to_close.match(text)
        if close is None:
            return
        rest = text[close.end() :]
        if not self._after_close.match(rest):
            self._refuse(number, f"the next quote, on line {number}, is followed by text")
        if self._row_lines == number - self._opened:
            self._refuse(number, f"the lines after it, up to line {number}, look like rows of their own")
        if self._last_over_lines != self.rows:
            self.rows_over_lines, self._last_over_lines = self.rows_over_lines + 1, self.rows
        self._opened = 0
        self._open(number, rest)

    def _refuse(self, number: int, reason: str) -> NoReturn:
        lost = number - self._opened
        raise ValueError(
            f"{self.path}: on line {self._opened} a quote opens a field, but {reason}. Read so, {lost} more "
            f'line{"s" * (lost != 1)} would become part of that field. Write "" for a quote that is a letter, and '
            "close the quoted field on its line."
        )
