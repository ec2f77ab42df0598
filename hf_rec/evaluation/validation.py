"""
What a trainer logs about its validation rows.

Shapes: R rows.
"""

from typing import Any

import numpy as np

from hf_rec.evaluation.protocol import protocol_key
from hf_rec.metrics.ranking import ranking_metrics


def validation_metrics(
    nll: np.ndarray,
    ranks: tuple[np.ndarray, np.ndarray] | None = None,
    *,
    num_beams: int | None = None,
    seen: str = "keep",
    warm: np.ndarray | None = None,
) -> dict[str, Any]:
    """
    The metrics of a trainer, the same in all of them. Trainer puts `eval_` before each name.

    Args:
        nll (`np.ndarray` of shape `(R,)`):
            -log P of each target among all items, in nats.
        ranks (`tuple` of two `np.ndarray` of shape `(R,)`, *optional*):
            `better` and `tied`, as [`~hf_rec.metrics.ranking.rank_bounds`] gives them; `None` if nothing was ranked.
        num_beams, seen:
            How they were ranked, as in [`~hf_rec.evaluation.protocol.protocol_key`].
        warm (`np.ndarray` of shape `(R,)`, *optional*):
            Whether each target occurs in training.

    Returns:
        `dict`: `nll`; `nll_warm` where a target is warm; and with `ranks` `ndcg@k`, `hit_rate@k` and `mrr@k` for 5 and
        10, and `protocol`, the rules under which they were measured, such as `"full/search=exact/seen=keep"`.
    """
    metrics: dict[str, Any] = {"nll": float(np.mean(nll))}
    if warm is not None and np.any(warm):
        metrics["nll_warm"] = float(np.mean(nll[warm]))
    if ranks is not None:
        metrics |= ranking_metrics(*ranks) | {"protocol": protocol_key(num_beams=num_beams, seen=seen)}
    return metrics
