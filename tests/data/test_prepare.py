import json
import os

import pytest

from hf_rec.data.catalog import Catalog
from hf_rec.data.data_card import terminal_lines
from hf_rec.data.prepare import load_prepared, prepare


LOG = "user_id,item_id,timestamp,title\n" + "".join(
    f"u{user},{item},{100 * user + place},Film {item}\n"
    for user in range(6)
    for place, item in enumerate([user % 3, 1, 2, 3, 4, 5 + user % 2])
)


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(LOG)
    return path


@pytest.fixture
def prepared(log, tmp_path):
    prepare("table", tmp_path / "out", path=log, title_column="title", window=4)
    return tmp_path / "out"


def test_folder_holds_everything_and_the_card_counts_it(prepared):
    assert sorted(path.name for path in prepared.iterdir()) == [
        "README.md",
        "catalog.json",
        "catalog.jsonl",
        "data.json",
        "splits",
    ]
    catalog, splits, card = load_prepared(prepared)
    assert catalog.titles[:2] == ["Film 0", "Film 1"]
    assert {name: len(split) for name, split in splits.items()} == {"train": 6, "validation": 6, "test": 6}
    assert card["split"] == {"rule": "loo", "name": "leave-one-out", "window": 4}
    assert card["options"] == {"path": "log.csv", "title_column": "title"}
    assert card["interactions"]["interactions"] == 36
    assert card["splits"]["train"] == {
        "rows": 6,
        "users": 6,
        "distinct_labels": 18,
        "first_time": 3,
        "last_time": 503,
    }
    readme = (prepared / "README.md").read_text()
    assert card["sha256"]["test"] in readme
    assert "| train | 6 | 6 | 18 | 1970-01-01 00:00:03 | 1970-01-01 00:08:23 |" in readme


def test_same_input_same_hashes_other_split_other_hashes(log, tmp_path, prepared):
    _, _, card = load_prepared(prepared)
    again = prepare("table", tmp_path / "again", path=log, title_column="title", window=4, num_proc=2)
    assert again["sha256"] == card["sha256"]
    other = prepare("table", tmp_path / "other", path=log, title_column="title", window=4, split="global-time")
    assert other["sha256"]["catalog"] == card["sha256"]["catalog"]
    assert other["sha256"]["train"] != card["sha256"]["train"]
    assert other["split"]["rule"] == "time"


def test_tied_last_times_are_counted(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(
        "user_id,item_id,timestamp\n" + "".join(f"{u},{i},{min(i, 2 + u)}\n" for u in (0, 1) for i in range(4))
    )
    report = prepare("table", tmp_path / "out", path=path)["interactions"]
    assert (report["users_with_tied_last_time"], report["share_of_users_with_tied_last_time"]) == (1, 0.5)


def test_unknown_times_are_said_to_be_unknown(tmp_path):
    (tmp_path / "x.txt").write_text("1 1 2 3 4\n2 2 3 4 1\n")
    card = prepare("sequence-text", tmp_path / "out", path=tmp_path / "x.txt")
    assert card["interactions"]["times_known"] is False
    assert card["interactions"]["users_with_tied_last_time"] is None
    assert card["splits"]["test"]["last_time"] is None


def test_ready_made_splits_are_taken_as_they_are(tmp_path):
    (tmp_path / "id2name4Rec.json").write_text(json.dumps({"1": "A", "2": "B"}))
    (tmp_path / "train.csv").write_text('user_id,item_ids,timestamp\nu,"[1, 2, 1]",10\nu,"[2, 1, 2]",20\n')
    (tmp_path / "test.csv").write_text('user_id,item_ids,timestamp\nu,"[1, 2, 2]",30\n')
    card = prepare("sequence-csv", tmp_path / "out", path=tmp_path, validation_from=20)
    assert card["split"] == {"rule": "ready", "name": "ready-made"}
    assert {name: report["rows"] for name, report in card["splits"].items()} == {
        "train": 1,
        "validation": 1,
        "test": 1,
    }
    with pytest.raises(ValueError, match="`min_count` is given, but 'sequence-csv' is cut and split already"):
        prepare("sequence-csv", tmp_path / "b", path=tmp_path, min_count=5)
    with pytest.raises(ValueError, match="`split` is 'global-time', but .* leave `split` out"):
        prepare("sequence-csv", tmp_path / "b", path=tmp_path, split="global-time")
    (tmp_path / "test.csv").write_text('user_id,item_ids,timestamp\nu,"[1, 2, 2]",5\n')
    with pytest.raises(ValueError, match="The last training row ends at 20, after the first test row at 5"):
        prepare("sequence-csv", tmp_path / "b", path=tmp_path)
    assert not (tmp_path / "b").exists()


def test_demo_source(tmp_path):
    card = prepare("demo", tmp_path / "out", num_users=60, seed=1, min_count=2, window=8)
    assert card["splits"]["test"]["rows"] > 0
    assert card["catalog"]["missing_titles"] == 0


class TestWhatIsTold:
    def write(self, tmp_path):
        rows = [f"u{user},SKU {item},{10 * user + item}\n" for user in range(5) for item in range(4)]
        (tmp_path / "log.csv").write_text("user_id,sku,timestamp\n" + "".join([*rows, rows[0], "u9,SKU 0,7\n"]))
        items = ["SKU 0 ,A\n", "SKU 1,B\n", "sku 2,C\n", 'COLD1,"D,\nand more"\n']
        (tmp_path / "items.csv").write_text("item_id,title\n" + "".join(items))
        return {"path": tmp_path / "log.csv", "items": tmp_path / "items.csv", "items_id_column": "item_id"}

    def test_nothing_that_was_read_dropped_or_not_joined_is_silent(self, tmp_path):
        arguments = self.write(tmp_path) | {"item_column": "sku", "title_column": "title", "min_count": 2}
        card = prepare("table", tmp_path / "out", **arguments)
        assert card["files"] == {
            "log.csv": {"rows": 22, "lines": 23, "rows_over_lines": 0},
            "items.csv": {"rows": 4, "lines": 6, "rows_over_lines": 1},
        }
        assert terminal_lines(card) == [
            "log.csv: 22 rows read of 23 lines, 0 refused",
            "items.csv: 4 rows read of 6 lines, 0 refused; rows with a quoted field over several lines: 1",
            "items of the log without a row among the items: 3 of 4, 'SKU 0', 'SKU 2', 'SKU 3'. The items have "
            "another spelling: 'SKU 0 ' for 'SKU 0', 'sku 2' for 'SKU 2'",
            "interactions dropped: 1 duplicates, 1 by the k-core; 20 of 22 left",
            "items without a title: 3 of 4; their name is made of their id",
            "items without interactions: 3, left out of the catalog; `keep_all_items` keeps them",
        ]
        assert "3 of 4" in (tmp_path / "out" / "README.md").read_text()

    def test_items_without_interactions_stay_where_it_is_asked(self, tmp_path):
        arguments = self.write(tmp_path) | {"item_column": "sku", "title_column": "title"}
        card = prepare("table", tmp_path / "out", keep_all_items=True, **arguments)
        catalog, splits, _ = load_prepared(tmp_path / "out")
        assert catalog.ids == ["SKU 0 ", "SKU 1", "sku 2", "COLD1", "SKU 0", "SKU 2", "SKU 3"]
        assert catalog.titles[3] == "D, and more"
        assert [catalog.ids[row] for row in splits["test"]["target"]] == ["SKU 3"] * 5
        assert terminal_lines(card)[-1] == "items without interactions: 3, 3 of them kept"

    def test_a_stray_quote_ends_it_with_the_line_and_leaves_nothing(self, log, tmp_path):
        lines = LOG.splitlines(keepends=True)
        log.write_text("".join([*lines[:10], 'u1,i2,3,"The unclosed film\n', *lines[10:]]))
        with pytest.raises(ValueError, match="log.csv: on line 11 a quote opens a field, but nothing closes it up to"):
            prepare("table", tmp_path / "out", path=log, title_column="title")
        assert not (tmp_path / "out").exists()


class TestRefusals:
    def test_a_folder_with_something_in_it_is_left_alone(self, log, tmp_path):
        out = tmp_path / "out"
        out.mkdir()
        (out / "mine.txt").write_text("keep")
        with pytest.raises(FileExistsError, match="exists and is not empty"):
            prepare("table", out, path=log)
        assert [path.name for path in out.iterdir()] == ["mine.txt"]

    def test_an_empty_folder_is_used(self, log, tmp_path):
        (tmp_path / "out").mkdir()
        prepare("table", tmp_path / "out", path=log)
        assert len(load_prepared(tmp_path / "out")[0]) == 7

    def test_nothing_is_left_behind_when_writing_fails(self, log, tmp_path, monkeypatch):
        def fail(self, directory):
            raise OSError("disk full")

        monkeypatch.setattr(Catalog, "save", fail)
        before = sorted(os.listdir(tmp_path))
        with pytest.raises(OSError, match="disk full"):
            prepare("table", tmp_path / "out", path=log)
        assert sorted(os.listdir(tmp_path)) == before

    def test_nothing_is_left_of_a_bad_log(self, tmp_path):
        (tmp_path / "log.csv").write_text(LOG + "u9,,5,x\n")
        with pytest.raises(ValueError, match="`item_id` is missing in 1 of 37 rows; the first is row 36"):
            prepare("table", tmp_path / "out", path=tmp_path / "log.csv")
        assert os.listdir(tmp_path) == ["log.csv"]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"source": "csv"}, "`source` must be one of"),
            ({"title": "x"}, "`title` is no option of the source 'table'.*title_column"),
            ({"path": None}, "The source 'table' needs `path`"),
            ({"split": "random"}, "`split` must be one of"),
            ({"split": "ready-made"}, "has no splits of its own"),
            ({"min_events": 3}, "only the splits 'global-time' and 'rated-time' know it"),
            ({"min_count": 99}, "No row is left for train, validation, test.*lower `min_count`"),
            ({"source": "amazon-2014", "year": 2018}, "`year` is no option"),
        ],
    )
    def test_bad_arguments_are_named(self, log, tmp_path, arguments, message):
        with pytest.raises(ValueError, match=message):
            prepare(**{"source": "table", "out": tmp_path / "out", "path": log} | arguments)
        assert not (tmp_path / "out").exists()


class TestLoading:
    def test_no_prepared_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no data.json"):
            load_prepared(tmp_path)

    def test_parts_that_do_not_belong_together_are_told(self, prepared):
        card = json.loads((prepared / "data.json").read_text())
        for changed, message in (
            ({"version": 9}, "version 9"),
            ({"sha256": card["sha256"] | {"catalog": "0"}}, "The catalog in .* is not the one"),
            ({"sha256": card["sha256"] | {"test": "0"}}, "Split 'test' in .* is not the one"),
        ):
            (prepared / "data.json").write_text(json.dumps(card | changed))
            with pytest.raises(ValueError, match=message):
                load_prepared(prepared)
