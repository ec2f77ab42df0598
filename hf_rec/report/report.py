"""One Markdown page with tables, paired tests and figures, from the files of runs alone."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hf_rec.evaluation.run_files import RunPath
from hf_rec.files import replacing
from hf_rec.report.collect import Section, Training, collect
from hf_rec.report.tables import lists_table, paired_table, results_table, title_table


if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COST = {
    "training_rows": "training rows",
    "distinct_labels": "distinct labels",
    "seconds": "training time",
    "peak_memory": "peak memory",
    "seed": "seed",
}
_LOGGED = {
    "loss": "training loss (`loss`)",
    "tau": "temperature (`tau`)",
    "invalid_gradient_share": "share of gradient from valid against invalid tokens (`invalid_gradient_share`)",
    "eval_ndcg@10": "NDCG@10 on validation (`eval_ndcg@10`)",
    "eval_nll": "-log P of the validation target (`eval_nll`)",
}
_CAPTIONS = {
    "methods": "Dots are means, bars 95 % bootstrap intervals over users.",
    "loss": "Losses of different methods are on different scales: plain fine-tuning (LML) normalises over the "
    "vocabulary, MSL over the tokens that some item continues with. Compare shapes here, methods by their ranking.",
    "temperature": "The temperature that divides the logits, as used at each step.",
    "invalid_gradient_share": "The gradient of plain fine-tuning in two parts: what tells valid from invalid tokens "
    "(shown), which constrained search does anyway, and what orders the valid ones. For MSL it is what plain "
    "fine-tuning would spend on the same weights; MSL itself spends nothing on it.",
    "ndcg": "A ring marks the best epoch of each training.",
    "nll": "A ring marks the best epoch of each training.",
}
_LISTS = """Coverage is the share of the catalog that is recommended to anyone. Gini is 0 where all items are
recommended equally often and near 1 where few take all places. The popularity percentile is 0.5 for random lists; lift
is the popularity of the listed items over that of the items in the histories."""
_READING = """## How to read the tables

N@k is NDCG and H@k the hit rate at k, between 0 and 1, of one target a row; every item of the catalog competes, unless
seen items are masked. Items with one score share their places, and a value is its mean over random tie-breaking.
Square brackets hold 95 % percentile bootstrap intervals over users. "exact" search scored every item; "beam20" is a
search of width 20, and a certified list is proven to be the exact top of the computed scores. Paired tests flip the
sign of all differences of a user together (two-sided); p-values are corrected by Holm's method over the metrics of a
pair, and † marks those below 0.05. Methods trained on different numbers of rows or labels are not on equal terms."""


def write_report(
    run_dirs: Sequence[RunPath], out: RunPath, *, baseline: str | None = None, title: str = "Report"
) -> Path:
    """
    Write `report.md` and its figures for measured and trained runs.

    Methods that were measured on the same rows in the same way share a table; runs of one name that differ in their
    seed are one row of it, averaged row by row. What a table or a figure would need and the files do not hold is
    listed, not guessed.

    Args:
        run_dirs (`Sequence[str]`):
            Folders with `metrics.json` (see [`~hf_rec.evaluation.full.evaluate_recommender`]) and
            `trainer_state.json`, in them or up to two folders below.
        out (`str` or `os.PathLike`):
            Folder of the report: `report.md` and `figures/*.png`. A path that ends in `.md` names the page itself.
        baseline (`str`, *optional*):
            Name of the method that the others are compared with. The first one of each table unless given.
        title (`str`, *optional*, defaults to `"Report"`):
            Heading of the page.

    Returns:
        `Path`: The page.
    """
    page = report_page(out)
    sections, trainings = collect(run_dirs)
    names = [method.name for section in sections for method in section.methods]
    if baseline is not None and baseline not in names:
        raise ValueError(f"`baseline` must be one of {names}, got {baseline!r}.")
    figures, missing = _Figures(page.parent / "figures"), []
    parts = [f"# {title}"]
    for number, section in enumerate(sections, start=1):
        suffix = f"-{number}" if len(sections) > 1 else ""
        parts += _section(section, baseline, figures, f"methods{suffix}")
        missing += _missing_costs(section)
    parts += _training(trainings, figures)
    parts += [_READING] if sections else []
    missing += ["Measured runs: no folder holds a `metrics.json`, so there is no table."] * (not sections)
    missing += _missing_logs(trainings, bool(names)) + figures.missing
    if missing:
        parts.append("## What is missing\n\n" + "\n".join(f"- {line}" for line in missing))
    page.parent.mkdir(parents=True, exist_ok=True)
    with replacing(page) as partial:
        partial.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return page


def report_page(out: RunPath) -> Path:
    """Where the page of a report stands: in a folder, or at the path itself where that ends in `.md`."""
    return Path(out) if Path(out).suffix == ".md" else Path(out) / "report.md"


class _Figures:
    """Saves figures beside the page, and says which could not be made."""

    def __init__(self, folder: Path):
        self.folder, self.missing = folder, []
        self.possible = importlib.util.find_spec("matplotlib") is not None
        if not self.possible:
            self.missing.append("Figures: matplotlib is not installed (`pip install hf_rec[report]`).")

    def save(self, name: str, figure: "Figure | None") -> list[str]:
        """Markdown of the figure with its caption; empty where there is no figure."""
        from matplotlib import pyplot

        if figure is None:
            return []
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(self.folder / f"{name}.png") as partial:
            figure.savefig(partial, format="png")
        pyplot.close(figure)
        return [f"![{name}](figures/{name}.png)\n\n*{_CAPTIONS[name.partition('-')[0]]}*"]


def _section(section: Section, baseline: str | None, figures: _Figures, name: str) -> list[str]:
    run, methods = section.example, section.methods
    size = f"{run['rows']:,} rows of {run['users']:,} users, {run['items']:,} items"
    keys = sorted({run["protocol"] for method in methods for run in method.runs})
    parts = [f"## {run['split'].capitalize()} split: {size}", f"Protocol: {', '.join(f'`{key}`' for key in keys)}."]
    parts.append(results_table(section))
    titles = title_table(section)
    if titles is None:
        parts.append("No two items that share a title decided a hit: title-level values equal these.")
    else:
        parts += ["Title-level, where any item with the target's title is a hit:", titles]
    if figures.possible:
        from hf_rec.report.plots import methods_figure

        parts += figures.save(name, methods_figure(section))
    if len(methods) > 1:
        chosen = next((method for method in methods if method.name == baseline), methods[0])
        parts += [f"### Differences from {chosen.name}, paired by row", paired_table(section, chosen)]
    parts += [f"### What the lists of {run['ks'][-1]} look like", _LISTS, lists_table(section)]
    return parts


def _training(trainings: list[Training], figures: _Figures) -> list[str]:
    if not trainings or not figures.possible:
        return []
    from hf_rec.report.plots import evaluation_figure, gradient_share_figure, loss_figure, temperature_figure

    ndcg = evaluation_figure(trainings, "eval_ndcg@10", "NDCG@10 on the validation split", "N@10 (0 to 1)")
    nll = evaluation_figure(trainings, "eval_nll", "Minus log P of the validation target", "mean -log P (nats a row)")
    parts = figures.save("loss", loss_figure(trainings))
    parts += figures.save("temperature", temperature_figure(trainings))
    parts += figures.save("invalid_gradient_share", gradient_share_figure(trainings))
    parts += figures.save("ndcg", ndcg) + figures.save("nll", nll)
    return ["## Training", *parts] if parts else []


def _missing_costs(section: Section) -> list[str]:
    lines, metric = [], f"ndcg@{section.example['ks'][-1]}"
    for key, what in _COST.items():
        names = [method.name for method in section.methods if any(run["cost"].get(key) is None for run in method.runs)]
        if names:
            lines.append(f"{what.capitalize()}: not recorded for {', '.join(names)}.")
    for label in ("warm", "cold"):
        names = [method.name for method in section.methods if method.slice_mean(label, metric) is None]
        if names:
            what = f"{label.capitalize()} targets: there are none, or the items of training were not given"
            lines.append(f"{what}, for {', '.join(names)}.")
    return lines


def _missing_logs(trainings: list[Training], measured: bool) -> list[str]:
    if not trainings:
        return ["Training curves: no folder holds a `trainer_state.json`."]
    lines = []
    for key, what in _LOGGED.items():
        x = "epoch" if key.startswith("eval_") else "step"
        labels = [training.label for training in trainings if not len(training.series(key, x)[0])]
        if labels:
            lines.append(f"Curve of {what}: not logged by {', '.join(labels)}.")
    return lines
