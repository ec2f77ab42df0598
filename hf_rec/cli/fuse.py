"""`hf-rec fuse`: recommenders that judge together, as one folder."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_rec.cli.fit_flags import OF_FIT, add_fit_flags, check_fit_flags, check_new_folder
from hf_rec.cli.model_flags import DTYPES, check_device, load_part, refuse_flags
from hf_rec.recommenders.control_list import CONTROLS


if TYPE_CHECKING:
    from datasets import DatasetDict

    from hf_rec.recommenders.contract import Recommender

FIT_FILE, FIGURE_FILE = "fusion.json", "fusion.png"


def add_fuse(commands: Any) -> argparse.ArgumentParser:
    """Add `hf-rec fuse` to the parser of all commands."""
    parser = commands.add_parser(
        "fuse",
        help="one recommender of several: a language model and priors inside its search",
        description="Fuse recommenders over one catalog: the score of an item is a weighted sum of the logs of their "
        "probabilities. A language model is searched by this score, exactly. Writes a model folder, and how the "
        f"weights were chosen as {FIT_FILE} and {FIGURE_FILE}.",
        epilog="example: hf-rec fuse --model runs/demo/msl --prior runs/demo/sasrec-ce --data runs/demo/data "
        "--fit ndcg@10 --out runs/fused",
    )
    parser.add_argument("--model", required=True, metavar="DIR_OR_ID", help="the first recommender: a language model")
    parser.add_argument(
        "--prior",
        required=True,
        action="append",
        metavar="DIR_OR_ID",
        help=f"another one, may be given again: a model folder, or with --data one of {', '.join(CONTROLS)}",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="new folder of the fused recommender")
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--weights", type=float, nargs="+", metavar="W", help="weight of the model and of each prior")
    how.add_argument("--fit", metavar="METRIC", help="choose the weights on validation rows by e.g. ndcg@10")
    parser.add_argument("--data", metavar="DIR", help="folder written by `hf-rec prepare`")
    fit = add_fit_flags(parser)
    fit.add_argument(
        "--by-length",
        type=int,
        nargs="*",
        metavar="N",
        help="weights by length of the history: new ones from N items on (without N: quartiles of the rows)",
    )
    parser.add_argument("--device", help="e.g. cpu or cuda:0 (default: an accelerator if there is one)")
    parser.add_argument("--dtype", choices=DTYPES, help="number format of the weights (default: as saved)")
    parser.set_defaults(run=_fuse)
    return parser


def _fuse(args: argparse.Namespace) -> None:
    from hf_rec.data.prepare import load_prepared
    from hf_rec.evaluation.cost import read_cost, summed_cost, write_cost
    from hf_rec.recommenders.fused import FusedRecommender

    _check_flags(args)
    catalog, splits, _ = (None, None, None) if args.data is None else load_prepared(args.data)
    folders = [args.model, *args.prior]
    recommenders = [load_part(args, folder, catalog, splits) for folder in folders]
    if args.fit is None:
        FusedRecommender(recommenders, args.weights).save(args.out)
        print(f"{args.out}: weights {_listed(args.weights)}")
    else:
        _fit(args, recommenders, splits)
    costs = [read_cost(folder) for folder in folders if Path(folder).is_dir()]
    if all(costs):
        write_cost(args.out, summed_cost(costs))


def _check_flags(args: argparse.Namespace) -> None:
    """Refuse what cannot be, before anything is read."""
    check_new_folder(args.out)
    controls = [name for name in args.prior if name in CONTROLS and not Path(name).is_dir()]
    if args.data is None and (args.fit is not None or controls):
        raise ValueError(f"`--data` is needed {'with `--fit`' if args.fit else f'for the control {controls[0]}'}.")
    if args.fit is None:
        refuse_flags(args, [*OF_FIT, "by_length", *([] if controls else ["data"])], "without `--fit`")
        if args.by_length is not None:
            raise ValueError("`--by-length` has no effect without `--fit`. Leave it out.")
        if len(args.weights) != 1 + len(args.prior):
            raise ValueError(
                f"`--weights` needs one weight for each of the {1 + len(args.prior)} recommenders, that of `--model` "
                f"first, got {_listed(args.weights)}."
            )
    check_fit_flags(args, "weights")
    if args.by_length and sorted({*args.by_length, 0}) != [0, *args.by_length]:
        raise ValueError(f"`--by-length` must ascend from at least 1, got {args.by_length}.")
    if args.device is not None:
        check_device(args.device)


def _fit(args: argparse.Namespace, recommenders: list["Recommender"], splits: "DatasetDict") -> None:
    from hf_rec.arguments import select_rows
    from hf_rec.evaluation.fit_weights import fit_weights
    from hf_rec.evaluation.protocol import Seen
    from hf_rec.evaluation.run_files import method_name
    from hf_rec.files import replacing
    from hf_rec.recommenders.fused import FusedRecommender
    from hf_rec.report.plots import fusion_figure

    split, names = args.split or "validation", [args.model, *args.prior]
    if split not in splits:
        raise ValueError(f"`--split` must be one of {', '.join(splits)}, got {split!r}.")
    seen: Seen = args.seen or "keep"
    fit = fit_weights(
        recommenders, select_rows(splits[split], args.limit), args.fit, seen=seen, batch_size=args.batch_size
    )
    first = None
    if args.by_length is not None:
        first = [0, *args.by_length] if args.by_length else fit.quartiles()
    names = [method_name(name) if Path(name).is_dir() else name for name in names]
    summary = fit.summary(names, first) | {"split": split, "seen": seen}
    kept = {key: summary[key] for key in ("metric", "split", "seen", "rows")} | {"value": summary["best"]["value"]}
    weights = summary["best"]["weights"]
    if first is not None:
        weights = [bucket["weights"] for bucket in summary["by_length"]]
    FusedRecommender(recommenders, weights, first, fit=kept).save(args.out)
    with replacing(Path(args.out, FIT_FILE)) as partial:
        partial.write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    fusion_figure(summary).savefig(Path(args.out, FIGURE_FILE))
    _print_fit(summary, args.out)


def _print_fit(summary: dict[str, Any], out: str) -> None:
    from rich.console import Console
    from rich.table import Table

    console, best = Console(), summary["best"]["weights"]
    title = f"{summary['metric']} on {summary['rows']:,} rows of {summary['split']}, seen items: {summary['seen']}"
    table = Table(*summary["recommenders"], summary["metric"], title=title, title_justify="left")
    points = summary["grid"]
    if len(best) > 2:  # each recommender alone, and the best ten
        points = sorted(points, key=lambda point: (max(point["weights"]) < 1, -point["value"]))[: len(best) + 10]
    for point in points:
        style = "bold" if point["weights"] == best else None
        table.add_row(*(f"{weight:g}" for weight in point["weights"]), f"{point['value']:.4f}", style=style)
    console.print(table)
    if summary["by_length"] is not None:
        columns = ("items of history", "rows", *summary["recommenders"], summary["metric"], "at the weights of all")
        table = Table(*columns, title="By length of the history", title_justify="left")
        for bucket in summary["by_length"]:
            values = (f"{bucket[key]:.4f}" if key in bucket else "" for key in ("value", "value_at_best"))
            weights = (f"{weight:g}" for weight in bucket["weights"])
            table.add_row(bucket["lengths"], str(bucket["rows"]), *weights, *values)
        console.print(table)
    kept = _listed(best) if summary["by_length"] is None else "by length of the history"
    console.print(f"{out}: weights {kept}", soft_wrap=True)


def _listed(weights: list[float]) -> str:
    return " ".join(f"{weight:g}" for weight in weights)
