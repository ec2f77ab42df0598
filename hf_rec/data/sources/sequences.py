"""Sequences that someone else has made: csv with a title map (as the MSL release), and text lines of ids."""

import ast
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict

from hf_rec.columns import EVENTS, ITEM_ID, ITEM_IDS, TIMESTAMP, TITLE, UNKNOWN_TIME, USER_ID, column_values
from hf_rec.data.catalog import Catalog, is_missing
from hf_rec.data.sources.csv_rows import read_dicts
from hf_rec.data.sources.files import open_text, reading, resolve_path
from hf_rec.data.sources.item_records import item_records
from hf_rec.data.sources.report import SourceReport
from hf_rec.data.sources.tables import check_columns, read_table
from hf_rec.data.splits import ready_made
from hf_rec.data.timestamps import LATEST_SECOND


def load_sequence_csv(
    path: str | os.PathLike,
    *,
    train: str = "train.csv",
    validation: str | None = None,
    validation_from: int | None = None,
    test: str | None = "test.csv",
    titles: str = "id2name4Rec.json",
    report: SourceReport | None = None,
) -> tuple[DatasetDict, Catalog]:
    """
    Read a folder of csv files with columns `user_id, item_ids, timestamp`, each row one sequence.

    `item_ids` is a list as text, oldest first, the target last. Every row is kept as it is, repeated items included.

    Args:
        path (`str` or `os.PathLike`): The folder.
        train, test (`str`, *optional*, default to `"train.csv"` and `"test.csv"`): Names in the folder; no test split
            if `test` is `None`.
        validation (`str`, *optional*): File that the validation rows are taken from, if not `train`.
        validation_from (`int`, *optional*): Rows at or after this time (seconds) leave `train`; those of `validation`
            become the validation split. The MSL release ships none: its Books set is cut at 1501459200.
        titles (`str`, *optional*, defaults to `"id2name4Rec.json"`): JSON object of item id to title. Its order is
            that of the catalog.
        report ([`SourceReport`], *optional*): Is told how many rows were read.

    Returns:
        `tuple[datasets.DatasetDict, Catalog]`: Splits ready to train on, and the catalog.
    """
    report = SourceReport() if report is None else report
    folder = resolve_path(path)
    catalog = _read_titles(folder / titles)
    read = {}
    rows = {"train": _read_rows(folder / train, catalog, report)}
    if validation is not None or validation_from is not None:
        is_train = validation is None or validation == train
        rows["validation"] = rows["train"] if is_train else _read_rows(folder / str(validation), catalog, report)
    if test is not None:
        rows["test"] = _read_rows(folder / test, catalog, report)
    for name, table in rows.items():
        if validation_from is not None and name != "test":
            late = table[TIMESTAMP].to_numpy() >= validation_from
            table = table.filter(pa.array(late if name == "validation" else ~late))
        read[name] = Dataset(table)
        if not len(read[name]):
            raise ValueError(f"`validation_from` = {validation_from} leaves no row in {name!r}. Choose another time.")
    return ready_made(read), catalog


def load_sequence_text(
    path: str | os.PathLike,
    *,
    items: str | os.PathLike | None = None,
    items_id_column: str | None = None,
    title_column: str | None = None,
    report: SourceReport | None = None,
) -> tuple[Dataset, Catalog]:
    """
    Read a file with one user a line: `user item item ...`, oldest first, ids only (as the S3-Rec release).

    Args:
        path (`str` or `os.PathLike`): The file, `.gz` or not.
        items (`str` or `os.PathLike`, *optional*): A table with one row an item, in any form that
            [`~hf_rec.data.sources.tables.load_table`] reads: titles and attributes. Items of the sequences that it
            lacks are kept without them, and counted.
        items_id_column (`str`, *optional*, defaults to `"item_id"`): Column of `items` with the ids of the sequences.
        title_column (`str`, *optional*): Column of `items` with the titles; `"title"` unless given, if there is one.
        report ([`SourceReport`], *optional*): Is told how many lines were read, and how the two files join.

    Returns:
        `tuple[datasets.Dataset, Catalog]`: Interactions in the order of the file, their times unknown (-1), and a
        catalog in order of the id, without titles where no `items` are given.
    """
    given = {"items_id_column": items_id_column, "title_column": title_column}
    for argument, column in given.items():
        if items is None and column is not None:
            raise ValueError(f"`{argument}` is {column!r}, but no table `items` is given.")
    report = SourceReport() if report is None else report
    interactions = Dataset(_read_lines(resolve_path(path), report))
    ids = pc.unique(column_values(interactions, ITEM_ID)).to_pylist()
    records = [] if items is None else _records_of(items, ids, items_id_column or ITEM_ID, title_column, report)
    known = {record[ITEM_ID] for record in records}
    records += [{ITEM_ID: item} for item in ids if item not in known]
    records.sort(key=lambda record: (isinstance(record[ITEM_ID], str), record[ITEM_ID]))
    with reading(Path(path if items is None else items), "good table of items"):
        return interactions, Catalog.from_records(records)


def _read_lines(path: Path, report: SourceReport) -> pa.Table:
    """Users, items and unknown times. Ids are numbers where every one of them spells a number."""
    lengths: dict[str, int] = {}
    texts: list[str] = []
    with reading(path, "good text file"), open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            user, *events = line.split()
            if not events:
                raise ValueError(f"Line {number} of {path} has user {user!r} but no items. Drop the line.")
            if user in lengths:
                raise ValueError(
                    f"User {user!r} stands in several lines of {path}. Put each user's items in one line."
                )
            lengths[user] = len(events)
            texts.extend(events)
    if not lengths:
        raise ValueError(f"{path} has no rows.")
    report.note_file(path, len(lengths))
    items: list[Any] = list(texts)
    if all(isinstance(numeric_id(item), int) for item in set(texts)):
        items = [int(item) for item in texts]
    users = pa.array(list(lengths), pa.string())
    users = users.take(pa.array(np.repeat(np.arange(len(lengths)), list(lengths.values()))))
    return pa.table({USER_ID: users, ITEM_ID: pa.array(items), TIMESTAMP: np.full(len(items), UNKNOWN_TIME)})


def _records_of(
    path: str | os.PathLike, ids: list[Any], id_column: str, title_column: str | None, report: SourceReport
) -> list[dict[str, Any]]:
    """Records of the table of items. Ids are numbers or texts, as those of the sequences are."""
    table = read_table(path, None, report=report)
    wanted = {"items_id_column": id_column, "title_column": title_column}
    check_columns(table, {name: column for name, column in wanted.items() if column is not None}, "The items have")
    has_titles = TITLE in table.column_names and id_column != TITLE
    records = item_records(table, id_column, title_column or (TITLE if has_titles else None))
    for row, record in enumerate(records):
        if is_missing(record[ITEM_ID]):
            raise ValueError(f"Row {row} of {path} (the first is 0) has no {id_column!r}. Repair or drop it.")
        text = str(record[ITEM_ID])
        record[ITEM_ID] = numeric_id(text) if isinstance(ids[0], int) else text
    known = {str(record[ITEM_ID]) for record in records}
    unknown = [item for item in ids if str(item) not in known]
    if len(unknown) == len(ids):
        raise ValueError(
            f"No item of the sequences has a row in {path}: its column {id_column!r} holds ids like "
            f"{sorted(known)[:3]}, the sequences ids like {ids[:3]}. `items_id_column` names the right one of "
            f"{table.column_names}."
        )
    report.note_join(known, unknown, num_items=len(ids))
    return records


def numeric_id(text: str) -> int | str:
    """An id as the number that it spells, if that is 64 bits wide at most and spells the id again."""
    is_number = text.isdecimal() and len(text) <= 18 and str(int(text)) == text
    return int(text) if is_number else text


def _read_titles(path: Path) -> Catalog:
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}. `titles` must be the JSON file of item ids and titles.")
    with reading(path, "good JSON file of titles"):
        titles = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(titles, dict):
            raise ValueError(f"{path} holds a JSON {type(titles).__name__}; it must be an object of item id to title.")
        return Catalog.from_records({ITEM_ID: numeric_id(item), TITLE: title} for item, title in titles.items())


def _read_rows(path: Path, catalog: Catalog, report: SourceReport) -> pa.Table:
    """Rows of one file: user, events as catalog rows, time. A bad row is named by its line."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}. Name the file as it stands in the folder.")
    users: list[str] = []
    events: list[list[int]] = []
    times: list[int] = []
    with reading(path, "good csv file"):
        for line, row in read_dicts(path, (USER_ID, ITEM_IDS, TIMESTAMP), report):
            where = f"Line {line} of {path}"
            if not row[USER_ID]:
                raise ValueError(f"{where} has no {USER_ID!r}. Repair or drop the row.")
            users.append(row[USER_ID])
            events.append(_parse_items(row[ITEM_IDS], catalog, where))
            times.append(_parse_time(row[TIMESTAMP], where))
    if not users:
        raise ValueError(f"{path} has no rows.")
    schema = pa.schema([(USER_ID, pa.string()), (EVENTS, pa.list_(pa.int64())), (TIMESTAMP, pa.int64())])
    return pa.table({USER_ID: users, EVENTS: events, TIMESTAMP: times}, schema=schema)


def _parse_time(text: str, where: str) -> int:
    try:
        time = int(text)
    except ValueError:
        raise ValueError(f"{where} has {TIMESTAMP!r} {text!r:.80}; it must be whole seconds.") from None
    if not UNKNOWN_TIME <= time <= LATEST_SECOND:
        raise ValueError(
            f"{where} has {TIMESTAMP!r} {text:.80}; it must be seconds from 0 (1970) to {LATEST_SECOND}, or -1."
        )
    return time


def _parse_literal(text: str) -> Any:
    """A list as Python writes it, which is no JSON where it holds text; slower by far."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _parse_items(text: str, catalog: Catalog, where: str) -> list[int]:
    try:
        items = json.loads(text)
    except (ValueError, RecursionError):
        items = _parse_literal(text)
    if not isinstance(items, list) or not items:
        raise ValueError(f"{where} has {ITEM_IDS!r} {text!r:.80}; it must be a list like [3, 1, 2].")
    try:
        return catalog.rows(items)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
