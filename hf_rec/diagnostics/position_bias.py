"""
Does a re-ranker look at what a candidate is, or at where it stands?

Shapes: U users · C candidates of each · P orders of them.
"""

import json
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_rec.columns import HISTORY, HISTORY_TIMESTAMPS, column_values
from hf_rec.files import replacing
from hf_rec.recommenders.allowed_items import AllowedItems


if TYPE_CHECKING:
    from datasets import Dataset

    from hf_rec.evaluation.protocol import Seen
    from hf_rec.recommenders.reranked import RerankedRecommender

POSITION_FILE = "position_bias.json"


def position_bias(recommender: "RerankedRecommender", dataset: "Dataset", seen: "Seen" = "keep") -> dict[str, Any]:
    """
    How often a re-ranker of letters chooses each place, in one order of the candidates and averaged over orders.

    Candidates are shuffled, so that each place holds a good one equally often: a model without bias chooses each in
    1 / C of the rows. (With `candidate_order="retrieved"` the first places hold better candidates, and being chosen
    more often is no bias.)

    Args:
        recommender ([`~hf_rec.recommenders.reranked.RerankedRecommender`]): With letters.
        dataset (`datasets.Dataset`): Rows with `history`, in catalog rows. Those with fewer than `n` candidates are
            left out.
        seen (`str`, *optional*, defaults to `"keep"`): `"mask"` where candidates are no items of the history.

    Returns:
        `dict`: `rows`, `permutations`, and for `one_order` and `averaged` the `choice_share` of each place, its
        `distance` from 1 / C (half the sum of the absolute differences, 0 to 1), and for `one_order` also the
        `mean_log_probability` of each place, in nats.
    """
    if recommender.reranker.form != "letters":
        raise ValueError("Only candidates behind letters stand in places: `form='yes_no'` judges them one by one.")
    places, chosen, averaged = [], [], []
    for histories, times in _batches(dataset, recommender.batch_size):
        allowed = None
        if seen == "mask":
            allowed = AllowedItems([np.unique(history) for history in histories], False, len(recommender.catalog))
        lists = recommender.candidates(histories, allowed, times)
        full = [user for user, rows in enumerate(lists) if len(rows) == recommender.n]
        judged = recommender.reranker.judge_orders([histories[user] for user in full], [lists[user] for user in full])
        for orders, log_probs in judged:
            of_candidate = np.empty(log_probs.shape)
            np.put_along_axis(of_candidate, orders, log_probs, axis=1)
            places.append(log_probs[0])
            chosen.append(int(log_probs[0].argmax()))
            averaged.append(int(np.flatnonzero(orders[0] == of_candidate.mean(axis=0).argmax())[0]))
    if not places:
        raise ValueError(f"No row has {recommender.n} candidates, so that no places can be compared.")
    return {
        "rows": len(places),
        "candidates": recommender.n,
        "permutations": recommender.reranker.permutations,
        "one_order": _shares(chosen, recommender.n) | {"mean_log_probability": np.mean(places, axis=0).tolist()},
        "averaged": _shares(averaged, recommender.n),
    }


def write_position_bias(found: dict[str, Any], directory: str | os.PathLike) -> None:
    """Write `position_bias.json` into a folder that exists."""
    with replacing(os.path.join(directory, POSITION_FILE)) as partial:
        partial.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def _batches(dataset: "Dataset", size: int) -> Any:
    """Histories, and their times where all are known."""
    histories = column_values(dataset, HISTORY).to_pylist()
    known = HISTORY_TIMESTAMPS in dataset.column_names
    times = column_values(dataset, HISTORY_TIMESTAMPS).to_pylist() if known else None
    for start in range(0, len(histories), size):
        part = slice(start, start + size)
        timed = times is not None and list(map(len, times[part])) == list(map(len, histories[part]))
        yield histories[part], times[part] if times is not None and timed else None


def _shares(chosen: list[int], num_places: int) -> dict[str, Any]:
    share = np.bincount(chosen, minlength=num_places) / len(chosen)
    return {"choice_share": share.tolist(), "distance": float(np.abs(share - 1 / num_places).sum() / 2)}
