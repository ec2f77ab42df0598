"""`hf-rec prepare`: files as published become a catalog, splits and a data card."""

import argparse
import re

from hf_rec.data.sources import SOURCES


def add_prepare(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> argparse.ArgumentParser:
    """Add `hf-rec prepare` to the parser of all commands."""
    parser = commands.add_parser(
        "prepare",
        help="files as published -> catalog, splits and data card",
        description="Read a source, clean and split it. A relative --path is also looked for below $HF_REC_DATA.",
        epilog="example: hf-rec prepare --source table --path log.csv --title-column title --out prepared/mine",
    )
    parser.add_argument("--source", required=True, choices=tuple(SOURCES), help="format of the files")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write, new or empty")
    cut = parser.add_argument_group("cleaning and split")
    cut.add_argument(
        "--split",
        choices=("leave-one-out", "global-time", "rated-time", "ready-made"),
        help="default: as the source is",
    )
    cut.add_argument(
        "--window", type=int, help="most events in a row, target included; default: no limit, 11 for global-time"
    )
    cut.add_argument(
        "--stride", type=int, help="new events from one window to the next; default: window - 1, 1 for global-time"
    )
    cut.add_argument("--min-events", type=int, help="shortest window of a global-time split; default: --window")
    cut.add_argument("--min-count", type=int, help="k of the k-core over users and items; default: 0, all are kept")
    cut.add_argument("--min-rating", type=float, help="drop interactions with a smaller rating")
    cut.add_argument(
        "--like",
        type=float,
        metavar="RATING",
        help="rows with ratings, split by time: what was liked (at least this rating) and what was not before",
    )
    cut.add_argument("--since", metavar="TIME", help="drop earlier interactions; ISO form, such as 2019-01-01")
    cut.add_argument("--until", metavar="TIME", help="drop later interactions; a date alone is its first second")
    cut.add_argument(
        "--duplicates",
        choices=("exact", "first", "keep"),
        help="exact (default): one of rows that agree in user, item and time is kept; first: the earliest of rows "
        "that agree in user and item; keep: all",
    )
    cut.add_argument("--require-titles", action="store_true", default=None, help="drop items without a title")
    cut.add_argument(
        "--keep-all-items",
        action="store_true",
        default=None,
        help="keep items without interactions in the catalog: a model of texts can recommend them",
    )
    cut.add_argument("--num-proc", type=int, help="processes that cut windows")
    files = parser.add_argument_group("files (which of them a source takes is checked)")
    files.add_argument("--path", nargs="+", help="file, folder, several review files, or a Hub data set owner/name")
    files.add_argument(
        "--items", help="table, sequence-text: a table with one row an item; history-csv: JSON of items"
    )
    files.add_argument("--user-column", help="table: default user_id")
    files.add_argument("--item-column", help="table: default item_id")
    files.add_argument("--timestamp-column", help="table: default timestamp; 'none' where rows are in order")
    files.add_argument("--title-column", help="table, sequence-text: column of titles")
    files.add_argument("--rating-column", help="table: column of ratings, for --min-rating")
    files.add_argument(
        "--items-id-column", help="table, sequence-text: column of ids in --items; default: --item-column, item_id"
    )
    files.add_argument("--codes", help="history-csv: JSON of semantic ids, default index.json if there is one")
    files.add_argument("--timestamp-unit", choices=("s", "ms", "auto"), help="table: unit of numbers")
    files.add_argument("--delimiter", help="table: of csv files")
    files.add_argument("--hub-split", help="table: split of a Hub data set")
    files.add_argument("--hub-config", help="table: configuration of a Hub data set")
    files.add_argument("--meta", help="amazon, goodreads: metadata file with the titles")
    files.add_argument("--add-year", action="store_true", default=None, help="movielens: write the year behind titles")
    files.add_argument("--train", help="sequence-csv, history-csv: name of the file, default train.csv")
    files.add_argument(
        "--validation", help="sequence-csv, history-csv: file of the validation rows, if not that of train"
    )
    files.add_argument("--validation-from", type=int, help="sequence-csv: first second of validation")
    files.add_argument("--validation-share", type=float, help="history-csv: share of the last rows of train")
    files.add_argument("--test", help="sequence-csv, history-csv: name of the file, default test.csv")
    files.add_argument("--titles", help="sequence-csv: JSON of id to title, default id2name4Rec.json")
    files.add_argument("--num-users", type=int, help="demo: users to generate")
    files.add_argument("--seed", type=int, help="demo: seed")
    parser.set_defaults(run=_prepare)
    return parser


def _prepare(args: argparse.Namespace) -> None:
    from hf_rec.data.data_card import terminal_lines
    from hf_rec.data.prepare import prepare

    ours = ("command", "run", "debug", "source", "out")
    flags = [name for name in vars(args) if name not in ours]
    options = {name: value for name, value in vars(args).items() if name in flags and value is not None}
    if len(options.get("path", ())) == 1:
        options["path"] = options["path"][0]
    if options.get("timestamp_column") == "none":
        options["timestamp_column"] = None
    try:
        card = prepare(args.source, args.out, **options)
    except ValueError as error:
        raise ValueError(_with_flags(str(error), [*flags, "out", "source"])) from error
    for line in terminal_lines(card):
        print(_with_flags(line, flags))
    print(f"{args.out}: {card['catalog']['items']:,} items")
    for name, report in card["splits"].items():
        print(f"  {name}: {report['rows']:,} rows of {report['users']:,} users, {report['distinct_labels']:,} labels")
    print(f"Counts and hashes: {args.out}/README.md")


def _with_flags(message: str, names: list[str]) -> str:
    """A message of the library in the words of the command line: `timestamp_unit` is --timestamp-unit here."""
    return re.sub(
        r"`(\w+)`",
        lambda found: f"--{found[1].replace('_', '-')}" if found[1] in names else found[0],
        message,
    )
