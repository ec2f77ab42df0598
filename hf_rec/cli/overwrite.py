"""The flag of every command that writes a result: one that stands is not replaced unasked."""

import argparse


def add_overwrite_flag(parser: argparse.ArgumentParser, what: str) -> None:
    """Add `--overwrite`; `what` names the result, such as "the metrics in --out"."""
    parser.add_argument("--overwrite", action="store_true", help=f"replace {what} (default: refuse)")
