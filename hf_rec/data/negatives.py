"""
Items that a user did not choose, drawn without a look at the one they did.

Each row has a random stream of its own, keyed by its place in the data set and the seed. The stream does not know the
target; an item of it that collides with target, history or an earlier negative is skipped. So the negatives of a row
tell nothing about its target, and do not change when other rows do.

Shapes: N items of the catalog.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset, Features, IterableDataset, List, Value

from hf_rec.columns import HISTORY, ITEM_ROWS, REJECTED, SUPERVISE_FROM, TARGET, TARGET_ROW, USER_ID, column_values
from hf_rec.data.catalog import Catalog


LIST_FILE = "predictions.parquet"


class UniformNegatives:
    """
    Every item alike.

    Args:
        num_items (`int`): Items of the catalog.
    """

    def __init__(self, num_items: int):
        self.num_items = num_items
        self.support = np.arange(num_items)  # what can be drawn

    def stream(self, row: int, rng: np.random.Generator) -> Iterator[int]:
        """Endless draws with replacement for one row."""
        while True:
            yield from rng.integers(self.num_items, size=16).tolist()


class PopularityNegatives:
    """
    Items in proportion to how often they were chosen.

    Args:
        counts (`np.ndarray` of shape `(N,)`): How often each was, as [`label_counts`] says. One with 0 is never drawn.
    """

    def __init__(self, counts: np.ndarray):
        self.counts = np.asarray(counts, dtype=np.float64)
        if not (self.counts >= 0).all() or not self.counts.any():
            raise ValueError("`counts` must hold numbers of at least 0, not all of them 0.")
        self.cumulative = np.cumsum(self.counts)
        self.support = np.flatnonzero(self.counts)

    def stream(self, row: int, rng: np.random.Generator) -> Iterator[int]:
        """Endless draws with replacement for one row."""
        while True:
            places = rng.random(16) * self.cumulative[-1]
            yield from np.searchsorted(self.cumulative, places, side="right").clip(max=self.support[-1]).tolist()


class RankedNegatives:
    """
    Items that a model ranks high for the row, in random order; uniform ones once a list is used up.

    Args:
        lists (`Sequence[Sequence[int]]`): Catalog rows for each row of the data set.
        num_items (`int`): Items of the catalog.
    """

    def __init__(self, lists: Sequence[Sequence[int]], num_items: int):
        self.lists = lists
        self.rest = UniformNegatives(num_items)
        self.support = self.rest.support

    @classmethod
    def from_file(cls, path: str | os.PathLike, dataset: Dataset, num_items: int) -> "RankedNegatives":
        """
        Read the lists that `hf-rec evaluate` wrote for the very rows of a data set.

        Args:
            path (`str` or `os.PathLike`): Its output folder, or the `predictions.parquet` in it.
            dataset (`datasets.Dataset`): The rows that were ranked, in their order; users and targets are compared.
            num_items (`int`): Items of the catalog.
        """
        path = Path(path)
        path = path / LIST_FILE if path.is_dir() else path
        if not path.is_file():
            raise FileNotFoundError(
                f"There is no {path}. Rank the training rows first: hf-rec evaluate --model DIR --data DIR "
                "--split train --ks 50 --out LISTS."
            )
        names = [USER_ID, TARGET_ROW, ITEM_ROWS]
        missing = sorted(set(names) - set(pq.read_schema(path).names))
        if missing:
            raise ValueError(f"{path} has no column {missing[0]!r}. Give a file that `hf-rec evaluate` wrote.")
        table = pq.read_table(path, columns=names)
        for name, column in ((USER_ID, USER_ID), (TARGET_ROW, TARGET)):
            values = pc.cast(column_values(dataset, column), table[name].type)
            if table[name].combine_chunks() != values.combine_chunks():
                raise ValueError(
                    f"{path} was written for other rows ({len(table)} of them) than these {len(values)}: column "
                    f"{name!r} differs. Rank the same split, with the same --limit."
                )
        return cls(table[ITEM_ROWS].to_pylist(), num_items)

    def stream(self, row: int, rng: np.random.Generator) -> Iterator[int]:
        """The row's list in random order, then endless uniform draws."""
        yield from rng.permutation(np.asarray(self.lists[row], dtype=np.int64)).tolist()
        yield from self.rest.stream(row, rng)


class ListedNegatives:
    """
    Items of the row's own list in random order: a row whose list runs out has fewer negatives. One whose list holds
    nothing beside target and history, so none at all, gets items of the catalog in random order.

    Args:
        lists (`Sequence[Sequence[int]]`): Catalog rows for each row of the data set.
    """

    support = None  # differs from row to row

    def __init__(self, lists: Sequence[Sequence[int]]):
        self.lists = lists

    def stream(self, row: int, rng: np.random.Generator) -> Iterator[int]:
        """The row's list in random order."""
        yield from rng.permutation(np.asarray(self.lists[row], dtype=np.int64)).tolist()


NegativeSource = UniformNegatives | PopularityNegatives | RankedNegatives | ListedNegatives


def add_negatives(
    dataset: Dataset | IterableDataset,
    source: NegativeSource,
    num_negatives: int,
    *,
    same_answer: np.ndarray,
    seed: int | tuple[int, ...] = 0,
    num_proc: int | None = None,
) -> Dataset | IterableDataset:
    """
    Add a column `rejected` to the rows of a split.

    Args:
        dataset (`datasets.Dataset` or `IterableDataset`): Rows with `history` and `target`.
        source ([`UniformNegatives`], [`PopularityNegatives`], [`RankedNegatives`] or [`ListedNegatives`]): Where the
            items come from.
        num_negatives (`int`): Items for a row, all different. Of [`ListedNegatives`] there may be fewer, at least one.
        same_answer (`np.ndarray` of shape `(N,)`): A number for each item, equal where two items cannot be told apart
            by what a model writes: [`answer_groups`], or the leaves of a trie. An item in one group with the target,
            with an item of the history or with an earlier negative counts as that one.
        seed (`int` or `tuple[int, ...]`, *optional*, defaults to `0`): Seed of all streams.
        num_proc (`int`, *optional*): Processes of [`~datasets.Dataset.map`].

    Returns:
        `datasets.Dataset` or `IterableDataset`: The same rows, `rejected` a list of catalog rows.
    """
    if num_negatives < 1:
        raise ValueError(f"`num_negatives` must be at least 1, got {num_negatives}.")
    known = dataset.features  # a stream may not tell
    features = None if known is None else Features({**known, REJECTED: List(Value("int64"))})
    seeds = seed if isinstance(seed, tuple) else (seed,)
    how = {"source": source, "count": num_negatives, "groups": np.asarray(same_answer), "seeds": seeds}
    options = {} if isinstance(dataset, IterableDataset) else {"num_proc": num_proc, "desc": "Drawing negatives"}
    return dataset.map(_draw_for_row, with_indices=True, fn_kwargs=how, features=features, **options)


def draw(
    source: NegativeSource, row: int, rng: np.random.Generator, count: int, groups: np.ndarray, taken: Sequence[int]
) -> list[int]:
    """
    The first items of a stream that are not taken.

    Args:
        source, row, rng: The stream: `source.stream(row, rng)`.
        count (`int`): Items wanted.
        groups (`np.ndarray` of shape `(N,)`): As `same_answer` of [`add_negatives`].
        taken (`Sequence[int]`): Items that must not be found: target and history.

    Returns:
        `list[int]`: `count` items; fewer, at least one, where the stream ends before.
    """
    used: set[int] = set(groups[list(taken)].tolist())
    if source.support is not None and len(source.support) < 64 * (count + len(used)):  # else there are plenty
        num_free = len(set(groups[source.support].tolist()) - used)
        if num_free < count:
            raise ValueError(
                f"Row {row}: {count} negatives are asked for, but only {num_free} different items are left beside "
                "target and history. Lower `num_negatives`."
            )
    found = _first_free(source.stream(row, rng), count, groups, used)
    if not found and isinstance(source, ListedNegatives):
        found = _first_free(rng.permutation(len(groups)).tolist(), count, groups, used)
    if not found:
        raise ValueError(
            f"Row {row}: no item is left beside target and history, so there is no negative to draw. Drop the row."
        )
    return found


def _first_free(stream: Iterable[int], count: int, groups: np.ndarray, used: set[int]) -> list[int]:
    """The first `count` items whose group is not used, each of another group."""
    found: list[int] = []
    for item in stream:
        if groups[item] not in used:
            used.add(int(groups[item]))
            found.append(item)
            if len(found) == count:
                break
    return found


def answer_groups(catalog: Catalog) -> np.ndarray:
    """A number for each item, equal where items have the same text: `np.ndarray` of shape `(N,)`."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(catalog.text(row), len(numbers)) for row in range(len(catalog))])


def label_counts(dataset: Dataset, num_items: int) -> np.ndarray:
    """
    How often each item was chosen in a split: `np.ndarray` of shape `(N,)`.

    An event that stands in several windows counts once where the column `supervise_from` tells; only targets count
    where it is missing.
    """
    counts = np.bincount(dataset.with_format("numpy")[TARGET][:], minlength=num_items)
    if SUPERVISE_FROM in dataset.column_names and len(dataset):
        table = dataset.select_columns([HISTORY, SUPERVISE_FROM]).with_format("arrow")[:]
        lengths = pc.list_value_length(table[HISTORY]).to_numpy()
        place = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        new = place >= np.repeat(table[SUPERVISE_FROM].to_numpy(), lengths)
        counts = counts + np.bincount(pc.list_flatten(table[HISTORY]).to_numpy()[new], minlength=num_items)
    return counts


def _draw_for_row(
    row: dict, number: int, source: NegativeSource, count: int, groups: np.ndarray, seeds: tuple[int, ...]
) -> dict:
    rng = np.random.default_rng([*seeds, number])
    return {REJECTED: draw(source, number, rng, count, groups, [row[TARGET], *row[HISTORY]])}
