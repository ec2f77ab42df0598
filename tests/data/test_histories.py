import json

import pytest

from hf_rec.columns import HISTORY, TARGET, TIMESTAMP
from hf_rec.data.sources.histories import load_history_csv
from hf_rec.data.sources.report import SourceReport


@pytest.fixture
def folder(tmp_path):
    items = {
        "0": {"title": "Pen", "description": "['Blue, fine.', \"It's good.\"]", "brand": ""},
        "1": {"title": "Paper &amp; more", "description": "[not a list"},
        "2": {"title": "Tape", "description": "[]"},
    }
    (tmp_path / "item.json").write_text(json.dumps(items))
    rows = ["user_id,history_item_title,item_title,history_item_id,item_id"]
    rows += [f'A{row},"[\'x, y\']",t,"[0, {row % 3}]",{(row + 1) % 3}' for row in range(10)]
    (tmp_path / "valid.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "test.csv").write_text("\n".join(rows[:3]) + "\n")
    return tmp_path


def test_rows_and_attributes_are_read_and_the_last_rows_held_out(folder):
    splits, catalog = load_history_csv(folder, train="valid.csv", validation_share=0.2)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 8, "validation": 2, "test": 2}
    assert splits["validation"][0][HISTORY] == [0, 2] and splits["validation"][0][TARGET] == 0
    assert set(splits["test"][TIMESTAMP]) == {-1}
    assert catalog.titles == ["Pen", "Paper & more", "Tape"]
    assert catalog.attributes == [{"description": ["Blue, fine.", "It's good."]}, {"description": "[not a list"}, {}]


def test_semantic_ids_beside_the_items_become_numbers(folder):
    (folder / "index.json").write_text(json.dumps({"0": ["<a_60>", "<b_159>"], "2": ["<a_0>", "<b_7>"]}))
    report = SourceReport()
    _, catalog = load_history_csv(folder, train="valid.csv", report=report)
    assert [item.get("codes") for item in catalog.attributes] == [[60, 159], None, [0, 7]]
    assert report.files["index.json"] == {"rows": 2}


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ({"7": ["<a_1>"]}, "'7' is no item"),
        ({"0": ["<a_1>", "<b_1>"], "1": ["<a_1>", "<c_1>"]}, "gives item '1'"),
        ({"0": ["<a_1>"], "1": ["<a_1>", "<b_1>"]}, "gives item '1'"),
        ({"0": ["a_1"]}, "gives item '0'"),
        ({"0": []}, "gives item '0'"),
        ({"0": [1]}, "index.json"),
        ([["<a_1>"]], "object of item id"),
    ],
)
def test_semantic_ids_that_are_none_are_refused(folder, codes, message):
    (folder / "index.json").write_text(json.dumps(codes))
    with pytest.raises(ValueError, match=message):
        load_history_csv(folder, train="valid.csv")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": "none.csv"}, "no .*none.csv"),
        ({"items": "none.json"}, "`items`"),
        ({"validation": "test.csv", "validation_share": 0.1}, "both given"),
        ({"validation_share": 1.5}, "`validation_share`"),
    ],
)
def test_wrong_arguments_are_named(folder, arguments, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_history_csv(folder, **({"train": "valid.csv"} | arguments))


@pytest.mark.parametrize(
    ("line", "message"),
    [("A,t,t,nothing,1", "Line 2 of .*a list like"), ('A,t,t,"[0, 7]",1', "Line 2 of .*'?7'? is not")],
)
def test_a_bad_row_is_named_by_its_line(folder, line, message):
    (folder / "test.csv").write_text(f"user_id,history_item_title,item_title,history_item_id,item_id\n{line}\n")
    with pytest.raises(ValueError, match=message):
        load_history_csv(folder, train="valid.csv")
