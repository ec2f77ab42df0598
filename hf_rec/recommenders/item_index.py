"""
The vectors of a catalog, and the items nearest to a user by dot product.

Search is exact: matrix products over chunks of users and items. Above about a million items an approximate index of
faiss (`pip install hf_rec[faiss]`) may stand in front of it; it names candidates, whose scores are then computed
exactly.

Shapes: U users · N items · k places of a list · v width of the vectors.
"""

import json
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
from hf_rec.recommenders.ranks import mask_items, user_blocks


INDEX_FILE = "item_index.safetensors"
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
    def search(self, users: Tensor, k: int, allowed: np.ndarray | None = None) -> tuple[Tensor, Tensor]:
        """
        The best items of each user, exactly.

        Args:
            users (`torch.Tensor` of shape `(U, v)`): User vectors.
            k (`int`): Items wanted.
            allowed (`np.ndarray` of shape `(U, N)` or `(1, N)`, *optional*): True at items that may be listed.

        Returns:
            `tuple`: Scores, float32 of shape `(U, min(k, N))`, best first, `-inf` behind the last allowed item; and
            their rows, -1 there. Equal scores stand in row order, NaN in no list.
        """
        users, vectors = users.to(self.vectors.device, torch.float32), self.vectors
        found = []
        for block in user_blocks(users, min(len(self), ITEMS_AT_ONCE)):
            best = None
            for start in range(0, len(self), ITEMS_AT_ONCE):
                scores = users[block] @ vectors[start : start + ITEMS_AT_ONCE].t()
                if allowed is not None:
                    part = allowed[block if len(allowed) > 1 else slice(None), start : start + ITEMS_AT_ONCE]
                    scores.masked_fill_(~torch.from_numpy(np.ascontiguousarray(part)).to(scores.device), -torch.inf)
                values, rows = best_scores(scores, min(k, scores.shape[1]))
                best = _merge(best, (values, rows + start), min(k, len(self)))
            found.append(best)
        scores, rows = (torch.cat(parts) for parts in zip(*found, strict=True))
        return scores, rows.masked_fill(scores == -torch.inf, NO_ROW)

    @torch.no_grad()
    def rank(self, users: Tensor, targets: Tensor, seen: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """
        Exact ranks of the targets among all items.

        Args:
            users (`torch.Tensor` of shape `(U, v)`), targets (`torch.LongTensor` of shape `(U,)`): Users, and their
                items.
            seen (`torch.LongTensor` of shape `(U, S)`, *optional*): Items that do not compete, padded with -1. A
                target among them ranks with them, behind all others.

        Returns:
            `tuple`: `better` and `tied` (counts of items) and `nll` (minus log of the target's share in a softmax over
            all items, nats), each of shape `(U,)`. A target that scores NaN ranks last.
        """
        better, tied, nll = torch.empty_like(targets), torch.empty_like(targets), torch.empty_like(users[:, 0])
        for block in user_blocks(users, len(self)):
            scores, own = users[block] @ self.vectors.t(), targets[block, None]
            nll[block] = scores.logsumexp(dim=1) - scores.gather(1, own).squeeze(1)
            if seen is not None:
                mask_items(scores, seen[block])
            own = scores.gather(1, own)
            undefined = own.squeeze(1).isnan()
            better[block] = (scores > own).sum(dim=1).masked_fill(undefined, len(self) - 1)
            tied[block] = ((scores == own).sum(dim=1) - 1).masked_fill(undefined, 0)
        return better, tied, nll

    def search_approximately(self, users: Tensor, k: int, probes: int = FAISS_PROBES) -> tuple[Tensor, Tensor]:
        """
        Items that are probably the best of each user, by an inverted-file index of faiss that is built on first use.

        Returns:
            `tuple`: As [`~ItemIndex.search`], with exact scores of the items found.
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
        with replacing(Path(folder) / INDEX_FILE) as partial:
            save_file(tensors, partial, metadata={"format": FORMAT, "hashes": json.dumps(hashes)})

    @classmethod
    def load(cls, folder: str | Path, catalog: Catalog, prompt_sha256: str, device="cpu") -> "ItemIndex":
        """
        Read what [`~ItemIndex.save`] wrote; a `ValueError` says so where it belongs to other weights, items or
        prompts.
        """
        path = Path(folder) / INDEX_FILE
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
        with safe_open(Path(folder) / INDEX_FILE, "pt") as file:
            hashes: dict[str, str] = json.loads((file.metadata() or {})["hashes"])
            return hashes.get("weights")
    except (SafetensorError, KeyError, ValueError):
        return None


def best_scores(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The `k` highest scores of each row and their columns, equal ones in column order; NaN counts as `-inf`."""
    scores = scores.masked_fill(scores.isnan(), -torch.inf)
    values, columns = scores.topk(k, dim=1)
    # topk breaks ties as it likes: where they cross the end of the list, sort the whole row
    crowded = ((scores >= values[:, -1:]).sum(dim=1) > k).nonzero().squeeze(1)
    if len(crowded):
        ordered = scores[crowded].sort(dim=1, descending=True, stable=True)
        values[crowded], columns[crowded] = ordered.values[:, :k], ordered.indices[:, :k]
    columns, order = columns.sort(dim=1)
    values, places = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    return values, columns.gather(1, places)


def _merge(first: tuple[Tensor, Tensor] | None, second: tuple[Tensor, Tensor], k: int) -> tuple[Tensor, Tensor]:
    """The best of two lists, whose rows do not overlap; equal scores with the first one's rows ahead."""
    if first is None:
        return second
    values, rows = (torch.cat(parts, dim=1) for parts in zip(first, second, strict=True))
    values, order = values.sort(dim=1, descending=True, stable=True)
    return values[:, :k], rows.gather(1, order)[:, :k]
