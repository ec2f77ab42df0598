"""
Ranking among few candidates, for comparison with papers that measure so: the target and 19 or 99 random items.

Candidates are drawn from a stream that is keyed by user, split and seed, never by the target, and are kept in a file
with a hash. (Lists seeded with the target are recognisable: users with one target get nearly the same list.) They are
scored by log-probability through `score`, with the tie rule of all other measurements. Values are not comparable
with full ranking, and every key says what they are: `candidates=1+19/file=1a2b3c4d/split=loo/hit_rate@1`.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_rec.columns import HISTORY, ITEM_ROWS, column_values
from hf_rec.data.negatives import UniformNegatives, answer_groups, draw
from hf_rec.evaluation.predictions import histories_and_times, predictions_table, users_and_targets
from hf_rec.evaluation.protocol import protocol_key
from hf_rec.evaluation.run_files import RunPath, rows_sha256, write_run
from hf_rec.evaluation.summary import summarize
from hf_rec.files import replacing
from hf_rec.metrics.beyond_accuracy import LIST_METRICS
from hf_rec.metrics.ranking import count_nan, rank_bounds
from hf_rec.processes import process_state


if TYPE_CHECKING:
    from datasets import Dataset

    from hf_rec.data.catalog import Catalog
    from hf_rec.recommenders.contract import Recommender

FORMAT, FORMAT_VERSION = "hf_rec.evaluation.candidates", 1
CANDIDATES_FILE = "candidates.json"


@dataclass(frozen=True)
class Candidates:
    """
    Candidate lists for the rows of a split.

    Attributes:
        lists (`list[list[int]]`): Catalog rows, the target at a random place.
        split (`str`), seed (`int`): What the streams were keyed by, beside the user.
        rows_sha256, catalog_sha256 (`str`): Which rows and items they are for.
    """

    lists: list[list[int]]
    split: str
    seed: int
    rows_sha256: str
    catalog_sha256: str

    @property
    def sha256(self) -> str:
        """Hash of everything."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    @property
    def num_negatives(self) -> int:
        """Candidates beside the target."""
        return len(self.lists[0]) - 1

    @property
    def protocol(self) -> str:
        """How they are named in keys: `candidates=1+19/file=1a2b3c4d`."""
        return f"candidates=1+{self.num_negatives}/file={self.sha256[:8]}"

    def save(self, path: str | os.PathLike) -> None:
        """Write one JSON file."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        content = {"format": FORMAT, "version": FORMAT_VERSION, "sha256": self.sha256, **asdict(self)}
        with replacing(path) as partial:
            partial.write_text(json.dumps(content) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Candidates":
        """Read what [`~Candidates.save`] wrote; a file that was changed is a `ValueError`."""
        try:
            content = json.loads(Path(path).read_bytes())
            found, expected = (content.pop("format"), content.pop("version")), content.pop("sha256")
            candidates = cls(**content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no candidate file ({error!r}). Draw it again.") from error
        if found != (FORMAT, FORMAT_VERSION):
            raise ValueError(f"{path} must be {(FORMAT, FORMAT_VERSION)}, found {found}. Draw it again.")
        if candidates.sha256 != expected:
            raise ValueError(f"{path} does not match its own hash: it was edited. Draw it again.")
        return candidates


def draw_candidates(
    dataset: "Dataset", catalog: "Catalog", num_negatives: int = 19, *, split: str = "test", seed: int = 0
) -> Candidates:
    """
    Draw candidates for every row of a split: the target, and items that are neither in the history nor share a title.

    Args:
        dataset (`datasets.Dataset`): Split rows.
        catalog ([`Catalog`]): Items.
        num_negatives (`int`, *optional*, defaults to `19`): Items beside the target.
        split (`str`, *optional*, defaults to `"test"`), seed (`int`, *optional*, defaults to `0`): With the user (and,
            for users with several rows, which of them it is) the key of a row's stream.
    """
    if num_negatives < 1:
        raise ValueError(f"`num_negatives` must be at least 1, got {num_negatives}.")
    if not len(dataset):
        raise ValueError("`dataset` has no rows: there is nothing to draw for.")
    source, groups = UniformNegatives(len(catalog)), answer_groups(catalog)
    rows_of_user: Counter[str] = Counter()
    lists: list[list[int]] = []
    users, targets = users_and_targets(dataset)
    histories = column_values(dataset, HISTORY).to_pylist()
    for row, (user, history, target) in enumerate(zip(users, histories, targets, strict=True)):
        key = json.dumps([user, split, seed, rows_of_user[user]]).encode()
        rows_of_user[user] += 1
        rng = np.random.default_rng(int.from_bytes(hashlib.sha256(key).digest()))
        place = int(rng.integers(num_negatives + 1))
        drawn = draw(source, row, rng, num_negatives, groups, [target, *history])
        lists.append([*drawn[:place], target, *drawn[place:]])
    return Candidates(lists, split, seed, rows_sha256(users, targets), catalog.sha256)


def evaluate_candidates(
    recommender: "Recommender",
    dataset: "Dataset",
    candidates: Candidates,
    out_dir: RunPath,
    *,
    ks: Sequence[int] = (1,),
    split_rule: str = "loo",
    name: str,
    warm_items: Collection[int] | None = None,
    cost: dict[str, Any] | None = None,
    batch_size: int | None = None,
) -> dict[str, Any]:
    """
    Rank each target among its candidates and write `predictions.parquet` and `metrics.json`, as for a full ranking,
    and the lists themselves, `candidates.json`. Under several processes each scores its share of the rows, the main
    one writes, and all return the same.

    Args:
        recommender ([`~hf_rec.recommenders.contract.Recommender`]): Scores the candidates.
        dataset (`datasets.Dataset`): The rows that the candidates were drawn for.
        candidates ([`Candidates`]): The lists.
        out_dir (`str` or `os.PathLike`): Folder of the three files.
        ks (`Sequence[int]`, *optional*, defaults to `(1,)`): Cut-offs; the papers report the hit rate at 1.
        split_rule, name, warm_items, cost, batch_size: As in [`~hf_rec.evaluation.full.evaluate_recommender`].

    Returns:
        `dict`: The content of `metrics.json`. Items with one score share their places: a constant scorer has a hit
        rate at 1 of 1/20 among 1 + 19.
    """
    from accelerate.utils import broadcast_object_list

    users, targets = users_and_targets(dataset)
    catalog, ks = recommender.catalog, sorted(set(ks))
    if candidates.rows_sha256 != rows_sha256(users, targets) or candidates.catalog_sha256 != catalog.sha256:
        raise ValueError(
            "`candidates` were drawn for other rows or another catalog than `dataset` and `recommender` have. Draw "
            "them with draw_candidates(dataset, recommender.catalog)."
        )
    if not ks or min(ks) < 1 or max(ks) > candidates.num_negatives + 1:
        raise ValueError(f"`ks` must hold numbers from 1 to {candidates.num_negatives + 1}, got {ks}.")
    scores = _scores(recommender, dataset, candidates, batch_size)
    predictions = predictions_table(users, targets, _ranks(targets, candidates, scores), catalog, warm_items)
    protocol = protocol_key(candidates=candidates.protocol, split_rule=split_rule)
    settings = {
        "name": name,
        "split": candidates.split,
        "split_rule": split_rule,
        "search": "exact",
        "seen": None,
        "candidates": candidates.protocol,
        "candidates_sha256": candidates.sha256,
        "ks": ks,
        "scoring": getattr(recommender, "scoring", None),
        "tau": getattr(recommender, "tau", None),
        "protocol": protocol,
    }
    metrics = summarize(settings, predictions, catalog)
    # None: meaningless for lists that were drawn
    metrics["beyond_accuracy"] = {f"{protocol}/{key}@{k}": None for key in LIST_METRICS for k in ks}
    metrics["counts"]["nan_scores"] = count_nan(scores)
    metrics["cost"] = dict(cost or {})
    result: list[Any] = [None]
    if process_state().is_main_process:
        result = [write_run(out_dir, metrics, predictions)]
        candidates.save(Path(out_dir, CANDIDATES_FILE))
    return broadcast_object_list(result)[0]


def _scores(
    recommender: "Recommender", dataset: "Dataset", candidates: Candidates, batch_size: int | None
) -> np.ndarray:
    """Score of every candidate, `[R, 1 + K]`; each process scores its share of the rows, and all get all."""
    from accelerate.utils import gather_object

    state, ids = process_state(), recommender.catalog.ids
    own = range(state.process_index, len(dataset), state.num_processes)
    histories, times = histories_and_times(dataset.select(own), ids)
    lists = [[ids[row] for row in candidates.lists[number]] for number in own]
    found = recommender.score(histories, lists, timestamps=times, batch_size=batch_size)
    scores = np.empty((len(dataset), candidates.num_negatives + 1), dtype=np.float32)
    for number, values in gather_object(list(zip(own, found, strict=True))):
        scores[number] = values
    return scores


def _ranks(targets: list[int], candidates: Candidates, scores: np.ndarray) -> dict[str, Sequence[Any]]:
    """The candidates of each row, best first, and the rank of the target among them."""
    places = [listed.index(target) for listed, target in zip(candidates.lists, targets, strict=True)]
    better, tied = rank_bounds(scores, np.array(places))
    order = np.argsort(-np.where(np.isnan(scores), -np.inf, scores), axis=1, kind="stable")
    return {
        ITEM_ROWS: np.take_along_axis(np.array(candidates.lists), order, axis=1).tolist(),
        "scores": np.take_along_axis(scores, order, axis=1).tolist(),
        "certified": ~np.isnan(scores).any(axis=1),
        # No two candidates share a title, so both levels agree
        **{key: better for key in ("better", "title_better")},
        **{key: tied for key in ("tied", "title_tied")},
    }
