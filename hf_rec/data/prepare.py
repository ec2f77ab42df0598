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
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import DatasetDict, load_from_disk

from hf_rec.data.catalog import Catalog
from hf_rec.data.data_card import data_card_markdown, split_report
from hf_rec.data.in_memory import clean_and_split
from hf_rec.data.sources import SOURCES
from hf_rec.data.sources.report import SourceReport
from hf_rec.data.splits import check_no_leak, sequence_hash
from hf_rec.files import replacing_folder


FORMAT = "hf_rec.data"
FORMAT_VERSION = 1
SPLIT_RULES = {"leave-one-out": "loo", "global-time": "time", "ready-made": "ready", "rated-time": "rated"}
NOT_OPTIONS = ("year", "report")  # arguments of readers that the name of a source settles, or that are filled in


def prepare(
    source: str,
    out: str | os.PathLike,
    *,
    split: str | None = None,
    window: int | None = None,
    stride: int | None = None,
    min_events: int | None = None,
    min_count: int = 0,
    min_rating: float | None = None,
    like: float | None = None,
    since: str | None = None,
    until: str | None = None,
    duplicates: str = "exact",
    require_titles: bool = False,
    keep_all_items: bool = False,
    num_proc: int | None = None,
    **options: Any,
) -> dict[str, Any]:
    """
    Read a source, clean and split it, and write the result to a folder.

    Args:
        source (`str`): One of [`~hf_rec.data.sources.SOURCES`], such as `"table"`, `"amazon-2023"` or `"movielens"`.
        out (`str` or `os.PathLike`): The folder to write. It must not exist, or be empty; nothing is left of it if
            anything fails.
        split (`str`, *optional*): `"leave-one-out"` (the default for interactions), `"global-time"`, or
            `"ready-made"` (the only one for `"sequence-csv"` and `"history-csv"`, which come with splits).
        window, stride, min_events (`int`, *optional*): As in [`~hf_rec.data.splits.leave_one_out`] and
            [`~hf_rec.data.splits.global_time`] (`min_events` there only).
        min_count, min_rating, since, until, duplicates, require_titles, keep_all_items (*optional*): As in
            [`~hf_rec.data.interactions.clean_interactions`].
        like (`float`, *optional*): Make rows with ratings (`"rated-time"`): a user likes what has at least this
            rating; see [`~hf_rec.data.ratings.rated_time`].
        num_proc (`int`, *optional*): Processes that cut windows.
        options: Arguments of the source's reader, as [`~hf_rec.data.sources.tables.load_table`]: `path` and others. A
            relative path that does not exist is looked for below the folder that the variable `HF_REC_DATA` names.

    Returns:
        `dict`: The data card, as in `data.json`.
    """
    if source not in SOURCES:
        raise ValueError(f"`source` must be one of {sorted(SOURCES)}, got {source!r}.")
    reader = SOURCES[source].reader()
    takes_report = _check_options(source, reader, options)
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"`out` = {str(out)!r} exists and is not empty. Choose another folder, or remove it.")
    rule = _split_rule(source, split, like)
    if rule not in ("global-time", "rated-time") and min_events is not None:
        raise ValueError(
            f"`min_events` is {min_events}, but only the splits 'global-time' and 'rated-time' know it. Leave it out."
        )
    if rule == "rated-time" and stride is not None:
        raise ValueError(f"`stride` is {stride}, but rows with ratings are made of each event. Leave it out.")
    cleaning = {
        "min_count": min_count,
        "min_rating": min_rating,
        "since": since,
        "until": until,
        "duplicates": duplicates,
        "require_titles": require_titles,
        "keep_all_items": keep_all_items,
    }
    given = {"window": window, "stride": stride, "min_events": min_events}
    windows = {name: value for name, value in given.items() if value is not None}
    if rule == "ready-made":
        changed = {name for name, value in cleaning.items() if value not in (0, "exact", None)} | set(windows)
        if changed:
            raise ValueError(
                f"`{sorted(changed)[0]}` is given, but {source!r} is cut and split already and kept as it is. "
                "Leave it out."
            )

    report = SourceReport()
    loaded, catalog = reader(**options, **({"report": report} if takes_report else {}))
    card = {"format": FORMAT, "version": FORMAT_VERSION, "source": source, "options": _as_json(options)}
    card["split"] = {"rule": SPLIT_RULES[rule], "name": rule, **windows, **({} if like is None else {"like": like})}
    card |= {name: found for name, found in (("files", report.files), ("join", report.join)) if found}
    if rule == "ready-made":
        splits = loaded
    else:
        catalog, splits, card["interactions"] = clean_and_split(
            loaded, catalog, rule, cleaning=cleaning, windows=windows, num_proc=num_proc, like=like
        )
        card["cleaning"] = cleaning
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


def _check_options(source: str, reader: Callable[..., Any], options: dict[str, Any]) -> bool:
    """Refuse options that the source does not have; whether its reader fills in a report."""
    parameters = inspect.signature(reader).parameters
    known = [name for name in parameters if name not in NOT_OPTIONS]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"`{unknown[0]}` is no option of the source {source!r}, which has {known}.")
    needed = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
    missing = [name for name in needed if options.get(name) is None]
    if missing:
        raise ValueError(f"The source {source!r} needs `{missing[0]}`. Say where its files are.")
    return "report" in parameters


def _split_rule(source: str, split: str | None, like: float | None) -> str:
    if split is not None and split not in SPLIT_RULES:
        raise ValueError(f"`split` must be one of {sorted(SPLIT_RULES)}, got {split!r}.")
    has_splits = SOURCES[source].has_splits
    if split is not None and (split == "ready-made") != has_splits:
        kind = "comes with its splits: leave `split` out" if has_splits else "has no splits of its own: choose another"
        raise ValueError(f"`split` is {split!r}, but the source {source!r} {kind}.")
    if (like is not None and (has_splits or split not in (None, "rated-time"))) or (
        like is None and split == "rated-time"
    ):
        raise ValueError(
            f"`like` is {like} and `split` {split!r}: rows with ratings are those of the split 'rated-time' of a log, "
            "which needs `like`, the smallest rating of what a user likes."
        )
    if like is not None:
        return "rated-time"
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
    """Write everything beside its place, then move it there, `data.json` last: without it no folder is read."""
    with replacing_folder(out, last="data.json") as partial:
        catalog.save(partial)
        splits.save_to_disk(str(partial / "splits"))
        (partial / "data.json").write_text(json.dumps(card, indent=2, default=str) + "\n", encoding="utf-8")
        (partial / "README.md").write_text(data_card_markdown(card), encoding="utf-8")
