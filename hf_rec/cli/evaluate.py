"""`hf-rec evaluate`: rank the targets of a split."""

import argparse

from hf_rec.cli.model_flags import add_model_flags


CONTROLS = ("popularity", "recent", "last-item")
_FIT_ROWS = 500  # of a split, to fit a temperature on


def add_evaluate(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "evaluate",
        help="rank the targets of a split; writes metrics.json and predictions.parquet",
        description="Measure a model folder, or a control made from the train split, on a prepared data set.",
        epilog="several processes: accelerate launch --config_file CONFIG -m hf_rec.cli evaluate ...",
    )
    add_model_flags(parser).add_argument("--control", choices=CONTROLS, help="measure this control")
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


def _evaluate(args: argparse.Namespace) -> None:
    from pathlib import Path

    from accelerate import PartialState

    from hf_rec.arguments import select_rows
    from hf_rec.data.prepare import load_prepared
    from hf_rec.data.splits import seen_items
    from hf_rec.evaluation.candidates import draw_candidates, evaluate_candidates
    from hf_rec.evaluation.full import evaluate_recommender

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


def _load_model(args: argparse.Namespace, catalog, splits):
    """The recommender as the flags want it, and what its training cost."""
    from hf_rec.arguments import select_rows
    from hf_rec.evaluation.cost import read_cost
    from hf_rec.evaluation.fit_temperature import fit_temperature
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
    from hf_rec.data.splits import distinct_labels
    from hf_rec.recommenders.controls import LastItemRecommender, PopularityRecommender

    cost = {"training_rows": len(rows), "distinct_labels": distinct_labels(rows)}
    if args.control == "last-item":
        return LastItemRecommender(catalog, rows), cost
    window = args.window or max(len(rows) // 10, 1)
    return PopularityRecommender(catalog, rows, window=window if args.control == "recent" else None), cost
