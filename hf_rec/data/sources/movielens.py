"""
MovieLens 100K, 1M, 10M and latest as GroupLens publishes them, and RecBole's atomic files of 100K.

The folder tells which it is: `u.data` + `u.item`, `ratings.dat` + `movies.dat`, `ratings.csv` + `movies.csv`, or one
`*.inter` + `*.item`.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
from datasets import Dataset

from hf_rec.columns import ITEM_ID, RATING, TIMESTAMP, TITLE, USER_ID
from hf_rec.data.catalog import Catalog
from hf_rec.data.sources.csv_rows import read_dicts
from hf_rec.data.sources.files import reading, resolve_path
from hf_rec.data.sources.report import SourceReport
from hf_rec.data.timestamps import LATEST_SECOND


_Rows = list[tuple[int, list[str]]]  # number of a line, its fields
_Parsed = TypeVar("_Parsed")

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
        ratings = _parse(folder / "u.data", _fields(folder / "u.data", "\t"), "rating", _rating, report)
        films_file = folder / "u.item"
        films = _parse(films_file, _fields(films_file, "|"), "film", _film_100k, report)
    elif (folder / "ratings.dat").is_file():
        ratings = _parse(folder / "ratings.dat", _fields(folder / "ratings.dat", "::"), "rating", _rating, report)
        films_file = folder / "movies.dat"
        films = _parse(films_file, _fields(films_file, "::"), "film", lambda fields: _film(*fields), report)
    elif (folder / "ratings.csv").is_file():
        rows = _csv_fields(folder / "ratings.csv", ("userId", "movieId", "rating", "timestamp"))
        ratings = _parse(folder / "ratings.csv", rows, "rating", _rating, report)
        films_file = folder / "movies.csv"
        rows = _csv_fields(films_file, ("movieId", "title", "genres"))
        films = _parse(films_file, rows, "film", lambda fields: _film(*fields), report)
    else:
        ratings_file, films_file = _atomic_files(folder)
        ratings = _parse(ratings_file, _atomic_fields(ratings_file, RATING_FIELDS), "rating", _rating, report)
        films = _parse(films_file, _atomic_fields(films_file, FILM_FIELDS), "film", _film_atomic, report)
    for film in films:
        if add_year and film["year"] and film[TITLE] and not YEAR_AT_END.search(film[TITLE]):
            film[TITLE] = f"{film[TITLE]} ({film['year']})"
    columns = list(zip(*ratings, strict=True)) or [()] * len(RATING_FIELDS)
    with reading(films_file):
        return Dataset(pa.table(dict(zip(RATING_FIELDS, columns, strict=True)))), Catalog.from_records(films)


def _fields(path: Path, delimiter: str) -> _Rows:
    """
    Lines cut at a delimiter, each with its number; empty ones are left out.

    The files of 100K and 1M are latin-1, those of 10M UTF-8: what decodes as UTF-8 and holds more than ASCII is UTF-8.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}. Unpack the whole archive into one folder.")
    content = path.read_bytes()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    lines = enumerate(text.split("\n"), start=1)
    return [(number, line.rstrip("\r").split(delimiter)) for number, line in lines if line.strip()]


def _csv_fields(path: Path, columns: tuple[str, ...]) -> _Rows:
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}. Unpack the whole archive into one folder.")
    with reading(path, "good csv file"):
        return [(number, [row[name] for name in columns]) for number, row in read_dicts(path, columns)]


def _atomic_fields(path: Path, columns: tuple[str, ...]) -> _Rows:
    """The lines behind the header of one of RecBole's files, with the fields of these columns alone."""
    (_, header), *rows = _fields(path, "\t") or [(1, [""])]
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


def _parse(
    path: Path, rows: _Rows, what: str, make: Callable[[list[str]], _Parsed], report: SourceReport
) -> list[_Parsed]:
    """What `make` makes of the fields of each line; a line of which it cannot make anything is named."""
    made = []
    for number, fields in rows:
        try:
            made.append(make(fields))
        except (ValueError, IndexError, TypeError, OverflowError) as error:
            raise ValueError(f"Line {number} of {path} is no {what}: {error}. Download the file again.") from None
    report.note_file(path, len(made))
    return made


def _rating(fields: list[str]) -> tuple[int, int, float, int]:
    if len(fields) != len(RATING_FIELDS):
        raise ValueError(f"{len(fields)} fields instead of {len(RATING_FIELDS)}")
    user, item, rating, time = fields
    seconds = int(float(time))
    if not 0 <= seconds <= LATEST_SECOND:
        raise ValueError(f"{TIMESTAMP!r} is {time:.40}, not seconds since 1970")
    return _id(user), _id(item), float(rating), seconds


def _id(text: str) -> int:
    number = int(text)
    if not 0 <= number < 2**63:
        raise ValueError(f"{text:.40} is no id")
    return number


def _film(item: str, title: str, genres: str = "") -> dict[str, Any]:
    year = YEAR_AT_END.search(title)
    return {
        ITEM_ID: _id(item),
        TITLE: title,
        "year": int(year.group(1)) if year else None,
        "genres": [genre for genre in genres.split("|") if genre],
    }


def _film_100k(fields: list[str]) -> dict[str, Any]:
    if len(fields) != NUM_FIELDS_100K + len(GENRES_100K):
        raise ValueError(f"{len(fields)} fields instead of {NUM_FIELDS_100K + len(GENRES_100K)}")
    flags = zip(GENRES_100K, fields[NUM_FIELDS_100K:], strict=True)
    return _film(fields[0], fields[1]) | {"genres": [genre for genre, flag in flags if flag == "1"]}


def _film_atomic(fields: list[str]) -> dict[str, Any]:
    item, title, year, genres = fields
    number = int(year) if year.isdecimal() and len(year) <= 4 else None
    return {ITEM_ID: _id(item), TITLE: title, "year": number, "genres": genres.split()}


def _atomic_files(folder: Path) -> tuple[Path, Path]:
    """RecBole's atomic files: tab separated, a header of `name:type`."""
    inter, item = sorted(folder.glob("*.inter")), sorted(folder.glob("*.item"))
    if len(inter) != 1 or len(item) != 1:
        raise FileNotFoundError(
            f"{folder} holds neither u.data, ratings.dat, ratings.csv nor one *.inter and one *.item file. Give the "
            "folder of an unpacked MovieLens archive."
        )
    return inter[0], item[0]
