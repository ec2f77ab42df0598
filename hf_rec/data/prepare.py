"""
`hf-rec prepare`: one call from files as published to a folder that everything else reads.

```
DIR/catalog.jsonl, catalog.json   the items
DIR/splits/                       a `DatasetDict` with the rows of each split
DIR/data.json                     what was done: source, options, counts, hashes
DIR/README.md                     the same for people (the data card)
```
"""

import inspect
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, load_from_disk

from hf_rec.data.catalog import Catalog
from hf_rec.data.data_card import split_report, time_report, write_readme
from hf_rec.data.interactions import clean_interactions
from hf_rec.data.sources.amazon import load_amazon
from hf_rec.data.sources.histories import load_history_csv
from hf_rec.data.sources.movielens import load_movielens
from hf_rec.data.sources.sequences import load_sequence_csv, load_sequence_text
from hf_rec.data.sources.tables import load_table
from hf_rec.data.splits import check_no_leak, global_time, leave_one_out, sequence_hash


FORMAT = "hf_rec.data"
FORMAT_VERSION = 1
SPLIT_RULES = {"leave-one-out": "loo", "global-time": "time", "ready-made": "ready"}


def prepare(
    source: str,
    out: str | os.PathLike,
    *,
    split: str | None = None,
    window: int | None = None,
    stride: int | None = None,
    min_events: int | None = None,
    min_count: int = 0,
    duplicates: str = "exact",
    require_titles: bool = False,
    num_proc: int | None = None,
    **options: Any,
) -> dict[str, Any]:
    """
    Read a source, clean and split it, and write the result to a folder.

    Args:
        source (`str`): `"table"`, `"amazon-2014"`, `"amazon-2018"`, `"amazon-2023"`, `"movielens"`, `"sequence-csv"`,
            `"history-csv"`, `"sequence-text"` or `"demo"`.
        out (`str` or `os.PathLike`): The folder to write. It must not exist, or be empty; nothing is left of it if
            anything fails.
        split (`str`, *optional*): `"leave-one-out"` (the default for interactions), `"global-time"`, or
            `"ready-made"` (the only one for `"sequence-csv"` and `"history-csv"`, which come with splits).
        window, stride, min_events (`int`, *optional*): As in [`~hf_rec.data.splits.leave_one_out`] and
            [`~hf_rec.data.splits.global_time`] (`min_events` there only).
        min_count, duplicates, require_titles (*optional*): As in
            [`~hf_rec.data.interactions.clean_interactions`].
        num_proc (`int`, *optional*): Processes that cut windows.
        options: Arguments of the source: `path` and others of [`~hf_rec.data.sources.tables.load_table`],
            [`~hf_rec.data.sources.amazon.load_amazon`], [`~hf_rec.data.sources.movielens.load_movielens`],
            [`~hf_rec.data.sources.sequences.load_sequence_csv`],
            [`~hf_rec.data.sources.histories.load_history_csv`],
            [`~hf_rec.data.sources.sequences.load_sequence_text`] or
            [`~hf_rec.data.sources.demo.load_demo`]. A relative path that does not exist is looked for below the folder
            that the variable `HF_REC_DATA` names.

    Returns:
        `dict`: The data card, as in `data.json`.
    """
    loaders = source_loaders()
    if source not in loaders:
        raise ValueError(f"`source` must be one of {sorted(loaders)}, got {source!r}.")
    loader = loaders[source]
    _check_options(source, loader, options)
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"`out` = {str(out)!r} exists and is not empty. Choose another folder, or remove it.")
    rule = _split_rule(source, split)
    if rule != "global-time" and min_events is not None:
        raise ValueError(f"`min_events` is {min_events}, but only the split 'global-time' knows it. Leave it out.")
    cleaning = {"min_count": min_count, "duplicates": duplicates, "require_titles": require_titles}
    windows = {"window": window, "stride": stride, "min_events": min_events}
    windows = {name: value for name, value in windows.items() if value is not None}
    if rule == "ready-made":
        changed = {name for name, value in cleaning.items() if value not in (0, "exact", False)} | set(windows)
        if changed:
            raise ValueError(
                f"`{sorted(changed)[0]}` is given, but {source!r} is cut and split already and kept as it is. "
                "Leave it out."
            )

    loaded, catalog = loader(**options)
    card = {"format": FORMAT, "version": FORMAT_VERSION, "source": source, "options": _as_json(options)}
    card["split"] = {"rule": SPLIT_RULES[rule], "name": rule, **windows}
    if rule == "ready-made":
        splits = loaded
    else:
        log = clean_interactions(loaded, catalog, **cleaning)
        catalog = log.catalog
        cut = leave_one_out if rule == "leave-one-out" else global_time
        splits = cut(log.interactions, **windows, num_proc=num_proc)
        card["cleaning"] = cleaning
        card["interactions"] = log.report | time_report(log.interactions)
    if rule != "leave-one-out":
        check_no_leak(splits)
    empty = [name for name, dataset in splits.items() if not len(dataset)]
    if empty:
        raise ValueError(
            f"No row is left for {', '.join(empty)}. {len(catalog)} items are left after cleaning; lower `min_count` "
            f"(now {min_count}), or give a larger log."
        )
    card["catalog"] = catalog.report()
    card["splits"] = {name: split_report(dataset) for name, dataset in splits.items()}
    card["sha256"] = {"catalog": catalog.sha256} | {name: sequence_hash(rows) for name, rows in splits.items()}
    write_prepared(out, catalog, splits, card)
    return card


def load_prepared(directory: str | os.PathLike) -> tuple[Catalog, DatasetDict, dict[str, Any]]:
    """
    Read a folder that [`prepare`] wrote.

    Returns:
        `tuple[Catalog, datasets.DatasetDict, dict]`: Items, splits, data card. A `ValueError` says so where they do
        not belong together.
    """
    directory = Path(directory)
    if not (directory / "data.json").is_file():
        raise FileNotFoundError(f"{directory} holds no data.json. Give a folder written by `hf-rec prepare`.")
    card = json.loads((directory / "data.json").read_text(encoding="utf-8"))
    if card.get("format") != FORMAT or card.get("version") != FORMAT_VERSION:
        raise ValueError(
            f"{directory / 'data.json'} has format {card.get('format')!r}, version {card.get('version')!r}; this code "
            f"reads {FORMAT!r}, version {FORMAT_VERSION}. Prepare the data again."
        )
    catalog = Catalog.load(directory)
    splits = load_from_disk(str(directory / "splits"))
    if catalog.sha256 != card["sha256"]["catalog"]:
        raise ValueError(f"The catalog in {directory} is not the one that data.json names. Prepare the data again.")
    for name, report in card["splits"].items():
        if (
            name not in splits
            or len(splits[name]) != report["rows"]
            or sequence_hash(splits[name]) != card["sha256"][name]
        ):
            raise ValueError(
                f"Split {name!r} in {directory} is not the one that data.json names. Prepare the data again."
            )
    return catalog, splits, card


def source_loaders() -> dict[str, Callable[..., tuple[Dataset | DatasetDict, Catalog]]]:
    """Name of each source -> function that reads it and whose keyword arguments are the options of the source."""
    from hf_rec.data.sources.demo import load_demo

    return {
        "table": load_table,
        "amazon-2014": partial(load_amazon, year=2014),
        "amazon-2018": partial(load_amazon, year=2018),
        "amazon-2023": partial(load_amazon, year=2023),
        "movielens": load_movielens,
        "sequence-csv": load_sequence_csv,
        "history-csv": load_history_csv,
        "sequence-text": load_sequence_text,
        "demo": load_demo,
    }


def _check_options(source: str, loader: Callable, options: dict[str, Any]) -> None:
    parameters = inspect.signature(loader).parameters
    unknown = sorted(name for name in options if name not in parameters or name == "year")
    if unknown:
        known = [name for name in parameters if name != "year"]
        raise ValueError(f"`{unknown[0]}` is no option of the source {source!r}, which has {known}.")
    needed = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
    missing = [name for name in needed if options.get(name) is None]
    if missing:
        raise ValueError(f"The source {source!r} needs `{missing[0]}`. Say where its files are.")


def _split_rule(source: str, split: str | None) -> str:
    if split is not None and split not in SPLIT_RULES:
        raise ValueError(f"`split` must be one of {sorted(SPLIT_RULES)}, got {split!r}.")
    has_splits = source in ("sequence-csv", "history-csv")
    if split is not None and (split == "ready-made") != has_splits:
        kind = "comes with its splits: leave `split` out" if has_splits else "has no splits of its own: choose another"
        raise ValueError(f"`split` is {split!r}, but the source {source!r} {kind}.")
    return split or ("ready-made" if has_splits else "leave-one-out")


def _as_json(options: dict[str, Any]) -> dict[str, Any]:
    """Options for the card. Of absolute paths the last part alone: where a file lies on a machine does not matter."""
    plain = {}
    for name, value in options.items():
        paths = value if isinstance(value, list | tuple) else [value]
        if name in ("path", "items", "meta"):
            paths = [Path(path).name if path and Path(path).is_absolute() else path for path in paths]
        plain[name] = paths if isinstance(value, list | tuple) else paths[0]
    return plain


def write_prepared(out: Path, catalog: Catalog, splits: DatasetDict, card: dict[str, Any]) -> None:
    """Write everything beside `out`, then move it there: the folder is there whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial_dir = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        catalog.save(partial_dir)
        splits.save_to_disk(str(partial_dir / "splits"))
        (partial_dir / "data.json").write_text(json.dumps(card, indent=2, default=str) + "\n", encoding="utf-8")
        (partial_dir / "README.md").write_text(write_readme(card), encoding="utf-8")
        partial_dir.chmod(0o755)
        if out.exists():
            out.rmdir()
        partial_dir.rename(out)
    except BaseException:
        shutil.rmtree(partial_dir, ignore_errors=True)
        raise
