"""From a log in memory to a catalog and splits: what `hf-rec prepare` does, without files."""

from typing import Any

import pyarrow as pa
from datasets import Dataset, DatasetDict

from hf_rec.columns import ITEM_ID, TIMESTAMP, USER_ID
from hf_rec.data.catalog import Catalog
from hf_rec.data.data_card import time_report
from hf_rec.data.interactions import clean_interactions
from hf_rec.data.ratings import rated_time
from hf_rec.data.sources.report import SourceReport
from hf_rec.data.sources.tables import column_names, interactions_of
from hf_rec.data.splits import global_time, leave_one_out


def prepare_interactions(
    log: Dataset,
    items: Dataset | None = None,
    *,
    user_column: str = USER_ID,
    item_column: str = ITEM_ID,
    timestamp_column: str | None = TIMESTAMP,
    title_column: str | None = None,
    rating_column: str | None = None,
    items_id_column: str | None = None,
    timestamp_unit: str = "s",
    split: str = "leave-one-out",
    window: int | None = None,
    stride: int | None = None,
    min_count: int = 0,
    min_rating: float | None = None,
    since: str | None = None,
    until: str | None = None,
    duplicates: str = "exact",
    require_titles: bool = False,
    keep_all_items: bool = False,
) -> tuple[Catalog, DatasetDict]:
    """
    Turn a log in memory into what trainers take.

    Args:
        log (`datasets.Dataset`): One row an event. Columns other than those named are ignored. A pandas frame becomes
            one with `Dataset.from_pandas(frame)`.
        items (`datasets.Dataset`, *optional*): One row an item: its id, perhaps its title, attributes.
        user_column, item_column, timestamp_column, title_column, rating_column, items_id_column, timestamp_unit
            (*optional*): As in [`~hf_rec.data.sources.tables.load_table`].
        split (`str`, *optional*, defaults to `"leave-one-out"`): Or `"global-time"`.
        window, stride (`int`, *optional*): As in [`~hf_rec.data.splits.leave_one_out`] and
            [`~hf_rec.data.splits.global_time`].
        min_count, min_rating, since, until, duplicates, require_titles, keep_all_items (*optional*): As in
            [`~hf_rec.data.interactions.clean_interactions`].

    Returns:
        `tuple[Catalog, datasets.DatasetDict]`: The items, and `train`, `validation` and `test`. Histories and targets
        are rows of this catalog; `catalog.rows(raw_ids)` gives the rows of raw ids.

    Example:

    ```python
    from datasets import Dataset
    from hf_rec.data.in_memory import prepare_interactions

    log = Dataset.from_dict({"user_id": ["u", "u", "u"], "item_id": ["a", "b", "c"], "timestamp": [1, 2, 3]})
    items = Dataset.from_dict({"item_id": ["a", "b", "c"], "title": ["Alien", "Brazil", "Contact"]})
    catalog, splits = prepare_interactions(log, items, title_column="title")
    ```
    """
    for name, table in (("log", log), ("items", items)):
        if not isinstance(table, Dataset) and not (name == "items" and table is None):
            raise TypeError(
                f"`{name}` must be a `datasets.Dataset`, got {type(table).__name__}. Make one with "
                "`Dataset.from_dict(columns)` or `Dataset.from_pandas(frame)`."
            )
    if split not in ("leave-one-out", "global-time"):
        raise ValueError(f"`split` must be 'leave-one-out' or 'global-time', got {split!r}.")
    if items is None and items_id_column is not None:
        raise ValueError(f"`items_id_column` is {items_id_column!r}, but no table `items` is given.")
    log_title = title_column if items is None else None
    names = column_names(user_column, item_column, timestamp_column, log_title, rating_column)
    raw, catalog = interactions_of(
        _table(log),
        None if items is None else _table(items),
        names,
        timestamp_unit,
        items_id_column or item_column,
        title_column,
        report=SourceReport(),
    )
    cleaning = {
        "min_count": min_count,
        "min_rating": min_rating,
        "since": since,
        "until": until,
        "duplicates": duplicates,
        "require_titles": require_titles,
        "keep_all_items": keep_all_items,
    }
    windows = {name: value for name, value in (("window", window), ("stride", stride)) if value is not None}
    catalog, splits, _ = clean_and_split(raw, catalog, split, cleaning=cleaning, windows=windows)
    return catalog, splits


def clean_and_split(
    interactions: Dataset,
    catalog: Catalog,
    rule: str,
    *,
    cleaning: dict[str, Any],
    windows: dict[str, Any],
    num_proc: int | None = None,
    like: float | None = None,
) -> tuple[Catalog, DatasetDict, dict[str, Any]]:
    """
    Clean a raw log and cut it.

    Args:
        interactions (`datasets.Dataset`), catalog ([`Catalog`]): What a source reads.
        rule (`str`): `"leave-one-out"`, `"global-time"` or `"rated-time"`.
        cleaning (`dict`): Arguments of [`~hf_rec.data.interactions.clean_interactions`].
        windows (`dict`): Arguments of the split.
        num_proc (`int`, *optional*): Processes that cut windows.
        like (`float`, *optional*): For `"rated-time"`: the smallest rating of what a user likes.

    Returns:
        `tuple[Catalog, datasets.DatasetDict, dict]`: Items, splits, and counts for the data card.
    """
    log = clean_interactions(interactions, catalog, **cleaning, with_ratings=like is not None)
    if like is not None and log.ratings is not None:
        splits = rated_time(log.interactions, log.ratings, like=like, **windows)
        return log.catalog, splits, log.report | time_report(log.interactions)
    cut = leave_one_out if rule == "leave-one-out" else global_time
    splits = cut(log.interactions, **windows, num_proc=num_proc)
    return log.catalog, splits, log.report | time_report(log.interactions)


def _table(dataset: Dataset) -> pa.Table:
    return dataset.with_format("arrow")[:]
