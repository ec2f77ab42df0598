"""The flags that name a model or a control and say how it is loaded, the same in every command."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hf_rec.recommenders.control_list import CONTROLS, make_control


if TYPE_CHECKING:
    from datasets import DatasetDict

    from hf_rec.data.catalog import Catalog
    from hf_rec.recommenders.contract import Recommender

DTYPES = ("float32", "bfloat16", "float16", "float64")
_OF_MODELS = ("revision", "device", "dtype", "num_beams")


def add_model_flags(parser: argparse.ArgumentParser, *, ranks_split: bool) -> None:
    """
    Add `--model` and how it is loaded and searched.

    Args:
        parser (`argparse.ArgumentParser`): Of the command.
        ranks_split (`bool`): Whether the command ranks many rows: it then takes a control instead of a model, too, and
            `--batch-size`.
    """
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", metavar="DIR_OR_ID", help="model folder, or repository on the Hub")
    if ranks_split:
        which.add_argument("--control", choices=CONTROLS, help="instead of a model: counts of the train split")
    parser.add_argument("--revision", help="revision of a repository on the Hub (default: its main branch)")
    parser.add_argument("--device", help="e.g. cpu or cuda:0 (default: an accelerator if there is one)")
    parser.add_argument("--dtype", choices=DTYPES, help="number format of the weights (default: as saved)")
    parser.add_argument("--num-beams", type=int, help="width of the search (default: twice the list, at least 20)")
    if ranks_split:
        parser.add_argument("--batch-size", type=int, help="histories ranked at a time (default: that of the model)")


def refuse_flags(args: argparse.Namespace, names: Sequence[str], where: str) -> None:
    """
    Raise a `ValueError` that names the given flags among `names`, which would change nothing.

    Args:
        args (`argparse.Namespace`): Flags that were not given are `None`, `False` or empty.
        names (`Sequence[str]`): Flags, as attributes of `args`.
        where (`str`): Why they change nothing, e.g. `"with --control"`.
    """
    given = [f"`--{name.replace('_', '-')}`" for name in names if getattr(args, name, None) not in (None, False, [])]
    if given:
        them, have = ("it", "has") if len(given) == 1 else ("them", "have")
        raise ValueError(f"{', '.join(given)} {have} no effect {where}. Leave {them} out.")


def check_model_flags(args: argparse.Namespace, more: Sequence[str] = ()) -> None:
    """
    Refuse, before anything is read, flags that have no effect in this call, and a device that is not there.

    Args:
        args (`argparse.Namespace`): The flags.
        more (`Sequence[str]`, *optional*): Further flags of the command that only a model has a use for.
    """
    for name in ("num_beams", "batch_size"):
        value = getattr(args, name, None)
        if value is not None and value < 1:
            raise ValueError(f"`--{name.replace('_', '-')}` must be at least 1, got {value}.")
    if getattr(args, "control", None) is not None:
        refuse_flags(args, [*_OF_MODELS, *more], "with `--control`, which counts rows and ranks every item")
    elif Path(args.model).is_dir():
        refuse_flags(args, ["revision"], f"for {args.model}, which is a folder here")
    if args.device is not None:
        check_device(args.device)


def load_model(args: argparse.Namespace, catalog: "Catalog | None" = None, folder: str | None = None) -> "Recommender":
    """
    The model that the flags name.

    Args:
        args (`argparse.Namespace`): The flags.
        catalog ([`~hf_rec.data.catalog.Catalog`], *optional*): That of `--data`, which the model must have been made
            for.
        folder (`str`, *optional*): Another model, loaded in the same way.
    """
    from hf_rec.hub import load_recommender
    from hf_rec.recommenders.controls import Control

    revision = args.revision if folder is None else None
    folder = args.model if folder is None else folder
    recommender = load_recommender(folder, revision=revision, device=args.device, dtype=args.dtype)
    if isinstance(recommender, Control):
        refuse_flags(args, _OF_MODELS, f"for {folder}, a saved control")
    elif recommender.is_exact:
        refuse_flags(args, ["num_beams"], f"for {folder}, a {type(recommender).__name__}, which ranks every item")
    check_catalog(recommender, folder, catalog, args.data if catalog is not None else None)
    return recommender


def load_part(
    args: argparse.Namespace, name: str, catalog: "Catalog | None", splits: "DatasetDict | None"
) -> "Recommender":
    """
    A recommender that others are made of: a model folder, a repository, or the name of a control.

    Args:
        args (`argparse.Namespace`): The flags, with `device`, `dtype` and `data`.
        name (`str`): Folder, id on the Hub, or one of [`CONTROLS`].
        catalog ([`~hf_rec.data.catalog.Catalog`]), splits (`datasets.DatasetDict`, *optional*): Those of `--data`.
    """
    from hf_rec.hub import load_recommender

    if catalog is not None and splits is not None and name in CONTROLS and not Path(name).is_dir():
        return make_control(name, catalog, splits["train"])
    recommender = load_recommender(name, device=args.device, dtype=args.dtype)
    check_catalog(recommender, name, catalog, args.data)
    return recommender


def check_catalog(recommender: "Recommender", folder: str, catalog: "Catalog | None", data: str | None) -> None:
    """Refuse a recommender whose rows are not the items of `--data`; one of bare ids gets their titles."""
    if catalog is None:
        return
    if not recommender.catalog.has_items_of(catalog):
        raise ValueError(
            f"{folder} was made for another catalog ({len(recommender.catalog)} items) than `--data` {data} "
            f"({len(catalog)} items). Give the data that the model was trained on."
        )
    if recommender.catalog.titles is None:
        recommender.catalog = catalog


def check_device(name: str) -> None:
    """Refuse a device that this machine does not have."""
    import torch

    try:
        torch.empty(1, device=name).tolist()  # "meta" has no values to read
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"`--device` {name!r} cannot be used on this machine: {reason}") from error
