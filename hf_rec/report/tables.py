"""Markdown tables of measured methods."""

from collections.abc import Callable, Sequence

from hf_rec.evaluation.run_files import TITLE_LEVEL, compare_runs
from hf_rec.metrics.beyond_accuracy import LIST_METRICS
from hf_rec.metrics.ranking import METRICS
from hf_rec.report.collect import Method, Section


MISSING = "–"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, padded so that it reads as well in a terminal: first column left, the others right."""
    lines = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in [header, *rows]]
    first, *others = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        " | ".join([name.ljust(first), *(cell.rjust(width) for cell, width in zip(cells, others, strict=True))])
        for name, *cells in lines
    ]
    rule = " | ".join(["-" * first, *("-" * (width - 1) + ":" for width in others)])
    return "\n".join(f"| {line} |" for line in [text[0], rule, *text[1:]])


def short_name(metric: str) -> str:
    """`"ndcg@10"` as tables write it: `N@10`."""
    name, _, k = metric.removeprefix(TITLE_LEVEL).partition("@")
    return f"{METRICS[name].short}@{k}"


def table_metrics(section: Section, level: str = "") -> list[str]:
    """The metrics that tables show, at every k of the section."""
    return [
        f"{level}{name}@{k}" for name, metric in METRICS.items() if metric.in_tables for k in section.example["ks"]
    ]


def results_table(section: Section) -> str:
    """One row a method: accuracy with intervals, warm and cold targets, certified lists, and what the model took."""
    metrics, last = table_metrics(section), section.example["ks"][-1]
    counts = {}
    for label in ("warm", "cold"):
        found = [
            run["slices"][label]["rows"] for method in section.methods for run in method.runs if label in run["slices"]
        ]
        if found:
            same = min(found) == max(found)
            counts[label] = f"{label} N@{last} ({found[0]:,} rows)" if same else f"{label} N@{last}"
    header = ["Method", *map(short_name, metrics), *counts.values(), "Search", "Certified lists", "Training rows"]
    header += ["Distinct labels", "Training time", "Peak memory", "Seeds"]
    several = any(len(method.runs) > 1 for method in section.methods)
    rows = []
    for method in section.methods:
        cost = _cost(method)
        row = [method.name, *(format_interval(*value) for value in method.intervals(metrics))]
        row += [_or_missing(method.slice_mean(label, f"ndcg@{last}"), format_value) for label in counts]
        certified = sum(run["certified_share"] for run in method.runs) / len(method.runs)
        row += [method.runs[0]["search"], f"{100 * certified:.1f} %"]
        row += [_or_missing(cost[key], "{:,}".format) for key in ("training_rows", "distinct_labels")]
        row += [_or_missing(cost["seconds"], format_seconds), _or_missing(cost["peak_memory"], format_bytes)]
        row.append(", ".join(MISSING if seed is None else str(seed) for seed in method.seeds))
        if several:
            means = method.means(f"ndcg@{last}")
            row.append(f"{format_value(min(means))} to {format_value(max(means))}" if len(means) > 1 else MISSING)
        rows.append(row)
    return markdown_table(header + [f"N@{last} over seeds"] * several, rows)


def title_table(section: Section) -> str | None:
    """Title-level accuracy (any item with the target's title is a hit); `None` where it equals item-level."""
    metrics = table_metrics(section, TITLE_LEVEL)
    if all(
        method.means(name) == method.means(name.removeprefix(TITLE_LEVEL))
        for method in section.methods
        for name in metrics
    ):
        return None
    rows = [
        [method.name, *(format_interval(*value) for value in method.intervals(metrics))] for method in section.methods
    ]
    return markdown_table(["Method", *map(short_name, metrics)], rows)


def lists_table(section: Section) -> str:
    """What the lists of each method look like, at the largest k."""
    last = section.example["ks"][-1]
    keys = [f"{name}@{last}" for name in LIST_METRICS]
    rows = []
    for method in section.methods:
        values = [[run["beyond_accuracy"][f"{run['protocol']}/{key}"] for run in method.runs] for key in keys]
        rows.append(
            [method.name, *(MISSING if None in value else f"{sum(value) / len(value):.3f}" for value in values)]
        )
    return markdown_table(["Method", *(metric.label for metric in LIST_METRICS.values())], rows)


def paired_table(section: Section, baseline: Method) -> str:
    """Difference of each method from the baseline with interval and corrected p-value; † where below 0.05."""
    metrics, rows = table_metrics(section), []
    others = [method for method in section.methods if method is not baseline]
    found = compare_runs([baseline.paths, *(method.paths for method in others)], metrics)
    for number, method in enumerate(others):
        cells = []
        for entry in found[number * len(metrics) : (number + 1) * len(metrics)]:
            p_value = f"p = {entry.p_holm:.3f}" if entry.p_holm >= 0.001 else "p < 0.001"
            mark = "†" if entry.p_holm < 0.05 else ""
            cells.append(f"{entry.difference:+.4f} [{entry.low:+.4f}, {entry.high:+.4f}] {p_value}{mark}")
        rows.append([method.name, *cells])
    return markdown_table([f"Against {baseline.name}", *map(short_name, metrics)], rows)


def format_value(value: float) -> str:
    """A metric: four decimals."""
    return f"{value:.4f}"


def format_interval(mean: float, low: float, high: float) -> str:
    """A metric and its interval: `0.0588 [0.0562, 0.0615]`."""
    return f"{mean:.4f} [{low:.4f}, {high:.4f}]"


def format_seconds(seconds: float) -> str:
    """A duration in the unit that suits it: `7.2 s`, `35.0 min`, `2.1 h`."""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def format_bytes(size: float) -> str:
    """A size in the unit that suits it: `512 MiB`, `1.20 GiB`."""
    return f"{size / 2**20:.0f} MiB" if size < 2**30 else f"{size / 2**30:.2f} GiB"


def _cost(method: Method) -> dict[str, float | None]:
    """Rows and labels as given, mean time and largest memory over seeds; `None` where a run does not say."""
    found = {}
    for key, combine in (("training_rows", max), ("distinct_labels", max), ("seconds", _mean), ("peak_memory", max)):
        values = [run["cost"].get(key) for run in method.runs]
        found[key] = None if None in values else combine(values)
    return found


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _or_missing(value: float | None, spell: Callable[[float], str]) -> str:
    return MISSING if value is None else spell(value)
