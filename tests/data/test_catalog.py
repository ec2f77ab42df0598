import json

import numpy as np
import pytest
from datasets import Dataset

from hf_rec.data.catalog import Catalog, clean_title


def titled(*titles):
    return Catalog.from_records([{"item_id": row, "title": title} for row, title in enumerate(titles)])


class TestCleaning:
    @pytest.mark.parametrize(
        ("raw", "clean"),
        [
            ("Eva McEwan &amp; Cast", "Eva McEwan & Cast"),
            ("&amp;quot;Twice&amp;quot;", '"Twice"'),
            ("Black&notes", "Black&notes"),
            ("<b>Bold</b> <span class='x'>move</span>", "Bold move"),
            ("I <3 You", "I <3 You"),
            ("<s> and </s> and <|endoftext|>", "<s> and </s> and <|endoftext|>"),
            ("<script>var t = getTime()</script>Lamp", "Lamp"),
            ("two\r\nlines\tand\u2028more", "two lines and more"),
            ("bell\x07 nul\x00 surrogate\ud800", "bell nul surrogate"),
            ("\u200fשלום\u200f", "\u200fשלום\u200f"),
            ("  ", ""),
        ],
    )
    def test_title_becomes_one_line_of_plain_text(self, raw, clean):
        assert clean_title(raw) == clean
        assert clean_title(clean) == clean

    def test_long_title_is_never_cut(self):
        assert len(titled("x" * 10_000).titles[0]) == 10_000

    def test_counts_of_the_report(self):
        catalog = titled("A &amp; B", "A & B", None, " ", float("nan"), "C\n", 1984)
        assert catalog.titles == ["A & B", "A & B", None, "", None, "C", "1984"]
        assert catalog.original_titles[0] == "A &amp; B"
        assert catalog.report() == {
            "items": 7,
            "missing_titles": 2,
            "empty_titles": 1,
            "unique_titles": 4,
            "duplicate_titles": 2,
            "html_escaped_titles": 1,
            "cleaned_titles": 3,
            "longest_title": 5,
        }


class TestLookup:
    def test_either_spelling_of_a_number_finds_the_item(self):
        catalog = Catalog.from_records([{"item_id": 12}, {"item_id": "7"}, {"item_id": "012"}])
        assert catalog.ids == [12, "7", "012"]
        assert catalog.rows([12, "12", 7, "7", "012", np.int64(12)]) == [0, 0, 1, 1, 2, 0]

    def test_an_id_spelled_exactly_wins(self):
        catalog = Catalog.from_records([{"item_id": 12}, {"item_id": "12"}])
        assert catalog.rows([12, "12"]) == [0, 1]

    def test_unknown_id_is_named(self):
        with pytest.raises(ValueError, match="'nope' is not among the 2 items"):
            titled("a", "b").row("nope")

    def test_title_finds_all_its_items_exactly_first_then_in_any_case(self):
        catalog = titled("Heat", "heat", "Alien &amp; Co", "Heat")
        assert catalog.find_title("Heat") == [0, 3]
        assert catalog.find_title("HEAT") == [0, 1, 3]
        assert catalog.find_title("alien & co") == [2]
        assert catalog.find_title("") == []
        with pytest.raises(ValueError, match=f"It is the title of {catalog.ids[0]!r} and {catalog.ids[3]!r}: give"):
            catalog.row("Heat")
        assert "Heat" in catalog.nearest("haet") and str(catalog.ids[0]) in catalog.nearest(f"{catalog.ids[0]} ")
        assert Catalog.from_records([{"item_id": 1}]).find_title("x") == []

    def test_text_is_never_empty_and_never_shared_by_untitled_items(self):
        catalog = titled("A", None, "")
        assert [catalog.text(row) for row in range(3)] == ["A", "untitled item 1", "untitled item 2"]
        assert Catalog.from_records([{"item_id": "B0\n1"}]).text(0) == "item B0 1"
        with pytest.raises(IndexError, match="0..2"):
            catalog.text(-1)


class TestRecords:
    def test_no_titles_at_all(self):
        catalog = Catalog.from_records([{"item_id": 1, "title": None}, {"item_id": 2}])
        assert catalog.titles is None
        assert catalog.report()["missing_titles"] == 2

    @pytest.mark.parametrize("item_id", [None, float("nan"), "", True, 1.5])
    def test_bad_id_is_named_with_its_record(self, item_id):
        with pytest.raises(ValueError, match=r"records\[1\]"):
            Catalog.from_records([{"item_id": 1}, {"item_id": item_id}])

    def test_record_without_id(self):
        with pytest.raises(ValueError, match=r"records\[0\].*no key 'item_id'"):
            Catalog.from_records([{"id": 1}])

    def test_repeated_id_is_named(self):
        with pytest.raises(ValueError, match="'a' stands in records 0 and 2"):
            Catalog.from_records([{"item_id": "a"}, {"item_id": "b"}, {"item_id": "a"}])

    def test_attribute_that_json_cannot_hold_is_named(self):
        with pytest.raises(ValueError, match="Attribute 'f' of item 1"):
            Catalog.from_records([{"item_id": 1, "f": object()}])

    def test_from_dataset_renames_the_named_columns(self):
        dataset = Dataset.from_dict({"asin": ["x", "y"], "name": ["X", None], "price": [1.5, float("nan")]})
        catalog = Catalog.from_dataset(dataset, id_column="asin", title_column="name")
        assert (catalog.ids, catalog.titles) == (["x", "y"], ["X", None])
        assert catalog.attributes == [{"price": 1.5}, {"price": None}]
        assert Catalog.from_dataset(dataset, id_column="asin").titles is None
        with pytest.raises(ValueError, match="`title_column` is 'title'.*asin"):
            Catalog.from_dataset(dataset, id_column="asin", title_column="title")


class TestFiles:
    def catalog(self):
        return Catalog.from_records(
            [
                {"item_id": 3, "title": "A &amp; B", "genres": ["x"], "year": np.int64(1995)},
                {"item_id": "t", "title": None},
                {"item_id": "\ud800", "title": 'say "hi", שלום 🎬\u2028'},
                {"item_id": 4, "title": ""},
            ]
        )

    def test_round_trip(self, tmp_path):
        catalog = self.catalog()
        catalog.save(tmp_path / "a" / "b")
        loaded = Catalog.load(tmp_path / "a" / "b")
        assert loaded.ids == catalog.ids
        assert loaded.titles == catalog.titles
        assert loaded.original_titles == catalog.original_titles
        assert loaded.attributes == [{"genres": ["x"], "year": 1995}, {}, {}, {}]
        assert loaded.sha256 == catalog.sha256
        assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == ["catalog.json", "catalog.jsonl"]

    def test_hash_depends_on_ids_titles_and_order_alone(self):
        catalog = self.catalog()
        assert catalog.subset([0, 1, 2, 3]).sha256 == catalog.sha256
        assert catalog.subset([1, 0, 2, 3]).sha256 != catalog.sha256
        assert titled("A").sha256 == Catalog.from_records([{"item_id": 0, "title": "A ", "x": 1}]).sha256
        assert titled("A").sha256 != titled("B").sha256

    def test_subset_keeps_attributes(self):
        subset = self.catalog().subset([3, 0])
        assert (subset.ids, subset.titles) == ([4, 3], ["", "A & B"])
        assert subset.attributes[1]["year"] == 1995

    def test_cut_file_is_an_error_that_says_so(self, tmp_path):
        self.catalog().save(tmp_path)
        path = tmp_path / "catalog.jsonl"
        path.write_bytes(path.read_bytes()[:-5])
        with pytest.raises(ValueError, match="catalog.jsonl does not match the hash"):
            Catalog.load(tmp_path)

    def test_other_format_and_missing_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no catalog.json"):
            Catalog.load(tmp_path)
        self.catalog().save(tmp_path)
        header = json.loads((tmp_path / "catalog.json").read_text())
        (tmp_path / "catalog.json").write_text(json.dumps(header | {"version": 99}))
        with pytest.raises(ValueError, match="version 99"):
            Catalog.load(tmp_path)
        (tmp_path / "catalog.json").write_text("{")
        with pytest.raises(ValueError, match="not JSON"):
            Catalog.load(tmp_path)

    def test_the_next_save_copies_files_that_stand_unchanged_and_only_those(self, tmp_path, monkeypatch):
        self.catalog().save(tmp_path / "prepared")
        loaded = Catalog.load(tmp_path / "prepared")
        with monkeypatch.context() as patched:
            patched.setattr(Catalog, "_record", None)  # nothing is written item by item
            loaded.save(tmp_path / "checkpoint")
        assert Catalog.load(tmp_path / "checkpoint").sha256 == loaded.sha256
        (tmp_path / "prepared" / "catalog.jsonl").write_bytes(b"edited")
        loaded.save(tmp_path / "checkpoint")
        assert Catalog.load(tmp_path / "checkpoint").attributes == loaded.attributes
        loaded.standing.remember(tmp_path / "checkpoint")
        with monkeypatch.context() as patched:
            patched.setattr(Catalog, "_record", None)
            loaded.save(tmp_path / "next")
        assert (tmp_path / "next" / "catalog.jsonl").read_bytes() == (
            tmp_path / "checkpoint" / "catalog.jsonl"
        ).read_bytes()

    def test_titles_are_loaded_as_they_were_saved_and_an_edited_header_is_told(self, tmp_path, monkeypatch):
        catalog = self.catalog()
        catalog.save(tmp_path)
        with monkeypatch.context() as patched:
            patched.setattr("hf_rec.data.catalog.clean_title", None)  # titles are cleaned once, not at each load
            assert Catalog.load(tmp_path).titles == catalog.titles
        header = json.loads((tmp_path / "catalog.json").read_text())
        (tmp_path / "catalog.json").write_text(json.dumps(header | {"sha256": "0"}))
        with pytest.raises(ValueError, match="do not match the hash in catalog.json"):
            Catalog.load(tmp_path)
