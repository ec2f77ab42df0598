"""
What codes are like: how many items share a path, how evenly codes are used, what they leave of the vectors.

Shapes: N items · L levels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np


LEVEL_COLUMNS = {
    "level": "level",
    "codes_used": "codes used",
    "perplexity": "perplexity",
    "error": "error",
    "error_share": "error, share of level 0",
    "prefixes": "prefixes",
    "largest_prefix": "items of the largest",
}


def code_report(codes: np.ndarray, errors: Sequence[float]) -> dict[str, Any]:
    """
    Count.

    Args:
        codes (`np.ndarray` of `int`, shape `(N, L)`): Codes, a last level that only tells items apart included.
        errors (sequence of `float`): As of [`~hf_rec.item_codes.residual_kmeans.ItemCodes`]; a level that none is
            given for has no centroids.

    Returns:
        `dict`: `items`, `paths` (distinct), `items_that_share_a_path`, `largest_path` (items), `error` of level 0, and
        `levels`, each with `codes_used`, `perplexity` (exp of the entropy of their use: the number of codes that would
        be as uncertain if all were used alike), `error` (mean squared distance), `error_share`, `prefixes` (distinct,
        up to this level) and `largest_prefix` (items).
    """
    levels = []
    for level in range(codes.shape[1]):
        used = np.unique(codes[:, level], return_counts=True)[1] / len(codes)
        sizes = np.unique(codes[:, : level + 1], axis=0, return_counts=True)[1]
        error = errors[level + 1] if level + 1 < len(errors) else None
        levels.append(
            {
                "level": level + 1,
                "codes_used": len(used),
                "perplexity": float(np.exp(-(used * np.log(used)).sum())),
                "error": error,
                "error_share": None if error is None or not errors[0] else error / errors[0],
                "prefixes": len(sizes),
                "largest_prefix": int(sizes.max()),
            }
        )
    return {
        "items": len(codes),
        "paths": len(sizes),
        "items_that_share_a_path": int(sizes[sizes > 1].sum()),
        "largest_path": int(sizes.max()),
        "error": float(errors[0]),
        "levels": levels,
    }


def summary_lines(report: dict[str, Any]) -> list[str]:
    """The counts of a report as sentences."""
    items, shared = report["items"], report["items_that_share_a_path"]
    lines = [f"{items:,} items, {report['paths']:,} paths"]
    if shared:
        lines.append(f"items that share a path: {shared:,} ({shared / items:.1%}), at most {report['largest_path']:,}")
    else:
        lines.append("no two items share a path")
    return lines


def level_table(report: dict[str, Any]) -> str:
    """The levels of a report as a Markdown table."""
    lines = ["| " + " | ".join(LEVEL_COLUMNS.values()) + " |", "|" + "---:|" * len(LEVEL_COLUMNS)]
    for level in report["levels"]:
        lines.append("| " + " | ".join(_cell(name, level[name]) for name in LEVEL_COLUMNS) + " |")
    return "\n".join(lines)


def report_markdown(column: str, report: dict[str, Any], settings: dict[str, Any], picture: str | None) -> str:
    """The report of a column for people; `settings` says how it was made."""
    lines = [f"# Codes `{column}`", "", *(f"- {line}" for line in summary_lines(report)), "", level_table(report), ""]
    lines += ["The error is the mean squared distance between an item's vector and the sum of its centroids.", ""]
    if picture is not None:
        lines += [f"![The tree of codes]({picture})", ""]
    lines += ["| | |", "|---|---|", *(f"| {name.replace('_', ' ')} | {value} |" for name, value in settings.items())]
    return "\n".join(lines) + "\n"


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name == "error_share":
        return f"{value:.1%}"
    return {"perplexity": f"{value:.1f}", "error": f"{value:.4g}"}.get(name, f"{value:,}")
