"""
Reviews and games of Steam as UCSD publishes them: `steam_reviews.json.gz` (also as `steam_new.json.gz`) and
`steam_games.json.gz`. Despite their names, their lines are Python literals, which are parsed and never evaluated.
"""

import os

import pyarrow as pa
from datasets import Dataset

from hf_rec.columns import ITEM_ID, TIMESTAMP, TITLE, USER_ID
from hf_rec.data.catalog import Catalog
from hf_rec.data.sources.files import find_file, reading, resolve_path
from hf_rec.data.sources.json_lines import python_literal, read_items, read_literal_columns
from hf_rec.data.sources.report import SourceReport
from hf_rec.data.sources.tables import complete_catalog


REVIEW_FIELDS = {"username": USER_ID, "product_id": ITEM_ID, "date": TIMESTAMP}
ATTRIBUTES = ("genres", "tags", "developer", "publisher", "release_date", "price")


def load_steam(path: str | os.PathLike, *, report: SourceReport | None = None) -> tuple[Dataset, Catalog]:
    """
    Read the reviews and games of Steam.

    A review has no rating. Users are told apart by their `username`, as in the papers, and times are days.

    Args:
        path (`str` or `os.PathLike`): Folder of the two files, compressed or not.
        report ([`SourceReport`], *optional*): Is filled in with what was read and what did not join.

    Returns:
        `tuple[datasets.Dataset, Catalog]`: All reviews in the order of the file, and the games that occur in them,
        with `title`, or else `app_name`, as title.
    """
    folder, report = resolve_path(path), SourceReport() if report is None else report
    reviews = find_file(folder, "steam_reviews.json", "steam_new.json")
    games = find_file(folder, "steam_games.json")
    types = dict.fromkeys(REVIEW_FIELDS, pa.string())
    table = read_literal_columns(reviews, types, list(types), "reviews of Steam", report)
    table = table.rename_columns([REVIEW_FIELDS[name] for name in table.column_names])
    with reading(games, "file of games of Steam"):
        wanted = set(table[ITEM_ID].unique().to_pylist())
        records = []
        for game in read_items(games, "id", wanted, python_literal, "game of Steam"):
            record = {name: game[name] for name in ATTRIBUTES if game.get(name) not in (None, "", [])}
            if "price" in record:  # a number, or words such as "Free To Play"
                record["price"] = str(record["price"])
            records.append({ITEM_ID: game["id"], TITLE: game.get("title") or game.get("app_name"), **record})
        return Dataset(table), complete_catalog(records, table[ITEM_ID], report)
