"""Candidates of a re-ranker's rows: what a retriever lists for each, made once and kept."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from datasets import Dataset

from hf_rec.columns import CANDIDATES, HISTORY, LABELS, ROW, TARGET
from hf_rec.data.catalog import Catalog
from hf_rec.hub import load_recommender
from hf_rec.hub.files import read_index
from hf_rec.recommenders.contract import Recommender
from hf_rec.trainers.item_rows import check_catalog_rows
from hf_rec.trainers.rerank.config import RerankConfig
from hf_rec.trainers.rerank.rows import letter_rows, stored_candidates, yes_no_rows
from hf_rec.trainers.stored_lists import stored_lists


LIST_FOLDER = "candidates"


class RerankRows:
    """
    Turns data sets into rows of a re-ranker; those that are such rows already stay as they are.

    Args:
        args ([`RerankConfig`]): Form and folder, and what becomes of targets that are not retrieved.
        catalog ([`Catalog`]): Items.
        num_candidates (`int`): Most candidates of a row: those that the prompt has letters for.
        retriever (`str`, `os.PathLike` or [`~hf_rec.recommenders.contract.Recommender`], *optional*): Makes the
            candidates of rows that have no column `candidates`. Lists of a folder are kept in the output folder.

    Attributes:
        retriever ([`~hf_rec.recommenders.contract.Recommender`] or `None`): Loaded.
        retrieved_share (`float` or `None`): Share of the training rows whose target is retrieved.
    """

    def __init__(
        self,
        args: RerankConfig,
        catalog: Catalog,
        num_candidates: int,
        retriever: str | os.PathLike | Recommender | None,
    ):
        self.args, self.catalog, self.num_candidates = args, catalog, num_candidates
        self.retriever = _loaded(retriever, args)
        self.retrieved_share: float | None = None
        if self.retriever is not None and args.form == "yes_no":
            raise ValueError(
                "`retriever` has no use with `form='yes_no'`, whose rows hold one candidate. Leave it out."
            )
        if self.retriever is not None and not self.retriever.catalog.has_items_of(catalog):
            raise ValueError(
                f"`retriever` is over another catalog: it has {len(self.retriever.catalog)} items, `catalog` "
                f"{len(catalog)}. Train both on the same prepared data."
            )

    def for_training(self, dataset: Dataset | None) -> Dataset | None:
        """Rows with a label each."""
        if dataset is None:
            return None
        rows, share = self._rows(dataset, "train", is_train=True)
        if not len(rows):
            raise ValueError(
                "`not_retrieved='skip'` leaves no row: the retriever lists the target of none. Use 'include', or a "
                "better retriever."
            )
        self.retrieved_share = share
        return rows

    def for_evaluation(self, dataset: Any, name: str | None = None) -> Any:
        """Rows of which a target may be missing; also a `dict` of data sets. With a name, their lists are kept."""
        if dataset is None:
            return None
        if isinstance(dataset, dict):
            return {key: self.for_evaluation(part, name and f"{name}-{key}") for key, part in dataset.items()}
        return self._rows(dataset, name, is_train=False)[0]

    def _rows(self, dataset: Dataset, name: str | None, is_train: bool) -> tuple[Dataset, float | None]:
        if {ROW, CANDIDATES, LABELS} <= set(getattr(dataset, "column_names", None) or ()):
            return dataset, None
        if self.args.form == "yes_no":
            return yes_no_rows(dataset, len(self.catalog)), None
        included, skipped = (is_train and self.args.not_retrieved == kind for kind in ("include", "skip"))
        return letter_rows(dataset, self._lists(dataset, name), len(self.catalog), included, skipped)

    def _lists(self, dataset: Dataset, name: str | None) -> list[list[int]]:
        columns = getattr(dataset, "column_names", None) or []
        if CANDIDATES in columns:
            return stored_candidates(dataset, self.num_candidates)
        if self.retriever is None:
            raise ValueError(
                f"`retriever` is required for rows without a column `{CANDIDATES}`: it lists the candidates. Give the "
                "folder of a recommender."
            )
        if not isinstance(dataset, Dataset) or not {HISTORY, TARGET} <= set(columns) or not len(dataset):
            raise ValueError(
                f"Candidates are retrieved for the rows of a `datasets.Dataset` with `{HISTORY}` and `{TARGET}`, got "
                f"{columns or type(dataset).__name__} with {len(dataset) if isinstance(dataset, Dataset) else 'no'} "
                "rows."
            )
        check_catalog_rows(dataset, len(self.catalog))
        folder, made_from = self.retriever.folder, {"retriever": None, "catalog": self.catalog.sha256}
        kept = None
        if folder is not None and name is not None:
            kept = Path(self.args.output_dir, LIST_FOLDER, name)
            made_from["retriever"] = _content_sha256(folder)
        return stored_lists(kept, self.retriever, dataset, self.num_candidates, made_from, self.args.seen).lists


def _loaded(retriever: str | os.PathLike | Recommender | None, args: RerankConfig) -> Recommender | None:
    if retriever is None or isinstance(retriever, Recommender):
        return retriever
    return load_recommender(retriever, device=args.device)


def _content_sha256(folder: Path) -> str:
    """Hash of what a recommender folder holds, wherever it stands."""
    index = read_index(folder)
    content = {key: index[key] for key in ("kind", "tau", "scoring", "hashes", "files", "extra")}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
