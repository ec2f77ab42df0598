"""
The table of `predictions.parquet`, one row an example.

Items stand there twice: by raw id (`target`, `item_ids`), so that the file can be read without the catalog, and by
catalog row (`target_row`, `item_rows`).

Shapes: R rows.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from hf_rec.columns import (
    HISTORY,
    HISTORY_TIMESTAMPS,
    ITEM_IDS,
    ITEM_ROWS,
    TARGET,
    TARGET_ROW,
    USER_ID,
    column_values,
)


if TYPE_CHECKING:
    from datasets import Dataset

    from hf_rec.data.catalog import Catalog

_RANK_TYPES = {
    "scores": pa.list_(pa.float32()),
    "certified": pa.bool_(),
    "better": pa.int64(),
    "tied": pa.int64(),
    "title_better": pa.int64(),
    "title_tied": pa.int64(),
}


def users_and_targets(rows: "Dataset") -> tuple[list[str], list[int]]:
    """User and target (catalog row) of each row of a split."""
    return [str(user) for user in column_values(rows, USER_ID).to_pylist()], column_values(rows, TARGET).to_pylist()


def histories_and_times(rows: "Dataset", ids: Sequence[Any]) -> tuple[list[list[Any]], list[list[int]] | None]:
    """Histories of some rows as raw ids, and the times of their events; `None` unless all are known."""
    histories = [[ids[item] for item in history] for history in column_values(rows, HISTORY).to_pylist()]
    times = column_values(rows, HISTORY_TIMESTAMPS).to_pylist() if HISTORY_TIMESTAMPS in rows.column_names else []
    return histories, times if list(map(len, times)) == list(map(len, histories)) else None


def predictions_table(
    users: Sequence[str],
    targets: Sequence[int],
    ranks: Mapping[str, Sequence[Any]],
    catalog: "Catalog",
    warm_items: Collection[int] | None,
) -> pa.Table:
    """
    Put what was ranked into one table.

    Args:
        users (`Sequence[str]`), targets (`Sequence[int]`): User and target (catalog row) of each of the R rows.
        ranks (`Mapping`): `item_rows` (lists of catalog rows, best first), `scores`, `certified`, `better`, `tied`,
            `title_better` and `title_tied`, each with one entry a row.
        catalog ([`Catalog`]): Gives the raw ids.
        warm_items (`Collection[int]`, *optional*): Catalog rows that occur in training. Without them `warm` is null.
    """
    ids = _raw_ids(catalog)
    lengths = [len(items) for items in ranks[ITEM_ROWS]]
    listed = pa.array([row for items in ranks[ITEM_ROWS] for row in items], pa.int64())
    ends = pa.array(np.cumsum([0, *lengths]), pa.int32())
    columns = {
        USER_ID: pa.array(users, pa.string()),
        TARGET: ids.take(pa.array(targets, pa.int64())),
        ITEM_IDS: pa.ListArray.from_arrays(ends, ids.take(listed)),
        TARGET_ROW: pa.array(targets, pa.int64()),
        ITEM_ROWS: pa.ListArray.from_arrays(ends, listed),
    }
    columns |= {key: pa.array(ranks[key], kind) for key, kind in _RANK_TYPES.items()}
    if warm_items is None:
        return pa.table(columns | {"warm": pa.nulls(len(targets), pa.bool_())})
    warm = set(warm_items)
    return pa.table(columns | {"warm": pa.array([target in warm for target in targets], pa.bool_())})


def _raw_ids(catalog: "Catalog") -> pa.Array:
    """The raw id of each catalog row: numbers where all are, else text."""
    if all(isinstance(item_id, int) and abs(item_id) < 2**63 for item_id in catalog.ids):
        return pa.array(catalog.ids, pa.int64())
    return pa.array(map(str, catalog.ids), pa.string())
