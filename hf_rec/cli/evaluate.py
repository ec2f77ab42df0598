"""`hf-rec evaluate`: rank the targets of a split."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_rec.cli.data_flags import add_data_flags, split_rows
from hf_rec.cli.model_flags import add_model_flags, check_model_flags, load_model, refuse_flags
from hf_rec.cli.overwrite import add_overwrite_flag
from hf_rec.files import refuse_existing
from hf_rec.recommenders.control_list import CONTROLS, make_control


if TYPE_CHECKING:
    from datasets import DatasetDict

    from hf_rec.data.catalog import Catalog
    from hf_rec.recommenders.contract import Recommender

_FIT_ROWS = 500  # of a split, to fit a temperature on
_OF_LANGUAGE_MODELS = ("scoring", "tau", "fit_tau")


def add_evaluate(commands: Any) -> argparse.ArgumentParser:
    """Add `hf-rec evaluate` to the parser of all commands."""
    parser = commands.add_parser(
        "evaluate",
        help="rank the targets of a split; writes metrics.json and predictions.parquet",
        description="Measure a model folder, or a control made from the train split, on a prepared data set.",
        epilog="several processes: accelerate launch --config_file CONFIG -m hf_rec.cli evaluate ...",
    )
    add_model_flags(parser, ranks_split=True)
    add_data_flags(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the two files")
    parser.add_argument("--name", help="name in tables (default: that of the training run, else of the folder)")
    parser.add_argument("--ks", type=int, nargs="+", default=[5, 10], metavar="K", help="cut-offs (default: 5 10)")
    parser.add_argument(
        "--seen",
        choices=("keep", "mask"),
        help="may a list hold items of its own history (keep), or are they left out (mask) (default: keep)",
    )
    parser.add_argument(
        "--candidates",
        type=int,
        metavar="N",
        help="rank among the target and N drawn items, e.g. 19 with --ks 1 (default: among all items)",
    )
    parser.add_argument("--window", type=int, help="newest train rows that `recent` counts (default: a tenth)")
    language = parser.add_argument_group("language models")
    language.add_argument("--scoring", choices=("valid", "full_vocab"), help="rank by this score (default: as saved)")
    temperature = language.add_mutually_exclusive_group()
    temperature.add_argument("--tau", type=float, help="rank at this temperature (default: as saved)")
    temperature.add_argument("--fit-tau", metavar="SPLIT", help="fit the temperature on 500 rows of this split first")
    add_overwrite_flag(parser, "the metrics that stand in --out")
    parser.set_defaults(run=_evaluate)
    return parser


def _evaluate(args: argparse.Namespace) -> None:
    from accelerate import PartialState

    from hf_rec.data.prepare import load_prepared
    from hf_rec.data.splits import seen_items
    from hf_rec.evaluation.candidates import draw_candidates, evaluate_candidates
    from hf_rec.evaluation.full import evaluate_recommender
    from hf_rec.evaluation.protocol import Seen
    from hf_rec.evaluation.run_files import METRICS_FILE

    _check_flags(args)
    catalog, splits, card = load_prepared(args.data)
    rows = split_rows(splits, args)
    refuse_existing(Path(args.out, METRICS_FILE), args.overwrite)
    if args.fit_tau is not None and args.fit_tau not in splits:
        raise ValueError(f"`--fit-tau` must be one of {', '.join(splits)}, got {args.fit_tau!r}.")
    recommender, cost, name = (_control if args.control else _model)(args, catalog, splits)
    settings = {
        "ks": args.ks,
        "split_rule": card["split"]["rule"],
        "name": args.name or name,
        "warm_items": seen_items(splits["train"]),
        "cost": cost,
        "batch_size": args.batch_size,
    }
    if args.candidates is not None:
        candidates = draw_candidates(rows, catalog, args.candidates, split=args.split)
        result = evaluate_candidates(recommender, rows, candidates, args.out, **settings)
    else:
        seen: Seen = args.seen or "keep"
        result = evaluate_recommender(
            recommender, rows, args.out, split=args.split, seen=seen, num_beams=args.num_beams, **settings
        )
    if PartialState().is_main_process:
        for key, value in result["metrics"].items():
            print(f"{key}: {value['mean']:.4f} [{value['low']:.4f}, {value['high']:.4f}]")
        print(f"{args.out}: {result['rows']:,} rows, {100 * result['certified_share']:.1f} % of the lists certified")


def _check_flags(args: argparse.Namespace) -> None:
    """Refuse flags that have no effect in this call, before anything is read."""
    if args.candidates is not None:
        refuse_flags(args, ["seen", "num_beams"], "with `--candidates`: every drawn item is scored")
    if args.window is not None and not (args.control and CONTROLS[args.control].windowed):
        windowed = " or ".join(name for name, entry in CONTROLS.items() if entry.windowed)
        refuse_flags(args, ["window"], f"unless `--control {windowed}` is given")
    if args.tau is not None and not args.tau > 0:
        raise ValueError(f"`--tau` must be greater than 0, got {args.tau}.")
    check_model_flags(args, _OF_LANGUAGE_MODELS)


def _model(
    args: argparse.Namespace, catalog: "Catalog", splits: "DatasetDict"
) -> tuple["Recommender", dict[str, Any], str]:
    """The recommender as the flags want it, what its training cost, and what it is called."""
    from hf_rec.arguments import select_rows
    from hf_rec.evaluation.cost import read_cost
    from hf_rec.evaluation.fit_temperature import fit_temperature
    from hf_rec.evaluation.run_files import method_name
    from hf_rec.recommenders.language_model import LanguageModelRecommender

    recommender = load_model(args, catalog)
    if isinstance(recommender, LanguageModelRecommender):
        if args.scoring is not None:
            recommender.scoring = args.scoring
        if args.tau is not None:
            recommender.tau = args.tau
        if args.fit_tau is not None:
            fit_temperature(recommender, select_rows(splits[args.fit_tau], _FIT_ROWS))
    else:
        what = f"for {args.model}, a {type(recommender).__name__}: only language models have a temperature"
        refuse_flags(args, _OF_LANGUAGE_MODELS, what)
    return recommender, read_cost(args.model), method_name(args.model)


def _control(
    args: argparse.Namespace, catalog: "Catalog", splits: "DatasetDict"
) -> tuple["Recommender", dict[str, Any], str]:
    """A control made from the training rows, what it was made from, and its name."""
    from hf_rec.data.splits import distinct_labels

    rows = splits["train"]
    cost = {"training_rows": len(rows), "distinct_labels": distinct_labels(rows)}
    return make_control(args.control, catalog, rows, args.window), cost, args.control
