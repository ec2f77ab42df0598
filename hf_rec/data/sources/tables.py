"""Any table of interactions: csv, jsonl, parquet, or a data set of the Hub."""

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet
from datasets import Dataset, load_dataset

from hf_rec.columns import ITEM_ID, RATING, TIMESTAMP, TITLE, UNKNOWN_TIME, USER_ID
from hf_rec.data.catalog import Catalog, is_missing
from hf_rec.data.interactions import MISSING_TEXT
from hf_rec.data.sources.csv_rows import RowCounts, check_count, count_rows
from hf_rec.data.sources.files import open_text, reading, resolve_path
from hf_rec.data.sources.item_records import item_records, whole
from hf_rec.data.sources.json_lines import BLOCK_BYTES
from hf_rec.data.sources.report import SourceReport
from hf_rec.data.timestamps import parse_timestamps


FORMATS = {".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_ARGUMENTS = {
    USER_ID: "user_column",
    ITEM_ID: "item_column",
    TIMESTAMP: "timestamp_column",
    TITLE: "title_column",
    RATING: "rating_column",
}


def load_table(
    path: str | os.PathLike,
    *,
    items: str | os.PathLike | None = None,
    user_column: str = USER_ID,
    item_column: str = ITEM_ID,
    timestamp_column: str | None = TIMESTAMP,
    title_column: str | None = None,
    rating_column: str | None = None,
    items_id_column: str | None = None,
    timestamp_unit: str = "s",
    delimiter: str = ",",
    hub_split: str = "train",
    hub_config: str | None = None,
    report: SourceReport | None = None,
) -> tuple[Dataset, Catalog]:
    """
    Read interactions from a file or the Hub.

    Args:
        path (`str` or `os.PathLike`): A `.csv`, `.tsv`, `.jsonl` or `.parquet` file (text also with `.gz`), or the id
            of a Hub data set, `owner/name`.
        items (`str` or `os.PathLike`, *optional*): A second table (same forms), one row an item, with
            `items_id_column` and perhaps `title_column`; its other columns become attributes, as
            [`~hf_rec.data.sources.item_records.item_records`] says. Items that only the interactions know are added
            without a title, and counted.
        user_column, item_column (`str`, *optional*, default to `"user_id"` and `"item_id"`): Names of the columns. Ids
            of a csv file are text, so that `007` stays itself.
        timestamp_column (`str`, *optional*, defaults to `"timestamp"`): `None` means that times are unknown and each
            user's rows are in order.
        title_column (`str`, *optional*): Column of titles, in `items` if given, else in the interactions, where the
            first title of an item counts.
        rating_column (`str`, *optional*): Column of ratings, which `min_rating` of
            [`~hf_rec.data.interactions.clean_interactions`] looks at.
        items_id_column (`str`, *optional*): Column of the ids in `items`; defaults to `item_column`.
        timestamp_unit (`str`, *optional*, defaults to `"s"`): Of numbers: `"s"`, `"ms"` or `"auto"`. ISO dates are
            recognised.
        delimiter (`str`, *optional*, defaults to `","`): Of csv files; always a tab in `.tsv`.
        hub_split, hub_config (`str`, *optional*): Split (default `"train"`) and configuration of a Hub data set.
        report ([`SourceReport`], *optional*): Is filled in with what was read and what did not join.

    Returns:
        `tuple[datasets.Dataset, Catalog]`: Raw interactions and their items, in order of first appearance.
    """
    if len(delimiter.encode()) != 1:
        raise ValueError(f"`delimiter` must be one character, got {delimiter!r}.")
    if items is None and items_id_column is not None:
        raise ValueError(f"`items_id_column` is {items_id_column!r}, but no table `items` is given.")
    report = SourceReport() if report is None else report
    hub = {"split": hub_split, "name": hub_config}
    log_title = title_column if items is None else None
    names = column_names(user_column, item_column, timestamp_column, log_title, rating_column)
    log = read_table(path, list(names), delimiter=delimiter, hub=hub, report=report)
    table = None
    if items is not None:
        table = read_table(items, None, delimiter=delimiter, hub=hub, report=report)
    return interactions_of(
        log, table, names, timestamp_unit, items_id_column or item_column, title_column, report=report
    )


def column_names(
    user_column: str,
    item_column: str,
    timestamp_column: str | None,
    title_column: str | None,
    rating_column: str | None,
) -> dict[str, str]:
    """Ours of each column that a log has under a name of its own."""
    columns = (user_column, item_column, timestamp_column, title_column, rating_column)
    given = dict(zip((USER_ID, ITEM_ID, TIMESTAMP, TITLE, RATING), columns, strict=True))
    names = {column: name for name, column in given.items() if column is not None}
    if len(names) < sum(column is not None for column in columns):
        raise ValueError(f"{', '.join(f'`{name}`' for name in _ARGUMENTS.values())} must differ.")
    return names


def interactions_of(
    log: pa.Table,
    items: pa.Table | None,
    names: dict[str, str],
    timestamp_unit: str,
    items_id_column: str,
    title_column: str | None,
    report: SourceReport,
) -> tuple[Dataset, Catalog]:
    """
    Raw interactions and their catalog, from a table of events and perhaps one of items.

    Args:
        log (`pyarrow.Table`): Events.
        items (`pyarrow.Table`, *optional*): One row an item.
        names (`dict[str, str]`): Our name of each column of `log`, from [`column_names`].
        timestamp_unit, items_id_column, title_column: As in [`load_table`].
        report ([`SourceReport`]): Is told how the two tables join.
    """
    check_columns(log, {_ARGUMENTS[name]: column for column, name in names.items()}, "The log has")
    if items is not None:
        wanted = {"items_id_column": items_id_column, "title_column": title_column}
        check_columns(items, {name: column for name, column in wanted.items() if column is not None}, "The items have")
    table = log.select(list(names)).rename_columns(list(names.values()))
    if TIMESTAMP not in table.column_names:
        times = pa.array(np.full(len(table), UNKNOWN_TIME))
    else:
        times = pa.array(parse_timestamps(table[TIMESTAMP], timestamp_unit))
        if len(times) and times[0].as_py() != UNKNOWN_TIME:
            times = times.cast(pa.timestamp("us"))
    ratings = {RATING: table[RATING]} if RATING in table.column_names else {}
    interactions = Dataset(pa.table({USER_ID: table[USER_ID], ITEM_ID: table[ITEM_ID], TIMESTAMP: times} | ratings))
    if items is None:
        return interactions, complete_catalog(_first_titles(table), table[ITEM_ID])
    records = item_records(items, items_id_column, title_column)
    return interactions, complete_catalog(records, table[ITEM_ID], report)


def complete_catalog(
    records: list[dict[str, Any]], item_ids: pa.ChunkedArray, report: SourceReport | None = None
) -> Catalog:
    """
    A catalog of `records` and, after them and without a title, the items that only the interactions know; `report` is
    told of these.
    """
    known = {str(record[ITEM_ID]) for record in records}
    items = [whole(item) for item in item_ids.unique().to_pylist() if not _is_missing_id(item)]
    unknown = [item for item in items if str(item) not in known]
    if report is not None:
        report.note_join(known, unknown, num_items=len(items))
    return Catalog.from_records([*records, *({ITEM_ID: item} for item in unknown)])


def read_table(
    path: str | os.PathLike,
    columns: list[str] | None,
    *,
    delimiter: str = ",",
    hub: dict[str, str | None] | None = None,
    report: SourceReport | None = None,
) -> pa.Table:
    """
    Read a csv, jsonl or parquet file, or a Hub data set, into memory.

    Args:
        path (`str` or `os.PathLike`): File, or id of a Hub data set.
        columns (`list[str]` or `None`): The columns to read, in this order; all of them if `None`.
        delimiter (`str`, *optional*, defaults to `","`): Of csv files.
        hub (`dict`, *optional*): Further arguments of [`~datasets.load_dataset`] for a Hub data set.
        report ([`SourceReport`], *optional*): Is told how many rows were read.
    """
    report = SourceReport() if report is None else report
    try:
        file = resolve_path(path)
    except FileNotFoundError as error:
        if not HUB_ID.fullmatch(str(path)) or _format(Path(path)) is not None:
            raise
        try:
            table = load_dataset(str(path), **(hub or {})).with_format("arrow")[:]
        except Exception as hub_error:
            raise FileNotFoundError(
                f"{error} Nor could it be loaded as a data set of the Hub: {type(hub_error).__name__}: {hub_error}"
            ) from hub_error
        report.note_file(path, len(table))
        return _select(table, columns, path)
    kind = _format(file)
    if kind is None:
        raise ValueError(
            f"`path` is {str(file)!r}; a table must end in one of {', '.join(FORMATS)}, text also in .gz."
        )
    with reading(file, f"good {kind} file"):
        if kind == "parquet":
            table, counts = pyarrow.parquet.read_table(file), None
        elif kind == "json":
            table, counts = _read_json(file), None
        else:
            table, counts = _read_csv(file, "\t" if ".tsv" in file.suffixes else delimiter)
    report.note_file(file, len(table), counts)
    return _select(table, columns, file)


def _format(path: Path) -> str | None:
    return FORMATS.get(Path(path.stem).suffix if path.suffix == ".gz" else path.suffix)


def _read_csv(path: Path, delimiter: str) -> tuple[pa.Table, RowCounts]:
    """All columns as text: ids keep leading zeros, and only an empty field is missing."""
    counts = count_rows(path, delimiter)
    parse = pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    with pa.input_stream(path, compression="detect") as stream:
        header = pyarrow.csv.open_csv(stream, parse_options=parse).schema.names
    convert = pyarrow.csv.ConvertOptions(
        column_types=dict.fromkeys(header, pa.string()), strings_can_be_null=True, null_values=[""]
    )
    with pa.input_stream(path, compression="detect") as stream:
        table = pyarrow.csv.read_csv(stream, parse_options=parse, convert_options=convert)
    check_count(path, len(table), counts.rows)
    # A byte order mark, which spreadsheets write, is no part of the first name.
    return table.rename_columns([name.removeprefix("\ufeff") for name in table.column_names]), counts


def _read_json(path: Path) -> pa.Table:
    """A file of one JSON object a line, or of one array of objects."""
    with open_text(path) as text:
        if text.read(1) == "[":
            records = json.loads(f"[{text.read()}")
            if not all(isinstance(record, dict) for record in records):
                raise ValueError("its array must hold objects alone")
            names = list(dict.fromkeys(name for record in records for name in record))
            return pa.table({name: [record.get(name) for record in records] for name in names})
    with pa.input_stream(path, compression="detect") as stream:
        return pyarrow.json.read_json(stream, read_options=pyarrow.json.ReadOptions(block_size=BLOCK_BYTES))


def _select(table: pa.Table, columns: list[str] | None, path: str | os.PathLike) -> pa.Table:
    missing = [name for name in columns or [] if name not in table.column_names]
    if missing:
        raise ValueError(
            f"{path} has no column {missing[0]!r}; it has {table.column_names}. Name your columns in `user_column`, "
            "`item_column`, `timestamp_column`, `title_column` and `rating_column`."
        )
    return table if columns is None else table.select(columns)


def check_columns(table: pa.Table, wanted: dict[str, str], who: str) -> None:
    """Refuse a table without the columns that are wanted; `wanted`: argument -> the column that it names."""
    for argument, column in wanted.items():
        if column not in table.column_names:
            raise ValueError(
                f"{who} no column {column!r}; there are {table.column_names}. Name the right one in `{argument}`."
            )


def _first_titles(table: pa.Table) -> list[dict[str, Any]]:
    if TITLE not in table.column_names:
        return []
    titles: dict[Any, Any] = {}
    for item, title in zip(table[ITEM_ID].to_pylist(), table[TITLE].to_pylist(), strict=True):
        if not _is_missing_id(item) and is_missing(titles.get(item)):
            titles[item] = title
    return [{ITEM_ID: whole(item), TITLE: title} for item, title in titles.items()]


def _is_missing_id(item: Any) -> bool:
    return is_missing(item) or item in MISSING_TEXT
