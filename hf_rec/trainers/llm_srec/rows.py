"""
Split rows as samples of a retrieval model: prompts with slots, the item to find, and what the teacher makes of the
user.

Everything that does not depend on the weights in training is computed once per data set, through `Dataset.map`, which
keeps it on disk under a fingerprint of rows, prompt and teacher.

Shapes: B samples of a batch · H longest history of the batch.
"""

import hashlib
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset, IterableDataset
from datasets.fingerprint import Hasher
from torch import Tensor

from hf_rec.columns import (
    HISTORY,
    HISTORY_TIMESTAMPS,
    INPUT_IDS,
    LABELS,
    PADDING_ITEM,
    SEEN,
    SLOT_ITEMS,
    SUPERVISE_FROM,
    TARGET,
    TEACHER_VECTOR,
)
from hf_rec.data.prompts.retrieval import RetrievalPrompt, pad_prompts
from hf_rec.data.splits import check_split_columns
from hf_rec.models.sequence.base import SequencePreTrainedModel


Rows: TypeAlias = Dataset | IterableDataset

TRAINING_COLUMNS = (INPUT_IDS, SLOT_ITEMS, LABELS, SEEN, TEACHER_VECTOR)
RANKING_COLUMNS = (INPUT_IDS, SLOT_ITEMS, TARGET, SEEN)


class RetrievalRows:
    """
    Makes samples.

    Args:
        prompt ([`RetrievalPrompt`]): How users become tokens.
        teacher ([`~hf_rec.models.sequence.base.SequencePreTrainedModel`]): In eval mode; its vectors are computed
            where it is.
        supervise (`str`, *optional*, defaults to `"last"`): `"last"` or `"all"`.
        num_proc (`int`, *optional*): Processes that tokenise.
    """

    def __init__(
        self,
        prompt: RetrievalPrompt,
        teacher: SequencePreTrainedModel,
        supervise: str = "last",
        num_proc: int | None = None,
    ):
        self.prompt = prompt
        self.teacher = teacher
        self.supervise = supervise
        self.num_proc = num_proc

    def for_training(self, dataset: Rows | None) -> Rows | None:
        """Rows with `input_ids`, `slot_items`, `labels` (the target), `seen` (the history) and `teacher_vector`."""
        if dataset is None or is_encoded(dataset):
            return dataset
        check_columns(dataset, needs_start=self.supervise == "all")
        if self.supervise == "all":
            dataset = _map(dataset, _label_rows, "one sample an event", "Samples", drop=_columns(dataset))
        teacher = self.teacher
        dataset = _map(
            dataset,
            lambda batch: {TEACHER_VECTOR: teacher_vectors(teacher, batch[HISTORY])},
            ("teacher", weights_hash(teacher.state_dict().items())),
            "Teacher",
        )
        return self._encoded(dataset, {LABELS: TARGET, SEEN: HISTORY}, keep=[TEACHER_VECTOR])

    def for_ranking(self, dataset: Rows | None) -> Rows | None:
        """Rows with `input_ids`, `slot_items`, `target` and `seen` (the whole history)."""
        if dataset is None or set(RANKING_COLUMNS) <= set(_columns(dataset)):
            return dataset
        check_columns(dataset)
        return self._encoded(dataset, {SEEN: HISTORY}, keep=[TARGET])

    def _encoded(self, dataset: Rows, renamed: dict[str, str], keep: list[str]) -> Rows:
        """The data set tokenised, with some columns under another name, some kept, and all others dropped."""
        prompt = self.prompt

        def encode(batch: dict[str, list]) -> dict[str, list]:
            times = batch.get(HISTORY_TIMESTAMPS) or [None] * len(batch[HISTORY])
            prompts = [prompt.encode_user(*row) for row in zip(batch[HISTORY], times, strict=True)]
            columns = {name: [row[name] for row in prompts] for name in (INPUT_IDS, SLOT_ITEMS)}
            return columns | {new: batch[old] for new, old in renamed.items()}

        key = ("prompt", prompt.sha256, prompt.text_sha256, renamed, keep)
        drop = [name for name in _columns(dataset) if name not in keep]
        return _map(dataset, encode, key, "Tokenising", drop, self.num_proc)


def collate_training(rows: list[dict]) -> dict[str, Tensor | np.ndarray]:
    """
    Prompts `(B, T)`, `labels` `(B,)` and `teacher_vector` `(B, d)`; and as an array, which stays on the host where
    negatives are drawn, `seen` `(B, H + 1)`: each history, padded with -1 on the left, then the label.
    """
    return pad_prompts(rows) | {
        LABELS: torch.tensor([row[LABELS] for row in rows]),
        SEEN: _left_padded([[*row[SEEN], row[LABELS]] for row in rows]),
        TEACHER_VECTOR: torch.from_numpy(np.array([row[TEACHER_VECTOR] for row in rows], dtype=np.float32)),
    }


def collate_ranking(rows: list[dict]) -> dict[str, Tensor]:
    """Prompts `(B, T)`, `target` `(B,)` and `seen` `(B, H)`, padded with -1 on the left."""
    seen = torch.from_numpy(_left_padded([row[SEEN] for row in rows]))
    return pad_prompts(rows) | {TARGET: torch.tensor([row[TARGET] for row in rows]), SEEN: seen}


@torch.no_grad()
def teacher_vectors(teacher: SequencePreTrainedModel, histories: list[list[int]]) -> np.ndarray:
    """User vectors of the sequence model, float32 of shape `(B, d)`; its mode is left as it is, and must be eval."""
    if teacher.training:
        raise ValueError(
            "The sequence model is in training mode: its dropout would make its vectors noise. Call `.eval()`."
        )
    rows = torch.from_numpy(_left_padded([history[-teacher.config.max_length :] for history in histories]))
    return teacher.user_vectors(rows.to(teacher.device)).float().cpu().numpy()


def _left_padded(lists: list[list[int]]) -> np.ndarray:
    """Item lists as one `int64` array, padded with -1 on the left."""
    width = max([1, *map(len, lists)])
    return np.array([[PADDING_ITEM] * (width - len(items)) + list(items) for items in lists], dtype=np.int64)


def weights_hash(weights: Iterable[tuple[str, Tensor]]) -> str:
    """Hash of named weights as they are in memory."""
    digest = hashlib.sha256()
    for name, tensor in weights:
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def is_encoded(dataset: Rows) -> bool:
    """Whether these are training samples already."""
    return set(TRAINING_COLUMNS) <= set(_columns(dataset))


def check_columns(dataset: Rows, needs_start: bool = False) -> None:
    """Refuse rows without a history or a target, naming the columns that there are."""
    check_split_columns(_columns(dataset), [HISTORY, TARGET] + [SUPERVISE_FROM] * needs_start)


def _label_rows(batch: dict[str, list]) -> dict[str, list]:
    """One sample for each labelled event of each row."""
    rows: dict[str, list] = {HISTORY: [], HISTORY_TIMESTAMPS: [], TARGET: []}
    times = batch.get(HISTORY_TIMESTAMPS) or [[]] * len(batch[HISTORY])
    for history, target, start, when in zip(batch[HISTORY], batch[TARGET], batch[SUPERVISE_FROM], times, strict=True):
        events = [*history, target]
        for place in range(min(start, len(history)), len(events)):
            rows[HISTORY].append(events[:place])
            rows[HISTORY_TIMESTAMPS].append(when[:place])
            rows[TARGET].append(events[place])
    return rows


def _map(
    dataset: Rows,
    function: Callable[[dict[str, list]], dict[str, Any]],
    key: Any,
    description: str,
    drop: list[str] | None = None,
    num_proc: int | None = None,
) -> Rows:
    if isinstance(dataset, IterableDataset):
        return dataset.map(function, batched=True, remove_columns=drop)
    with PartialState().main_process_first():
        return dataset.map(
            function,
            batched=True,
            remove_columns=drop,
            num_proc=num_proc,
            new_fingerprint=Hasher.hash((dataset._fingerprint, key)),
            desc=description,
        )


def _columns(dataset: Rows) -> list[str]:
    return dataset.column_names or list(next(iter(dataset)))
