"""
MovieLens 100K, 1M, 10M and latest as GroupLens publishes them, and RecBole's atomic files of 100K.

The folder tells which it is: `u.data` + `u.item`, `ratings.dat` + `movies.dat`, `ratings.csv` + `movies.csv`, or one
`*.inter` + `*.item`.
"""

import os
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset

from hf_rec.columns import ITEM_ID, RATING, TIMESTAMP, TITLE, USER_ID
from hf_rec.data.catalog import Catalog
from hf_rec.data.sources.csv_rows import read_dicts
from hf_rec.data.sources.delimited import Rows, parse_rows, read_fields, whole_number
from hf_rec.data.sources.files import reading, resolve_path
from hf_rec.data.sources.report import SourceReport
from hf_rec.data.timestamps import LATEST_SECOND


YEAR_AT_END = re.compile(r"\((\d{4})\)\s*$")
GENRES_100K = (
    "unknown|Action|Adventure|Animation|Children's|Comedy|Crime|Documentary|Drama|Fantasy|Film-Noir|Horror|Musical|Mystery"
    "|Romance|Sci-Fi|Thriller|War|Western"
).split("|")
NUM_FIELDS_100K = 5  # of a film, before its genres: number, title, two dates, address
RATING_FIELDS = (USER_ID, ITEM_ID, RATING, TIMESTAMP)
FILM_FIELDS = (ITEM_ID, "movie_title", "release_year", "class")  # of the atomic files


def load_movielens(
    path: str | os.PathLike, *, add_year: bool = False, report: SourceReport | None = None
) -> tuple[Dataset, Catalog]:
    """
    Read a MovieLens folder.

    Args:
        path (`str` or `os.PathLike`): The folder, unpacked.
        add_year (`bool`, *optional*, defaults to `False`): Write the year behind titles that lack it, as in "Toy Story
            (1995)". GroupLens publishes titles with it, RecBole without.
        report ([`SourceReport`], *optional*): Is told how many rows were read.

    Returns:
        `tuple[datasets.Dataset, Catalog]`: All ratings with `user_id`, `item_id`, `rating` and `timestamp` in the
        order of the file, and all films, rated or not, with `year` and `genres` as attributes.
    """
    folder = resolve_path(path)
    report = SourceReport() if report is None else report
    if (folder / "u.data").is_file():
        ratings_file, films_file, film = folder / "u.data", folder / "u.item", _film_100k
        rows, films = read_fields(ratings_file, "\t"), read_fields(films_file, "|")
    elif (folder / "ratings.dat").is_file():
        ratings_file, films_file, film = folder / "ratings.dat", folder / "movies.dat", _film
        rows, films = read_fields(ratings_file, "::"), read_fields(films_file, "::")
    elif (folder / "ratings.csv").is_file():
        ratings_file, films_file, film = folder / "ratings.csv", folder / "movies.csv", _film
        rows = _csv_fields(ratings_file, ("userId", "movieId", "rating", "timestamp"))
        films = _csv_fields(films_file, ("movieId", "title", "genres"))
    else:
        ratings_file, films_file = _atomic_files(folder)
        film = _film_atomic
        rows, films = _atomic_fields(ratings_file, RATING_FIELDS), _atomic_fields(films_file, FILM_FIELDS)
    ratings = parse_rows(ratings_file, rows, "rating", _rating, report)
    records = parse_rows(films_file, films, "film", film, report)
    for record in records:
        if add_year and record["year"] and record[TITLE] and not YEAR_AT_END.search(record[TITLE]):
            record[TITLE] = f"{record[TITLE]} ({record['year']})"
    columns = list(zip(*ratings, strict=True)) or [()] * len(RATING_FIELDS)
    with reading(films_file):
        return Dataset(pa.table(dict(zip(RATING_FIELDS, columns, strict=True)))), Catalog.from_records(records)


def _csv_fields(path: Path, columns: tuple[str, ...]) -> Rows:
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}. Unpack the whole archive into one folder.")
    with reading(path, "good csv file"):
        return [(number, [row[name] for name in columns]) for number, row in read_dicts(path, columns)]


def _atomic_fields(path: Path, columns: tuple[str, ...]) -> Rows:
    """The lines behind the header of one of RecBole's files, with the fields of these columns alone."""
    (_, header), *rows = read_fields(path, "\t") or [(1, [""])]
    names = [name.split(":")[0] for name in header]
    missing = [name for name in columns if name not in names]
    if missing:
        raise ValueError(f"{path} has no column {missing[0]!r}; it has {names}. Download the file again.")
    for number, fields in rows:
        if len(fields) != len(names):
            raise ValueError(
                f"Line {number} of {path} has {len(fields)} fields instead of {len(names)}. Download the file again."
            )
    return [(number, [fields[names.index(name)] for name in columns]) for number, fields in rows]


def _rating(fields: list[str]) -> tuple[int, int, float, int]:
    if len(fields) != len(RATING_FIELDS):
        raise ValueError(f"{len(fields)} fields instead of {len(RATING_FIELDS)}")
    user, item, rating, time = fields
    seconds = int(float(time))
    if not 0 <= seconds <= LATEST_SECOND:
        raise ValueError(f"{TIMESTAMP!r} is {time:.40}, not seconds since 1970")
    return whole_number(user), whole_number(item), float(rating), seconds


def _film(fields: list[str]) -> dict[str, Any]:
    item, title, genres = fields
    year = YEAR_AT_END.search(title)
    return {
        ITEM_ID: whole_number(item),
        TITLE: title,
        "year": int(year.group(1)) if year else None,
        "genres": [genre for genre in genres.split("|") if genre],
    }


def _film_100k(fields: list[str]) -> dict[str, Any]:
    if len(fields) != NUM_FIELDS_100K + len(GENRES_100K):
        raise ValueError(f"{len(fields)} fields instead of {NUM_FIELDS_100K + len(GENRES_100K)}")
    flags = zip(GENRES_100K, fields[NUM_FIELDS_100K:], strict=True)
    return _film([*fields[:2], ""]) | {"genres": [genre for genre, flag in flags if flag == "1"]}


def _film_atomic(fields: list[str]) -> dict[str, Any]:
    item, title, year, genres = fields
    number = int(year) if year.isdecimal() and len(year) <= 4 else None
    return {ITEM_ID: whole_number(item), TITLE: title, "year": number, "genres": genres.split()}


def _atomic_files(folder: Path) -> tuple[Path, Path]:
    """RecBole's atomic files: tab separated, a header of `name:type`."""
    inter, item = sorted(folder.glob("*.inter")), sorted(folder.glob("*.item"))
    if len(inter) != 1 or len(item) != 1:
        raise FileNotFoundError(
            f"{folder} holds neither u.data, ratings.dat, ratings.csv nor one *.inter and one *.item file. Give the "
            "folder of an unpacked MovieLens archive."
        )
    return inter[0], item[0]
