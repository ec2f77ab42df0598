"""The flags that name prepared data and the rows of a split, the same in every command that ranks."""

import argparse
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """Add `--data`, `--split` and `--limit`."""
    parser.add_argument("--data", required=True, metavar="DIR", help="folder written by `hf-rec prepare`")
    parser.add_argument("--split", default="test", help="split to rank (default: %(default)s)")
    parser.add_argument("--limit", type=int, help="rank this many rows, evenly spaced (default: all of the split)")


def split_rows(splits: "DatasetDict", args: argparse.Namespace) -> "Dataset":
    """The rows that the flags ask for."""
    from hf_rec.arguments import select_rows

    if args.split not in splits:
        raise ValueError(f"`--split` must be one of {', '.join(splits)}, got {args.split!r}.")
    if args.limit is not None and args.limit < 1:
        raise ValueError(f"`--limit` must be at least 1, got {args.limit}.")
    return select_rows(splits[args.split], args.limit)
