"""
Ready-made rows of a history and the item that followed it, with a JSON file of items (as the MiniOneRec release).
"""

import ast
import csv
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, DatasetDict

from hf_rec.columns import ITEM_ID, TIMESTAMP, USER_ID
from hf_rec.data.catalog import Catalog
from hf_rec.data.sources.files import resolve_path
from hf_rec.data.splits import EVENTS, UNKNOWN_TIME, ready_made


HISTORY_ITEM_ID = "history_item_id"


def load_history_csv(
    path: str | os.PathLike,
    *,
    train: str = "train.csv",
    validation: str | None = None,
    validation_share: float | None = None,
    test: str | None = "test.csv",
    items: str = "item.json",
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

    Returns:
        `tuple[datasets.DatasetDict, Catalog]`: Splits ready to train on, and the catalog.
    """
    if validation is not None and validation_share is not None:
        raise ValueError("`validation` and `validation_share` are both given. Name the file, or the share of `train`.")
    if validation_share is not None and not 0 < validation_share < 1:
        raise ValueError(f"`validation_share` must be between 0 and 1, got {validation_share}.")
    folder = resolve_path(path)
    catalog = _read_items(folder / items)
    rows = {"train": _read_rows(folder / train, catalog)}
    if validation is not None:
        rows["validation"] = _read_rows(folder / validation, catalog)
    elif validation_share is not None:
        kept = len(rows["train"]) - max(1, round(len(rows["train"]) * validation_share))
        if kept < 1:
            raise ValueError(f"`validation_share` = {validation_share} leaves no row of {train} to train on.")
        rows = {"train": rows["train"].slice(0, kept), "validation": rows["train"].slice(kept)}
    if test is not None:
        rows["test"] = _read_rows(folder / test, catalog)
    return ready_made({name: Dataset(table) for name, table in rows.items()}), catalog


def _read_items(path: Path) -> Catalog:
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}. `items` must be the JSON file of items.")
    items = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(items, dict) or not all(isinstance(item, dict) for item in items.values()):
        raise ValueError(f"{path} must be a JSON object of item id to an object with `title` and attributes.")
    return Catalog.from_records({ITEM_ID: item_id, **_attributes(item)} for item_id, item in items.items())


def _attributes(item: dict[str, Any]) -> dict[str, Any]:
    """Attributes with a value; one that is a list as text becomes the list."""
    found = {}
    for name, value in item.items():
        if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
            value = _list_or_text(value)
        if value not in (None, "", []):
            found[name] = value
    return found


def _list_or_text(text: str) -> list | str:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return value if isinstance(value, list) else text


def _read_rows(path: Path, catalog: Catalog) -> pa.Table:
    """Rows of one file: user, events as catalog rows, unknown times. A bad row is named by its line."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}. Name the file as it stands in the folder.")
    users, events = [], []
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        missing = {USER_ID, HISTORY_ITEM_ID, ITEM_ID} - set(reader.fieldnames or ())
        if missing:
            raise ValueError(f"{path} has no column {sorted(missing)[0]!r}; it has {reader.fieldnames}.")
        for row in reader:
            where = f"Line {reader.line_num} of {path}"
            history = _list_or_text(row[HISTORY_ITEM_ID] or "")
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
