"""The flags of commands that choose a setting on validation rows, and what they refuse."""

import argparse
from pathlib import Path


OF_FIT = ["split", "limit", "seen", "batch_size"]


def add_fit_flags(parser: argparse.ArgumentParser) -> "argparse._ArgumentGroup":
    """Add `--split`, `--limit`, `--seen` and `--batch-size`, which go with `--fit`."""
    fit = parser.add_argument_group("with --fit")
    fit.add_argument("--split", help="split to choose on, never the test split (default: validation)")
    fit.add_argument(
        "--limit", "--max_eval_samples", type=int, help="choose on this many rows, evenly spaced (default: all)"
    )
    fit.add_argument(
        "--seen", choices=("keep", "mask"), help="may lists hold items of their own history (default: keep)"
    )
    fit.add_argument("--batch-size", type=int, help="rows at a time (default: that of the model)")
    return fit


def check_new_folder(out: str) -> None:
    """Refuse a folder that holds something."""
    if Path(out).exists() and (not Path(out).is_dir() or any(Path(out).iterdir())):
        raise FileExistsError(f"`--out` {out} is not empty. Choose a new folder.")


def check_fit_flags(args: argparse.Namespace, what: str) -> None:
    """
    Refuse a metric that is none, the test split, and sizes below 1.

    Args:
        args (`argparse.Namespace`): The flags, with `fit`.
        what (`str`): What is chosen, as the message calls it: `"weights"`.
    """
    from hf_rec.metrics.ranking import METRICS, metric_values

    for name in ("limit", "batch_size"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"`--{name.replace('_', '-')}` must be at least 1, got {value}.")
    if args.fit is None:
        return
    try:
        metric_values([0], [0], args.fit)
    except ValueError:
        names = ", ".join(f"{name}@k" for name in METRICS)
        raise ValueError(f"`--fit` must be one of {names} with k from 1 on, got {args.fit!r}.") from None
    if args.split == "test":
        raise ValueError(
            f"`--split test`: {what} that are chosen on the test rows would make the test mean nothing. Leave it out, "
            "to choose them on validation."
        )
