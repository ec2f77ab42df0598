"""
Ready-made rows of a history and the item that followed it, with a JSON file of items (as the MiniOneRec release).
"""

import json
import os
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, DatasetDict

from hf_rec.columns import EVENTS, HISTORY_ITEM_ID, ITEM_ID, TIMESTAMP, UNKNOWN_TIME, USER_ID
from hf_rec.data.catalog import Catalog
from hf_rec.data.sources.csv_rows import read_dicts
from hf_rec.data.sources.files import reading, resolve_path
from hf_rec.data.sources.item_records import list_or_text
from hf_rec.data.sources.report import SourceReport
from hf_rec.data.splits import ready_made


CODES = "codes"
CODE = re.compile(r"<([a-z]+)_([0-9]{1,9})>")  # the level, and the code in it


def load_history_csv(
    path: str | os.PathLike,
    *,
    train: str = "train.csv",
    validation: str | None = None,
    validation_share: float | None = None,
    test: str | None = "test.csv",
    items: str = "item.json",
    codes: str = "index.json",
    report: SourceReport | None = None,
) -> tuple[DatasetDict, Catalog]:
    """
    Read a folder of csv files with columns `user_id, history_item_id, item_id`: a list as text, oldest first, and the
    item that came next. Times are not known.

    Args:
        path (`str` or `os.PathLike`): The folder.
        train, test (`str`, *optional*, default to `"train.csv"` and `"test.csv"`): Names in the folder; no test split
            if `test` is `None`.
        validation (`str`, *optional*): File of the validation split.
        validation_share (`float`, *optional*): Without such a file: the share of the last rows of `train` that become
            the validation split, in the order of the file.
        items (`str`, *optional*, defaults to `"item.json"`): JSON object of item id to an object with `title` and
            attributes. Its order is that of the catalog.
        codes (`str`, *optional*, defaults to `"index.json"`): JSON object of item id to semantic id, one text a level
            as in `["<a_60>", "<b_159>", "<c_203>"]`. Where the folder has it, the numbers become the attribute `codes`
            of the items: `[60, 159, 203]`.
        report ([`SourceReport`], *optional*): Is told how many rows were read.

    Returns:
        `tuple[datasets.DatasetDict, Catalog]`: Splits ready to train on, and the catalog.
    """
    if validation is not None and validation_share is not None:
        raise ValueError("`validation` and `validation_share` are both given. Name the file, or the share of `train`.")
    if validation_share is not None and not 0 < validation_share < 1:
        raise ValueError(f"`validation_share` must be between 0 and 1, got {validation_share}.")
    report = SourceReport() if report is None else report
    folder = resolve_path(path)
    catalog = _read_items(folder / items, folder / codes, report)
    rows = {"train": _read_rows(folder / train, catalog, report)}
    if validation is not None:
        rows["validation"] = _read_rows(folder / validation, catalog, report)
    elif validation_share is not None:
        kept = len(rows["train"]) - max(1, round(len(rows["train"]) * validation_share))
        if kept < 1:
            raise ValueError(f"`validation_share` = {validation_share} leaves no row of {train} to train on.")
        rows = {"train": rows["train"].slice(0, kept), "validation": rows["train"].slice(kept)}
    if test is not None:
        rows["test"] = _read_rows(folder / test, catalog, report)
    return ready_made({name: Dataset(table) for name, table in rows.items()}), catalog


def _read_items(path: Path, codes_path: Path, report: SourceReport) -> Catalog:
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}. `items` must be the JSON file of items.")
    with reading(path, "good JSON file of items"):
        items = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(items, dict) or not all(isinstance(item, dict) for item in items.values()):
            raise ValueError(f"{path} must be a JSON object of item id to an object with `title` and attributes.")
        records = {item_id: {ITEM_ID: item_id, **_attributes(item)} for item_id, item in items.items()}
        if codes_path.is_file():
            _add_codes(records, codes_path, report)
        return Catalog.from_records(records.values())


def _add_codes(records: dict[str, dict[str, Any]], path: Path, report: SourceReport) -> None:
    """Give the records their semantic ids as numbers. All items have the same levels, named by letters."""
    with reading(path, "good JSON file of semantic ids"):
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or not all(isinstance(texts, list) for texts in found.values()):
            raise ValueError(f"{path} must be a JSON object of item id to a list of texts.")
        levels = None
        for item_id, texts in found.items():
            codes = [CODE.fullmatch(text) for text in texts]
            names = [code[1] for code in codes if code]
            levels = levels or names
            if not names or len(names) < len(codes) or names != levels:
                raise ValueError(
                    f"{path} gives item {item_id!r} {texts!r:.80}, not a list like ['<a_60>', '<b_159>']."
                )
            if item_id not in records or CODES in records[item_id]:
                what = "has codes in both" if item_id in records else "is no item"
                raise ValueError(f"{path} does not go with the file of items: {item_id!r} {what}. Repair one of them.")
            records[item_id][CODES] = [int(code[2]) for code in codes if code]
    report.note_file(path, len(found))


def _attributes(item: dict[str, Any]) -> dict[str, Any]:
    """Attributes with a value; one that is a list as text becomes the list."""
    found = {}
    for name, value in item.items():
        if isinstance(value, str):
            value = list_or_text(value)
        if value not in (None, "", []):
            found[name] = value
    return found


def _read_rows(path: Path, catalog: Catalog, report: SourceReport) -> pa.Table:
    """Rows of one file: user, events as catalog rows, unknown times. A bad row is named by its line."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}. Name the file as it stands in the folder.")
    users: list[str] = []
    events: list[list[int]] = []
    with reading(path, "good csv file"):
        for line, row in read_dicts(path, (USER_ID, HISTORY_ITEM_ID, ITEM_ID), report):
            where = f"Line {line} of {path}"
            history = list_or_text(row[HISTORY_ITEM_ID])
            if not row[USER_ID] or not isinstance(history, list):
                raise ValueError(
                    f"{where} has {USER_ID!r} {row[USER_ID]!r} and {HISTORY_ITEM_ID!r} {row[HISTORY_ITEM_ID]!r:.80}; "
                    "it must be a name and a list like [3, 1, 2]."
                )
            users.append(row[USER_ID])
            try:
                events.append(catalog.rows([*history, row[ITEM_ID]]))
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
    if not users:
        raise ValueError(f"{path} has no rows.")
    schema = pa.schema([(USER_ID, pa.string()), (EVENTS, pa.list_(pa.int64())), (TIMESTAMP, pa.int64())])
    return pa.table({USER_ID: users, EVENTS: events, TIMESTAMP: [UNKNOWN_TIME] * len(users)}, schema=schema)
