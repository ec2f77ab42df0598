"""`hf-rec demo`: the whole story on generated data."""

import argparse
from typing import Any

from hf_rec.cli.overwrite import add_overwrite_flag


def add_demo(commands: Any) -> argparse.ArgumentParser:
    """Add `hf-rec demo` to the parser of all commands."""
    parser = commands.add_parser(
        "demo",
        help="train five tiny models on generated data, rank, compare; minutes on a CPU",
        description="Three language models (plain SFT and MSL on titles, MSL on codes), two sequence models (SASRec "
        "with cross-entropy and with SCE) and a fusion of two of these, against three controls on generated data, "
        "from the log to the report.",
    )
    parser.add_argument(
        "--out", default="runs/demo", metavar="DIR", help="folder of everything (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of data, weights and training (default: %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="very little of everything: a check that all of it runs")
    add_overwrite_flag(parser, "a finished demo in --out")
    parser.set_defaults(run=_demo)
    return parser


def _demo(args: argparse.Namespace) -> None:
    from hf_rec.demo import run_demo

    run_demo(args.out, seed=args.seed, quick=args.quick, overwrite=args.overwrite)
