"""Yelp, Steam, Last.fm and Goodreads on small files written here in the published form; filters of all logs."""

import gzip
import json
import os
from pathlib import Path

import pytest

from hf_rec.data.interactions import clean_interactions
from hf_rec.data.prepare import prepare
from hf_rec.data.sources.amazon import load_amazon
from hf_rec.data.sources.goodreads import load_goodreads
from hf_rec.data.sources.json_lines import LONGEST_LITERAL, python_literal
from hf_rec.data.sources.lastfm import load_lastfm
from hf_rec.data.sources.movielens import load_movielens
from hf_rec.data.sources.report import SourceReport
from hf_rec.data.sources.steam import load_steam
from hf_rec.data.sources.tables import load_table
from hf_rec.data.sources.yelp import load_yelp


def write(path, *lines, encoding="utf-8"):
    data = "".join(line + "\n" for line in lines).encode(encoding)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def rows_of(loaded, **cleaning):
    log = clean_interactions(*loaded, **cleaning)
    return [(row["user_id"], log.catalog.ids[row["item_id"]], row["timestamp"]) for row in log.interactions]


class TestYelp:
    REVIEWS = (
        ("u1", "b1", 5.0, "2018-12-31 23:59:59"),
        ("u1", "b2", 2.0, "2019-01-01 00:00:00"),
        ("u2", "b2", 4.0, "2019-06-01 12:00:00"),
        ("u2", "b9", 3.0, "2019-12-31 00:00:01"),
    )

    def folder(self, tmp_path, end="", extra=()):
        fields = ("user_id", "business_id", "stars", "date")
        rows = [
            dict(zip(fields, row, strict=True)) | {"review_id": "r", "text": "a\nb", "useful": 0}
            for row in self.REVIEWS
        ]
        write(tmp_path / f"yelp_academic_dataset_review.json{end}", *map(json.dumps, rows), *extra)
        businesses = [
            {"business_id": "b2", "name": 'Café "Zoë"', "categories": "Food, Bars", "city": "Reno", "hours": {}},
            {"business_id": "b1", "name": "Starbucks", "categories": None, "state": "NV"},
            {"business_id": "b7", "name": "Starbucks"},
        ]
        write(tmp_path / f"yelp_academic_dataset_business.json{end}", *map(json.dumps, businesses))
        return tmp_path

    @pytest.mark.parametrize("end", ["", ".gz"])
    def test_reviews_have_times_and_stars_and_businesses_their_names(self, tmp_path, end):
        report = SourceReport()
        interactions, catalog = load_yelp(self.folder(tmp_path, end), report=report)
        assert interactions["rating"][:] == [5.0, 2.0, 4.0, 3.0]
        assert (catalog.ids, catalog.titles) == (["b2", "b1", "b9"], ['Café "Zoë"', "Starbucks", None])
        assert catalog.attributes[:2] == [{"city": "Reno", "categories": ["Food", "Bars"]}, {"state": "NV"}]
        assert rows_of((interactions, catalog))[:2] == [("u1", "b1", 1546300799), ("u1", "b2", 1546300800)]
        assert report.files[f"yelp_academic_dataset_review.json{end}"] == {"rows": 4}
        assert report.join["first_without_item_row"] == ["b9"]

    def test_the_year_of_the_papers_ends_with_the_first_second_of_its_last_day(self, tmp_path):
        # A comparison of texts with '2019-12-31 00:00:00', as in the released code
        loaded = load_yelp(self.folder(tmp_path))
        rows = rows_of(loaded, since="2019-01-01", until="2019-12-31")
        assert rows == [("u1", "b2", 1546300800), ("u2", "b2", 1559390400)]

    def test_wrong_lines_are_counted_and_the_first_is_named(self, tmp_path):
        extra = ('{"user_id": "u", ', '{"user_id": "u", "business_id": 7, "date": "2019-01-01"}', "[]")
        with pytest.raises(
            ValueError,
            match=r"review.json is no file of reviews of Yelp: 3 lines are wrong, the first is line 5 \(JSON",
        ):
            load_yelp(self.folder(tmp_path, extra=extra))
        with pytest.raises(ValueError, match=r"1 line is wrong, line 5 \(TypeError: 'business_id' is '7', not text"):
            load_yelp(self.folder(tmp_path, extra=extra[1:2]))

    def test_files_that_are_not_there_or_exchanged_are_told(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no yelp_academic_dataset_review.json\[.gz\] in"):
            load_yelp(tmp_path)
        self.folder(tmp_path)
        business = (tmp_path / "yelp_academic_dataset_business.json").read_bytes()
        (tmp_path / "yelp_academic_dataset_review.json").write_bytes(business)
        with pytest.raises(ValueError, match="No line of .* has a field 'user_id'. Is it a file of reviews of Yelp"):
            load_yelp(tmp_path)


class TestSteam:
    REVIEWS = (
        "{u'username': u'Zo\\xeb', u'hours': 0.1, u'product_id': u'10', u'date': u'2017-12-17', u'page': 1}",
        "{u'username': u'b', u'text': u\"it's 'id': '10'\", u'product_id': u'20', u'date': u'2017-12-18'}",
        "{u'username': u'b', u'product_id': u'30', u'date': u'2017-12-17', u'products': 41, u'found_funny': 5}",
    )
    GAMES = (
        "{u'id': u'99', u'title': __import__('os').system('false')}",  # nobody's game: never even parsed
        "{u'id': u'10', u'app_name': u'Lost \\u2122', u'genres': [u'Indie'], u'price': u'Free To Play'}",
        "{u'id': u'20', u'app_name': u'no', u'title': u\"Baldur's Gate\", u'price': 9.99, u'tags': []}",
    )

    def folder(self, tmp_path, reviews=REVIEWS, name="steam_reviews.json.gz"):
        write(tmp_path / name, *reviews)
        write(tmp_path / "steam_games.json.gz", *self.GAMES)
        return tmp_path

    @pytest.mark.parametrize("name", ["steam_reviews.json.gz", "steam_new.json"])
    def test_lines_are_python_literals(self, tmp_path, name):
        loaded = load_steam(self.folder(tmp_path, name=name))
        assert rows_of(loaded) == [("Zoë", "10", 1513468800), ("b", "30", 1513468800), ("b", "20", 1513555200)]
        assert (loaded[1].ids, loaded[1].titles) == (["10", "20", "30"], ["Lost ™", "Baldur's Gate", None])
        assert loaded[1].attributes[0] == {"genres": ["Indie"], "price": "Free To Play"}
        assert loaded[1].attributes[1] == {"price": "9.99"}

    @pytest.mark.parametrize(
        "line",
        [
            "{'username': __import__('os').getcwd(), 'product_id': '1', 'date': '2017-01-01'}",
            "{'username': 'a', 'product_id': 1, 'date': '2017-01-01'}",
            "['username']",
            "(" * 10_000,
            '{"username": null}',
        ],
        ids=["a call", "a number", "a list", "brackets", "json"],
    )
    def test_lines_that_are_none_are_counted_and_never_evaluated(self, tmp_path, line):
        folder = self.folder(tmp_path, reviews=(*self.REVIEWS, line, line))
        with pytest.raises(
            ValueError, match="is no file of reviews of Steam: 2 lines are wrong, the first is line 4 "
        ):
            load_steam(folder)

    def test_a_game_is_never_evaluated(self, tmp_path):
        self.folder(tmp_path)
        write(tmp_path / "steam_games.json.gz", "{u'id': u'10', u'title': open('x')}")
        with pytest.raises(ValueError, match="Line 1 of .*steam_games.json.gz is no game of Steam"):
            load_steam(tmp_path)

    def test_a_literal_beyond_all_measure_is_not_read(self):
        with pytest.raises(ValueError, match="are more than the 1,048,576 that are read"):
            python_literal("[" + "0," * (LONGEST_LITERAL // 2) + "]")

    def test_ratings_are_asked_for_where_there_are_none(self, tmp_path):
        with pytest.raises(ValueError, match="`min_rating` needs a column 'rating'; the interactions have"):
            rows_of(load_steam(self.folder(tmp_path)), min_rating=4)


class TestLastFM:
    def folder(self, tmp_path, *events):
        write(tmp_path / "user_taggedartists-timestamps.dat", "userID\tartistID\ttagID\ttimestamp", *events)
        artists = (
            "id\tname\turl\tpictureURL",
            "1\tMALICE MIZER\thttp://a\thttp://b",
            '2\tSigur Rós "live"\t\t',
            "9\tx\t\t",
        )
        write(tmp_path / "artists.dat", *artists)
        return tmp_path

    def test_a_tag_is_an_event_and_the_first_of_an_artist_is_kept_where_asked(self, tmp_path):
        folder = self.folder(tmp_path, "2\t1\t13\t1238536800000", "2\t2\t13\t1238536800500", "2\t1\t15\t1238536801000")
        loaded = load_lastfm(folder)
        assert rows_of(loaded) == [("2", 1, 1238536800), ("2", 2, 1238536800), ("2", 1, 1238536801)]
        assert rows_of(loaded, duplicates="first") == [("2", 1, 1238536800), ("2", 2, 1238536800)]
        assert (loaded[1].ids, loaded[1].titles) == ([1, 2, 9], ["MALICE MIZER", 'Sigur Rós "live"', "x"])
        assert loaded[1].attributes[0] == {"url": "http://a"}

    def test_times_before_1970_come_first_and_are_counted(self, tmp_path):
        report = SourceReport()
        folder = self.folder(tmp_path, "2\t1\t13\t1238536800000", "2\t2\t13\t-428720400000")
        assert rows_of(load_lastfm(folder, report=report)) == [("2", 2, 0), ("2", 1, 1238536800)]
        assert report.files["user_taggedartists-timestamps.dat"] == {"rows": 2, "before_1970": 1}

    def test_wrong_lines_are_counted_and_a_wrong_header_is_told(self, tmp_path):
        folder = self.folder(tmp_path, "2\t1\t13\t1238536800000", "2\t2\t13", "2\t2\t13\tsoon", "-1\t2\t13\t5")
        with pytest.raises(ValueError, match=r"Line 3 of .* is no tag of an artist: .* \(3 such lines\)"):
            load_lastfm(folder)
        self.folder(tmp_path, "2\t1\t13\t1238536800000")
        write(tmp_path / "artists.dat", "1\tMALICE MIZER\thttp://a\thttp://b")
        with pytest.raises(ValueError, match="artists.dat must begin with a line of id, name, url, pictureURL"):
            load_lastfm(folder)


class TestGoodreads:
    def files(self, tmp_path, *dates):
        rows = [
            {
                "user_id": "u",
                "book_id": str(book),
                "is_read": rating > 0,
                "rating": rating,
                "date_added": date,
                "read_at": "",
            }
            for book, (rating, date) in enumerate(dates, start=1)
        ]
        books = [
            {"book_id": "2", "title": "Cats", "num_pages": "56", "publisher": "", "similar_books": ["1"]},
            {"book_id": "2", "title": "Cats again"},
        ]
        return {
            "path": write(tmp_path / "goodreads_interactions_poetry.json.gz", *map(json.dumps, rows)),
            "meta": write(tmp_path / "goodreads_books_poetry.json.gz", *map(json.dumps, books)),
        }

    def test_a_shelved_book_is_an_event_at_the_time_in_its_own_zone(self, tmp_path):
        dates = [
            (0, "Fri Apr 19 08:15:15 -0700 2013"),
            (4, "Fri Apr 19 17:15:15 +0530 2013"),
            (2, "Fri Jan 02 00:00:00 +0000 1970"),
        ]
        files = self.files(tmp_path, *dates)
        loaded = load_goodreads(**files)
        assert rows_of(loaded) == [("u", "3", 86400), ("u", "2", 1366371915), ("u", "1", 1366384515)]
        assert rows_of(loaded, min_rating=1) == [("u", "3", 86400), ("u", "2", 1366371915)]
        assert (loaded[1].ids, loaded[1].titles) == (["2", "1", "3"], ["Cats", None, None])
        assert loaded[1].attributes[0] == {"num_pages": "56"}
        twice = load_goodreads([files["path"], files["path"]])
        assert len(twice[0]) == 6 and twice[1].titles is None

    @pytest.mark.parametrize(
        "date", ["", "2013-04-19", "Fri Apx 19 08:15:15 -0700 2013", "Fri Apr 39 08:15:15 -0700 2013"]
    )
    def test_a_time_that_is_none_is_counted_and_named(self, tmp_path, date):
        files = self.files(tmp_path, (1, "Fri Apr 19 08:15:15 -0700 2013"), (1, date), (1, date))
        with pytest.raises(
            ValueError, match="`date_added` is no time since 1970.* in 2 of 3 rows; the first is row 1 "
        ):
            load_goodreads(**files)


class TestFilters:
    LOG = "user_id,item_id,timestamp,stars\nu,a,10,4\nu,b,20,3.5\nu,c,86400,5\n"

    def table(self, tmp_path, text=LOG):
        return load_table(write(tmp_path / "log.csv", text.rstrip()), rating_column="stars")

    def test_low_ratings_are_dropped_before_anything_is_counted(self, tmp_path):
        loaded = self.table(tmp_path)
        log = clean_interactions(*loaded, min_rating=4, min_count=1)
        assert log.catalog.ids == ["a", "c"]
        assert (log.report["dropped_low_ratings"], log.report["interactions"]) == (1, 2)

    def test_ratings_of_amazon_and_movielens_are_read(self, tmp_path):
        reviews = [
            {"reviewerID": "u", "asin": item, "overall": stars, "unixReviewTime": 5} for item, stars in ("a5", "b3")
        ]
        path = write(tmp_path / "r.json", *(json.dumps(row | {"overall": float(row["overall"])}) for row in reviews))
        assert rows_of(load_amazon(path, year=2014), min_rating=4) == [("u", "a", 5)]
        path = write(tmp_path / "ratings_X.csv", "u,a,2.0,5", "u,b,4.0,5")
        assert rows_of(load_amazon(path, year=2014), min_rating=4) == [("u", "b", 5)]
        write(tmp_path / "u.data", "1\t1\t5\t8", "1\t2\t3\t9")
        write(tmp_path / "u.item", *(f"{film}|F||||{'0|' * 18}1" for film in (1, 2)))
        assert rows_of(load_movielens(tmp_path), min_rating=4) == [("1", 1, 8)]

    def test_a_rating_that_is_no_number_is_named(self, tmp_path):
        loaded = self.table(tmp_path, self.LOG.replace("3.5", "good").replace(",5", ","))
        with pytest.raises(
            ValueError, match="`rating` is missing or no number in 2 of 3 rows; the first is row 1 .*'good'"
        ):
            clean_interactions(*loaded, min_rating=1)
        assert len(clean_interactions(*loaded).interactions) == 3  # nobody asked

    def test_times_outside_the_window_are_dropped_both_ends_included(self, tmp_path):
        loaded = self.table(tmp_path)
        assert len(rows_of(loaded, since="1970-01-01T00:00:20", until="1970-01-02")) == 2
        assert len(rows_of(loaded, since="1970-01-01T02:00:21+02:00")) == 1
        assert clean_interactions(*loaded, until="1970-01-01").report["dropped_outside_times"] == 3
        with pytest.raises(ValueError, match="`since` must be a date or time in ISO form, .* got 'May 2019'"):
            rows_of(loaded, since="May 2019")
        path = write(tmp_path / "ordered.csv", "user_id,item_id", "u,a")
        with pytest.raises(ValueError, match="`until` is '2019-01-01', but the times of this log are unknown"):
            rows_of(load_table(path, timestamp_column=None), until="2019-01-01")

    def test_filters_stand_in_the_data_card(self, tmp_path):
        rows = "".join(f"u{user},{item},{86400 * item},{item % 5}\n" for user in range(4) for item in range(9))
        path = write(tmp_path / "log.csv", "user_id,item_id,timestamp,stars\n" + rows.rstrip())
        options = {"rating_column": "stars", "min_rating": 1, "since": "1970-01-03"}
        card = prepare("table", tmp_path / "out", path=path, **options)
        assert card["interactions"]["interactions"] == 4 * 6  # items 2, 3, 4, 6, 7, 8
        assert {name: card["cleaning"][name] for name in ("min_rating", "since", "until")} == {
            "min_rating": 1,
            "since": "1970-01-03",
            "until": None,
        }
        text = (tmp_path / "out" / "README.md").read_text()
        assert "8 outside the window of time, 4 with a low rating" in text


REAL = Path(os.environ.get("HF_REC_DATA", "nowhere"))


class TestRealFiles:
    """Published counts of users, items and interactions, where the files are at hand."""

    @pytest.mark.skipif(not (REAL / "yelp").is_dir(), reason="$HF_REC_DATA/yelp is not there")
    def test_yelp_2019(self):
        log = clean_interactions(
            *load_yelp(REAL / "yelp"), min_count=5, duplicates="keep", since="2019-01-01", until="2019-12-31"
        )
        assert [log.report[name] for name in ("users", "items", "interactions")] == [30_431, 20_033, 316_354]

    @pytest.mark.skipif(
        not (REAL / "hetrec2011-lastfm-2k").is_dir(), reason="$HF_REC_DATA/hetrec2011-lastfm-2k is not there"
    )
    def test_lastfm(self):
        log = clean_interactions(*load_lastfm(REAL / "hetrec2011-lastfm-2k"), min_count=5, duplicates="first")
        assert [log.report[name] for name in ("users", "items", "interactions")] == [1_090, 3_646, 52_551]
