"""`hf-rec recommend`: the next items for one history, for each row of a split, or for a table of users."""

import argparse
import json
import os
from typing import TYPE_CHECKING, Any

from hf_rec.cli.model_flags import add_model_flags, check_model_flags, load_model, refuse_flags


if TYPE_CHECKING:
    from hf_rec.data.catalog import Catalog
    from hf_rec.recommenders.contract import RawId
    from hf_rec.recommenders.language_model import LanguageModelRecommender


_OF_SPLITS = ("split", "limit", "every_label")
_OF_LISTS = ("out", "batch_size", "overwrite", *_OF_SPLITS)


def add_recommend(commands: Any) -> argparse.ArgumentParser:
    """Add `hf-rec recommend` to the parser of all commands."""
    parser = commands.add_parser(
        "recommend",
        help="the next items for one history, each row of a split, or a table of users",
        description="Recommend the items that follow a history; or, with --data, write the list of each row of a "
        "split into a folder, for another model to learn from; or, with --users, write the lists of a table of users. "
        "Under `accelerate launch` each process ranks a share of it, and a run that was stopped goes on where it was.",
        epilog='example: hf-rec recommend --model runs/demo/msl --history "Star Harbour" "Iron Orchard" --k 5',
    )
    add_model_flags(parser, ranks_split=False)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--history", nargs="+", metavar="ITEM", help="raw ids or titles, oldest first")
    which.add_argument(
        "--users",
        metavar="FILE",
        help="parquet with user_id and history (raw ids), and maybe history_timestamps, exclude",
    )
    which.add_argument("--data", metavar="DIR", help="folder written by `hf-rec prepare`: a list for each of its rows")
    parser.add_argument("--k", type=int, default=10, help="items to recommend (default: %(default)s)")
    parser.add_argument("--exclude", nargs="+", default=[], metavar="ITEM", help="ids or titles not to recommend")
    parser.add_argument("--exclude-history", action="store_true", help="recommend nothing that is in the history")
    parser.add_argument("--allow", nargs="+", metavar="ITEM", help="ids or titles, nothing else may be recommended")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    lists = parser.add_argument_group("many lists, with --data or --users")
    lists.add_argument(
        "--out", metavar="PATH", help="folder of lists.parquet and lists.json; with --users a parquet file"
    )
    lists.add_argument("--overwrite", action="store_true", help="with --users: begin anew where --out is there")
    lists.add_argument("--split", help="rows to make lists for (default: train)")
    lists.add_argument("--limit", type=int, help="this many rows, evenly spaced (default: all of the split)")
    lists.add_argument(
        "--every-label", action="store_true", help="a list before each event that may be a label, not the target alone"
    )
    lists.add_argument("--batch-size", type=int, help="histories worked on at a time (default: that of the model)")
    parser.set_defaults(run=_recommend)
    return parser


def _recommend(args: argparse.Namespace) -> None:
    import math

    from transformers.utils import logging

    from hf_rec.recommenders.language_model import LanguageModelRecommender

    check_model_flags(args)
    if args.data is not None:
        _write_lists(args)
        return
    if args.users is not None:
        _recommend_users(args)
        return
    refuse_flags(args, _OF_LISTS, "without `--data` or `--users`")
    logging.disable_progress_bar()
    recommender = load_model(args)
    catalog = recommender.catalog
    history = [find_item(catalog, item, "--history")[0] for item in args.history]
    exclude = [item_id for item in args.exclude for item_id in find_item(catalog, item, "--exclude")]
    exclude += history if args.exclude_history else []
    allow = args.allow and [item_id for item in args.allow for item_id in find_item(catalog, item, "--allow")]
    found = recommender.recommend([history], k=args.k, exclude=exclude or None, allow=allow, num_beams=args.num_beams)
    rows: list[dict[str, Any]] = [
        {"item_id": item_id, "title": _title(catalog, item_id), "score": float(score)}
        for item_id, score in zip(found.item_ids[0], found.scores[0], strict=False)
    ]
    if isinstance(recommender, LanguageModelRecommender):  # whose score is a log-probability
        sizes = _items_on_path(recommender, found.item_ids[0])
        rows = [
            row | {"probability": math.exp(row["score"]), "items_on_path": size}
            for row, size in zip(rows, sizes, strict=True)
        ]
    certified, nan_scores = bool(found.certified[0]), int(found.nan_scores[0])
    if os.environ.get("RANK", "0") != "0":  # under `accelerate launch` one process answers
        return
    if args.json:
        named = [{"item_id": item_id, "title": _title(catalog, item_id)} for item_id in history]
        answer = {"history": named, "items": rows, "certified": certified, "nan_scores": nan_scores}
        print(json.dumps(answer, ensure_ascii=False, indent=2))
    else:
        titles = [catalog.text(catalog.row(item_id)) for item_id in history]
        _print_recommendations(titles, rows, certified, nan_scores, args.k)


def _write_lists(args: argparse.Namespace) -> None:
    """The list of each row of a split, in a folder."""
    from accelerate import PartialState

    from hf_rec.cli.data_flags import split_rows
    from hf_rec.data.prepare import load_prepared
    from hf_rec.evaluation.ranked_lists import write_lists
    from hf_rec.evaluation.run_files import method_name

    refuse_flags(args, ["exclude", "allow", "json", "overwrite"], "with `--data`, which writes lists into a folder")
    if args.out is None:
        raise ValueError("`--data` needs `--out`, the folder that the lists are written into.")
    if args.k < 1:
        raise ValueError(f"`--k` must be at least 1, got {args.k}.")
    args.split = args.split or "train"
    catalog, splits, _ = load_prepared(args.data)
    rows = split_rows(splits, args)
    index = write_lists(
        load_model(args, catalog),
        rows,
        args.out,
        split=args.split,
        name=method_name(args.model),
        k=args.k,
        every_label=args.every_label,
        exclude_history=args.exclude_history,
        num_beams=args.num_beams,
        batch_size=args.batch_size,
    )
    if PartialState().is_main_process:
        print(f"{args.out}: {index['lists']:,} lists of {args.k} items after rows of the split {args.split!r}")


def _items_on_path(recommender: "LanguageModelRecommender", item_ids: list["RawId"]) -> list[int]:
    """How many items of the catalog have the path of each of these, itself included."""
    trie, catalog = recommender.trie, recommender.catalog
    leaves = trie.row_leaf(len(catalog)).cpu()[catalog.rows(item_ids)]
    sizes: list[int] = trie.leaf_ptr.cpu().diff()[leaves].tolist()
    return sizes


def _recommend_users(args: argparse.Namespace) -> None:
    """The lists of a table of users, in a file."""
    from accelerate import PartialState

    from hf_rec.evaluation.user_lists import recommend_users

    refuse_flags(args, ["exclude", "allow", "json", *_OF_SPLITS], "with `--users`, which writes lists into a file")
    if args.out is None:
        raise ValueError("`--users` needs `--out`, the parquet file that the lists are written into.")
    num_users = recommend_users(
        load_model(args),
        args.users,
        args.out,
        k=args.k,
        exclude_history=args.exclude_history,
        num_beams=args.num_beams,
        batch_size=args.batch_size,
        overwrite=args.overwrite,
    )
    if not PartialState().is_main_process:
        return
    if num_users is None:
        print(f"{args.out} is finished: nothing to do.")
    else:
        print(f"{args.out}: {num_users:,} lists of {args.k} items")


def find_item(catalog: "Catalog", text: str, flag: str) -> list["RawId"]:
    """
    Raw ids of what a person named by id or by title; several where items share the title.

    Raises:
        `ValueError`: Names the titles and ids nearest to one that the catalog does not have.
    """
    try:
        return [catalog.ids[catalog.row(text)]]
    except ValueError:
        rows = catalog.find_title(text)
    if rows:
        return [catalog.ids[row] for row in rows]
    close = catalog.nearest(text)
    hint = f"Did you mean {' or '.join(map(repr, close))}?" if close else "Give an id or a whole title."
    raise ValueError(f"`{flag}` {text!r} is neither an id nor a title of the {len(catalog)} items. {hint}")


def _title(catalog: "Catalog", item_id: "RawId") -> str | None:
    return catalog.titles[catalog.row(item_id)] if catalog.titles is not None else None


def _print_recommendations(history: list[str], rows: list[dict], certified: bool, nan_scores: int, k: int) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    keys = ["score", "probability"] if rows and "probability" in rows[0] else ["score"]
    titles = ["title"] if any(row["title"] for row in rows) else []
    table = Table("#", "item", *titles, *keys, title=Text("After " + " → ".join(history)), title_justify="left")
    for place, row in enumerate(rows, start=1):
        # Text, so that brackets of a title are not read as markup
        numbers = [f"{row[key]:.4f}" for key in keys]
        table.add_row(str(place), Text(str(row["item_id"])), *(Text(row[key] or "") for key in titles), *numbers)
    console = Console()
    console.print(table)
    shared = [str(place) for place, row in enumerate(rows, start=1) if row.get("items_on_path", 1) > 1]
    if shared:
        console.print(
            f"Of items that share their path with others (# {', '.join(shared)}), score and probability are those of "
            "the path: its items together have them once."
        )
    if len(rows) < k:
        console.print(f"{len(rows)} of the {k} items asked for: no other item is allowed or was found.")
    if nan_scores:
        console.print(f"Not certified: {nan_scores} scores are NaN. Its weights are damaged: train or copy it again.")
    elif certified:
        console.print("Certified: no other item scores higher.")
    else:
        console.print("Not certified: the search may have missed a better item; raise --num-beams.")
