"""
Retrieval models under the contract of all recommenders: a user is encoded once, and compared with an index of all
items.

Shapes: U users · k places of a list · N items of the catalog · v width of the vectors.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer
from transformers.utils import logging

from hf_rec.columns import PADDING_ITEM
from hf_rec.data.catalog import Catalog
from hf_rec.data.prompts.retrieval import RetrievalPrompt
from hf_rec.models.llm_srec.model import LLMSRecModel
from hf_rec.recommenders.allowed_items import AllowedItems
from hf_rec.recommenders.contract import RankedRows, RawId, Times
from hf_rec.recommenders.exact import ExactRecommender
from hf_rec.recommenders.item_index import ITEM_INDEX_FILE, ItemIndex
from hf_rec.recommenders.prompt_vectors import PromptVectors


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hf_rec.models.llm_srec.config import LLMSRecModelConfig

logger = logging.get_logger(__name__)


class RetrievalRecommender(ExactRecommender):
    """
    A model that gives users and items vectors; the score of an item is their dot product.

    Items are encoded once, on first use, unless an index is given. Times of the history, where given, stand in the
    prompt.

    Args:
        model ([`~hf_rec.models.llm_srec.model.LLMSRecModel`]): The model. It need not be in eval mode.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Tokenizer of its language model.
        catalog ([`Catalog`]): Items. Those that the model's teacher has not seen are known by their text alone.
        prompt ([`RetrievalPrompt`]): How users and items of this catalog become tokens.
        index ([`ItemIndex`], *optional*): Their vectors. Without it `catalog` must be the one that the model was
            trained with.
        batch_size (`int`, *optional*, defaults to `1024`): Users encoded and compared at a time; fewer where the
            catalog is large, so that no more than 64 MiB of scores are held.
        approximate (`bool`, *optional*, defaults to `False`): Let an index of faiss name the items; lists are then not
            certified. Worth it from about a million items on.
    """

    kind = "llm_srec"

    def __init__(
        self,
        model: LLMSRecModel,
        tokenizer: "PreTrainedTokenizerBase",
        catalog: Catalog,
        prompt: RetrievalPrompt,
        index: ItemIndex | None = None,
        batch_size: int = 1024,
        approximate: bool = False,
    ):
        super().__init__(catalog, batch_size)
        if len(prompt) != len(catalog):
            raise ValueError(f"`prompt` was made for {len(prompt)} items, `catalog` has {len(catalog)}. Make it anew.")
        if index is None:
            check_teacher_catalog(model.config, catalog)
        elif len(index) != len(catalog):
            raise ValueError(f"`index` holds {len(index)} items, `catalog` {len(catalog)}. Encode the items again.")
        self.model = model
        self.tokenizer = tokenizer
        self.prompt = prompt
        self.approximate = approximate
        self.vectors = PromptVectors(model, prompt, None if index is None else index.teacher_items)
        self._index = index
        self._encoding = Lock()

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike,
        settings: dict[str, Any],
        catalog: Catalog,
        device: torch.device | str,
        dtype: Any,
    ) -> "RetrievalRecommender":
        """
        Read a recommender folder.

        Args:
            folder (`str` or `os.PathLike`): Folder that a trainer wrote. Without an index in it, items are encoded
                when they are first needed.
            settings (`dict`): The content of its `recommender.json`.
            catalog ([`Catalog`]): Its catalog.
            device (`torch.device`), dtype (`str` or `None`): Where the model goes, and the type of its language model.
        """
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        prompt = RetrievalPrompt.load(folder, tokenizer, catalog)
        if prompt.sha256 != settings["hashes"].get("prompt"):
            raise ValueError(
                f"The prompt in {folder} is not the one of its recommender.json. Copy the whole folder again."
            )
        model = LLMSRecModel.from_pretrained(folder, dtype=dtype, trust_remote_code=False).to(device)
        index = None
        if (Path(folder) / ITEM_INDEX_FILE).is_file():
            index = ItemIndex.load(folder, catalog, prompt.sha256, device)
        return cls(model, tokenizer, catalog, prompt, index)

    @property
    def index(self) -> ItemIndex:
        """The vectors of all items, encoded now if they were not before."""
        with self._encoding:  # threads that ask at once wait for one of them
            if self._index is None:
                logger.info(
                    f"Encoding {len(self.catalog)} items, {self.vectors.num_cold} of them unknown to the teacher: by "
                    "text alone."
                )
                vectors = self.vectors.items()
                self._index = ItemIndex(vectors, self.catalog, self.prompt.sha256, self.vectors.teacher_items)
            return self._index

    def user_vectors(
        self,
        histories: Sequence[Sequence[RawId]],
        timestamps: Times | None = None,
        batch_size: int | None = None,
    ) -> np.ndarray:
        """
        The vector of each user after the history: float32 of shape `(U, v)`. The arguments are those of
        [`~Recommender.recommend`].
        """
        rows = self._history_rows(histories, timestamps)
        vectors = np.empty((len(rows), self.model.config.vector_size), dtype=np.float32)
        for users in self._batches(rows, self._users_at_once(batch_size, 1, None), "Encoding"):
            times = None if timestamps is None else [timestamps[user] for user in users]
            vectors[users] = self.vectors.users([rows[user] for user in users], times).cpu().numpy()
        return vectors

    def refreshed(self, catalog: Catalog) -> tuple["RetrievalRecommender", int]:
        """
        The same model over a catalog that has changed: items added, removed or renamed, known by their raw ids.

        Args:
            catalog ([`Catalog`]): The items now.

        Returns:
            `tuple[RetrievalRecommender, int]`: The recommender, and how many items it had to encode. Items that are
            new to it are known by their text alone; all others keep vector and slot.
        """
        prompt = self.prompt.for_catalog(self.tokenizer, catalog)
        old_rows = np.array([_row_or_none(self.catalog, item_id) for item_id in catalog.ids], dtype=np.int64)
        teacher_items = np.where(old_rows >= 0, self.index.teacher_items[old_rows], PADDING_ITEM)
        changed = np.array(
            [old < 0 or not self.prompt.same_item(old, prompt, row) for row, old in enumerate(old_rows)], dtype=bool
        )
        vectors = self.index.vectors[torch.from_numpy(np.where(changed, 0, old_rows)).to(self.index.vectors.device)]
        rows = np.flatnonzero(changed)
        if len(rows):
            vectors[torch.from_numpy(rows).to(vectors.device)] = PromptVectors(
                self.model, prompt, teacher_items
            ).items(rows)
        return self._over(catalog, prompt, vectors, teacher_items), len(rows)

    def for_catalog(self, catalog: Catalog) -> "RetrievalRecommender":
        """The same model over other items, all of them known by their text alone: another domain, or another shop."""
        prompt = self.prompt.for_catalog(self.tokenizer, catalog)
        teacher_items = np.full(len(catalog), PADDING_ITEM, dtype=np.int64)
        vectors = PromptVectors(self.model, prompt, teacher_items).items()
        return self._over(catalog, prompt, vectors, teacher_items)

    def _over(
        self, catalog: Catalog, prompt: RetrievalPrompt, vectors: Tensor, teacher_items: np.ndarray
    ) -> "RetrievalRecommender":
        index = ItemIndex(vectors, catalog, prompt.sha256, teacher_items)
        return RetrievalRecommender(
            self.model, self.tokenizer, catalog, prompt, index, self.batch_size, self.approximate
        )

    def _score_all_rows(self, histories: list[list[int]], timestamps: Times | None) -> np.ndarray:
        return (self.vectors.users(histories, timestamps) @ self.index.vectors.t()).cpu().numpy()

    def _recommend_rows(
        self,
        histories: list[list[int]],
        k: int,
        allowed: AllowedItems | None,
        timestamps: Times | None,
        num_beams: int | None,
    ) -> RankedRows:
        users = self.vectors.users(histories, timestamps)
        if self.approximate and (probable := self._probable_rows(users, k, allowed)) is not None:
            scores, rows = map(torch.from_numpy, probable)
            uncertain = np.zeros(len(histories), dtype=bool)
            return RankedRows.from_best(scores, rows, k, uncertain, torch.zeros(len(histories), dtype=torch.long))
        scores, rows, nan_scores = self.index.search(users, k, allowed)
        return RankedRows.from_best(scores, rows, k, (nan_scores == 0).cpu().numpy(), nan_scores)

    def _probable_rows(
        self, users: Tensor, k: int, allowed: AllowedItems | None
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Lists from the approximate index; `None` where too few of the items it names are allowed."""
        counts = [len(self.catalog) if allowed is None else allowed.count(user) for user in range(len(users))]
        scores, rows = self.index.search_approximately(users, k + len(self.catalog) - min(counts))
        scores, rows = scores.numpy(), rows.numpy()
        keep = rows >= 0
        if allowed is not None:
            keep &= np.stack([allowed.has(user, listed) for user, listed in enumerate(rows)])
        if (keep.sum(axis=1) < np.minimum(k, counts)).any():
            return None
        order = np.argsort(~keep, axis=1, kind="stable")[:, :k]
        scores, rows, keep = (np.take_along_axis(part, order, axis=1) for part in (scores, rows, keep))
        return np.where(keep, scores, -np.inf), np.where(keep, rows, PADDING_ITEM)

    def _score_rows(
        self, histories: list[list[int]], candidates: list[list[int]], timestamps: Times | None
    ) -> list[np.ndarray]:
        users, items = self.vectors.users(histories, timestamps), self.index.vectors
        return [
            (items[torch.tensor(rows, dtype=torch.long, device=items.device)] @ user).cpu().numpy()
            for user, rows in zip(users, candidates, strict=True)
        ]


def check_teacher_catalog(config: "LLMSRecModelConfig", catalog: Catalog) -> None:
    """Refuse a catalog whose rows are not the items that the teacher of a model was trained on."""
    catalog.check_made_for(config.num_items, config.catalog_sha256, "the sequence model")


def _row_or_none(catalog: Catalog, item_id: RawId) -> int:
    try:
        return catalog.row(item_id)
    except ValueError:
        return PADDING_ITEM
