"""Amazon reviews 2014, 2018 and 2023, read from the files as they are published."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
from datasets import Dataset

from hf_rec.columns import ITEM_ID, RATING, TIMESTAMP, TITLE, USER_ID
from hf_rec.data.catalog import Catalog
from hf_rec.data.sources.csv_rows import check_count, count_rows
from hf_rec.data.sources.files import reading, resolve_path
from hf_rec.data.sources.json_lines import python_literal, read_items, read_json_columns
from hf_rec.data.sources.report import SourceReport
from hf_rec.data.sources.tables import complete_catalog
from hf_rec.data.timestamps import parse_timestamps


# Fields of a review and of the item files; the ratings-only csv of 2014 and 2018 have no header and differ in order.
REVIEW_FIELDS = {
    2014: {"reviewerID": USER_ID, "asin": ITEM_ID, "overall": RATING, "unixReviewTime": TIMESTAMP},
    2018: {"reviewerID": USER_ID, "asin": ITEM_ID, "overall": RATING, "unixReviewTime": TIMESTAMP},
    2023: {"user_id": USER_ID, "parent_asin": ITEM_ID, "rating": RATING, "timestamp": TIMESTAMP},
}
TYPES = {USER_ID: pa.string(), ITEM_ID: pa.string(), RATING: pa.float64(), TIMESTAMP: pa.int64()}
CSV_COLUMNS = {
    2014: [USER_ID, ITEM_ID, RATING, TIMESTAMP],
    2018: [ITEM_ID, USER_ID, RATING, TIMESTAMP],
    2023: None,
}
ATTRIBUTES = {
    2014: ("brand", "categories", "description", "price"),
    2018: ("brand", "category", "description", "price"),
    2023: ("store", "main_category", "categories", "description", "price"),
}
ITEM_KEY = {2014: "asin", 2018: "asin", 2023: "parent_asin"}


def load_amazon(
    path: str | os.PathLike | Sequence[str | os.PathLike],
    *,
    year: int,
    meta: str | os.PathLike | None = None,
    report: SourceReport | None = None,
) -> tuple[Dataset, Catalog]:
    """
    Read one category of Amazon reviews.

    Args:
        path (`str`, `os.PathLike` or a sequence of them): Reviews or ratings as published, `.gz` or not; several files
            are read one after the other (as the benchmark splits of 2023).

            - 2014: `reviews_{Category}_5.json.gz`, or `ratings_{Category}.csv` (user, item, rating, time).
            - 2018: `{Category}_5.json.gz`, or `{Category}.csv` (item, user, rating, time).
            - 2023: `{Category}.jsonl`, or a benchmark csv with `user_id, parent_asin, rating, timestamp`. Items are
              `parent_asin`, times milliseconds.
        year (`int`): 2014, 2018 or 2023.
        meta (`str` or `os.PathLike`, *optional*): `meta_{Category}.json.gz` or `.jsonl`. Without it no item has a
            title. Of several lines about an item the first counts. A title of 2018 that is a piece of a web page is
            taken as missing.
        report ([`SourceReport`], *optional*): Is filled in with what was read and what did not join.

    Returns:
        `tuple[datasets.Dataset, Catalog]`: Interactions in the order of the files, and the items that occur in them.
    """
    if year not in REVIEW_FIELDS:
        raise ValueError(f"`year` must be one of {sorted(REVIEW_FIELDS)}, got {year!r}.")
    paths = [path] if isinstance(path, str | os.PathLike) else list(path)
    if not paths:
        raise ValueError("`path` is an empty list. Give at least one file of reviews.")
    report = SourceReport() if report is None else report
    table = pa.concat_tables([_read_reviews(resolve_path(one), year, report) for one in paths])
    if meta is None:
        return Dataset(table), complete_catalog([], table[ITEM_ID])
    meta = resolve_path(meta)
    with reading(meta, f"file of Amazon items of {year}"):
        records = list(_read_items(meta, year, set(table[ITEM_ID].unique().to_pylist())))
        return Dataset(table), complete_catalog(records, table[ITEM_ID], report)


def _read_reviews(path: Path, year: int, report: SourceReport) -> pa.Table:
    fields, what = REVIEW_FIELDS[year], f"Amazon reviews of {year}"
    if ".csv" in path.suffixes:
        with reading(path, f"file of {what}"):
            counts = count_rows(path, header=CSV_COLUMNS[year] is None)
            with pa.input_stream(path, compression="detect") as stream:
                table = _read_csv(stream, year)
            check_count(path, len(table), counts.rows)
        report.note_file(path, len(table), counts)
        missing = [name for name in fields if name not in table.column_names]
        if missing:
            raise ValueError(f"{path} has no field {missing[0]!r}. Is it of {year}? It has {table.column_names}.")
    else:
        needed = [name for name, role in fields.items() if role in (USER_ID, ITEM_ID)]
        types = {name: TYPES[role] for name, role in fields.items()}
        table = read_json_columns(path, types, needed, what, report)
    table = table.select(list(fields)).rename_columns(list(fields.values()))
    times = table[TIMESTAMP]
    if year == 2023:
        with reading(path):
            times = pa.array(parse_timestamps(times, "ms")).cast(pa.timestamp("us"))
    return table.set_column(table.column_names.index(TIMESTAMP), TIMESTAMP, times)


def _read_csv(stream: pa.NativeFile, year: int) -> pa.Table:
    names = CSV_COLUMNS[year]
    raw = {role: name for name, role in REVIEW_FIELDS[year].items()}
    if names is not None:
        names = [raw.get(name, name) for name in names]
    types = {raw[role]: kind for role, kind in TYPES.items()}
    return pyarrow.csv.read_csv(
        stream,
        read_options=pyarrow.csv.ReadOptions(column_names=names),
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(column_types=types, strings_can_be_null=True, null_values=[""]),
    )


def _read_items(path: Path, year: int, wanted: set[str]) -> Iterator[dict[str, Any]]:
    """Records of the wanted items, the first line about each."""
    parse = python_literal if year == 2014 else json.loads
    for item in read_items(path, ITEM_KEY[year], wanted, parse, f"item of {year}"):
        attributes = {name: item[name] for name in ATTRIBUTES[year] if item.get(name) not in (None, "", [])}
        yield {ITEM_ID: item[ITEM_KEY[year]], TITLE: _title(item, year), **attributes}


def _title(item: dict[str, Any], year: int) -> str | None:
    title = item.get("title")
    if year == 2018 and isinstance(title, str) and ("getTime" in title or "<span" in title):
        return None
    return title
