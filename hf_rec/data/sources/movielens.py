"""
MovieLens 100K, 1M, 10M and latest as GroupLens publishes them, and RecBole's atomic files of 100K.

The folder tells which it is: `u.data` + `u.item`, `ratings.dat` + `movies.dat`, `ratings.csv` + `movies.csv`, or one
`*.inter` + `*.item`.
"""

import csv
import os
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset

from hf_rec.columns import ITEM_ID, RATING, TIMESTAMP, TITLE, USER_ID
from hf_rec.data.catalog import Catalog
from hf_rec.data.sources.files import open_text, resolve_path


YEAR_AT_END = re.compile(r"\((\d{4})\)\s*$")
GENRES_100K = (
    "unknown|Action|Adventure|Animation|Children's|Comedy|Crime|Documentary|Drama|Fantasy|Film-Noir|Horror|Musical|Mystery"
    "|Romance|Sci-Fi|Thriller|War|Western"
).split("|")
RATING_FIELDS = (USER_ID, ITEM_ID, RATING, TIMESTAMP)


def load_movielens(path: str | os.PathLike, *, add_year: bool = False) -> tuple[Dataset, Catalog]:
    """
    Read a MovieLens folder.

    Args:
        path (`str` or `os.PathLike`): The folder, unpacked.
        add_year (`bool`, *optional*, defaults to `False`): Write the year behind titles that lack it, as in "Toy Story
            (1995)". GroupLens publishes titles with it, RecBole without.

    Returns:
        `tuple[datasets.Dataset, Catalog]`: All ratings with `user_id`, `item_id`, `rating` and `timestamp` in the
        order of the file, and all films, rated or not, with `year` and `genres` as attributes.
    """
    folder = resolve_path(path)
    if (folder / "u.data").is_file():
        ratings = _read_ratings(folder / "u.data", "\t")
        films = [_film_100k(fields) for fields in _read_fields(folder / "u.item", "|")]
    elif (folder / "ratings.dat").is_file():
        ratings = _read_ratings(folder / "ratings.dat", "::")
        films = [_film(*fields) for fields in _read_fields(folder / "movies.dat", "::")]
    elif (folder / "ratings.csv").is_file():
        ratings = _read_ratings_csv(folder / "ratings.csv")
        films = [_film(row["movieId"], row["title"], row["genres"]) for row in _read_csv(folder / "movies.csv")]
    else:
        ratings, films = _read_atomic(folder)
    for film in films:
        if add_year and film["year"] and film[TITLE] and not YEAR_AT_END.search(film[TITLE]):
            film[TITLE] = f"{film[TITLE]} ({film['year']})"
    return Dataset(ratings), Catalog.from_records(films)


def _read_fields(path: Path, delimiter: str) -> list[list[str]]:
    """
    Lines cut at a delimiter.

    The files of 100K and 1M are latin-1, those of 10M UTF-8: what decodes as UTF-8 and holds more than ASCII is UTF-8.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}. Unpack the whole archive into one folder.")
    content = path.read_bytes()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    return [line.rstrip("\r").split(delimiter) for line in text.split("\n") if line.strip()]


def _read_ratings(path: Path, delimiter: str) -> pa.Table:
    return _ratings_table(path, _read_fields(path, delimiter), RATING_FIELDS, first_line=1)


def _read_ratings_csv(path: Path) -> pa.Table:
    rows = [[row["userId"], row["movieId"], row["rating"], row["timestamp"]] for row in _read_csv(path)]
    return _ratings_table(path, rows, RATING_FIELDS, first_line=2)


def _ratings_table(path: Path, rows: list[list[str]], fields: tuple[str, ...], first_line: int) -> pa.Table:
    """Numbers of the four columns, of which `fields` says where they stand in a row."""
    places = [fields.index(name) for name in RATING_FIELDS]
    columns = [[], [], [], []]
    for number, row in enumerate(rows, start=first_line):
        try:
            if len(row) != len(fields):
                raise ValueError(f"{len(row)} fields instead of {len(fields)}")
            user, item, rating, time = (row[place] for place in places)
            values = (int(user), int(item), float(rating), int(float(time)))
        except ValueError as error:
            raise ValueError(f"Line {number} of {path} is no rating: {error}. Download the file again.") from None
        for column, value in zip(columns, values, strict=True):
            column.append(value)
    return pa.table(dict(zip(RATING_FIELDS, columns, strict=True)))


def _read_csv(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}. Unpack the whole archive into one folder.")
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _film(item: str, title: str, genres: str = "") -> dict[str, Any]:
    year = YEAR_AT_END.search(title)
    return {
        ITEM_ID: int(item),
        TITLE: title,
        "year": int(year.group(1)) if year else None,
        "genres": [genre for genre in genres.split("|") if genre],
    }


def _film_100k(fields: list[str]) -> dict[str, Any]:
    film = _film(fields[0], fields[1])
    film["genres"] = [
        genre for genre, flag in zip(GENRES_100K, fields[-len(GENRES_100K) :], strict=True) if flag == "1"
    ]
    return film


def _read_atomic(folder: Path) -> tuple[pa.Table, list[dict[str, Any]]]:
    """RecBole's atomic files: tab separated, a header of `name:type`."""
    inter, item = sorted(folder.glob("*.inter")), sorted(folder.glob("*.item"))
    if len(inter) != 1 or len(item) != 1:
        raise FileNotFoundError(
            f"{folder} holds neither u.data, ratings.dat, ratings.csv nor one *.inter and one *.item file. Give the "
            "folder of an unpacked MovieLens archive."
        )
    header, *rows = _read_fields(inter[0], "\t")
    ratings = _ratings_table(inter[0], rows, tuple(name.split(":")[0] for name in header), first_line=2)
    with open_text(item[0]) as file:
        header, *rows = (line.rstrip("\n").split("\t") for line in file if line.strip())
    names = [name.split(":")[0] for name in header]
    films = []
    for row in rows:
        film = dict(zip(names, row, strict=True))
        year = film["release_year"]
        films.append(
            {
                ITEM_ID: int(film["item_id"]),
                TITLE: film["movie_title"],
                "year": int(year) if year.isdecimal() else None,
                "genres": film["class"].split(),
            }
        )
    return ratings, films
