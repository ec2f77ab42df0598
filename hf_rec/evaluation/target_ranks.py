"""The rank of each target in what a recommender gives: as an item, and as a title that items may share."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_rec.columns import HISTORY, HISTORY_TIMESTAMPS, ITEM_ROWS, TARGET
from hf_rec.evaluation.protocol import Seen
from hf_rec.metrics.ranking import NOT_LISTED, count_nan, list_bounds, rank_bounds
from hf_rec.recommenders.ranks import best_scores


if TYPE_CHECKING:
    from datasets import Dataset

    from hf_rec.recommenders.contract import Recommender

RANK_COLUMNS = (ITEM_ROWS, "scores", "certified", "better", "tied", "title_better", "title_tied")
_ROWS_AT_A_TIME = 128  # enough for a recommender to put rows of one length together
_MAX_SCORES = 2**24  # scores of all items held at a time: 64 MiB in float32


class TargetRanker:
    """
    Ranks targets batch by batch.

    Args:
        recommender ([`~hf_rec.recommenders.contract.Recommender`]):
            Whose ranks. One that is exact is ranked over all items by `score_all`, another by its lists.
        k (`int`):
            Length of the lists.
        seen (`str`):
            `"keep"`, or `"mask"` to keep the items of a history out of its list.
        num_beams (`int`, *optional*), batch_size (`int`, *optional*):
            Passed on to `recommend`.
    """

    def __init__(
        self, recommender: "Recommender", k: int, seen: Seen, num_beams: int | None, batch_size: int | None
    ) -> None:
        from hf_rec.recommenders.contract import default_num_beams

        self.recommender, self.catalog = recommender, recommender.catalog
        self.k, self.mask, self.batch_size = k, seen == "mask", batch_size
        is_exact = getattr(recommender, "is_exact", hasattr(recommender, "score_all"))
        self.score_all: Callable[..., np.ndarray] | None = recommender.score_all if is_exact else None
        is_searched = self.score_all is None and getattr(recommender, "is_searched", True)
        self.num_beams = (num_beams or default_num_beams(k)) if is_searched else None
        self.search = "exact" if self.num_beams is None else f"beam{self.num_beams}"
        trie, num_items = getattr(recommender, "trie", None), len(self.catalog)
        self.of_title = _shared(map(self.catalog.text, range(num_items)))
        self.of_leaf = {} if trie is None else _shared(trie.row_leaf(num_items).tolist())

    def rank(self, rows: "Dataset", indices: Sequence[int], show_progress: bool) -> dict[str, Any]:
        """
        Ranks the targets of the rows at `indices`.

        Returns:
            `dict`: `index` and all of `RANK_COLUMNS`, each a list with one entry a row, and the number `nan_scores`.
        """
        from tqdm.auto import tqdm

        found: dict[str, list[Any]] = {key: [] for key in RANK_COLUMNS}
        num_nan = 0
        step = max(_ROWS_AT_A_TIME, self.batch_size or 1)
        if self.score_all is not None:
            step = max(1, min(step, _MAX_SCORES // len(self.catalog)))
        with tqdm(total=len(indices), desc="Ranking", unit="row", disable=not show_progress) as progress:
            for start in range(0, len(indices), step):
                batch = rows[list(indices[start : start + step])]
                part = self._rank_lists(batch) if self.score_all is None else self._rank_scores(self.score_all, batch)
                num_nan += part.pop("nan_scores")
                for key, values in part.items():
                    found[key].extend(values)
                progress.update(len(batch[TARGET]))
        return found | {"index": list(indices), "nan_scores": num_nan}

    def _inputs(self, batch: dict[str, list]) -> dict[str, Any]:
        histories = [[self.catalog.ids[row] for row in history] for history in batch[HISTORY]]
        known = HISTORY_TIMESTAMPS in batch and all(
            len(times) == len(history) for times, history in zip(batch[HISTORY_TIMESTAMPS], histories, strict=True)
        )
        return {"histories": histories, "timestamps": batch[HISTORY_TIMESTAMPS] if known else None}

    def _rank_scores(self, score_all: "Callable[..., np.ndarray]", batch: dict[str, list]) -> dict[str, Any]:
        """Exact ranks from the scores of all items. One that scores `-inf` is in no list: such a target is a miss."""
        scores = np.array(score_all(**self._inputs(batch)))
        targets = np.array(batch[TARGET])
        if scores.shape != (len(targets), len(self.catalog)):
            expected = (len(targets), len(self.catalog))
            raise ValueError(f"`score_all` must return scores of the shape {expected}, got {scores.shape}.")
        part: dict[str, Any] = {"nan_scores": count_nan(scores), "certified": (~np.isnan(scores).any(axis=1)).tolist()}
        scores[np.isnan(scores)] = -np.inf
        if self.mask:
            for row, history in enumerate(batch[HISTORY]):
                scores[row, history] = -np.inf
        part["better"], part["tied"] = _listed(scores, targets)
        found = best_scores(torch.from_numpy(scores), min(self.k, scores.shape[1]))
        part["scores"] = [values[values > -np.inf].tolist() for values in found[0].numpy()]
        lengths = map(len, part["scores"])
        part[ITEM_ROWS] = [items[:length] for items, length in zip(found[1].tolist(), lengths, strict=True)]
        for row, target in enumerate(targets.tolist()):
            mates = self.of_title.get(target, [])
            own = scores[row, mates].max(initial=scores[row, target])
            scores[row, mates] = -np.inf
            scores[row, target] = own
        part["title_better"], part["title_tied"] = _listed(scores, targets)
        return part

    def _rank_lists(self, batch: dict[str, list]) -> dict[str, Any]:
        """Ranks inside the recommended lists."""
        targets, histories = batch[TARGET], [set(history) if self.mask else set() for history in batch[HISTORY]]
        inputs = self._inputs(batch)
        found = self.recommender.recommend(
            **inputs,
            k=self.k,
            exclude=inputs["histories"] if self.mask else None,
            num_beams=self.num_beams,
            batch_size=self.batch_size,
        )
        lists = [self.catalog.rows(item_ids) for item_ids in found.item_ids]
        found_scores = [np.array(values)[: len(items)] for values, items in zip(found.scores, lists, strict=True)]
        num_nan = sum(map(count_nan, found_scores)) + int(np.sum(getattr(found, "nan_scores", 0)))
        scores = [np.where(np.isnan(values), -np.inf, values).tolist() for values in found_scores]
        part: dict[str, Any] = {ITEM_ROWS: lists, "scores": scores, "nan_scores": num_nan}
        part["certified"] = np.asarray(found.certified, dtype=bool).tolist()
        pairs = [self._whole_leaf(*entry) for entry in zip(lists, scores, histories, strict=True)]
        part["better"], part["tied"] = _bounds(pairs, targets)
        pairs = [self._one_title(*pair, target) for pair, target in zip(pairs, targets, strict=True)]
        part["title_better"], part["title_tied"] = _bounds(pairs, targets)
        return part

    def _whole_leaf(self, items: list[int], scores: list[float], excluded: set[int]) -> tuple[list, list]:
        """
        Items of one trie leaf share their score. A full list may end among them: those that are cut off are tied with
        its last place, so that the order of rows does not decide what is a miss.
        """
        if len(items) < self.k:
            return items, scores
        rest = [row for row in self.of_leaf.get(items[-1], []) if row not in items and row not in excluded]
        return items + rest, scores + [scores[-1]] * len(rest)

    def _one_title(self, items: list[int], scores: list[float], target: int) -> tuple[list, list]:
        """The list with all items of the target's title replaced by the target, at the best of their scores."""
        mates = set(self.of_title.get(target, [target]))
        own = [score for item, score in zip(items, scores, strict=True) if item in mates]
        others = [pair for pair in zip(items, scores, strict=True) if pair[0] not in mates]
        kept = others + [(target, max(own))] if own else others
        return [item for item, _ in kept], [score for _, score in kept]


def _bounds(pairs: list[tuple[list[int], list[float]]], targets: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Rank bounds from the items and scores of each list."""
    return list_bounds([items for items, _ in pairs], [scores for _, scores in pairs], targets)


def _shared(keys: Iterable[Hashable]) -> dict[int, list[int]]:
    """For each row whose key other rows have too: all of these rows. `keys` has one key a row."""
    rows_of_key: dict[Hashable, list[int]] = defaultdict(list)
    for row, key in enumerate(keys):
        rows_of_key[key].append(row)
    return {row: rows for rows in rows_of_key.values() if len(rows) > 1 for row in rows}


def _listed(scores: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rank bounds, with a miss for a target that no list can hold."""
    better, tied = rank_bounds(scores, targets)
    never = scores[np.arange(len(targets)), targets] == -np.inf
    return np.where(never, NOT_LISTED, better), np.where(never, 0, tied)
