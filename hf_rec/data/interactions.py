"""
Clean an interaction log: check, de-duplicate, k-core, order.

In: a [`~datasets.Dataset`] with columns `user_id`, `item_id` (raw ids) and `timestamp`. Out: one with the features of
[`~hf_rec.columns.interaction_features`], in order of (timestamp, original row). What is wrong is an error that names
the row; what is dropped by policy is counted.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from hf_rec.columns import ITEM_ID, TIMESTAMP, USER_ID, interaction_features
from hf_rec.data.catalog import Catalog
from hf_rec.data.splits import UNKNOWN_TIME


MISSING_TEXT = ("", "nan", "NaN", "NAN", "null", "NULL", "None", "<NA>")
MICROSECONDS = {"s": 1_000_000, "ms": 1_000}
LATEST_SECOND = 10**11  # beyond it (the year 5138) a number of seconds is a number of milliseconds


@dataclass(frozen=True)
class CleanLog:
    """
    A cleaned log and what was done to it.

    Attributes:
        interactions (`datasets.Dataset`): Users as text, items as rows of `catalog`, times in seconds (-1 unknown).
        catalog ([`Catalog`]): The items that occur in it, in the order of the catalog given.
        report (`dict[str, int]`): Counts of what came in, was dropped by each policy, and is left.
    """

    interactions: Dataset
    catalog: Catalog
    report: dict[str, int]


def clean_interactions(
    dataset: Dataset,
    catalog: Catalog,
    *,
    duplicates: str = "exact",
    min_count: int = 0,
    require_titles: bool = False,
) -> CleanLog:
    """
    Check a raw log, drop what the stated policies drop, order it, and turn item ids into catalog rows.

    Args:
        dataset (`datasets.Dataset`): Columns `user_id`, `item_id`, `timestamp`; others are ignored. Times are seconds
            (whole, fractional, or as text), ISO dates (UTC where they name no zone) or Arrow timestamps; -1 in every
            row means that they are unknown and the rows are in order.
        catalog ([`Catalog`]): Holds every item of the log.
        duplicates (`str`, *optional*, defaults to `"exact"`): `"exact"` keeps one of the rows that agree in user, item
            and (known) time, `"first"` the earliest row of each user and item, `"keep"` all rows.
        min_count (`int`, *optional*, defaults to `0`): k of the k-core: users and items with fewer interactions are
            dropped, again and again until none is left.
        require_titles (`bool`, *optional*, defaults to `False`): Drop interactions with items whose title is missing
            or empty, before anything is counted.

    Returns:
        [`CleanLog`]
    """
    if duplicates not in ("exact", "first", "keep"):
        raise ValueError(f"`duplicates` must be 'exact', 'first' or 'keep', got {duplicates!r}.")
    if min_count < 0:
        raise ValueError(f"`min_count` must be at least 0, got {min_count}. 0 and 1 keep everything.")
    table = check_columns(dataset)
    times = parse_timestamps(table[TIMESTAMP])
    users = _encode(table[USER_ID], USER_ID)
    items = _encode(table[ITEM_ID], ITEM_ID)
    item_rows = _catalog_rows(items, catalog)[items.indices.to_numpy()] if len(times) else np.empty(0, dtype=np.int64)
    user_codes = users.indices.to_numpy()
    report = {"interactions_read": len(times)}

    keep = np.arange(len(times))
    if require_titles:
        titled = np.array([bool(title) for title in catalog.titles or [None] * len(catalog)], dtype=bool)
        keep = keep[titled[item_rows]]
    report["dropped_untitled"] = len(times) - len(keep)
    keep = keep[np.argsort(times[keep], kind="stable")]
    before = len(keep)
    keep = keep[_without_duplicates(user_codes[keep], item_rows[keep], times[keep], duplicates)]
    report["dropped_duplicates"] = before - len(keep)
    before = len(keep)
    keep = keep[k_core(user_codes[keep], item_rows[keep], min_count)]
    report["dropped_by_k_core"] = before - len(keep)

    used, new_rows = np.unique(item_rows[keep], return_inverse=True)
    columns = {
        USER_ID: pc.cast(users.dictionary, pa.string()).take(pa.array(user_codes[keep])),
        ITEM_ID: pa.array(new_rows.astype(np.int64)),
        TIMESTAMP: pa.array(np.where(times[keep] < 0, UNKNOWN_TIME, times[keep] // MICROSECONDS["s"])),
    }
    report |= {
        "users": len(np.unique(user_codes[keep])),
        "items": len(used),
        "interactions": len(keep),
        "items_without_interactions": len(catalog) - len(used),
    }
    interactions = Dataset(pa.table(columns).cast(interaction_features().arrow_schema))
    return CleanLog(interactions, catalog.subset(used.tolist()), report)


def check_columns(dataset: Dataset) -> pa.Table:
    """The three columns of a raw log. A column that is missing and an id that is missing or no id are errors."""
    for column in (USER_ID, ITEM_ID, TIMESTAMP):
        if column not in dataset.column_names:
            raise ValueError(
                f"The interactions have no column {column!r}; they have {dataset.column_names}. Rename a column, or "
                "name it in the arguments of the source."
            )
    table = dataset.select_columns([USER_ID, ITEM_ID, TIMESTAMP]).with_format("arrow")[:]
    for column in (USER_ID, ITEM_ID):
        values = table[column]
        if pa.types.is_floating(values.type):
            # Whole numbers become floats where pandas has met a missing one; the missing ones are named below.
            bad = pc.or_kleene(pc.is_null(values, nan_is_null=True), pc.equal(values, pc.floor(values)))
            _raise_if_bad(pc.invert(bad), values, column, "is no whole number or text")
            values = pc.cast(pc.if_else(pc.is_nan(values), None, values), pa.int64())
        elif pa.types.is_large_string(values.type) or pa.types.is_dictionary(values.type):
            values = pc.cast(values, pa.string())
        if not (pa.types.is_integer(values.type) or pa.types.is_string(values.type) or pa.types.is_null(values.type)):
            raise ValueError(f"Column {column!r} is of type {values.type}; ids must be whole numbers or text.")
        missing = pc.is_null(values)
        if pa.types.is_string(values.type):
            missing = pc.or_(missing, pc.is_in(pc.fill_null(values, ""), value_set=pa.array(MISSING_TEXT)))
        _raise_if_bad(missing, table[column], column, "is missing")
        table = table.set_column(table.column_names.index(column), column, values)
    return table


def parse_timestamps(column: pa.ChunkedArray, unit: str = "s") -> np.ndarray:
    """
    Times as microseconds since 1970.

    Args:
        column (`pyarrow.ChunkedArray`): Numbers, numbers as text, ISO dates as text, or Arrow timestamps.
        unit (`str`, *optional*, defaults to `"s"`): Of numbers: `"s"`, `"ms"`, or `"auto"`, which takes them as
            milliseconds if their median would otherwise lie beyond the year 5138.

    Returns:
        `np.ndarray` of `int64`; -1 in every entry if the column holds nothing but -1 (unknown).
    """
    if unit not in (*MICROSECONDS, "auto"):
        raise ValueError(f"`timestamp_unit` must be 's', 'ms' or 'auto', got {unit!r}.")
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        _raise_if_bad(pc.is_null(column), column, TIMESTAMP, "is missing")
        times = pc.cast(column, pa.timestamp("us")).cast(pa.int64()).to_numpy()
        _raise_if_bad(times < 0, column, TIMESTAMP, "lies before 1970")
        return times
    if pa.types.is_null(column.type):
        column = column.cast(pa.string())
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        numbers, dates = _parse_text(column)
    elif pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        dates = np.full(len(column), np.nan)
        numbers = pc.cast(column, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        exact = pc.fill_null(column, -2).to_numpy() if pa.types.is_integer(column.type) else numbers
        if len(exact) and (exact == UNKNOWN_TIME).all():
            return np.full(len(column), UNKNOWN_TIME)
    else:
        raise ValueError(f"Column {TIMESTAMP!r} is of type {column.type}; give seconds or ISO dates.")
    if unit == "auto":
        finite = numbers[np.isfinite(numbers)]
        unit = "ms" if len(finite) and np.median(finite) > LATEST_SECOND else "s"
    with np.errstate(invalid="ignore"):
        bad = ~(numbers >= 0) & ~(dates >= 0) | np.isinf(numbers)
        late = (numbers > LATEST_SECOND) if unit == "s" else np.zeros(len(numbers), dtype=bool)
    _raise_if_bad(bad, column, TIMESTAMP, "is neither a time since 1970 nor an ISO date")
    hint = "lies beyond the year 5138: it looks like milliseconds, for which `timestamp_unit` must be 'ms' or 'auto'"
    _raise_if_bad(late, column, TIMESTAMP, hint)
    return np.where(np.isfinite(dates), dates, np.round(numbers * MICROSECONDS[unit])).astype(np.int64)


def k_core(users: np.ndarray, items: np.ndarray, min_count: int) -> np.ndarray:
    """
    Drop users and items with fewer than `min_count` rows until every one that is left has that many.

    Args:
        users, items (`np.ndarray` of `int`, shape `(M,)`): Codes from 0 on, one entry an interaction.
        min_count (`int`): The k of the k-core.

    Returns:
        `np.ndarray` of `int`: Positions of the rows that are left, ascending.
    """
    keep = np.arange(len(users))
    num_before = -1
    while min_count > 1 and len(keep) != num_before:
        num_before = len(keep)
        for codes in (users, items):
            codes = codes[keep]
            keep = keep[np.bincount(codes)[codes] >= min_count]
    return keep


def _without_duplicates(users: np.ndarray, items: np.ndarray, times: np.ndarray, duplicates: str) -> np.ndarray:
    """Positions to keep, ascending; rows come ordered by time."""
    if duplicates == "keep" or (duplicates == "exact" and (times == UNKNOWN_TIME).all()):
        return np.arange(len(users))
    keys = (items, users) if duplicates == "first" else (times, items, users)
    order = np.lexsort(keys)  # stable: of equal rows the first comes first
    same = np.ones(max(len(order) - 1, 0), dtype=bool)
    for key in keys:
        same &= key[order][1:] == key[order][:-1]
    return np.sort(order[np.concatenate([np.ones(min(len(order), 1), dtype=bool), ~same])])


def _encode(column: pa.ChunkedArray, name: str) -> pa.DictionaryArray:
    if pa.types.is_null(column.type):
        column = column.cast(pa.string())
    return pc.dictionary_encode(column).combine_chunks()


def _catalog_rows(items: pa.DictionaryArray, catalog: Catalog) -> np.ndarray:
    """Catalog row of each distinct item. An item that the catalog lacks is named, with its first row."""
    rows = np.empty(len(items.dictionary), dtype=np.int64)
    for code, item_id in enumerate(items.dictionary.to_pylist()):
        try:
            rows[code] = catalog.row(item_id)
        except ValueError as error:
            codes = items.indices.to_numpy()
            raise ValueError(
                f"Row {np.flatnonzero(codes == code)[0]} of the interactions (the first is 0): {error}"
            ) from None
    return rows


def _parse_text(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Text as (numbers, microseconds of ISO dates), NaN in both where it is neither."""
    encoded = pc.dictionary_encode(column).combine_chunks()
    texts = encoded.dictionary.to_pylist()
    numbers, dates = np.full(len(texts) + 1, np.nan), np.full(len(texts) + 1, np.nan)
    for code, text in enumerate(texts):
        try:
            numbers[code] = float(text)
        except ValueError:
            try:
                date = datetime.fromisoformat(text.strip())
            except ValueError:
                continue
            date = date if date.tzinfo else date.replace(tzinfo=UTC)
            dates[code] = date.timestamp() * MICROSECONDS["s"]
    codes = pc.fill_null(encoded.indices, len(texts)).to_numpy()
    return numbers[codes], dates[codes]


def _raise_if_bad(bad: pa.ChunkedArray | np.ndarray, values: pa.ChunkedArray, column: str, what: str) -> None:
    bad = np.flatnonzero(bad if isinstance(bad, np.ndarray) else bad.to_numpy())
    if len(bad):
        row = int(bad[0])
        raise ValueError(
            f"`{column}` {what} in {len(bad)} of {len(values)} rows; the first is row {row} (counted from 0), which "
            f"has {values[row].as_py()!r}. Repair or drop these rows."
        )
