"""`metric_for_best_model`: which way it goes, and whether a trainer measures it at all."""

import difflib
from collections.abc import Collection
from typing import Any

from transformers import TrainingArguments

from hf_rec.metrics.ranking import METRICS


RANKING_METRICS = tuple(f"{name}@{k}" for k in (5, 10) for name in METRICS)  # what every trainer measures
_SMALLER_IS_BETTER = ("loss", "loss_warm", "nll", "nll_warm")


def smaller_is_better(metric: str) -> bool:
    """Whether a metric is a likelihood or a loss. Trainer itself knows only names that end in "loss"."""
    return metric.endswith(_SMALLER_IS_BETTER)


def check_selection_metric(
    args: TrainingArguments, measured: Collection[str], ranked: Collection[str], eval_dataset: Any
) -> None:
    """
    Refuse, before training, a `metric_for_best_model` that evaluation would not find.

    Args:
        args ([`~transformers.TrainingArguments`]): With `eval_num_beams` where the ranking can be left out.
        measured (collection of `str`): Names of all metrics that evaluation gives, without the ranking's.
        ranked (collection of `str`): Names of the metrics of the ranking.
        eval_dataset: As the trainer is given it; the names of a `dict` of data sets stand before those of the metrics.
    """
    if args.metric_for_best_model is None or str(getattr(args.eval_strategy, "value", args.eval_strategy)) == "no":
        return
    metric = args.metric_for_best_model.removeprefix("eval_")
    sets = [f"{name}_" for name in eval_dataset] if isinstance(eval_dataset, dict) else [""]
    known = {f"{part}{name}" for part in sets for name in (*measured, *ranked)}
    without_ranking = getattr(args, "eval_num_beams", None) == 0
    if without_ranking and metric in {f"{part}{name}" for part in sets for name in ranked}:
        raise ValueError(
            f"`metric_for_best_model` is {args.metric_for_best_model!r}, but `eval_num_beams=0` leaves the ranking "
            "out that would measure it. Leave `eval_num_beams` out, or select by 'nll'."
        )
    if metric not in known:
        close = difflib.get_close_matches(metric, sorted(known), n=1)
        raise ValueError(
            f"`metric_for_best_model` is {args.metric_for_best_model!r}, which evaluation does not measure"
            + (f", did you mean {close[0]!r}?" if close else ".")
            + f" There are {', '.join(sorted(known))}."
        )
