"""`hf-rec diagnose`: what a model rests on."""

import argparse
from pathlib import Path
from typing import Any

from hf_rec.cli.data_flags import add_data_flags, split_rows
from hf_rec.cli.model_flags import add_model_flags, check_model_flags, load_model
from hf_rec.cli.overwrite import add_overwrite_flag
from hf_rec.files import refuse_existing
from hf_rec.recommenders.control_list import make_control


def add_diagnose(commands: Any) -> argparse.ArgumentParser:
    """Add `hf-rec diagnose` to the parser of all commands."""
    parser = commands.add_parser(
        "diagnose",
        help="what a model rests on: order, history length, warm and cold, another domain",
        description="Does the model use the order of the history? Ranks a split with histories as they are and "
        "shuffled, and more; writes diagnostics.json and diagnostics.md.",
    )
    add_model_flags(parser, ranks_split=True)
    add_data_flags(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the two files")
    parser.add_argument("--name", help="name in tables (default: that of the training run, else of the folder)")
    parser.add_argument("--k", type=int, default=10, help="length of the lists (default: %(default)s)")
    parser.add_argument(
        "--seen",
        choices=("keep", "mask"),
        default="keep",
        help="may a list hold items of its own history (keep), or are they left out (mask) (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of shuffled histories (default: %(default)s)")
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=[], metavar="N", help="rank with the newest N events alone, too"
    )
    parser.add_argument("--shuffled-model", metavar="DIR", help="the same method trained on data of `hf-rec shuffle`")
    parser.add_argument("--transfer", metavar="DIR", help="prepared data of another domain, for models that read text")
    add_overwrite_flag(parser, "the diagnosis that stands in --out")
    parser.set_defaults(run=_diagnose)
    return parser


def _diagnose(args: argparse.Namespace) -> None:
    from hf_rec.data.prepare import load_prepared
    from hf_rec.diagnostics.diagnose import DIAGNOSTICS_FILE, diagnose
    from hf_rec.diagnostics.markdown import to_markdown
    from hf_rec.diagnostics.ranked_targets import RankSettings
    from hf_rec.evaluation.run_files import method_name

    check_model_flags(args, ("shuffled_model", "transfer"))
    settings = RankSettings(args.k, args.seen, args.num_beams, args.batch_size)
    catalog, splits, card = load_prepared(args.data)
    rows, other = split_rows(splits, args), None
    refuse_existing(Path(args.out, DIAGNOSTICS_FILE), args.overwrite)
    if args.transfer is not None:
        other_catalog, other_splits, _ = load_prepared(args.transfer)
        other = other_catalog, other_splits["train"], split_rows(other_splits, args)
    recommender = make_control(args.control, catalog, splits["train"]) if args.control else load_model(args, catalog)
    name = args.name or args.control or method_name(args.model)
    shuffled = None if args.shuffled_model is None else load_model(args, catalog, args.shuffled_model)
    result = diagnose(
        recommender,
        rows,
        splits["train"],
        args.out,
        name=name,
        split=args.split,
        split_rule=card["split"]["rule"],
        settings=settings,
        seed=args.seed,
        lengths=args.lengths,
        trained_on_shuffled=shuffled,
        other_domain=other,
    )
    print(to_markdown(result))
