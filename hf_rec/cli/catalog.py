"""`hf-rec catalog`: the items of a saved language model change, without training."""

import argparse
from functools import partial
from typing import TYPE_CHECKING, Any

from hf_rec.cli.recommend import find_item
from hf_rec.columns import ITEM_ID


if TYPE_CHECKING:
    from hf_rec.data.catalog import Catalog
    from hf_rec.recommenders.contract import RawId


def add_catalog(commands: Any) -> argparse.ArgumentParser:
    """Add `hf-rec catalog` to the parser of all commands."""
    parser = commands.add_parser(
        "catalog",
        help="add, remove or rename items of a language model, without training",
        description="Change the items of a saved language model, which writes what they are called. The weights stay "
        "as they are; the folder is as before until all that is new has been written.",
        epilog="example: hf-rec catalog add --model runs/demo/msl --items new.csv --out runs/demo/msl-new",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="add | remove | rename")
    add = actions.add_parser("add", help="add the items of a table")
    add.add_argument("--items", required=True, metavar="FILE", help="csv, jsonl, json or parquet, a row an item")
    add.add_argument("--items-id-column", default="item_id", help="column of the ids (default: %(default)s)")
    add.add_argument("--title-column", default="title", help="column of the titles (default: %(default)s)")
    remove = actions.add_parser("remove", help="remove items")
    remove.add_argument("--item", nargs="+", required=True, metavar="ITEM", help="ids or titles")
    rename = actions.add_parser("rename", help="give an item another title")
    rename.add_argument("--item", required=True, metavar="ITEM", help="id or title")
    rename.add_argument("--title", required=True, help="its new title")
    for action in (add, remove, rename):
        action.add_argument("--model", required=True, metavar="DIR", help="folder of a language model")
        action.add_argument("--out", metavar="DIR", help="new folder to write (default: the folder itself changes)")
    parser.set_defaults(run=_catalog)
    return parser


def _catalog(args: argparse.Namespace) -> None:
    from hf_rec.hub import change_catalog

    change = {"add": _added, "remove": _removed, "rename": _renamed}[args.action]
    catalog = change_catalog(args.model, partial(change, args), args.out)
    print(f"{args.out or args.model}: {len(catalog):,} items")


def _added(args: argparse.Namespace, catalog: "Catalog") -> "Catalog":
    from hf_rec.data.sources.item_records import item_records
    from hf_rec.data.sources.tables import read_table

    table = read_table(args.items, None)
    for flag, column in (("--items-id-column", args.items_id_column), ("--title-column", args.title_column)):
        if column not in table.column_names:
            raise ValueError(f"`{flag}` {column!r} is no column of {args.items}, which has {table.column_names}.")
    records = item_records(table, args.items_id_column, args.title_column)
    types = set(map(type, catalog.ids))
    if types == {str}:
        records = [record | {ITEM_ID: str(record[ITEM_ID])} for record in records]
    elif types == {int}:  # a csv file does not tell 12 from "12"
        for record in records:
            if not str(record[ITEM_ID]).isdecimal():
                raise ValueError(
                    f"{args.items} has the id {record[ITEM_ID]!r}, but the ids of the catalog are numbers."
                )
        records = [record | {ITEM_ID: int(record[ITEM_ID])} for record in records]
    return catalog.with_records(records)


def _removed(args: argparse.Namespace, catalog: "Catalog") -> "Catalog":
    gone = {catalog.row(_one_item(catalog, item)) for item in args.item}
    if len(gone) == len(catalog):
        raise ValueError("`--item` names all items of the catalog. Leave at least one.")
    return catalog.subset([row for row in range(len(catalog)) if row not in gone])


def _renamed(args: argparse.Namespace, catalog: "Catalog") -> "Catalog":
    return catalog.renamed(catalog.row(_one_item(catalog, args.item)), args.title)


def _one_item(catalog: "Catalog", item: str) -> "RawId":
    """The raw id of what was named by id or by title; a title of several items is refused."""
    found = find_item(catalog, item, "--item")
    if len(found) > 1:
        raise ValueError(f"`--item` {item!r} is the title of {', '.join(map(repr, found))}. Give an id.")
    return found[0]
