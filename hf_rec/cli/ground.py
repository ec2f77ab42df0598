"""`hf-rec ground`: a language model that writes freely, and the items nearest to what it wrote, as one folder."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_rec.cli.fit_flags import OF_FIT, add_fit_flags, check_fit_flags, check_new_folder
from hf_rec.cli.model_flags import DTYPES, check_device, load_part, refuse_flags
from hf_rec.recommenders.control_list import CONTROLS


if TYPE_CHECKING:
    from datasets import DatasetDict

    from hf_rec.recommenders.grounded import GroundedRecommender
FIT_FILE, FIGURE_FILE = "grounding.json", "grounding.png"


def add_ground(commands: Any) -> argparse.ArgumentParser:
    """Add `hf-rec ground` to the parser of all commands."""
    parser = commands.add_parser(
        "ground",
        help="free text of a language model, and the items nearest to it (BIGRec)",
        description="Make a recommender of a language model that writes freely and of a base model that finds the "
        "items whose texts are nearest to what it wrote. Encodes the items and writes a model folder; with --fit also "
        f"how gamma was chosen, as {FIT_FILE} and {FIGURE_FILE}.",
        epilog="several processes: accelerate launch --config_file CONFIG -m hf_rec.cli ground ...",
    )
    parser.add_argument("--model", required=True, metavar="DIR_OR_ID", help="language model that writes, best by LML")
    parser.add_argument(
        "--base", required=True, metavar="DIR_OR_ID", help="causal LM that compares texts: the one before fine-tuning"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="new folder of the grounded recommender")
    parser.add_argument(
        "--weight",
        metavar="DIR_OR_ID",
        help=f"what else counts: a model folder, or with --data one of {', '.join(CONTROLS)} (default: nothing)",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--gamma", type=float, help="how far --weight counts, from 0 to 100")
    how.add_argument("--fit", metavar="METRIC", help="choose gamma on validation rows by e.g. ndcg@10")
    parser.add_argument("--data", metavar="DIR", help="folder written by `hf-rec prepare`")
    parser.add_argument("--num-beams", type=int, default=4, help="of the text; 1 is greedy (default: %(default)s)")
    parser.add_argument("--revision", help="revision of a base model on the Hub (default: its main branch)")
    parser.add_argument("--device", help="e.g. cpu or cuda:0 (default: an accelerator if there is one)")
    parser.add_argument("--dtype", choices=DTYPES, help="number format of the weights (default: as saved)")
    add_fit_flags(parser)
    parser.set_defaults(run=_ground)
    return parser


def _ground(args: argparse.Namespace) -> None:
    from hf_rec.data.prepare import load_prepared
    from hf_rec.evaluation.cost import read_cost, summed_cost, write_cost
    from hf_rec.hub.load import default_device, load_base
    from hf_rec.processes import process_state
    from hf_rec.recommenders.grounded import GroundedRecommender
    from hf_rec.recommenders.language_model import LanguageModelRecommender

    _check_flags(args)
    catalog, splits, _ = (None, None, None) if args.data is None else load_prepared(args.data)
    writer = load_part(args, args.model, catalog, splits)
    if not isinstance(writer, LanguageModelRecommender):
        raise ValueError(f"`--model` {args.model} is a {type(writer).__name__}, which writes no text.")
    weight = None if args.weight is None else load_part(args, args.weight, catalog, splits)
    base, tokenizer = load_base(args.base, args.revision, device=args.device or default_device(), dtype=args.dtype)
    recommender = GroundedRecommender(
        writer, base, tokenizer, weight=weight, gamma=args.gamma or 0.0, num_beams=args.num_beams
    )
    recommender.encode_items()
    summary = None if args.fit is None else _fit(args, recommender, splits)
    if not process_state().is_main_process:
        return
    recommender.save(args.out)
    if summary is not None:
        _write_fit(summary, args.out)
    costs = [read_cost(folder) for folder in (args.model, args.weight) if folder and Path(folder).is_dir()]
    if all(costs):
        write_cost(args.out, summed_cost(costs))
    print(f"{args.out}: {len(recommender.item_vectors):,} texts of {len(writer.catalog):,} items", end="")
    print("" if weight is None else f", gamma {recommender.gamma:g}")


def _check_flags(args: argparse.Namespace) -> None:
    """Refuse what cannot be, before anything is read."""
    check_new_folder(args.out)
    is_control = args.weight in CONTROLS and not Path(args.weight).is_dir()
    if args.data is None and (args.fit is not None or is_control):
        raise ValueError(f"`--data` is needed {'with `--fit`' if args.fit else f'for the control {args.weight}'}.")
    if args.weight is None:
        refuse_flags(args, ["gamma", "fit", "data", *OF_FIT], "without `--weight`: distances alone decide")
    elif args.gamma is None and args.fit is None:
        raise ValueError("`--weight` needs `--fit ndcg@10`, to choose gamma on validation rows, or `--gamma`.")
    elif args.fit is None:
        refuse_flags(args, [*OF_FIT, *([] if is_control else ["data"])], "without `--fit`")
    if args.num_beams < 1:
        raise ValueError(f"`--num-beams` must be at least 1, got {args.num_beams}.")
    if Path(args.base).is_dir():
        refuse_flags(args, ["revision"], f"for {args.base}, which is a folder here")
    check_fit_flags(args, "values of gamma")
    if args.device is not None:
        check_device(args.device)


def _fit(args: argparse.Namespace, recommender: "GroundedRecommender", splits: "DatasetDict") -> dict[str, Any]:
    """Set gamma to the best one; returns what was tried."""
    from hf_rec.arguments import select_rows
    from hf_rec.evaluation.fit_gamma import fit_gamma
    from hf_rec.evaluation.protocol import Seen
    from hf_rec.evaluation.run_files import method_name

    split = args.split or "validation"
    if split not in splits:
        raise ValueError(f"`--split` must be one of {', '.join(splits)}, got {split!r}.")
    seen: Seen = args.seen or "keep"
    rows = select_rows(splits[split], args.limit)
    found = fit_gamma(recommender, rows, args.fit, seen=seen, batch_size=args.batch_size).summary()
    name = method_name(args.weight) if Path(args.weight).is_dir() else args.weight
    summary = found | {"weight": name, "split": split, "seen": seen}
    recommender.gamma = summary["best"]["gamma"]
    recommender.fit = {key: summary[key] for key in ("metric", "split", "seen", "rows")}
    recommender.fit["value"] = summary["best"]["value"]
    return summary


def _write_fit(summary: dict[str, Any], out: str) -> None:
    from hf_rec.files import replacing
    from hf_rec.report.plots import grounding_figure

    with replacing(Path(out, FIT_FILE)) as partial:
        partial.write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    grounding_figure(summary).savefig(Path(out, FIGURE_FILE))
    best = summary["best"]
    print(f"{summary['metric']} on {summary['rows']:,} rows of {summary['split']}, seen items: {summary['seen']}")
    print(f"gamma 0: {summary['grid'][0]['value']:.4f}, gamma {best['gamma']:g}: {best['value']:.4f}")
