"""The Yelp data set, as Yelp publishes it: `yelp_academic_dataset_review.json` and `..._business.json`."""

import json
import os

import pyarrow as pa
from datasets import Dataset

from hf_rec.columns import ITEM_ID, RATING, TIMESTAMP, TITLE, USER_ID
from hf_rec.data.catalog import Catalog
from hf_rec.data.sources.files import find_file, reading, resolve_path
from hf_rec.data.sources.json_lines import read_items, read_json_columns
from hf_rec.data.sources.report import SourceReport
from hf_rec.data.sources.tables import complete_catalog


REVIEW_FIELDS = {"user_id": USER_ID, "business_id": ITEM_ID, "stars": RATING, "date": TIMESTAMP}
TYPES = {"user_id": pa.string(), "business_id": pa.string(), "stars": pa.float64(), "date": pa.string()}
ATTRIBUTES = ("city", "state")


def load_yelp(path: str | os.PathLike, *, report: SourceReport | None = None) -> tuple[Dataset, Catalog]:
    """
    Read the reviews and businesses of Yelp.

    Papers work on one year of reviews, `since="2019-01-01", until="2019-12-31"` and a 5-core.

    Args:
        path (`str` or `os.PathLike`): The unpacked folder. Its files may end in `.gz`.
        report ([`SourceReport`], *optional*): Is filled in with what was read and what did not join.

    Returns:
        `tuple[datasets.Dataset, Catalog]`: All reviews in the order of the file, with `rating` (1 to 5 stars), and the
        businesses that occur in them: their name, and `categories` (a list), `city` and `state` as attributes.
    """
    folder, report = resolve_path(path), SourceReport() if report is None else report
    reviews = find_file(folder, "yelp_academic_dataset_review.json")
    businesses = find_file(folder, "yelp_academic_dataset_business.json")
    table = read_json_columns(reviews, TYPES, ("user_id", "business_id", "date"), "reviews of Yelp", report)
    table = table.rename_columns([REVIEW_FIELDS[name] for name in table.column_names])
    with reading(businesses, "file of businesses of Yelp"):
        wanted = set(table[ITEM_ID].unique().to_pylist())
        records = []
        for business in read_items(businesses, "business_id", wanted, json.loads, "business of Yelp"):
            record = {name: business[name] for name in ATTRIBUTES if business.get(name)}
            if business.get("categories"):
                record["categories"] = [name.strip() for name in str(business["categories"]).split(",")]
            records.append({ITEM_ID: business["business_id"], TITLE: business.get("name"), **record})
        return Dataset(table), complete_catalog(records, table[ITEM_ID], report)
