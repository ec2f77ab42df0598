"""
The lists of a teacher (DLLM2Rec): which label each belongs to, and what they add to the loss.

Shapes: E events of the training rows · L lists · K items of a list · P labelled positions that have a list · N items.
"""

from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from hf_rec.columns import USER_ID, column_values
from hf_rec.data.catalog import Catalog
from hf_rec.data.item_batches import ItemRows, LabelLayout
from hf_rec.evaluation.ranked_lists import RankedLists, read_lists
from hf_rec.losses.distillation import list_bce, list_weights
from hf_rec.models.sequence.base import SequencePreTrainedModel
from hf_rec.trainers.seeded_draws import draw_outside, uniform
from hf_rec.trainers.sequential.aided_config import AidedConfig
from hf_rec.trainers.sequential.robust import RobustLoss


_DRAW = 7919  # sets the draws of this loss apart from those of the labels at the same positions
_SCORED_AT_ONCE = 2**22  # scores of all items held for the student's own lists


class TeacherLists:
    """
    The lists of a teacher, and their loss.

    Args:
        args ([`AidedConfig`]): `teacher_lists` and what weighs them.
        catalog ([`~hf_rec.data.catalog.Catalog`]): Items of the student.
        rows ([`ItemRows`]), dataset (`datasets.Dataset`): The training rows, as arrays and as they were given.
        robust_loss ([`RobustLoss`], *optional*): Added to the loss of each listed item.

    Attributes:
        list_of_event (`np.ndarray` of shape `[E]`): The list of each event as a label; -1 where there is none.
        sha256 (`str`): Hash of the lists.
    """

    def __init__(
        self,
        args: AidedConfig,
        catalog: Catalog,
        rows: ItemRows,
        dataset: Dataset,
        robust_loss: RobustLoss | None = None,
    ):
        folder = args.teacher_lists or ""
        lists = read_lists(folder, catalog)
        if lists.items.shape[1] < args.teacher_top_k:
            raise ValueError(
                f"`teacher_top_k` is {args.teacher_top_k}, but the lists in {folder} hold "
                f"{lists.items.shape[1]} items. Write longer ones with `hf-rec recommend --k`, or set it to that."
            )
        if args.teacher_top_k > len(catalog) - 2:
            raise ValueError(
                f"`teacher_top_k` is {args.teacher_top_k}, but of the {len(catalog)} items one must be left beside "
                f"the list and the target, as a negative. Set it to at most {len(catalog) - 2}."
            )
        self.args = args
        self.robust_loss = robust_loss
        self.num_items = len(catalog)
        self.sha256: str = lists.index["lists_sha256"]
        self.list_of_event = _lists_of_events(lists, rows, dataset, folder)
        self.items = torch.from_numpy(lists.items[:, : args.teacher_top_k].copy())
        scores = torch.from_numpy(lists.scores[:, : args.teacher_top_k].copy())
        self.weights = list_weights(scores, args.position_weight, args.confidence_weight)

    @torch.no_grad()
    def _in_student_list(self, model: SequencePreTrainedModel, vectors: Tensor, items: Tensor) -> Tensor:
        """Whether each item is among the K best of the student itself, ties with the last included: `(P, K)`."""
        rows = max(_SCORED_AT_ONCE // self.num_items, 1)
        found = []
        for part, listed in zip(vectors.split(rows), items.split(rows), strict=True):
            scores = model.score_items(part)
            last = scores.topk(items.shape[1], dim=1).values[:, -1:]
            found.append(scores.gather(1, listed.clamp(min=0)) >= last)
        return torch.cat(found)

    def __call__(
        self,
        model: SequencePreTrainedModel,
        vectors: Tensor,
        targets: Tensor,
        lists: Tensor,
        positions: Tensor,
        step: int,
    ) -> Tensor:
        """
        Args:
            model ([`~hf_rec.models.sequence.base.SequencePreTrainedModel`]): The student.
            vectors (`torch.Tensor` of shape `(P, d)`): The user at each labelled position.
            targets (`torch.Tensor` of shape `(P,)`): The label there.
            lists (`torch.Tensor` of shape `(P,)`): Its list; -1 for none.
            positions (`torch.Tensor` of shape `(P,)`): From [`~hf_rec.trainers.seeded_draws.position_keys`].
            step (`int`): Optimizer steps taken.

        Returns:
            `torch.Tensor`: Sum over positions and items, float32. 0 where no position has a list.
        """
        self.items, self.weights = self.items.to(vectors.device), self.weights.to(vectors.device)
        has_list = (lists >= 0).nonzero().squeeze(1)
        vectors, targets = vectors[has_list], targets[has_list]
        items, weights = self.items[lists[has_list]], self.weights[lists[has_list]]
        real = items >= 0
        if self.args.consistency_weight and len(items):
            weights = weights + self.args.consistency_weight * (self._in_student_list(model, vectors, items) & real)
        numbers = uniform(self.args.seed, step, positions[has_list], _DRAW)[:, None]
        negative = draw_outside(numbers, torch.cat([items, targets[:, None]], dim=1), self.num_items)
        scores = model.score_items(vectors, torch.cat([items.clamp(min=0), negative], dim=1))
        total = list_bce(scores[:, :-1], scores[:, -1], weights).sum()
        if self.robust_loss is not None and len(items):
            total = total + self.args.robust_weight * self.robust_loss(model, vectors, items, weights)
        return total


def teacher_of(
    args: AidedConfig, catalog: Catalog | None, dataset: Any, layout: LabelLayout, robust_loss: RobustLoss | None
) -> TeacherLists:
    """The teacher of a training data set, where the lists can teach its rows."""
    if layout == "masked":
        raise ValueError(
            "`teacher_lists` follow a history, but this model fills in hidden events and sees what comes after them. "
            "Take a model that reads histories, such as SASRec."
        )
    if not isinstance(dataset, Dataset):
        raise ValueError(
            f"`teacher_lists` need the rows of a whole data set, got {type(dataset).__name__}. Load it first."
        )
    if catalog is None:
        raise ValueError("`teacher_lists` name items by their ids: give the trainer the `catalog`.")
    return TeacherLists(args, catalog, ItemRows.from_dataset(dataset, len(catalog)), dataset, robust_loss)


def _lists_of_events(lists: RankedLists, rows: ItemRows, dataset: Dataset, folder: str) -> np.ndarray:
    """The list of each event: the one for the same user after the events before it."""
    known = {
        (user, np.array(history, dtype=np.int64).tobytes()): number
        for number, (user, history) in enumerate(zip(lists.users, lists.histories, strict=True))
        if lists.items[number, 0] >= 0
    }
    users = map(str, column_values(dataset, USER_ID).to_pylist())
    found = np.full(len(rows.events), -1, dtype=np.int64)
    for user, start, first, end in zip(users, rows.starts, rows.label_starts, rows.ends, strict=True):
        for event in range(first, end):
            found[event] = known.get((user, rows.events[start:event].tobytes()), -1)
    used = np.unique(found[found >= 0])
    if len(used) < len(known):
        strange = sorted(set(known.values()).difference(used.tolist()))[0]
        raise ValueError(
            f"`teacher_lists`: list {strange} of {folder} (user {lists.users[strange]!r}, after "
            f"{len(lists.histories[strange])} events) follows no history of the training rows; the lists are said to "
            f"be those of the split {lists.index['split']!r}. A student must not learn from lists after validation or "
            "test rows: write them with `hf-rec recommend --split train` from the data that it is trained on."
        )
    return found
