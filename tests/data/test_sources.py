"""Every source on small files written here in the published format; exact counts of the real ones where at hand."""

import csv
import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import Dataset

from hf_rec.data.catalog import Catalog
from hf_rec.data.interactions import clean_interactions
from hf_rec.data.sources.amazon import load_amazon
from hf_rec.data.sources.files import resolve_path
from hf_rec.data.sources.movielens import load_movielens
from hf_rec.data.sources.report import SourceReport
from hf_rec.data.sources.sequences import load_sequence_csv, load_sequence_text
from hf_rec.data.sources.tables import load_table
from hf_rec.data.splits import distinct_labels


def write(path, text, encoding="utf-8"):
    data = text.encode(encoding)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def rows_of(interactions, catalog):
    log = clean_interactions(interactions, catalog)
    return [(row["user_id"], log.catalog.ids[row["item_id"]], row["timestamp"]) for row in log.interactions]


class TestFiles:
    def test_relative_path_is_looked_for_below_the_data_folder(self, tmp_path, monkeypatch):
        (tmp_path / "set").mkdir()
        monkeypatch.setenv("HF_REC_DATA", str(tmp_path))
        assert resolve_path("set") == tmp_path / "set"
        with pytest.raises(FileNotFoundError, match=f"no other nor {tmp_path}"):
            resolve_path("other")
        monkeypatch.delenv("HF_REC_DATA")
        with pytest.raises(FileNotFoundError, match="HF_REC_DATA names; it is not set"):
            resolve_path("set")


class TestTables:
    def test_csv_with_names_of_its_own_and_quoted_titles(self, tmp_path):
        text = (
            'when,who,what,name\n2019-01-02,u1,007,"Bond, ""James"" Bond"\n2019-01-01,u1,7,\n2019-01-03,u2,007,other\n'
        )
        interactions, catalog = load_table(
            write(tmp_path / "log.csv", "\ufeff" + text),
            user_column="who",
            item_column="what",
            timestamp_column="when",
            title_column="name",
        )
        assert catalog.ids == ["007", "7"]
        assert catalog.titles == ['Bond, "James" Bond', None]
        assert rows_of(interactions, catalog) == [
            ("u1", "7", 1546300800),
            ("u1", "007", 1546387200),
            ("u2", "007", 1546473600),
        ]

    @pytest.mark.parametrize("name", ["log.csv", "log.csv.gz", "log.tsv", "log.jsonl", "log.jsonl.gz", "log.parquet"])
    def test_every_form_of_file_gives_the_same_interactions(self, tmp_path, name):
        table = {"user_id": ["a", "b", "a"], "item_id": ["x", "y", "y"], "timestamp": [3, 1, 2]}
        records = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
        if name.endswith(".parquet"):
            pyarrow.parquet.write_table(pa.table(table), tmp_path / name)
        elif "json" in name:
            write(tmp_path / name, "".join(json.dumps(record) + "\n" for record in records))
        else:
            mark = "\t" if "tsv" in name else ","
            lines = [list(table)] + [list(record.values()) for record in records]
            write(tmp_path / name, "".join(mark.join(map(str, line)) + "\n" for line in lines))
        interactions, catalog = load_table(tmp_path / name)
        assert rows_of(interactions, catalog) == [("b", "y", 1), ("a", "y", 2), ("a", "x", 3)]
        assert catalog.titles is None

    def test_items_stand_in_a_second_table(self, tmp_path):
        log = write(tmp_path / "log.csv", "user_id,item_id,timestamp\nu,1,5\nu,3,6\n")
        items = write(
            tmp_path / "items.jsonl",
            '{"item_id": 1, "name": "A &amp; B", "title": "not this", "tags": ["x"]}\n{"item_id": 2, "name": null}\n',
        )
        interactions, catalog = load_table(log, items=items, title_column="name")
        assert (catalog.ids, catalog.titles) == ([1, 2, "3"], ["A & B", None, None])
        assert catalog.attributes[0] == {"source_title": "not this", "tags": ["x"]}
        assert rows_of(interactions, catalog) == [("u", 1, 5), ("u", "3", 6)]

    def test_milliseconds_only_when_told(self, tmp_path):
        path = write(tmp_path / "log.csv", "user_id,item_id,timestamp\nu,a,1500000000900\nu,b,1500000000100\n")
        with pytest.raises(ValueError, match="`timestamp_unit` must be 'ms' or 'auto'"):
            load_table(path)
        for unit in ("ms", "auto"):
            interactions, catalog = load_table(path, timestamp_unit=unit)
            assert rows_of(interactions, catalog) == [("u", "b", 1500000000), ("u", "a", 1500000000)]

    def test_no_times_keep_the_order_of_the_file(self, tmp_path):
        path = write(tmp_path / "log.csv", "user_id,item_id\nu,b\nu,a\n")
        interactions, catalog = load_table(path, timestamp_column=None)
        assert rows_of(interactions, catalog) == [("u", "b", -1), ("u", "a", -1)]

    def test_hub_data_set(self, monkeypatch):
        def load(path, **arguments):
            assert (path, arguments) == ("owner/ratings", {"split": "full", "name": "small"})
            return Dataset.from_dict({"u": [1], "i": [2], "t": [3.0]})

        monkeypatch.setattr("hf_rec.data.sources.tables.load_dataset", load)
        interactions, catalog = load_table(
            "owner/ratings",
            user_column="u",
            item_column="i",
            timestamp_column="t",
            hub_split="full",
            hub_config="small",
        )
        assert rows_of(interactions, catalog) == [("1", 2, 3)]

    def test_missing_column_is_named_with_those_there_are(self, tmp_path):
        path = write(tmp_path / "log.csv", "user,item_id,timestamp\nu,a,1\n")
        with pytest.raises(ValueError, match=r"no column 'user_id'; it has \['user', 'item_id', 'timestamp'\]"):
            load_table(path)

    def test_missing_id_of_a_csv_is_named_by_row(self, tmp_path):
        path = write(tmp_path / "log.csv", "user_id,item_id,timestamp\nu,a,1\nu,,2\n,a,3\n")
        interactions, catalog = load_table(path)
        with pytest.raises(ValueError, match="`user_id` is missing in 1 of 3 rows; the first is row 2 "):
            clean_interactions(interactions, catalog)

    def test_bad_time_of_a_csv_is_named_by_row(self, tmp_path):
        path = write(tmp_path / "log.csv", "user_id,item_id,timestamp\nu,a,1\nu,a,soon\n")
        with pytest.raises(ValueError, match="`timestamp` .* in 1 of 2 rows; the first is row 1 .*'soon'"):
            load_table(path)

    @pytest.mark.parametrize(
        ("name", "text"), [("a.jsonl", '{"user_id": 1}\n{"user_id": "x"}\n'), ("a.csv", "a,b\n1\n")]
    )
    def test_broken_file_is_named(self, tmp_path, name, text):
        with pytest.raises(ValueError, match=f"{name} is no good"):
            load_table(write(tmp_path / name, text))

    def test_unknown_kind_of_file_and_file_that_is_not_there(self, tmp_path):
        with pytest.raises(ValueError, match="must end in one of .csv"):
            load_table(write(tmp_path / "log.xlsx", ""))
        with pytest.raises(FileNotFoundError, match="nowhere.csv"):
            load_table("nowhere.csv")
        with pytest.raises(ValueError, match="must differ"):
            load_table("x.csv", user_column="a", item_column="a")


class TestAmazon:
    REVIEW = {"reviewerName": "N", "helpful": [0, 1], "reviewText": "t", "overall": 5.0, "summary": "s"}

    def reviews(self, *rows, keys=("reviewerID", "asin", "unixReviewTime"), extra=None):
        extra = self.REVIEW if extra is None else extra
        return "".join(json.dumps(dict(zip(keys, row, strict=True)) | extra) + "\n" for row in rows)

    def test_2014_reviews_and_items_that_are_python_literals(self, tmp_path):
        reviews = self.reviews(("A1", "B1", 1300000000), ("A1", "B2", 1200000000), ("A2", "B3", 1200000000))
        items = (
            "{'asin': 'B0', 'title': __import__('os').system('false')}\n"  # nobody's item: never even parsed
            "{'asin': 'B2', 'related': {'also_bought': ['B9']}, 'title': \"O'Reilly &amp; Co\", 'price': 3.5}\n"
            "{'asin': 'B1', 'description': 'no title'}\n"
        )
        interactions, catalog = load_amazon(
            write(tmp_path / "reviews_X_5.json.gz", reviews), year=2014, meta=write(tmp_path / "meta_X.json.gz", items)
        )
        assert (catalog.ids, catalog.titles) == (["B2", "B1", "B3"], ["O'Reilly & Co", None, None])
        assert catalog.attributes[0] == {"price": 3.5}
        assert rows_of(interactions, catalog) == [
            ("A1", "B2", 1200000000),
            ("A2", "B3", 1200000000),
            ("A1", "B1", 1300000000),
        ]

    def test_2014_items_are_never_evaluated(self, tmp_path):
        path = write(tmp_path / "reviews.json", self.reviews(("A", "B", 1)))
        meta = write(tmp_path / "meta.json", "{'asin': 'B', 'title': __import__('os').getcwd()}\n")
        with pytest.raises(ValueError, match="Line 1 of .*meta.json is no item of 2014"):
            load_amazon(path, year=2014, meta=meta)

    def test_ratings_only_files_differ_in_the_order_of_their_columns(self, tmp_path):
        path = write(tmp_path / "ratings_X.csv", "A1,B1,5.0,1300000000\n")
        assert rows_of(*load_amazon(path, year=2014)) == [("A1", "B1", 1300000000)]
        path = write(tmp_path / "X.csv", "0001,A1,5.0,1300000000\n")
        assert rows_of(*load_amazon(path, year=2018)) == [("A1", "0001", 1300000000)]

    def test_2018_web_page_titles_are_missing_and_repeats_are_dropped(self, tmp_path):
        extra = {"overall": 4.0, "vote": "1,001", "style": {"Format:": " X"}, "image": ["u"]}
        row = ("A1", "B1", 1500000000)
        reviews = self.reviews(row, row, ("A1", "B2", 1500000000), extra=extra)
        items = [
            {"asin": "B1", "title": "var aPageStart = (new Date()).getTime();", "category": ["x"]},
            {"asin": "B2", "title": "Lamp", "description": [], "price": "$3"},
            {"asin": "B2", "title": "Lamp again"},
        ]
        interactions, catalog = load_amazon(
            write(tmp_path / "X_5.json.gz", reviews),
            year=2018,
            meta=write(tmp_path / "meta_X.json.gz", "".join(json.dumps(item) + "\n" for item in items)),
        )
        assert (catalog.ids, catalog.titles) == (["B1", "B2"], [None, "Lamp"])
        assert catalog.attributes == [{"category": ["x"]}, {"price": "$3"}]
        assert clean_interactions(interactions, catalog).report["dropped_duplicates"] == 1

    def test_2023_joins_by_parent_and_reads_milliseconds(self, tmp_path):
        keys = ("user_id", "parent_asin", "timestamp")
        extra = {"asin": "CHILD", "title": "a review title", "images": [], "verified_purchase": True, "price": None}
        reviews = self.reviews(("U", "P1", 1600000000999), ("U", "P2", 1600000000001), keys=keys, extra=extra)
        meta = json.dumps({"parent_asin": "P1", "title": "Item", "store": "S", "details": "{}", "price": None}) + "\n"
        interactions, catalog = load_amazon(
            write(tmp_path / "X.jsonl", reviews), year=2023, meta=write(tmp_path / "meta_X.jsonl", meta)
        )
        assert (catalog.ids, catalog.titles) == (["P1", "P2"], ["Item", None])
        assert catalog.attributes[0] == {"store": "S"}
        assert rows_of(interactions, catalog) == [("U", "P2", 1600000000), ("U", "P1", 1600000000)]

    def test_2023_benchmark_splits_are_read_one_after_the_other(self, tmp_path):
        header = "user_id,parent_asin,rating,timestamp,history\n"
        paths = [
            write(tmp_path / "X.train.csv", header + "U,0012,5.0,1600000000000,\n"),
            write(tmp_path / "X.test.csv", header + "U,B2,1.0,1600000001000,0012\n"),
        ]
        assert rows_of(*load_amazon(paths, year=2023)) == [("U", "0012", 1600000000), ("U", "B2", 1600000001)]

    def test_files_of_another_year_are_told(self, tmp_path):
        path = write(tmp_path / "X.jsonl", self.reviews(("A", "B", 1)))
        with pytest.raises(
            ValueError, match="No line of .* has a field 'user_id'. Is it a file of Amazon reviews of 2023"
        ):
            load_amazon(path, year=2023)
        with pytest.raises(ValueError, match="no field 'user_id'. Is it of 2023"):
            load_amazon(write(tmp_path / "r.csv", "A1,B1,5.0,1300000000\n"), year=2023)
        with pytest.raises(ValueError, match="`year` must be one of"):
            load_amazon(path, year=2020)
        with pytest.raises(ValueError, match="broken.json is no file of Amazon reviews"):
            load_amazon(write(tmp_path / "broken.json", '{"asin": '), year=2014)


class TestMovieLens:
    def check(self, folder, films, **arguments):
        interactions, catalog = load_movielens(folder, **arguments)
        assert rows_of(interactions, catalog) == [("2", 2, 881250948), ("1", 1, 881250949)]
        assert [(catalog.titles[row], catalog.attributes[row]) for row in range(len(catalog))] == films

    def test_100k(self, tmp_path):
        write(tmp_path / "u.data", "1\t1\t5\t881250949\n2\t2\t3\t881250948\n")
        comedy = "0|0|0|0|0|1" + "|0" * 13
        text = f"1|Toy Story (1995)|01-Jan-1995||http://x|{comedy}\n2|Misérables, Les (1995)|||http://y|{'0|' * 18}1\n"
        write(tmp_path / "u.item", text + f"3|unknown||||1{'|0' * 18}\n", "latin-1")
        self.check(
            tmp_path,
            [
                ("Toy Story (1995)", {"year": 1995, "genres": ["Comedy"]}),
                ("Misérables, Les (1995)", {"year": 1995, "genres": ["Western"]}),
                ("unknown", {"year": None, "genres": ["unknown"]}),
            ],
            add_year=True,
        )

    @pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
    def test_1m_and_10m(self, tmp_path, encoding):
        write(tmp_path / "ratings.dat", "1::1::5::881250949\r\n2::2::3.5::881250948\r\n")
        write(tmp_path / "movies.dat", "1::Léon (1994)::Crime|Drama\r\n2::A:B (2000)::\r\n", encoding)
        self.check(
            tmp_path,
            [
                ("Léon (1994)", {"year": 1994, "genres": ["Crime", "Drama"]}),
                ("A:B (2000)", {"year": 2000, "genres": []}),
            ],
        )

    def test_latest(self, tmp_path):
        write(tmp_path / "ratings.csv", "userId,movieId,rating,timestamp\n1,1,4.0,881250949\n2,2,4.5,881250948\n")
        write(tmp_path / "movies.csv", 'movieId,title,genres\n1,"Matrix, The (1999)",Action\n2,Babylon 5,Sci-Fi\n')
        self.check(
            tmp_path,
            [
                ("Matrix, The (1999)", {"year": 1999, "genres": ["Action"]}),
                ("Babylon 5", {"year": None, "genres": ["Sci-Fi"]}),
            ],
        )

    @pytest.mark.parametrize(("add_year", "title"), [(False, "Toy Story"), (True, "Toy Story (1995)")])
    def test_atomic_files(self, tmp_path, add_year, title):
        header = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        write(tmp_path / "x.inter", header + "1\t1\t5\t881250949\n2\t2\t3\t881250948\n")
        header = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        write(tmp_path / "x.item", header + "1\tToy Story\t1995\tAnimation Comedy\n2\tunknown\t\t\n")
        films = [(title, {"year": 1995, "genres": ["Animation", "Comedy"]}), ("unknown", {"year": None, "genres": []})]
        self.check(tmp_path, films, add_year=add_year)

    def test_bad_line_and_empty_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="holds neither u.data"):
            load_movielens(tmp_path)
        write(tmp_path / "u.item", f"1|Toy Story (1995)||||{'0|' * 18}1\n")
        write(tmp_path / "u.data", "1\t1\t5\t881250949\n2\t2\t3\n")
        with pytest.raises(ValueError, match="Line 2 of .*u.data is no rating: 3 fields instead of 4"):
            load_movielens(tmp_path)
        write(tmp_path / "u.data", "1\t1\t5\tsoon\n")
        with pytest.raises(ValueError, match="Line 1 of .*u.data is no rating"):
            load_movielens(tmp_path)


class TestSequenceCsv:
    def folder(self, tmp_path, train=None, titles=None):
        rows = train or [("u", [1, 2, 3], 10), ("u", [2, 3, 1], 20), ("v", [3, 3], 20), ("w", [1, 2], 30)]
        for name, content in (("train.csv", rows), ("test.csv", [("u", [3, 1, 2], 40)])):
            with open(tmp_path / name, "w", newline="") as file:
                csv.writer(file).writerows([("user_id", "item_ids", "timestamp"), *content])
        write(tmp_path / "id2name4Rec.json", json.dumps(titles or {"3": "C &amp; C", "1": 'A, "a"', "2": ""}))
        return tmp_path

    def test_rows_and_titles_are_kept_as_they_are(self, tmp_path):
        splits, catalog = load_sequence_csv(self.folder(tmp_path))
        assert (catalog.ids, catalog.titles) == ([3, 1, 2], ["C & C", 'A, "a"', ""])
        assert list(splits) == ["train", "test"]
        assert splits["train"]["history"] == [[1, 2], [2, 0], [0], [1]]  # catalog rows
        assert splits["train"]["target"] == [0, 1, 0, 2]
        assert splits["train"]["supervise_from"] == [1, 2, 1, 1]
        assert splits["test"]["supervise_from"] == [2]

    def test_validation_is_carved_out_by_time(self, tmp_path):
        splits, _ = load_sequence_csv(self.folder(tmp_path), validation_from=20)
        assert {name: split["timestamp"][:] for name, split in splits.items()} == {
            "train": [10],
            "validation": [20, 20, 30],
            "test": [40],
        }
        assert splits["validation"]["supervise_from"] == [2, 1, 1]  # the first continues a row of train
        with pytest.raises(ValueError, match="`validation_from` = 5 leaves no row in 'train'"):
            load_sequence_csv(tmp_path, validation_from=5)

    def test_validation_may_come_from_another_file_than_train(self, tmp_path):
        self.folder(tmp_path)
        write(tmp_path / "small.csv", 'user_id,item_ids,timestamp\nu,"[1, 2, 3]",10\nw,"[1, 2]",30\n')
        splits, _ = load_sequence_csv(
            tmp_path, train="small.csv", validation="train.csv", validation_from=20, test=None
        )
        assert {name: len(split) for name, split in splits.items()} == {"train": 1, "validation": 3}

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            (("u", [1, 9], 10), "Line 2 of .*train.csv: Item 9 is not among the 3 items"),
            (("u", "1 2 3", 10), r"Line 2 of .* has 'item_ids' '1 2 3'; it must be a list like"),
            (("u", "[open('x')]", 10), "must be a list like"),
            (("u", [], 10), "must be a list like"),
            (("u", [1, 2], "soon"), "Line 2 of .* has 'timestamp' 'soon'; it must be whole seconds"),
            (("", [1, 2], 10), "Line 2 of .* has no 'user_id'"),
        ],
    )
    def test_bad_row_is_named_by_its_line(self, tmp_path, row, message):
        with pytest.raises(ValueError, match=message):
            load_sequence_csv(self.folder(tmp_path, train=[row]))

    def test_missing_files_and_columns(self, tmp_path):
        self.folder(tmp_path)
        with pytest.raises(FileNotFoundError, match="none.csv"):
            load_sequence_csv(tmp_path, train="none.csv")
        with pytest.raises(FileNotFoundError, match="`titles` must be"):
            load_sequence_csv(tmp_path, titles="none.json")
        write(tmp_path / "train.csv", "user_id,items,timestamp\n")
        with pytest.raises(ValueError, match="train.csv has no column 'item_ids'"):
            load_sequence_csv(tmp_path)


class TestSequenceText:
    def test_order_of_the_file_repeats_included(self, tmp_path):
        interactions, catalog = load_sequence_text(write(tmp_path / "x.txt", "1 10 9 10 10\n2 9 11 \n\n"))
        assert (catalog.ids, catalog.titles) == ([9, 10, 11], None)
        assert rows_of(interactions, catalog) == [
            *[("1", item, -1) for item in (10, 9, 10, 10)],
            *[("2", item, -1) for item in (9, 11)],
        ]

    def test_ids_that_are_text(self, tmp_path):
        _, catalog = load_sequence_text(write(tmp_path / "x.txt", "u 007 b\n"))
        assert catalog.ids == ["007", "b"]

    @pytest.mark.parametrize("form", ["jsonl", "json", "csv"])
    def test_a_table_of_items_gives_titles_and_attributes_to_the_ids(self, tmp_path, form):
        records = [
            {"id": 11, "item_id": "B00X", "title": "Pen", "codes": [3, 1], "tags": ["Ink", "Blue"]},
            {"id": 9, "item_id": "B00Y", "title": None, "codes": [0, 2], "tags": None},
            {"id": 40, "item_id": "B00Z", "title": "Never bought", "codes": [5, 5], "tags": []},
        ]
        lines = {
            "jsonl": [json.dumps(record) for record in records],
            "json": [json.dumps(records, indent=1)],
            "csv": [
                "id,item_id,title,codes,tags",
                "11,B00X,Pen,\"[3, 1]\",\"['Ink', 'Blue']\"",
                '9,B00Y,,"[0, 2]",',
                '40,B00Z,Never bought,"[5, 5]",[]',
            ],
        }[form]
        path, report = write(tmp_path / "x.txt", "1 10 9 10\n2 9 11\n"), SourceReport()
        items = write(tmp_path / f"items.{form}", "\n".join(lines) + "\n")
        interactions, whole = load_sequence_text(path, items=items, items_id_column="id", report=report)
        assert (whole.ids, whole.titles) == ([9, 10, 11, 40], [None, None, "Pen", "Never bought"])
        assert report.join["without_item_row"] == 1 and report.join["first_without_item_row"] == ["10"]

        log = clean_interactions(interactions, whole)
        assert log.report["items_without_interactions"] == 1
        log.catalog.save(tmp_path / "saved")
        for catalog in (log.catalog, Catalog.load(tmp_path / "saved"), whole.subset([0, 1, 2])):
            assert catalog.ids == [9, 10, 11]
            assert catalog.attributes == [
                {"source_item_id": "B00Y", "codes": [0, 2], "tags": None},
                {},
                {"source_item_id": "B00X", "codes": [3, 1], "tags": ["Ink", "Blue"]},
            ]

    def test_a_table_of_items_that_does_not_fit_is_refused(self, tmp_path):
        path = write(tmp_path / "x.txt", "1 10 9\n")
        items = write(tmp_path / "items.jsonl", '{"id": 9, "item_id": "a", "source_item_id": "b"}\n')
        for arguments, message in (
            ({"items_id_column": "id"}, "`items_id_column` is 'id', but no table `items`"),
            ({"items": items}, "No item of the sequences has a row .* holds ids like \\['a'\\]"),
            ({"items": items, "items_id_column": "asin"}, "no column 'asin'.*`items_id_column`"),
            ({"items": items, "items_id_column": "id", "title_column": "name"}, "no column 'name'.*`title_column`"),
            ({"items": items, "items_id_column": "id"}, "two columns that would be named 'source_item_id'"),
        ):
            with pytest.raises(ValueError, match=message):
                load_sequence_text(path, **arguments)
        write(items, '{"id": 9}\n{"id": null}\n')
        with pytest.raises(ValueError, match="Row 1 of .* has no 'id'"):
            load_sequence_text(path, items=items, items_id_column="id")
        write(items, '{"id": 9}\n{"id": 9}\n')
        with pytest.raises(ValueError, match="Ids must be unique"):
            load_sequence_text(path, items=items, items_id_column="id")

    def test_bad_lines(self, tmp_path):
        with pytest.raises(ValueError, match="Line 2 of .* has user '2' but no items"):
            load_sequence_text(write(tmp_path / "x.txt", "1 5\n2\n"))
        with pytest.raises(ValueError, match="User '1' stands in several lines"):
            load_sequence_text(write(tmp_path / "x.txt", "1 5\n1 6\n"))


@pytest.mark.skipif("HF_REC_DATA" not in os.environ, reason="HF_REC_DATA does not name the folder of the real files")
class TestRealFiles:
    @pytest.mark.parametrize(
        ("name", "counts"),
        [
            ("Beauty", (22_363, 12_101, 198_502)),
            ("Sports_and_Outdoors", (35_598, 18_357, 296_337)),
            ("Toys_and_Games", (19_412, 11_924, 167_597)),
            ("Yelp", (30_431, 20_033, 316_354)),
        ],
    )
    def test_text_sequences_have_the_published_counts(self, name, counts):
        report = clean_interactions(*load_sequence_text(f"sequences/{name}.txt"), min_count=5).report
        assert (report["users"], report["items"], report["interactions"]) == counts
        assert report["dropped_by_k_core"] == 0

    def test_movielens_100k_five_core(self):
        log = clean_interactions(*load_movielens("ml-100k", add_year=True), min_count=5)
        assert (log.report["users"], log.report["items"], log.report["interactions"]) == (943, 1_349, 99_287)
        assert log.catalog.titles[0] == "Toy Story (1995)"

    @pytest.mark.slow
    def test_books(self):
        def load(**arguments):
            return load_sequence_csv("msl_amazon_books", **arguments)

        whole, catalog = load()
        assert (len(whole["train"]), len(whole["test"])) == (35_060, 4_383)
        assert len(load(train="train_10000.csv")[0]["train"]) == 10_000
        report = catalog.report()
        assert (report["items"], report["unique_titles"], report["duplicate_titles"]) == (6_344, 6_335, 18)
        assert report["empty_titles"] == 1
        large, _ = load(validation_from=1501459200)
        small, _ = load(train="train_10000.csv", validation="train.csv", validation_from=1501459200)
        assert (len(large["train"]), len(large["validation"]), len(large["test"])) == (31_553, 3_507, 4_383)
        assert (len(small["train"]), len(small["validation"]), len(small["test"])) == (8_961, 3_507, 4_383)
        assert distinct_labels(small["train"]) < distinct_labels(large["train"]) < distinct_labels(whole["train"])
        repeats = sum(row["target"] in row["history"] for row in whole["train"])
        assert repeats == 530

    def test_the_data_folder_is_found_by_the_variable_alone(self):
        assert resolve_path("ml-100k").parent == Path(os.environ["HF_REC_DATA"])
