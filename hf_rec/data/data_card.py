"""The data card: what a prepared data set holds, counted for programs and written for people."""

from datetime import UTC, datetime
from typing import Any

import numpy as np
from datasets import Dataset

from hf_rec.columns import TIMESTAMP, USER_ID
from hf_rec.data.splits import EVENT_TIMESTAMPS, UNKNOWN_TIME, distinct_labels, user_events


def time_report(interactions: Dataset) -> dict[str, Any]:
    """How often the log does not say which of a user's events was the last."""
    times = user_events(interactions).with_format("arrow")[:][EVENT_TIMESTAMPS].to_pylist()
    known = all(UNKNOWN_TIME not in user for user in times)
    tied = sum(len(user) > 1 and user[-1] == user[-2] for user in times) if known else None
    return {
        "times_known": known,
        "users_with_tied_last_time": tied,
        "share_of_users_with_tied_last_time": tied / max(1, len(times)) if known else None,
    }


def split_report(dataset: Dataset) -> dict[str, Any]:
    """Rows, users, labels under `supervise="all"`, and the times (seconds) of the first and the last target."""
    times = np.array(dataset[TIMESTAMP])
    known = len(times) and times.min() != UNKNOWN_TIME
    return {
        "rows": len(dataset),
        "users": len(set(dataset[USER_ID])),
        "distinct_labels": distinct_labels(dataset),
        "first_time": int(times.min()) if known else None,
        "last_time": int(times.max()) if known else None,
    }


def write_readme(card: dict[str, Any]) -> str:
    """The card as Markdown."""
    sections = {
        "Source": {"source": card["source"], **card["options"]},
        "Split": card["split"],
        "Cleaning": card.get("cleaning", {}),
        "Interactions": card.get("interactions", {}),
        "Catalog": card["catalog"],
    }
    lines = ["# Data card", "", "Written by `hf-rec prepare`; read it with `hf_rec.data.prepare.load_prepared`.", ""]
    lines += ["Rows of a user are in order of time, rows of one time in the order of the file.", ""]
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
