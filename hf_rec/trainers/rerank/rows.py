"""Rows of a re-ranker: the user, the candidates, and which of the answers is right."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from hf_rec.columns import (
    CANDIDATES,
    DISLIKED,
    HISTORY,
    IGNORE_INDEX,
    INPUT_IDS,
    LABELS,
    LIKED,
    PADDING_ITEM,
    ROW,
    TARGET,
    USER_ID,
    column_values,
)
from hf_rec.data.prompts.rerank import RerankPrompt
from hf_rec.trainers.item_rows import check_catalog_rows


NO_CHOICE = -1  # the label of a row whose target is not among its candidates
USER = "user"  # number of a row's user
NUM_CHOICES = "num_choices"
_COLUMNS = (HISTORY, DISLIKED, CANDIDATES)


def yes_no_rows(dataset: Dataset, num_items: int) -> Dataset:
    """
    Rows of one candidate each, the target.

    Args:
        dataset (`datasets.Dataset`): With `history`, `target`, `liked` (0 or 1), and, where there are dislikes,
            `disliked`.
        num_items (`int`): Items of the catalog.

    Returns:
        `datasets.Dataset`: `history`, `disliked`, `candidates`, `row`, `user`, and `labels`: 0 for yes, 1 for no.
    """
    _check_columns(dataset, (HISTORY, TARGET, LIKED), "form='yes_no'")
    check_catalog_rows(dataset, num_items)
    if DISLIKED in dataset.column_names:
        check_catalog_rows(dataset.select_columns([DISLIKED, TARGET]).rename_column(DISLIKED, HISTORY), num_items)
    liked = column_values(dataset, LIKED).to_numpy()
    if not set(liked.tolist()) <= {0, 1}:
        raise ValueError(f"`{LIKED}` must hold 0 and 1, got {sorted(set(liked.tolist()))[:5]}.")
    targets = column_values(dataset, TARGET).to_pylist()
    return _rows(dataset, [[target] for target in targets], (1 - liked.astype(np.int64)).tolist())


def letter_rows(
    dataset: Dataset, lists: Sequence[Sequence[int]], num_items: int, include: bool, skip: bool
) -> tuple[Dataset, float]:
    """
    Rows of retrieved candidates.

    Args:
        dataset (`datasets.Dataset`): With `history` and `target`.
        lists (`list[list[int]]`): Candidates of each row, best first.
        num_items (`int`): Items of the catalog.
        include (`bool`): Whether a target that is not retrieved takes the place of the last candidate.
        skip (`bool`): Whether rows whose target is not among their candidates are left out.

    Returns:
        `tuple[datasets.Dataset, float]`: Rows as of [`yes_no_rows`], whose label is the place of the target among the
        candidates, or -1; and the share of rows whose target was retrieved.
    """
    _check_columns(dataset, (HISTORY, TARGET), "form='letters'")
    check_catalog_rows(dataset, num_items)
    targets = column_values(dataset, TARGET).to_pylist()
    retrieved = [target in rows for target, rows in zip(targets, lists, strict=True)]
    candidates = [list(rows) for rows in lists]
    if include:
        candidates = [
            rows if found else [*rows[: max(len(rows) - 1, 0)], target]
            for rows, target, found in zip(candidates, targets, retrieved, strict=True)
        ]
    labels = [
        rows.index(target) if target in rows else NO_CHOICE for rows, target in zip(candidates, targets, strict=True)
    ]
    kept = [place for place, label in enumerate(labels) if not skip or label != NO_CHOICE]
    rows = _rows(dataset, candidates, labels)
    return rows if len(kept) == len(rows) else rows.select(kept), float(np.mean(retrieved))


def stored_candidates(dataset: Dataset, num_candidates: int) -> list[list[int]]:
    """The lists that stand in the column `candidates`."""
    lists: list[list[int]] = column_values(dataset, CANDIDATES).to_pylist()
    for row, items in enumerate(lists):
        if len(items) > num_candidates or len(set(items)) < len(items):
            raise ValueError(
                f"`{CANDIDATES}` of row {row} must hold up to `num_candidates`, {num_candidates}, different items, "
                f"got {items}."
            )
    return lists


def _check_columns(dataset: Any, needed: Sequence[str], reason: str) -> None:
    if not isinstance(dataset, Dataset):
        raise TypeError(f"A re-ranker trains on a `datasets.Dataset`, got {type(dataset).__name__}.")
    if missing := [name for name in needed if name not in dataset.column_names]:
        raise ValueError(
            f"`{reason}` needs the columns {', '.join(needed)}; the data set has {sorted(dataset.column_names)} and "
            f"lacks {missing}. `hf-rec prepare --like` makes rows with `{LIKED}` from ratings."
        )
    if not len(dataset):
        raise ValueError("The data set has no rows.")


def _rows(dataset: Dataset, candidates: list[list[int]], labels: list[int]) -> Dataset:
    users: dict[Any, int] = {}
    names = column_values(dataset, USER_ID).to_pylist() if USER_ID in dataset.column_names else range(len(dataset))
    empty: list[list[int]] = [[] for _ in labels]
    return Dataset.from_dict(
        {
            ROW: list(range(len(labels))),
            USER: [users.setdefault(name, len(users)) for name in names],
            HISTORY: column_values(dataset, HISTORY).to_pylist(),
            DISLIKED: column_values(dataset, DISLIKED).to_pylist() if DISLIKED in dataset.column_names else empty,
            CANDIDATES: candidates,
            LABELS: [[label] for label in labels],
        }
    )


@dataclass
class RerankCollator:
    """
    Training rows to prompts with their answer.

    Args:
        prompt ([`RerankPrompt`]): How they become tokens.
        pad_token_id (`int`): Token that fills `input_ids`; any id of the vocabulary does.
        seed (`int`): Of the orders.
        shuffles (`bool`): Whether candidates stand in an order of (seed, row, epoch); as they are listed otherwise.
        epoch (`int`, *optional*, defaults to `0`): The epoch whose batches are made.
    """

    prompt: RerankPrompt
    pad_token_id: int
    seed: int
    shuffles: bool
    epoch: int = 0

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """
        Make a batch.

        Returns:
            `dict[str, torch.LongTensor]`: `input_ids` and `labels` of shape `(B, T)`, whose one label is the answer,
            the last token of a row; and `num_choices` of shape `(B,)`, how many of the answers compete.
        """
        encoded = [self.encode(row) for row in rows]
        width = max(len(tokens) for tokens, _ in encoded)
        input_ids = torch.full((len(rows), width), self.pad_token_id)
        labels = torch.full((len(rows), width), IGNORE_INDEX)
        for place, (tokens, answer) in enumerate(encoded):
            input_ids[place, : len(tokens)] = torch.tensor(tokens)
            labels[place, len(tokens) - 1] = answer
        yes_no = self.prompt.form == "yes_no"
        choices = [2 if yes_no else len(row[CANDIDATES]) for row in rows]
        return {INPUT_IDS: input_ids, LABELS: labels, NUM_CHOICES: torch.tensor(choices)}

    def encode(self, row: dict[str, Any]) -> tuple[list[int], int]:
        """Tokens of a prompt with its answer, and the answer; -100 for a row without a label."""
        candidates, choice = list(row[CANDIDATES]), row[LABELS][0]
        order = np.arange(len(candidates))
        if self.shuffles:
            order = np.random.default_rng([self.seed, row[ROW], self.epoch]).permutation(len(candidates))
        tokens = self.prompt.encode_user(row[HISTORY], row[DISLIKED])
        tokens += self.prompt.encode_candidates([candidates[place] for place in order])
        if choice < 0:
            return [*tokens, self.prompt.verbalizer_ids[0]], IGNORE_INDEX
        if self.prompt.form == "letters":
            choice = int(np.flatnonzero(order == choice)[0])
        answer = self.prompt.verbalizer_ids[choice]
        return [*tokens, answer], answer


def collate_for_judging(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """
    Rows as they are, padded with -1: `history`, `disliked`, `candidates`, `user` and `labels`, the place of the target
    among the candidates (-1 where it is not among them), or under `"yes_no"` 0 for yes and 1 for no.
    """
    batch = {name: _padded([row[name] for row in rows]) for name in _COLUMNS}
    labels, users = ([row[name] for row in rows] for name in (LABELS, USER))
    return batch | {LABELS: torch.tensor(labels)[:, 0], USER: torch.tensor(users)}


def unpadded(table: Tensor) -> list[list[int]]:
    """The lists of a padded table."""
    return [[item for item in row if item != PADDING_ITEM] for row in table.tolist()]


def _padded(lists: Sequence[Sequence[int]]) -> Tensor:
    width = max(1, *map(len, lists))
    return torch.tensor([[*items, *[PADDING_ITEM] * (width - len(items))] for items in lists])
