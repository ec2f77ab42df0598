"""A log in memory becomes a catalog and splits, and whoever takes another way is told the right one."""

from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from hf_rec.data.catalog import Catalog
from hf_rec.data.in_memory import prepare_interactions
from hf_rec.data.splits import leave_one_out


LOG = Dataset.from_dict(
    {
        "who": ["u", "u", "u", "u", "v", "v"],
        "sku": ["d", "b", "a", "c", "a", "b"],
        "when": [1500000000000 + 1000 * place for place in range(6)],
        "rating": [5, 4, 3, 2, 1, 5],
    }
)
ITEMS = Dataset.from_dict({"item_id": ["z", "a", "b", "c", "d"], "name": ["Z", "A", "B", "C", "D"], "year": [1] * 5})
NAMES = {
    "user_column": "who",
    "item_column": "sku",
    "timestamp_column": "when",
    "items_id_column": "item_id",
    "title_column": "name",
    "timestamp_unit": "ms",
}


def test_histories_and_targets_are_rows_of_the_catalog_that_comes_with_them():
    catalog, splits = prepare_interactions(LOG, ITEMS, **NAMES)
    assert (catalog.ids, catalog.titles) == (["a", "b", "c", "d"], ["A", "B", "C", "D"])
    assert [catalog.ids[row] for row in splits["test"][0]["history"]] == ["d", "b", "a"]
    assert splits["test"][0]["target"] == catalog.row("c")
    assert splits["test"][0]["timestamp"] == 1500000003


def test_cold_items_and_windows_are_as_in_prepare():
    catalog, splits = prepare_interactions(LOG, ITEMS, window=2, keep_all_items=True, **NAMES)
    assert catalog.ids == ["z", "a", "b", "c", "d"]
    assert {len(history) for history in splits["test"]["history"]} == {1}
    _, splits = prepare_interactions(LOG, ITEMS, split="global-time", window=3, **NAMES)
    assert set(splits) == {"train", "validation", "test"}


def test_titles_may_stand_in_the_log():
    log = LOG.add_column("title", np.array(list("DBACAB")))
    names = {name: NAMES[name] for name in ("user_column", "item_column", "timestamp_column", "timestamp_unit")}
    catalog, _ = prepare_interactions(log, title_column="title", **names)
    assert dict(zip(catalog.ids, catalog.titles, strict=True)) == {"a": "A", "b": "B", "c": "C", "d": "D"}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"log": {"user_id": ["u"]}}, TypeError, "`log` must be a `datasets.Dataset`, got dict"),
        ({"user_column": "user"}, ValueError, "The log has no column 'user'; .* Name the right one in `user_column`"),
        ({"timestamp_unit": "s"}, ValueError, "`timestamp_unit` must be 'ms' or 'auto'"),
        ({"items_id_column": "id"}, ValueError, "The items have no column 'id'; .* `items_id_column`"),
        ({"items": None}, ValueError, "`items_id_column` is 'item_id', but no table `items` is given"),
        ({"split": "ready-made"}, ValueError, "`split` must be 'leave-one-out' or 'global-time'"),
    ],
)
def test_errors_name_arguments_that_exist(arguments, error, message):
    with pytest.raises(error, match=message):
        prepare_interactions(**{"log": LOG, "items": ITEMS, **NAMES, **arguments})


def test_a_raw_log_given_to_a_split_is_sent_to_the_function_that_takes_it():
    log = LOG.rename_columns({"who": "user_id", "sku": "item_id", "when": "timestamp"})
    with pytest.raises(ValueError, match="is not cleaned: its 'item_id' holds string, .*`prepare_interactions`"):
        leave_one_out(log)
    with pytest.raises(ValueError, match="has no column 'item_id'.*`prepare_interactions`"):
        leave_one_out(log.remove_columns("item_id"))
    rows = Dataset.from_dict({"user_id": ["u"] * 3, "item_id": [0, 1, 2], "timestamp": [1, 2, 3], "rating": [1, 2, 3]})
    assert len(leave_one_out(rows)["test"]) == 1


def test_a_catalog_is_no_table_of_items():
    with pytest.raises(TypeError, match="`items` must be a `datasets.Dataset`, got Catalog"):
        prepare_interactions(LOG, Catalog.from_records([{"item_id": "a"}]), **NAMES)


def test_the_example_of_the_guide_runs():
    guide = (Path(__file__).parents[2] / "docs" / "guide.md").read_text()
    section = guide.split("### From memory")[1].split("\n## ")[0]
    names = {}
    exec(section.split("```python\n")[1].split("```")[0], names)
    assert names["splits"]["test"][0]["target"] == names["catalog"].row("d") == 3
