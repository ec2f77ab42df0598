"""
The vectors of a catalog, and the items nearest to a user by dot product.

Search is exact: matrix products over chunks of users and items. Above about a million items an approximate index of
faiss (`pip install hf_rec[faiss]`) may stand in front of it; it names candidates, whose scores are then computed
exactly.

Shapes: U users · N items · k places of a list · v width of the vectors.
"""

import json
import os
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hf_rec.data.catalog import Catalog
from hf_rec.files import replacing
from hf_rec.models.llm_srec.references import weights_sha256
from hf_rec.recommenders.allowed_items import AllowedItems
from hf_rec.recommenders.ranks import best_scores, exact_ranks, user_blocks


ITEM_INDEX_FILE = "item_index.safetensors"
FORMAT = "hf_rec.item_index/1"
NO_ROW = -1
ITEMS_AT_ONCE = 2**20
FAISS_LISTS, FAISS_PROBES = 4.0, 32  # lists of an approximate index: 4 * sqrt(N), and how many of them a search reads


class ItemIndex:
    """
    Item vectors of a catalog.

    Args:
        vectors (`torch.Tensor` of shape `(N, v)`): Vector of each catalog row.
        catalog ([`Catalog`]): The items.
        prompt_sha256 (`str`): Hash of the prompt that they were encoded with.
        teacher_items (`np.ndarray` of shape `(N,)`): As in [`~hf_rec.recommenders.prompt_vectors.PromptVectors`].
    """

    def __init__(self, vectors: Tensor, catalog: Catalog, prompt_sha256: str, teacher_items: np.ndarray):
        if len(vectors) != len(catalog):
            raise ValueError(f"`vectors` has {len(vectors)} rows for the {len(catalog)} items of the catalog.")
        self.vectors = vectors
        self.teacher_items = teacher_items
        self._hashes = {"catalog": catalog.sha256, "prompt": prompt_sha256}
        self._approximate: Any = None
        self._building = Lock()

    def __len__(self) -> int:
        return len(self.vectors)

    @torch.no_grad()
    def search(self, users: Tensor, k: int, allowed: AllowedItems | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """
        The best items of each user, exactly.

        Args:
            users (`torch.Tensor` of shape `(U, v)`): User vectors.
            k (`int`): Items wanted.
            allowed ([`AllowedItems`], *optional*): What may be listed.

        Returns:
            `tuple`: Scores, float32 of shape `(U, min(k, N))`, best first, `-inf` behind the last allowed item; their
            rows, -1 there; and the number of scores that are NaN, of shape `(U,)`. Equal scores stand in row order,
            NaN in no list.
        """
        users, k = users.to(self.vectors.device, torch.float32), min(k, len(self))
        found = []
        for block in user_blocks(users, min(len(self), ITEMS_AT_ONCE)):
            best, nan_scores = None, torch.zeros(len(users[block]), dtype=torch.long, device=users.device)
            for start in range(0, len(self), ITEMS_AT_ONCE):
                scores = users[block] @ self.vectors[start : start + ITEMS_AT_ONCE].t()
                if allowed is not None:
                    allowed.users(block).forbid(scores, start)
                nan_scores += scores.isnan().sum(dim=1)
                values, rows = best_scores(scores, min(k, scores.shape[1]))
                best = _merge(best, (values, rows + start), k)
            if best is not None:
                found.append((*best, nan_scores))
        scores, rows, nan_scores = (torch.cat(parts) for parts in zip(*found, strict=True))
        return scores, rows.masked_fill(scores == -torch.inf, NO_ROW), nan_scores

    @torch.no_grad()
    def rank(self, users: Tensor, targets: Tensor, seen: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Exact ranks of the targets among all items, as [`~hf_rec.recommenders.ranks.exact_ranks`] gives them."""
        return exact_ranks(lambda vectors: vectors @ self.vectors.t(), len(self), users, targets, seen)

    def search_approximately(self, users: Tensor, k: int, probes: int = FAISS_PROBES) -> tuple[Tensor, Tensor]:
        """
        Items that are probably the best of each user, by an inverted-file index of faiss that is built on first use.

        Returns:
            `tuple`: Scores and rows as of [`~ItemIndex.search`]; the scores of the items found are exact.
        """
        queries = users.float().cpu().contiguous().numpy()
        faiss, index = self._faiss()
        settings = faiss.SearchParametersIVF(nprobe=probes)  # of this call alone: threads share the index
        scores, rows = index.search(queries, min(k, len(self)), params=settings)
        return torch.from_numpy(np.where(rows < 0, -np.inf, scores)), torch.from_numpy(rows)

    def _faiss(self) -> tuple[Any, Any]:
        """The module, and the index: built once, however many threads ask for it."""
        try:
            import faiss
        except ImportError as error:
            raise ImportError(
                "The approximate search needs faiss: `pip install hf_rec[faiss]`. The exact search needs nothing."
            ) from error
        with self._building:
            if self._approximate is None:
                vectors = self.vectors.float().cpu().contiguous().numpy()
                # faiss warns below 39 points a list
                lists = max(1, min(int(FAISS_LISTS * len(vectors) ** 0.5), len(vectors) // 39))
                coarse = faiss.IndexFlatIP(vectors.shape[1])
                index = faiss.IndexIVFFlat(coarse, vectors.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
                index.train(vectors)
                index.add(vectors)
                self._approximate = index
            return faiss, self._approximate

    def save(self, folder: str | Path) -> None:
        """Write `item_index.safetensors` beside the weights that the vectors were made with."""
        hashes = self._hashes | {"weights": weights_sha256(folder)}
        tensors = {"vectors": self.vectors.cpu().contiguous(), "teacher_items": torch.from_numpy(self.teacher_items)}
        with replacing(Path(folder) / ITEM_INDEX_FILE) as partial:
            save_file(tensors, partial, metadata={"format": FORMAT, "hashes": json.dumps(hashes)})

    @classmethod
    def load(
        cls, folder: str | os.PathLike, catalog: Catalog, prompt_sha256: str, device: torch.device | str = "cpu"
    ) -> "ItemIndex":
        """
        Read what [`~ItemIndex.save`] wrote; a `ValueError` says so where it belongs to other weights, items or
        prompts.
        """
        path = Path(folder) / ITEM_INDEX_FILE
        try:
            with safe_open(path, "pt", device=str(device)) as file:
                metadata = file.metadata() or {}
                vectors, teacher_items = file.get_tensor("vectors"), file.get_tensor("teacher_items").cpu().numpy()
        except SafetensorError as error:
            raise ValueError(
                f"{path} is truncated or corrupted ({error}). Delete it: items are encoded again."
            ) from error
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{path} has format {metadata.get('format')!r}, this version of hf_rec reads {FORMAT!r}.")
        expected = {"catalog": catalog.sha256, "prompt": prompt_sha256, "weights": weights_sha256(folder)}
        saved = json.loads(metadata["hashes"])
        other = [part for part, value in expected.items() if saved.get(part) != value]
        if other:
            raise ValueError(
                f"{path} was made with other {' and '.join(other)} than those beside it. Delete it: items are encoded "
                "again when they are needed."
            )
        return cls(vectors, catalog, prompt_sha256, teacher_items)


def index_weights(folder: str | Path) -> str | None:
    """Hash of the weights that the index in a folder was made with; `None` where the file does not tell."""
    try:
        with safe_open(Path(folder) / ITEM_INDEX_FILE, "pt") as file:
            hashes: dict[str, str] = json.loads((file.metadata() or {})["hashes"])
            return hashes.get("weights")
    except (SafetensorError, KeyError, ValueError):
        return None


def _merge(first: tuple[Tensor, Tensor] | None, second: tuple[Tensor, Tensor], k: int) -> tuple[Tensor, Tensor]:
    """The best of two lists, whose rows do not overlap; equal scores with the first one's rows ahead."""
    if first is None:
        return second
    values, rows = (torch.cat(parts, dim=1) for parts in zip(first, second, strict=True))
    values, order = values.sort(dim=1, descending=True, stable=True)
    return values[:, :k], rows.gather(1, order)[:, :k]
