"""Files of every source, damaged in many ways: they are read, or refused in one line that names the file."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from hf_rec.data.interactions import clean_interactions
from hf_rec.data.sources import SOURCES


REVIEW = '{"reviewerID": "A%d", "asin": "B%d", "unixReviewTime": 13000000%d}\n'
TEXTS = {
    "table": {"log.csv": "user_id,item_id,timestamp,title\n" + "".join(f'u{n},i{n},{n},"T, {n}"\n' for n in range(9))},
    "table-jsonl": {
        "log.jsonl": "".join(f'{{"user_id": "ü{n}", "item_id": {n}, "timestamp": {n}}}\n' for n in range(9))
    },
    "table-gz": {"log.csv.gz": "user_id,item_id,timestamp\n" + "".join(f"u{n},i{n},{n}\n" for n in range(99))},
    "table-parquet": {"log.parquet": None},
    "amazon-2014": {
        "reviews.json.gz": "".join(REVIEW % (n, n, n) for n in range(9)),
        "meta.json.gz": "".join(f"{{'asin': 'B{n}', 'title': 'T{n}'}}\n" for n in range(9)),
    },
    "amazon-2018": {
        "ratings.csv": "".join(f"B{n},A{n},5.0,13000000{n}\n" for n in range(9)),
        "meta.json": "".join(f'{{"asin": "B{n}", "title": "T{n}"}}\n' for n in range(9)),
    },
    "movielens": {
        "u.data": "".join(f"{n}\t{n}\t5\t88125094{n}\n" for n in range(9)),
        "u.item": "".join(f"{n}|Film {n} (1995)|01-Jan-1995||http://x|{'0|' * 18}1\n" for n in range(9)),
    },
    "movielens-1m": {
        "ratings.dat": "".join(f"{n}::{n}::5::88125094{n}\n" for n in range(9)),
        "movies.dat": "".join(f"{n}::Film {n} (1995)::Drama\n" for n in range(9)),
    },
    "movielens-latest": {
        "ratings.csv": "userId,movieId,rating,timestamp\n" + "".join(f"{n},{n},4.0,88125094{n}\n" for n in range(9)),
        "movies.csv": "movieId,title,genres\n" + "".join(f'{n},"Film, {n} (1995)",Drama\n' for n in range(9)),
    },
    "movielens-atomic": {
        "x.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        + "".join(f"{n}\t{n}\t5\t88125094{n}\n" for n in range(9)),
        "x.item": "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        + "".join(f"{n}\tFilm {n}\t1995\tDrama\n" for n in range(9)),
    },
    "yelp": {
        "yelp_academic_dataset_review.json": "".join(
            f'{{"user_id": "A{n}", "business_id": "B{n}", "stars": 4.0, "date": "2019-01-0{n + 1} 10:00:00"}}\n'
            for n in range(9)
        ),
        "yelp_academic_dataset_business.json": "".join(
            f'{{"business_id": "B{n}", "name": "T{n}", "categories": "Food, Bars"}}\n' for n in range(9)
        ),
    },
    "steam": {
        "steam_reviews.json.gz": "".join(
            f"{{u'username': u'A{n}', u'product_id': u'{n}', u'date': u'2017-12-1{n}'}}\n" for n in range(9)
        ),
        "steam_games.json": "".join(f"{{u'id': u'{n}', u'title': u'T{n}', u'price': 1.5}}\n" for n in range(9)),
    },
    "lastfm": {
        "user_taggedartists-timestamps.dat": "userID\tartistID\ttagID\ttimestamp\n"
        + "".join(f"{n}\t{n}\t13\t123853680000{n}\n" for n in range(9)),
        "artists.dat": "id\tname\turl\tpictureURL\n" + "".join(f"{n}\tBand {n}\thttp://x\t\n" for n in range(9)),
    },
    "goodreads": {
        "goodreads_interactions_poetry.json.gz": "".join(
            f'{{"user_id": "A{n}", "book_id": "{n}", "rating": 4, "date_added": "Fri Apr 19 08:15:1{n} -0700 2013"}}\n'
            for n in range(9)
        ),
        "goodreads_books_poetry.json": "".join(f'{{"book_id": "{n}", "title": "T{n}"}}\n' for n in range(9)),
    },
    "sequence-csv": {
        "train.csv": "user_id,item_ids,timestamp\n" + "".join(f'u{n},"[1, 2, {n}]",{n}\n' for n in range(9)),
        "test.csv": 'user_id,item_ids,timestamp\nu,"[1, 2, 3]",30\n',
        "id2name4Rec.json": json.dumps({str(n): f"Title {n}" for n in range(9)}),
    },
    "history-csv": {
        "train.csv": "user_id,history_item_id,item_id\n" + "".join(f'u{n},"[1, {n}]",3\n' for n in range(9)),
        "test.csv": 'user_id,history_item_id,item_id\nu,"[1, 2]",3\n',
        "item.json": json.dumps({str(n): {"title": f"Title {n}"} for n in range(9)}),
        "index.json": json.dumps({str(n): [f"<a_{n}>", "<b_3>"] for n in range(9)}),
    },
    "sequence-text": {"x.txt": "".join(f"{n} 1 2 3 {n}\n" for n in range(9))},
    "sequence-text-items": {
        "x.txt": "".join(f"{n} 1 2 3 {n}\n" for n in range(9)),
        "items.json": json.dumps([{"item_id": n, "title": f"Title {n}", "codes": [n, 1]} for n in range(9)]),
    },
}
HUGE = b"9" * 25


def drop_column(content: bytes) -> bytes:
    """The first name or field of each line is gone."""
    lines = content.split(b"\n")
    for mark in (b"::", b"\t", b"|", b",", b" "):
        if mark in lines[0]:
            return b"\n".join(line.partition(mark)[2] for line in lines)
    return content


DAMAGE = {
    "empty": lambda content: b"",
    "cut in half": lambda content: content[: len(content) // 2],
    "cut by a byte": lambda content: content[:-2],
    "garbage in the middle": lambda content: content[: len(content) // 2] + b"\xff\x00\xfe\x80" * 9 + content[-40:],
    "garbage from the start": lambda content: b"\xff\xfe\x00\x01" + content,
    "a stray quote": lambda content: content.replace(b"1", b'"1', 1),
    "a column dropped": drop_column,
    "numbers beyond 64 bits": lambda content: content.replace(b"5", HUGE).replace(b"3", HUGE),
    "deep brackets": lambda content: content.replace(b"[1", b"[" * 100_000 + b"1", 1),
    "another kind of value": lambda content: content.replace(b'"Title 1"', b"[1]").replace(b"'T1'", b"['x']"),
    "a line break in a line": lambda content: content[: len(content) // 2] + b"\n" + content[len(content) // 2 :],
}


def write(folder, files):
    for name, text in files.items():
        if text is None:
            table = {"user_id": ["a", "b"] * 99, "item_id": ["x", "y"] * 99, "timestamp": list(range(198))}
            pyarrow.parquet.write_table(pa.table(table), folder / name)
        else:
            data = text.encode()
            (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)


def read(kind, folder):
    source = next(name for name in SOURCES if kind.startswith(name))
    files = list(TEXTS[kind])
    arguments = {"path": folder}
    if source in ("table", "sequence-text"):
        arguments = {"path": folder / files[0]} | ({"items": folder / files[1]} if len(files) > 1 else {})
    elif source.startswith(("amazon", "goodreads")):
        arguments = {"path": folder / files[0], "meta": folder / files[1]}
    loaded, catalog = SOURCES[source].reader()(**arguments)
    if source not in ("sequence-csv", "history-csv"):
        clean_interactions(loaded, catalog)


@pytest.mark.parametrize("kind", TEXTS)
def test_a_damaged_file_is_read_or_refused_in_one_line_that_names_it(tmp_path, kind):
    write(tmp_path, TEXTS[kind])
    read(kind, tmp_path)
    outcomes = {}
    for name in TEXTS[kind]:
        whole = (tmp_path / name).read_bytes()
        for how, damage in DAMAGE.items():
            zipped = name.endswith(".gz") and "column" in how
            damaged = gzip.compress(damage(gzip.decompress(whole))) if zipped else damage(whole)
            if damaged == whole:
                continue
            (tmp_path / name).write_bytes(damaged)
            try:
                read(kind, tmp_path)
                outcomes[name, how] = "read"
            except (ValueError, OSError) as error:
                named = str(tmp_path / name) in str(error) or "rows; the first is row" in str(error)
                alone = "\n" not in str(error)
                # a catalog that lost an item makes the log's first event of it the bad row
                unknown = "is not among the" in str(error) and ("Line" in str(error) or "Row" in str(error))
                outcomes[name, how] = "refused" if alone and (named or unknown) else f"unclear: {error}"
            except Exception as error:
                outcomes[name, how] = f"traceback: {error!r:.300}"
        (tmp_path / name).write_bytes(whole)
    assert {key: value for key, value in outcomes.items() if value not in ("read", "refused")} == {}
    assert "refused" in outcomes.values()
