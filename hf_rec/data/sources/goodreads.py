"""
Goodreads as UCSD publishes it (the Book Graph): JSON lines of interactions, `goodreads_interactions_{genre}.json.gz`,
or of reviews, `goodreads_reviews_{genre}.json.gz`, and of books, `goodreads_books_{genre}.json.gz`.
"""

import json
import os
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from hf_rec.columns import ITEM_ID, RATING, TIMESTAMP, TITLE, USER_ID
from hf_rec.data.catalog import Catalog
from hf_rec.data.sources.files import reading, resolve_path
from hf_rec.data.sources.json_lines import read_items, read_json_columns
from hf_rec.data.sources.report import SourceReport
from hf_rec.data.sources.tables import complete_catalog
from hf_rec.data.timestamps import MICROSECONDS, raise_if_bad


FIELDS = {"user_id": USER_ID, "book_id": ITEM_ID, "rating": RATING, "date_added": TIMESTAMP}
TYPES = {"user_id": pa.string(), "book_id": pa.string(), "rating": pa.float64(), "date_added": pa.string()}
ATTRIBUTES = ("description", "publisher", "publication_year", "num_pages", "language_code")
MONTHS = {
    name: number for number, name in enumerate("Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(), start=1)
}


def load_goodreads(
    path: str | os.PathLike | Sequence[str | os.PathLike],
    *,
    meta: str | os.PathLike | None = None,
    report: SourceReport | None = None,
) -> tuple[Dataset, Catalog]:
    """
    Read interactions or reviews of Goodreads.

    A book that someone put on a shelf is an event, read or not, at the time it was put there (`date_added`, which no
    line lacks). A rating of 0 means that there is none, so `min_rating=1` keeps the books that were rated.

    Args:
        path (`str`, `os.PathLike` or a sequence of them): Interactions or reviews, `.gz` or not; several files are
            read one after the other. The csv of all interactions has other ids and no times, and is not read.
        meta (`str` or `os.PathLike`, *optional*): Books, with their titles. Without it no item has a title. Of several
            lines about a book the first counts.
        report ([`SourceReport`], *optional*): Is filled in with what was read and what did not join.

    Returns:
        `tuple[datasets.Dataset, Catalog]`: Interactions in the order of the files, and the books that occur in them.
    """
    paths = [path] if isinstance(path, str | os.PathLike) else list(path)
    if not paths:
        raise ValueError("`path` is an empty list. Give at least one file of interactions.")
    report = SourceReport() if report is None else report
    tables = []
    for file in map(resolve_path, paths):
        table = read_json_columns(file, TYPES, ("user_id", "book_id", "date_added"), "Goodreads interactions", report)
        with reading(file):
            times = pa.array(_microseconds(table["date_added"]), pa.timestamp("us"))
        tables.append(table.set_column(table.column_names.index("date_added"), TIMESTAMP, times))
    table = pa.concat_tables(tables).rename_columns([FIELDS.get(name, name) for name in tables[0].column_names])
    if meta is None:
        return Dataset(table), complete_catalog([], table[ITEM_ID])
    meta = resolve_path(meta)
    with reading(meta, "file of Goodreads books"):
        records = []
        for book in read_items(
            meta, "book_id", set(table[ITEM_ID].unique().to_pylist()), json.loads, "Goodreads book"
        ):
            record = {name: book[name] for name in ATTRIBUTES if book.get(name)}
            records.append({ITEM_ID: book["book_id"], TITLE: book.get("title"), **record})
        return Dataset(table), complete_catalog(records, table[ITEM_ID], report)


def _microseconds(column: pa.ChunkedArray) -> np.ndarray:
    """Times such as "Fri Apr 19 08:15:15 -0700 2013", as microseconds since 1970."""
    encoded = pc.dictionary_encode(column).combine_chunks()
    times = np.array([*map(_parsed, encoded.dictionary.to_pylist()), -1], dtype=np.int64)
    times = times[pc.fill_null(encoded.indices, len(times) - 1).to_numpy()]
    raise_if_bad(times < 0, column, "date_added", "is no time since 1970, such as 'Fri Apr 19 08:15:15 -0700 2013'")
    return times


def _parsed(text: str) -> int:
    """-1 for what is no time. `strptime` would read the names of months as the locale has them."""
    try:
        _, month, day, clock, zone, year = text.split()
        hours, minutes = int(zone[1:3]), int(zone[3:5])
        offset = timedelta(hours=hours, minutes=minutes) * (-1 if zone[0] == "-" else 1)
        hour, minute, second = map(int, clock.split(":"))
        date = datetime(int(year), MONTHS[month], int(day), hour, minute, second, tzinfo=timezone(offset))
    except (ValueError, KeyError, IndexError, OverflowError):
        return -1
    return max(-1, round(date.timestamp()) * MICROSECONDS["s"])
