"""`hf-rec shuffle`: prepared data whose training histories are in random order."""

import argparse
from typing import Any


def add_shuffle(commands: Any) -> argparse.ArgumentParser:
    """Add `hf-rec shuffle` to the parser of all commands."""
    parser = commands.add_parser(
        "shuffle",
        help="copy prepared data with the training histories in random order",
        description="A model trained on the copy cannot learn order: see `hf-rec diagnose --shuffled-model`.",
    )
    parser.add_argument("--data", required=True, metavar="DIR", help="folder written by `hf-rec prepare`")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the copy")
    parser.add_argument("--seed", type=int, default=0, help="seed of the order (default: %(default)s)")
    parser.set_defaults(run=_shuffle)
    return parser


def _shuffle(args: argparse.Namespace) -> None:
    from hf_rec.data.shuffling import write_shuffled

    card = write_shuffled(args.data, args.out, args.seed)
    print(f"{args.out}: {card['splits']['train']['rows']:,} training rows with shuffled histories")
