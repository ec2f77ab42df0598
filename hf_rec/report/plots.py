"""
Figures of trainings (from `trainer_state.json`) and of measured methods (from `metrics.json`), in one visual style.

Colours are those of Okabe and Ito, told apart with any colour vision; lines differ in their dashes as well. Every
function returns a `matplotlib` figure, or `None` where nothing was logged.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_rec.report.collect import Section, Training
from hf_rec.report.tables import short_name


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#333333")
_DASHES = ("solid", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1.5, 1.5, 1.5)))
_MARKERS = "osD^vPX"
_GREY, _LIGHT = "#555555", "#E3E3E3"
_STYLE = {
    "figure.dpi": 144,
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.labelcolor": "#222222",
    "axes.edgecolor": "#888888",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _LIGHT,
    "grid.linewidth": 0.8,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "lines.linewidth": 1.9,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


def loss_figure(trainings: Sequence[Training]) -> "Figure | None":
    """Training loss by optimizer step, all trainings in one figure; raw values pale, their running mean on top."""
    return _by_step(trainings, "loss", "Training loss", "loss (nats per label)")


def gradient_share_figure(trainings: Sequence[Training]) -> "Figure | None":
    """Share of the gradient of plain fine-tuning that only tells tokens that may follow from those that may not."""
    title = "Gradient spent on valid against invalid tokens"
    figure = _by_step(trainings, "invalid_gradient_share", title, "share of gradient (%)", 100)
    if figure is not None:
        figure.axes[0].set_ylim(0, 100)
    return figure


def temperature_figure(trainings: Sequence[Training]) -> "Figure | None":
    """Temperature by optimizer step, and below it the share of steps at which it was clamped, where there were any."""
    chosen = [training for training in trainings if len(training.series("tau")[0])]
    if not chosen:
        return None
    clamped = [training for training in chosen if training.series("tau_clamped")[1].any()]
    plt = _pyplot()
    with plt.rc_context(_STYLE):
        figure = plt.figure(figsize=(7.2, 5.4 if clamped else 4.2), layout="constrained")
        ratios = {"height_ratios": [3, 1.2]} if clamped else None
        axes = figure.subplots(2 if clamped else 1, 1, sharex=True, squeeze=False, gridspec_kw=ratios)
        fixed: dict[float, dict[str, tuple[float, float]]] = {}
        for training in chosen:
            steps, values = training.series("tau")
            if len(values) > 1 and (values == values[0]).all():
                fixed.setdefault(values[0], {})[training.method] = (steps[0], steps[-1])
            else:
                _line(axes[0, 0], training, trainings, steps, values)
        for value, methods in fixed.items():
            ends = (min(first for first, _ in methods.values()), max(last for _, last in methods.values()))
            look = {
                "color": _GREY,
                "lw": 1.4,
                "ls": (0, (1, 1.5)),
                "zorder": 1,
                "label": f"fixed: {', '.join(methods)}",
            }
            axes[0, 0].plot(ends, (value, value), **look)
        axes[0, 0].set(title="Temperature", ylabel="temperature τ (no unit)")
        axes[0, 0].margins(x=0.02)
        for training in clamped:
            steps, values = training.series("tau_clamped")
            _line(axes[1, 0], training, trainings, steps, 100 * values)
        if clamped:
            axes[1, 0].set(ylabel="clamped\nsteps (%)", ylim=(-4, 104))
        axes[-1, 0].set_xlabel("optimizer step")
        _legend(figure, axes[0, 0])
    return figure


def evaluation_figure(trainings: Sequence[Training], key: str, title: str, label: str) -> "Figure | None":
    """A metric of the validation split by epoch, such as `eval_ndcg@10`; the best epoch of each training is ringed."""
    chosen = [training for training in trainings if len(training.series(key, "epoch")[0])]
    if not chosen:
        return None
    lower_is_better = key.endswith(("nll", "loss"))
    plt = _pyplot()
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
        for training in chosen:
            epochs, values = training.series(key, "epoch")
            (line,) = _line(axes, training, trainings, epochs, values, marker=True)
            best = values.argmin() if lower_is_better else values.argmax()
            axes.plot(epochs[best], values[best], "o", ms=12, mfc="none", mec=line.get_color(), mew=1.4)
        better = "lower" if lower_is_better else "higher"
        axes.set(title=title, xlabel="epoch", ylabel=f"{label}\n{better} is better")
        axes.margins(x=0.05, y=0.15)
        axes.locator_params(axis="x", integer=True)
        _legend(figure, axes)
    return figure


def fusion_figure(fit: dict[str, Any]) -> "Figure":
    """
    Validation metric by the weight of each recommender but the first, at the best weights of the others; with two of
    them also by history length. A ring marks the best.

    Args:
        fit (`dict`): Content of `fusion.json`.
    """
    plt = _pyplot()
    lines = [(f"weight of {name}", place, fit["grid"]) for place, name in enumerate(fit["recommenders"]) if place > 0]
    if len(lines) == 1 and fit["by_length"]:
        lines = [("all rows", 1, fit["grid"])]
        buckets = [bucket for bucket in fit["by_length"] if bucket["rows"]]
        lines += [(f"histories of {bucket['lengths']}", 1, bucket["grid"]) for bucket in buckets]
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
        for number, (label, place, grid) in enumerate(lines):
            weights = sorted({point["weights"][place] for point in grid})
            values = [max(p["value"] for p in grid if p["weights"][place] == weight) for weight in weights]
            best = int(np.argmax(values))
            look = {"color": _COLORS[number % len(_COLORS)], "marker": _MARKERS[number % len(_MARKERS)], "ms": 4}
            (line,) = axes.plot(weights, values, label=label, linestyle=_DASHES[number % len(_DASHES)], **look)
            axes.plot(weights[best], values[best], "o", ms=12, mfc="none", mec=line.get_color(), mew=1.4)
        axes.set(title="Weights of the fusion", ylabel=f"{short_name(fit['metric'])} on {fit['split']}")
        axes.set_xlabel(f"weight of {fit['recommenders'][1]}" if len(fit["recommenders"]) == 2 else "weight")
        _legend(figure, axes)
    return figure


def grounding_figure(fit: dict[str, Any]) -> "Figure":
    """
    Validation metric by gamma; a ring marks the best.

    Args:
        fit (`dict`): Content of `grounding.json`.
    """
    plt = _pyplot()
    gammas, values = np.array([(point["gamma"], point["value"]) for point in fit["grid"]]).T
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
        axes.plot(gammas, values, color=_COLORS[0])
        ring = {"ms": 12, "mfc": "none", "mec": _COLORS[0], "mew": 1.4}
        axes.plot(fit["best"]["gamma"], fit["best"]["value"], "o", **ring)
        axes.set_xscale("symlog", linthresh=1)
        axes.set(title="Weight of the grounding", ylabel=f"{short_name(fit['metric'])} on {fit['split']}")
        axes.set_xlabel(f"gamma of {fit['weight']}")
    return figure


def methods_figure(section: Section) -> "Figure":
    """NDCG and hit rate at the largest k of every method, with 95 % intervals."""
    last, names = section.example["ks"][-1], [method.name for method in section.methods]
    metrics = [f"ndcg@{last}", f"hit_rate@{last}"]
    values = np.array([method.intervals(metrics) for method in section.methods])
    plt = _pyplot()
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(
            1, 2, figsize=(8.2, 1.15 + 0.36 * len(names)), sharey=True, layout="constrained", squeeze=False
        )
        places = np.arange(len(names))[::-1]
        for column, (panel, metric) in enumerate(zip(axes[0], metrics, strict=True)):
            mean, low, high = values[:, column].T
            panel.hlines(places, low, high, color=_COLORS[0], lw=2.2, alpha=0.55)
            panel.plot(mean, places, "o", color=_COLORS[0], ms=6.5)
            for place, value, end in zip(places, mean, high, strict=True):
                beside = {"xytext": (5, 0), "textcoords": "offset points", "va": "center"}
                panel.annotate(f"{value:.4f}", (end, place), fontsize=8, color=_GREY, **beside)
            panel.set(xlim=(0, high.max() * 1.22 or 1), xlabel=f"{short_name(metric)} (95 % interval over users)")
            panel.set(ylim=(-0.6, len(names) - 0.4))
            panel.grid(axis="y", visible=False)
            panel.tick_params(axis="y", length=0)
            panel.locator_params(axis="x", nbins=5)
        axes[0, 0].set_yticks(places, names)
        axes[0, 0].set_title(f"Accuracy on the {section.example['split']} split")
    return figure


def _by_step(trainings: Sequence[Training], key: str, title: str, label: str, scale: float = 1) -> "Figure | None":
    chosen = [training for training in trainings if len(training.series(key)[0])]
    if not chosen:
        return None
    plt = _pyplot()
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
        for training in chosen:
            steps, values = training.series(key)
            smooth = _running_mean(values)
            (line,) = _line(axes, training, trainings, steps, scale * smooth)
            if smooth is not values:
                axes.plot(steps, scale * values, color=line.get_color(), lw=0.8, alpha=0.25, zorder=1)
        axes.set(title=title, xlabel="optimizer step", ylabel=label)
        axes.margins(x=0.02)
        _legend(figure, axes)
    return figure


def _line(
    axes: "Axes",
    training: Training,
    trainings: Sequence[Training],
    x: np.ndarray,
    y: np.ndarray,
    marker: bool = False,
) -> "list[Line2D]":
    """One training in the look that it has in every figure: colour and marker of its method, dashes of its seed."""
    methods = list(dict.fromkeys(other.method for other in trainings))
    seeds = [other for other in trainings if other.method == training.method]
    number, seed = methods.index(training.method), seeds.index(training)
    look: dict[str, Any] = {"color": _COLORS[number % len(_COLORS)], "label": training.label, "ms": 5}
    look["linestyle"] = _DASHES[(seed + number // len(_COLORS)) % len(_DASHES)]
    look["marker"] = _MARKERS[number % len(_MARKERS)] if marker or len(x) == 1 else None
    return axes.plot(x, y, **look)


def _running_mean(values: np.ndarray) -> np.ndarray:
    """Mean over a centred window of a twentieth of the points; `values` themselves where there are fewer than 40."""
    half = len(values) // 40
    if not half:
        return values
    total = np.concatenate([[0.0], np.cumsum(values)])
    place = np.arange(len(values))
    first, last = np.maximum(place - half, 0), np.minimum(place + half + 1, len(values))
    return (total[last] - total[first]) / (last - first)


def _legend(figure: "Figure", axes: "Axes") -> None:
    handles, labels = axes.get_legend_handles_labels()
    columns = max(1, min(3, 84 // (max(map(len, labels)) + 9)))
    figure.legend(handles, labels, loc="outside lower left", ncols=columns, handlelength=2.6)


def _pyplot() -> ModuleType:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
