"""The result of [`~hf_rec.diagnostics.diagnose.diagnose`] as Markdown tables."""

from typing import Any


def to_markdown(result: dict[str, Any]) -> str:
    """The result of [`diagnose`] as tables."""
    k, order = result["k"], result["order"]
    lines = [
        f"# {result['name']}: diagnostics",
        "",
        f"{result['rows']:,} rows of {result['split']}, {result['protocol']}.",
        "",
    ]
    lines += [
        "## Order",
        "",
        f"| | NDCG@{k} | shuffled | change | p | overlap@{k} | cosine |",
        "|---|---|---|---|---|---|---|",
    ]
    for label, part in (("all rows", order), ("rows with an order", order.get("of_these"))):
        if part is not None:
            cosine = f"{part['cosine']['mean']:.3f}" if "cosine" in part else ""
            lines.append(f"| {label} | {_change(part['ndcg'])} | {part['overlap']['mean']:.3f} | {cosine} |")
    if "trained_on_shuffled" in result:
        part = result["trained_on_shuffled"]
        lines += ["", f"| | NDCG@{k} | trained on shuffled histories | change | p | overlap@{k} |"]
        lines += ["|---|---|---|---|---|---|"]
        lines.append(f"| all rows | {_change(part['ndcg'])} | {part['overlap']['mean']:.3f} |")
    lines += ["", "## History", "", f"| events | rows | NDCG@{k} | hit rate@{k} |", "|---|---|---|---|"]
    for part in result["history_length"]:
        label = f"{part['from']}+" if part["to"] is None else _range(part["from"], part["to"])
        lines.append(f"| {label} | {_metrics(part)} |")
    for part in result.get("events_given", ()):
        lines.append(f"| newest {part['events']} given | {_metrics(part)} |")
    lines += ["", "## Seen in training", "", f"| | rows | NDCG@{k} | hit rate@{k} |", "|---|---|---|---|"]
    lines += [f"| {label.replace('_', ' ')} | {_metrics(part)} |" for label, part in result["warmth"].items()]
    if "transfer" in result:
        part = result["transfer"]
        lines += ["", f"## Another domain ({part['items']:,} items, {part['rows']:,} rows)", ""]
        lines += ["| | model | popularity | chance |", "|---|---|---|---|"]
        for name in ("ndcg", "hit_rate"):
            row = part[name]
            lines.append(
                f"| {name}@{k} | {_interval(row['model'])} | {_interval(row['popularity'])} | {row['chance']:.4f} |"
            )
    return "\n".join(lines)


def _interval(value: dict[str, float]) -> str:
    return f"{value['mean']:.4f} [{value['low']:.4f}, {value['high']:.4f}]"


def _change(part: dict[str, Any]) -> str:
    relative = "" if part["relative_change"] is None else f" ({100 * part['relative_change']:+.1f} %)"
    change = part["change"]
    interval = f"{change['mean']:+.4f} [{change['low']:+.4f}, {change['high']:+.4f}]{relative}"
    return f"{part['before']:.4f} | {part['after']:.4f} | {interval} | {part['p_value']:.4f}"


def _metrics(part: dict[str, Any]) -> str:
    return f"{part['rows']:,} | {_interval(part['ndcg'])} | {_interval(part['hit_rate'])}"


def _range(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"
