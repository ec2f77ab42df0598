"""
The command line: `hf-rec demo | prepare | recommend | evaluate | diagnose | report`. Training is `accelerate launch
recipes/...`.

Each command imports what it needs when it runs, so that `hf-rec --help` answers at once.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence

import hf_rec
from hf_rec.diagnostics.command import add_diagnose, add_shuffle


SOURCES = (
    "table",
    "amazon-2014",
    "amazon-2018",
    "amazon-2023",
    "movielens",
    "sequence-csv",
    "history-csv",
    "sequence-text",
    "demo",
)
CONTROLS = ("popularity", "recent", "last-item")
_FIT_ROWS = 500  # of a split, to fit a temperature on
BAD_INPUT, INTERRUPTED = 2, 130  # exit codes


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run one command.

    Args:
        argv (sequence of `str`, *optional*): Words after `hf-rec`; those of the process where not given.

    Returns:
        `int`: Exit code: 0, 2 for input that cannot be used (the message says why), 130 after Ctrl-C.
    """
    args = build_parser().parse_args(argv)
    try:
        args.run(args)
    except (ValueError, OSError) as error:
        if args.debug:
            raise
        print(f"hf-rec {args.command}: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print(f"hf-rec {args.command}: interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; making it imports no model code."""
    parser = argparse.ArgumentParser(prog="hf-rec", description=hf_rec.__doc__.strip().splitlines()[0])
    parser.add_argument("--version", action="version", version=f"hf_rec {hf_rec.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for add in (_add_demo, _add_prepare, _add_recommend, _add_evaluate, add_diagnose, add_shuffle, _add_report):
        command = add(commands)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _add_demo(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "demo",
        help="train two tiny language models on generated data, rank, compare; minutes on a CPU",
        description="Plain SFT against MSL against popularity on generated data, from the log to the report.",
    )
    parser.add_argument(
        "--out", default="runs/demo", metavar="DIR", help="folder of everything (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of data, weights and training (default: %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="very little of everything: a check that all of it runs")
    parser.set_defaults(run=_demo)
    return parser


def _demo(args: argparse.Namespace) -> None:
    from hf_rec.demo import run_demo

    run_demo(args.out, seed=args.seed, quick=args.quick)


def _add_prepare(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "prepare",
        help="files as published -> catalog, splits and data card",
        description="Read a source, clean and split it. A relative --path is also looked for below $HF_REC_DATA.",
        epilog="example: hf-rec prepare --source table --path log.csv --title-column title --out prepared/mine",
    )
    parser.add_argument("--source", required=True, choices=SOURCES, help="format of the files")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write, new or empty")
    cut = parser.add_argument_group("cleaning and split")
    cut.add_argument(
        "--split", choices=("leave-one-out", "global-time", "ready-made"), help="default: as the source is"
    )
    cut.add_argument("--window", type=int, help="most events in a row, target included")
    cut.add_argument("--stride", type=int, help="new events from one window to the next")
    cut.add_argument("--min-events", type=int, help="shortest window of a global-time split")
    cut.add_argument("--min-count", type=int, help="k of the k-core over users and items")
    cut.add_argument("--duplicates", choices=("exact", "first", "keep"), help="which repeats are dropped")
    cut.add_argument("--require-titles", action="store_true", default=None, help="drop items without a title")
    cut.add_argument("--num-proc", type=int, help="processes that cut windows")
    files = parser.add_argument_group("files (which of them a source takes is checked)")
    files.add_argument("--path", nargs="+", help="file, folder, several review files, or a Hub data set owner/name")
    files.add_argument("--items", help="table: a second table with one row an item; history-csv: JSON of items")
    files.add_argument("--user-column", help="table: default user_id")
    files.add_argument("--item-column", help="table: default item_id")
    files.add_argument("--timestamp-column", help="table: default timestamp; 'none' where rows are in order")
    files.add_argument("--title-column", help="table: column of titles")
    files.add_argument("--timestamp-unit", choices=("s", "ms", "auto"), help="table: unit of numbers")
    files.add_argument("--delimiter", help="table: of csv files")
    files.add_argument("--hub-split", help="table: split of a Hub data set")
    files.add_argument("--hub-config", help="table: configuration of a Hub data set")
    files.add_argument("--meta", help="amazon: metadata file with the titles")
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
    from hf_rec.data.prepare import prepare

    ours = ("command", "run", "debug", "source", "out")
    options = {name: value for name, value in vars(args).items() if name not in ours and value is not None}
    if len(options.get("path", ())) == 1:
        options["path"] = options["path"][0]
    if options.get("timestamp_column") == "none":
        options["timestamp_column"] = None
    card = prepare(args.source, args.out, **options)
    print(f"{args.out}: {card['catalog']['items']:,} items")
    for name, report in card["splits"].items():
        print(f"  {name}: {report['rows']:,} rows of {report['users']:,} users, {report['distinct_labels']:,} labels")
    print(f"Counts and hashes: {args.out}/README.md")


def _add_recommend(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "recommend",
        help="the next items for one history",
        description="Recommend the items that follow a history.",
        epilog='example: hf-rec recommend --model runs/demo/msl --history "Star Harbour" "Iron Orchard" --k 5',
    )
    _add_model_flags(parser)
    parser.add_argument("--history", nargs="+", required=True, metavar="ITEM", help="raw ids or titles, oldest first")
    parser.add_argument("--k", type=int, default=10, help="items to recommend (default: %(default)s)")
    parser.add_argument("--num-beams", type=int, help="width of the search (default: twice --k)")
    parser.add_argument("--exclude", nargs="+", default=[], metavar="ITEM", help="ids or titles not to recommend")
    parser.add_argument("--exclude-history", action="store_true", help="recommend nothing that is in the history")
    parser.add_argument("--allow", nargs="+", metavar="ITEM", help="ids or titles, nothing else may be recommended")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=_recommend)
    return parser


def _recommend(args: argparse.Namespace) -> None:
    import math

    from transformers.utils import logging

    from hf_rec.generation.recommend import LanguageModelRecommender
    from hf_rec.hub import load_recommender

    logging.disable_progress_bar()
    recommender = load_recommender(args.model, revision=args.revision, device=args.device, dtype=args.dtype)
    catalog = recommender.catalog
    history = [find_item(catalog, item, "--history")[0] for item in args.history]
    exclude = [item_id for item in args.exclude for item_id in find_item(catalog, item, "--exclude")]
    exclude += history if args.exclude_history else []
    allow = args.allow and [item_id for item in args.allow for item_id in find_item(catalog, item, "--allow")]
    found = recommender.recommend([history], k=args.k, exclude=exclude or None, allow=allow, num_beams=args.num_beams)
    rows = [
        {"item_id": item_id, "title": _title(catalog, item_id), "score": float(score)}
        for item_id, score in zip(found.item_ids[0], found.scores[0], strict=False)
    ]
    if isinstance(recommender, LanguageModelRecommender):  # whose score is a log-probability
        rows = [row | {"probability": math.exp(row["score"])} for row in rows]
    certified = bool(found.certified[0])
    if os.environ.get("RANK", "0") != "0":  # under `accelerate launch` one process answers
        return
    if args.json:
        named = [{"item_id": item_id, "title": _title(catalog, item_id)} for item_id in history]
        print(json.dumps({"history": named, "items": rows, "certified": certified}, ensure_ascii=False, indent=2))
    else:
        _print_recommendations([catalog.text(catalog.row(item_id)) for item_id in history], rows, certified, args.k)


def find_item(catalog, text: str, flag: str) -> list:
    """
    Raw ids of what a person named by id or by title; several where items share the title.

    Raises:
        `ValueError`: Names the titles nearest to one that the catalog does not have.
    """
    import difflib

    try:
        return [catalog.ids[catalog.row(text)]]
    except ValueError:
        rows = catalog.find_title(text)
    if rows:
        return [catalog.ids[row] for row in rows]
    titles = {title.lower(): title for title in catalog.titles or [] if title}
    close = [titles[name] for name in difflib.get_close_matches(text.lower(), titles, n=3, cutoff=0.5)]
    hint = f"Did you mean {' or '.join(map(repr, close))}?" if close else "Give an id or a whole title."
    raise ValueError(f"`{flag}` {text!r} is neither an id nor a title of the {len(catalog)} items. {hint}")


def _title(catalog, item_id) -> str | None:
    return catalog.titles[catalog.row(item_id)] if catalog.titles is not None else None


def _print_recommendations(history: list[str], rows: list[dict], certified: bool, k: int) -> None:
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
    if len(rows) < k:
        console.print(f"{len(rows)} of the {k} items asked for: no other item is allowed or was found.")
    if certified:
        console.print("Certified: no other item scores higher.")
    else:
        console.print("Not certified: the search may have missed a better item; raise --num-beams.")


def _add_evaluate(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "evaluate",
        help="rank the targets of a split; writes metrics.json and predictions.parquet",
        description="Measure a model folder, or a control made from the train split, on a prepared data set.",
        epilog="several processes: accelerate launch --config_file CONFIG -m hf_rec.cli evaluate ...",
    )
    _add_model_flags(parser).add_argument("--control", choices=CONTROLS, help="measure this control")
    parser.add_argument("--data", required=True, metavar="DIR", help="folder written by `hf-rec prepare`")
    parser.add_argument("--split", default="test", help="split to measure (default: %(default)s)")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the two files")
    parser.add_argument("--name", help="name in tables (default: that of the model folder or of the control)")
    parser.add_argument("--ks", type=int, nargs="+", default=[5, 10], metavar="K", help="cut-offs (default: 5 10)")
    parser.add_argument("--seen", choices=("keep", "mask"), default="keep", help="may items of the history be listed")
    parser.add_argument("--num-beams", type=int, help="width of the search (default: twice the largest cut-off)")
    parser.add_argument("--batch-size", type=int, help="histories ranked at a time")
    parser.add_argument("--limit", type=int, help="measure this many rows, evenly spaced over the split")
    parser.add_argument(
        "--candidates", type=int, metavar="N", help="rank among the target and N drawn items only, e.g. 19 with --ks 1"
    )
    parser.add_argument("--window", type=int, help="newest train rows that `recent` counts (default: a tenth)")
    language = parser.add_argument_group("language models")
    language.add_argument("--scoring", choices=("valid", "full_vocab"), help="rank by this score (default: as saved)")
    temperature = language.add_mutually_exclusive_group()
    temperature.add_argument("--tau", type=float, help="rank at this temperature (default: as saved)")
    temperature.add_argument("--fit-tau", metavar="SPLIT", help="fit the temperature on 500 rows of this split first")
    parser.set_defaults(run=_evaluate)
    return parser


def _add_model_flags(parser: argparse.ArgumentParser):
    """Returns the group that names what to load, of which one flag must be given."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", metavar="DIR_OR_ID", help="model folder, or repository on the Hub")
    parser.add_argument("--revision", help="revision of a repository on the Hub")
    parser.add_argument("--device", help="e.g. cpu or cuda:0 (default: an accelerator if there is one)")
    parser.add_argument("--dtype", help="e.g. bfloat16 (default: as saved)")
    return which


def _evaluate(args: argparse.Namespace) -> None:
    from pathlib import Path

    from accelerate import PartialState

    from hf_rec.arguments import select_rows
    from hf_rec.candidates import draw_candidates, evaluate_candidates
    from hf_rec.data.prepare import load_prepared
    from hf_rec.data.sequences import seen_items
    from hf_rec.evaluation import evaluate_recommender

    catalog, splits, card = load_prepared(args.data)
    if args.split not in splits:
        raise ValueError(f"`--split` must be one of {', '.join(splits)}, got {args.split!r}.")
    if args.limit is not None and args.limit < 1:
        raise ValueError(f"`--limit` must be at least 1, got {args.limit}.")
    if args.control:
        recommender, cost = _make_control(args, catalog, splits["train"])
    else:
        recommender, cost = _load_model(args, catalog, splits)
    rows = select_rows(splits[args.split], args.limit)
    settings = {
        "ks": args.ks,
        "split_rule": card["split"]["rule"],
        "name": args.name or args.control or Path(args.model).name,
        "warm_items": seen_items(splits["train"]),
        "cost": cost,
        "batch_size": args.batch_size,
    }
    if args.candidates is not None:
        candidates = draw_candidates(rows, catalog, args.candidates, split=args.split)
        result = evaluate_candidates(recommender, rows, candidates, args.out, **settings)
    else:
        result = evaluate_recommender(
            recommender, rows, args.out, split=args.split, seen=args.seen, num_beams=args.num_beams, **settings
        )
    if PartialState().is_main_process:
        for key, value in result["metrics"].items():
            print(f"{key}: {value['mean']:.4f} [{value['low']:.4f}, {value['high']:.4f}]")
        print(f"{args.out}: {result['rows']:,} rows, {100 * result['certified_share']:.1f} % of the lists certified")
    PartialState().wait_for_everyone()  # no process ends while another may still talk to it
    PartialState().destroy_process_group()


def _load_model(args: argparse.Namespace, catalog, splits):
    """The recommender as the flags want it, and what its training cost."""
    from hf_rec.arguments import select_rows
    from hf_rec.calibration import fit_temperature
    from hf_rec.cost import read_cost
    from hf_rec.hub import load_recommender

    recommender = load_recommender(args.model, revision=args.revision, device=args.device, dtype=args.dtype)
    if recommender.catalog.sha256 != catalog.sha256:
        raise ValueError(
            f"`--model` {args.model} was made for another catalog ({len(recommender.catalog)} items) than `--data` "
            f"{args.data} ({len(catalog)} items). Give the data that the model was trained on."
        )
    for flag, value in (("--scoring", args.scoring), ("--tau", args.tau), ("--fit-tau", args.fit_tau)):
        if value is not None and not hasattr(recommender, "tau"):
            raise ValueError(f"`{flag}` goes with language models; {args.model} is a {type(recommender).__name__}.")
    if args.tau is not None and not args.tau > 0:
        raise ValueError(f"`--tau` must be greater than 0, got {args.tau}.")
    if args.fit_tau is not None and args.fit_tau not in splits:
        raise ValueError(f"`--fit-tau` must be one of {', '.join(splits)}, got {args.fit_tau!r}.")
    if args.scoring is not None:
        recommender.scoring = args.scoring
    if args.tau is not None:
        recommender.tau = args.tau
    if args.fit_tau is not None:
        fit_temperature(recommender, select_rows(splits[args.fit_tau], _FIT_ROWS))
    return recommender, read_cost(args.model)


def _make_control(args: argparse.Namespace, catalog, rows):
    """A control made from training rows, and what it took."""
    from hf_rec.data.sequences import distinct_labels
    from hf_rec.generation.controls import LastItemRecommender, PopularityRecommender

    cost = {"training_rows": len(rows), "distinct_labels": distinct_labels(rows)}
    if args.control == "last-item":
        return LastItemRecommender(catalog, rows), cost
    window = args.window or max(len(rows) // 10, 1)
    return PopularityRecommender(catalog, rows, window=window if args.control == "recent" else None), cost


def _add_report(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "report",
        help="tables and figures from the files of measured and trained runs",
        description="Write report.md with tables, paired tests and figures; no model is loaded.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders with metrics.json or trainer_state.json")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the report, or a path that ends in .md")
    parser.add_argument("--baseline", help="name of the method that the others are compared with (default: the first)")
    parser.add_argument("--title", default="Report", help="heading (default: %(default)s)")
    parser.set_defaults(run=_report)
    return parser


def _report(args: argparse.Namespace) -> None:
    from hf_rec.report import write_report

    print(write_report(args.runs, args.out, baseline=args.baseline, title=args.title))


if __name__ == "__main__":
    sys.exit(main())
