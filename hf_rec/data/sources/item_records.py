"""The table of items that a log may have beside it: one row an item becomes a record for the catalog."""

import ast
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from hf_rec.columns import ITEM_ID, TITLE


def item_records(table: pa.Table, id_column: str, title_column: str | None) -> list[dict[str, Any]]:
    """
    Records for [`~hf_rec.data.catalog.Catalog.from_records`].

    Args:
        table (`pyarrow.Table`): One row an item.
        id_column, title_column (`str`): What becomes `item_id` and `title`. The other columns become attributes; one
            that has one of these two names and is neither is kept as `source_item_id` or `source_title`. A text column
            whose every value is a list, as csv files hold them, becomes lists.
    """
    names = {id_column: ITEM_ID} | ({} if title_column is None else {title_column: TITLE})
    renamed = [names.get(name, f"source_{name}" if name in (ITEM_ID, TITLE) else name) for name in table.column_names]
    if len(set(renamed)) < len(renamed):
        repeated = next(name for name in renamed if renamed.count(name) > 1)
        raise ValueError(f"The items have two columns that would be named {repeated!r}. Rename or drop one of them.")
    table = table.rename_columns(renamed)
    for name in set(renamed) - {ITEM_ID, TITLE}:
        lists = _lists(table[name])
        if lists is not None:
            table = table.set_column(table.column_names.index(name), name, lists)
    return [record | {ITEM_ID: whole(record[ITEM_ID])} for record in table.to_pylist()]


def whole(item: Any) -> Any:
    """A whole number that pandas made a float, as the number it was."""
    return int(item) if isinstance(item, float) and item.is_integer() else item


def list_or_text(text: str) -> list | str:
    """The list that a text spells, as JSON or Python writes it; else the text. Nothing is evaluated."""
    if not (text.startswith("[") and text.endswith("]")):
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return value if isinstance(value, list) else text


def _lists(column: pa.ChunkedArray) -> pa.Array | None:
    """A text column whose every value spells a list, as lists of one type; `None` for any other column."""
    if not pa.types.is_string(column.type) or column.null_count == len(column):
        return None
    if not pc.all(pc.and_(pc.starts_with(column, "["), pc.ends_with(column, "]"))).as_py():
        return None
    values = [None if text is None else list_or_text(text) for text in column.to_pylist()]
    if not all(value is None or isinstance(value, list) for value in values):
        return None
    try:
        return pa.array(values)
    except pa.ArrowException:
        return None
