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

from hf_rec.columns import ITEM_ID, RATING, TIMESTAMP, UNKNOWN_TIME, USER_ID, interaction_features
from hf_rec.data.catalog import Catalog
from hf_rec.data.timestamps import MICROSECONDS, parse_timestamps, raise_if_bad


MISSING_TEXT = ("", "nan", "NaN", "NAN", "null", "NULL", "None", "<NA>")


@dataclass(frozen=True)
class CleanLog:
    """
    A cleaned log and what was done to it.

    Attributes:
        interactions (`datasets.Dataset`): Users as text, items as rows of `catalog`, times in seconds (-1 unknown).
        catalog ([`Catalog`]): The items that occur in it, or all, in the order of the catalog given. Rows of the
            interactions are rows of this catalog, not of the one given.
        report (`dict[str, int]`): Counts of what came in, was dropped by each policy, and is left.
        ratings (`np.ndarray` or `None`): The rating of each interaction, where they were asked for.
    """

    interactions: Dataset
    catalog: Catalog
    report: dict[str, int]
    ratings: np.ndarray | None = None


def clean_interactions(
    dataset: Dataset,
    catalog: Catalog,
    *,
    duplicates: str = "exact",
    min_count: int = 0,
    min_rating: float | None = None,
    since: str | None = None,
    until: str | None = None,
    require_titles: bool = False,
    keep_all_items: bool = False,
    timestamp_unit: str = "s",
    with_ratings: bool = False,
) -> CleanLog:
    """
    Check a raw log, drop what the stated policies drop, order it, and turn item ids into catalog rows.

    Args:
        dataset (`datasets.Dataset`): Columns `user_id`, `item_id`, `timestamp`; others are ignored. Times are numbers
            (whole, fractional, or as text; in `timestamp_unit`), ISO dates (UTC where they name no zone) or Arrow
            timestamps; -1 in every row means that they are unknown and the rows are in order.
        catalog ([`Catalog`]): Holds every item of the log.
        duplicates (`str`, *optional*, defaults to `"exact"`): `"exact"` keeps one of the rows that agree in user, item
            and (known) time, `"first"` the earliest row of each user and item, `"keep"` all rows.
        min_count (`int`, *optional*, defaults to `0`): k of the k-core: users and items with fewer interactions are
            dropped, again and again until none is left.
        min_rating (`float`, *optional*): Drop interactions with a smaller `rating`, a column that the log must then
            have, before anything is counted.
        since, until (`str`, *optional*): Drop interactions before or after this time, in ISO form and UTC where it
            names no zone, before anything is counted. A date alone is its first second.
        require_titles (`bool`, *optional*, defaults to `False`): Drop interactions with items whose title is missing
            or empty, before anything is counted.
        keep_all_items (`bool`, *optional*, defaults to `False`): Keep items without interactions in the catalog (with
            `require_titles`, those with a title), so that a model of texts can recommend them too.
        timestamp_unit (`str`, *optional*, defaults to `"s"`): Of times that are numbers: `"s"`, `"ms"` or `"auto"`.
        with_ratings (`bool`, *optional*, defaults to `False`): Hand on the column `rating`, which the log must have.

    Returns:
        [`CleanLog`]
    """
    if duplicates not in ("exact", "first", "keep"):
        raise ValueError(f"`duplicates` must be 'exact', 'first' or 'keep', got {duplicates!r}.")
    if min_count < 0:
        raise ValueError(f"`min_count` must be at least 0, got {min_count}. 0 and 1 keep everything.")
    table = raw_columns(dataset)
    times = parse_timestamps(table[TIMESTAMP], timestamp_unit)
    users = _encode(table[USER_ID], USER_ID)
    items = _encode(table[ITEM_ID], ITEM_ID)
    item_rows = _catalog_rows(items, catalog)[items.indices.to_numpy()] if len(times) else np.empty(0, dtype=np.int64)
    user_codes = users.indices.to_numpy()
    report = {"interactions_read": len(times)}

    keep = np.flatnonzero(_is_between(times, since, until))
    report["dropped_outside_times"] = len(times) - len(keep)
    before = len(keep)
    ratings = _ratings(dataset) if with_ratings or min_rating is not None else None
    if ratings is not None and min_rating is not None:
        keep = keep[ratings[keep] >= min_rating]
    report["dropped_low_ratings"] = before - len(keep)
    before = len(keep)
    kept_items = np.ones(len(catalog), dtype=bool)
    if require_titles:
        kept_items = np.array([bool(title) for title in catalog.titles or [None] * len(catalog)], dtype=bool)
        keep = keep[kept_items[item_rows[keep]]]
    report["dropped_untitled"] = before - len(keep)
    keep = keep[np.argsort(times[keep], kind="stable")]
    before = len(keep)
    keep = keep[_without_duplicates(user_codes[keep], item_rows[keep], times[keep], duplicates)]
    report["dropped_duplicates"] = before - len(keep)
    before = len(keep)
    keep = keep[k_core(user_codes[keep], item_rows[keep], min_count)]
    report["dropped_by_k_core"] = before - len(keep)

    used = np.zeros(len(catalog), dtype=bool)
    used[item_rows[keep]] = True
    kept_items = kept_items if keep_all_items else used
    new_rows = np.cumsum(kept_items) - 1
    columns = {
        USER_ID: pc.cast(users.dictionary, pa.string()).take(pa.array(user_codes[keep])),
        ITEM_ID: pa.array(new_rows[item_rows[keep]]),
        TIMESTAMP: pa.array(np.where(times[keep] < 0, UNKNOWN_TIME, times[keep] // MICROSECONDS["s"])),
    }
    report |= {
        "users": len(np.unique(user_codes[keep])),
        "items": int(used.sum()),
        "interactions": len(keep),
        "items_without_interactions": int((~used).sum()),
        "of_these_kept_in_the_catalog": int((kept_items & ~used).sum()),
    }
    interactions = Dataset(pa.table(columns).cast(interaction_features().arrow_schema))
    kept_ratings = ratings[keep] if ratings is not None and with_ratings else None
    return CleanLog(interactions, catalog.subset(np.flatnonzero(kept_items).tolist()), report, kept_ratings)


def raw_columns(dataset: Dataset) -> pa.Table:
    """The three columns of a raw log. A column that is missing and an id that is missing or no id are errors."""
    for column in (USER_ID, ITEM_ID, TIMESTAMP):
        if column not in dataset.column_names:
            raise ValueError(
                f"The interactions have no column {column!r}; they have {dataset.column_names}. Rename a column "
                "(`dataset.rename_column`), or name it: `prepare_interactions` and `hf-rec prepare --source table` "
                "have an argument for each."
            )
    table = dataset.select_columns([USER_ID, ITEM_ID, TIMESTAMP]).with_format("arrow")[:]
    for column in (USER_ID, ITEM_ID):
        values = table[column]
        if pa.types.is_floating(values.type):
            # Whole numbers become floats where pandas has met a missing one; the missing ones are named below.
            bad = pc.or_kleene(pc.is_null(values, nan_is_null=True), pc.equal(values, pc.floor(values)))
            raise_if_bad(pc.invert(bad), values, column, "is no whole number or text")
            values = pc.cast(pc.if_else(pc.is_nan(values), None, values), pa.int64())
        elif pa.types.is_large_string(values.type) or pa.types.is_dictionary(values.type):
            values = pc.cast(values, pa.string())
        if not (pa.types.is_integer(values.type) or pa.types.is_string(values.type) or pa.types.is_null(values.type)):
            raise ValueError(f"Column {column!r} is of type {values.type}; ids must be whole numbers or text.")
        missing = pc.is_null(values)
        if pa.types.is_string(values.type):
            missing = pc.or_(missing, pc.is_in(pc.fill_null(values, ""), value_set=pa.array(MISSING_TEXT)))
        raise_if_bad(missing, table[column], column, "is missing")
        table = table.set_column(table.column_names.index(column), column, values)
    return table


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


def _ratings(dataset: Dataset) -> np.ndarray:
    """The ratings of all rows. A log without them, and a rating that is missing or no number, are errors."""
    if RATING not in dataset.column_names:
        raise ValueError(
            f"`min_rating` needs a column {RATING!r}; the interactions have {dataset.column_names}. So does `like`. "
            "Leave it out, or, for a table, name the column in `rating_column`."
        )
    values = dataset.select_columns([RATING]).with_format("arrow")[:][RATING]
    numbers = values
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        is_number = pc.match_substring_regex(values, r"^\s*[+-]?(\d+\.?\d*|\.\d+)\s*$")
        numbers = pc.if_else(is_number, pc.utf8_trim_whitespace(values), None)
    numbers = pc.cast(numbers, pa.float64())
    raise_if_bad(pc.is_null(numbers, nan_is_null=True), values, RATING, "is missing or no number")
    return numbers.to_numpy()


def _is_between(times: np.ndarray, since: str | None, until: str | None) -> np.ndarray:
    """Which of the times, in microseconds, lie in the window."""
    inside = np.ones(len(times), dtype=bool)
    for name, value in (("since", since), ("until", until)):
        if value is None:
            continue
        try:
            date = datetime.fromisoformat(value)
        except (TypeError, ValueError):
            raise ValueError(
                f"`{name}` must be a date or time in ISO form, such as '2019-01-01', got {value!r}."
            ) from None
        if len(times) and (times == UNKNOWN_TIME).all():
            raise ValueError(f"`{name}` is {value!r}, but the times of this log are unknown. Leave it out.")
        date = date if date.tzinfo else date.replace(tzinfo=UTC)
        bound = round(date.timestamp() * MICROSECONDS["s"])
        inside &= times >= bound if name == "since" else times <= bound
    return inside


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
