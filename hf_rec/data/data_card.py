"""The data card: what a prepared data set holds, counted for programs, written for people, told on the terminal."""

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset

from hf_rec.columns import EVENT_TIMESTAMPS, LIKED, TIMESTAMP, UNKNOWN_TIME, USER_ID, column_values
from hf_rec.data.ratings import liked_share
from hf_rec.data.splits import distinct_labels, user_events


def time_report(interactions: Dataset) -> dict[str, Any]:
    """How often the log does not say which of a user's events was the last."""
    times = column_values(user_events(interactions), EVENT_TIMESTAMPS).combine_chunks()
    values, ends = times.flatten().to_numpy(), times.value_lengths().to_numpy().cumsum()
    known = not (values == UNKNOWN_TIME).any()
    ends = ends[np.diff(ends, prepend=0) > 1]
    tied = int((values[ends - 1] == values[ends - 2]).sum()) if known else None
    return {
        "times_known": known,
        "users_with_tied_last_time": tied,
        "share_of_users_with_tied_last_time": tied / max(1, len(times)) if tied is not None else None,
    }


def split_report(dataset: Dataset) -> dict[str, Any]:
    """Rows, users, labels under `supervise="all"`, and the times (seconds) of the first and the last target."""
    times = pc.min_max(column_values(dataset, TIMESTAMP)).as_py()
    known = len(dataset) and times["min"] != UNKNOWN_TIME
    return {
        "rows": len(dataset),
        "users": pc.count_distinct(column_values(dataset, USER_ID)).as_py(),
        "distinct_labels": distinct_labels(dataset),
        "first_time": times["min"] if known else None,
        "last_time": times["max"] if known else None,
    } | ({"liked_share": liked_share(dataset)} if LIKED in dataset.column_names else {})


def terminal_lines(card: dict[str, Any]) -> list[str]:
    """What was read, what did not join, what was dropped and what has no title, as sentences."""
    lines = []
    for name, entry in card.get("files", {}).items():
        text = f"{name}: {entry['rows']:,} rows read"
        if "lines" in entry:
            text += f" of {entry['lines']:,} lines, 0 refused"
            if entry["rows_over_lines"]:
                text += f"; rows with a quoted field over several lines: {entry['rows_over_lines']:,}"
        if entry.get("before_1970"):
            text += f"; times before 1970, taken as 1970-01-01: {entry['before_1970']:,}"
        lines.append(text)
    lines += _join_lines(card.get("join", {}))
    counts, catalog = card.get("interactions", {}), card["catalog"]
    dropped = {
        "outside the window of time": counts.get("dropped_outside_times"),
        "with a low rating": counts.get("dropped_low_ratings"),
        "duplicates": counts.get("dropped_duplicates"),
        "by the k-core": counts.get("dropped_by_k_core"),
        "with untitled items": counts.get("dropped_untitled"),
    }
    if any(dropped.values()):
        parts = ", ".join(f"{number:,} {what}" for what, number in dropped.items() if number)
        lines.append(
            f"interactions dropped: {parts}; {counts['interactions']:,} of {counts['interactions_read']:,} left"
        )
    missing = catalog["missing_titles"] + catalog["empty_titles"]
    if missing:
        lines.append(f"items without a title: {missing:,} of {catalog['items']:,}; their name is made of their id")
    idle = counts.get("items_without_interactions", 0)
    if idle:
        kept = counts["of_these_kept_in_the_catalog"]
        what = f"{kept:,} of them kept" if kept else "left out of the catalog; `keep_all_items` keeps them"
        lines.append(f"items without interactions: {idle:,}, {what}")
    return lines


def _join_lines(join: dict[str, Any]) -> list[str]:
    missing = join.get("without_item_row")
    if not missing:
        return []
    text = f"items of the log without a row among the items: {missing:,} of {join['items_of_the_log']:,}, "
    shown = join["first_without_item_row"]
    text += ", ".join(map(repr, shown)) + ", ..." * (missing > len(shown))
    if join["near_misses"]:
        pairs = ", ".join(f"{other!r} for {item!r}" for item, other in join["near_misses"].items())
        text += f". The items have another spelling: {pairs}"
    return [text]


def data_card_markdown(card: dict[str, Any]) -> str:
    """The card as Markdown."""
    sections = {
        "Source": {"source": card["source"], **card["options"]},
        "Split": card["split"],
        "Cleaning": card.get("cleaning", {}),
        "Interactions": card.get("interactions", {}),
        "Catalog": card["catalog"],
    } | {f"Codes `{column}`": settings for column, settings in card.get("codes", {}).items()}
    lines = ["# Data card", "", "Written by `hf-rec prepare`; read it with `hf_rec.data.prepare.load_prepared`.", ""]
    lines += ["Rows of a user are in order of time, rows of one time in the order of the file.", ""]
    lines += [f"- {line}" for line in terminal_lines(card)] + [""]
    for title, entries in sections.items():
        if entries:
            lines += [f"## {title}", "", "| | |", "|---|---|"]
            lines += [f"| {name.replace('_', ' ')} | {_cell(value)} |" for name, value in entries.items()] + [""]
    columns = list(next(iter(card["splits"].values())))
    lines += ["## Splits", "", "| split | " + " | ".join(name.replace("_", " ") for name in columns) + " |"]
    lines += ["|---|" + "---:|" * len(columns)]
    for name, report in card["splits"].items():
        lines.append(f"| {name} | " + " | ".join(_cell(report[column], column) for column in columns) + " |")
    lines += ["", "## Hashes (SHA-256)", ""] + [f"- {name}: `{value}`" for name, value in card["sha256"].items()]
    return "\n".join(lines) + "\n"


def _cell(value: Any, column: str = "") -> str:
    if column.endswith("_time") and value is not None:
        return datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4f}"
    return "-" if value is None else str(value).replace("|", "\\|").replace("\n", " ")
