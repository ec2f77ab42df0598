"""
The contract that every recommender keeps, and language models under it.

Raw item ids go in and come out; inside, items are catalog rows.

Shapes: U users · k places of a list · N items of the catalog · L leaves of the trie.
"""

import os
from collections.abc import Collection, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from transformers.utils import logging

from hf_rec.data.catalog import Catalog
from hf_rec.generation.allowed_items import AllowedItems
from hf_rec.generation.beam_search import score_leaves, trie_beam_search
from hf_rec.generation.logits_process import TrieLogitsProcessor, check_scoring
from hf_rec.trie.csr import TrieCSR


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hf_rec.data.prompts import Prompt

RawId = str | int
ItemLists = Collection[RawId] | Sequence[Collection[RawId]]  # one list for all histories, or one for each

_BEAMS_AT_ONCE = 4096  # of all users in one search; bounds its memory when `k` is large
_PROGRESS_DELAY = 3.0  # seconds before a progress bar appears


@dataclass(frozen=True)
class Recommendations:
    """
    Ranked items for some users.

    Attributes:
        item_ids (`list[list[str | int]]`): Raw ids for each user, best first; fewer than `k` if no more are allowed.
        scores (`np.ndarray` of shape `(U, k)`): Score of each, float32, `-inf` behind the last.
        certified (`np.ndarray` of shape `(U,)`): `True` where the list is sure to hold the best items of all, up to
            ties: no part of the catalog that the search gave up can score as high.
    """

    item_ids: list[list[RawId]]
    scores: np.ndarray
    certified: np.ndarray


@dataclass(frozen=True)
class RankedRows:
    """[`Recommendations`] of a batch in catalog rows: `rows` is a list of lists, the rest as there."""

    rows: list[list[int]]
    scores: np.ndarray
    certified: np.ndarray

    @classmethod
    def from_pairs(cls, pairs: list[list[tuple[int, float]]], k: int, certified: np.ndarray) -> "RankedRows":
        """From a list of at most `k` pairs (row, score) for each user."""
        scores = np.full((len(pairs), k), -np.inf, dtype=np.float32)
        for user, listed in enumerate(pairs):
            scores[user, : len(listed)] = [score for _, score in listed]
        return cls([[row for row, _ in listed] for listed in pairs], scores, np.asarray(certified, dtype=bool))


class Recommender:
    """
    Base of all recommenders: ids, checks and batches. A subclass gives two methods that speak of catalog rows:

    - `_recommend_rows(histories, k, allowed, timestamps, num_beams) -> RankedRows`, where `allowed` is a boolean array
      of shape `(U, N)` or `(1, N)`, or `None` where everything is;
    - `_score_rows(histories, candidates, timestamps) -> list[np.ndarray]`, one float32 score for each candidate.

    Args:
        catalog ([`Catalog`]): Items.
        batch_size (`int`, *optional*, defaults to `32`): Histories worked on at a time.
    """

    def __init__(self, catalog: Catalog, batch_size: int = 32):
        self.catalog = catalog
        self.batch_size = batch_size

    def recommend(
        self,
        histories: Sequence[Sequence[RawId]],
        k: int = 10,
        exclude: ItemLists | None = None,
        allow: ItemLists | None = None,
        timestamps: Sequence[Sequence[int]] | None = None,
        num_beams: int | None = None,
        batch_size: int | None = None,
    ) -> Recommendations:
        """
        The best next items for each history.

        Args:
            histories (`list[list[str | int]]`): Raw item ids of each user, oldest first; a history may be empty.
            k (`int`, *optional*, defaults to `10`): Items wanted for each user.
            exclude (`list`, *optional*): Raw ids that must not be listed: one list for all users, or one for each.
            allow (`list`, *optional*): Raw ids of which alone the lists are made, given likewise. Neither of the two
                changes the score of an item that remains.
            timestamps (`list[list[int]]`, *optional*): Unix seconds of the events, for models that use them.
            num_beams (`int`, *optional*): Width of the search, for models that search; at least `k`, by default twice
                that.
            batch_size (`int`, *optional*): Histories worked on at a time; defaults to that of the recommender.

        Returns:
            [`Recommendations`]: Lists, scores, and which lists are certainly the best.
        """
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
            raise ValueError(f"`k` must be a whole number of at least 1, got {k!r}.")
        rows = self._history_rows(histories, timestamps)
        masks = AllowedItems(
            len(self.catalog),
            exclude=None if exclude is None else self._item_lists(exclude, "exclude", len(rows)),
            allow=None if allow is None else self._item_lists(allow, "allow", len(rows)),
        )
        item_ids = [[] for _ in rows]
        scores = np.full((len(rows), k), -np.inf, dtype=np.float32)
        certified = np.zeros(len(rows), dtype=bool)
        size = self._users_at_once(batch_size or self.batch_size, k, num_beams)
        for users in self._batches(rows, size, "Recommending"):
            times = None if timestamps is None else [timestamps[user] for user in users]
            found = self._recommend_rows([rows[user] for user in users], k, masks.of(users), times, num_beams)
            scores[users], certified[users] = found.scores, found.certified
            for user, listed in zip(users, found.rows, strict=True):
                item_ids[user] = [self.catalog.ids[row] for row in listed]
        return Recommendations(item_ids, scores, certified)

    def score(
        self,
        histories: Sequence[Sequence[RawId]],
        candidates: ItemLists,
        timestamps: Sequence[Sequence[int]] | None = None,
        batch_size: int | None = None,
    ) -> list[np.ndarray]:
        """
        Exact scores of given items, the same numbers that `recommend` ranks by.

        Args:
            histories, timestamps, batch_size: As in [`~Recommender.recommend`].
            candidates (`list`): Raw ids to score: one list for all users, or one for each.

        Returns:
            `list[np.ndarray]`: For each user a float32 array with one score for each candidate, in their order.
        """
        rows = self._history_rows(histories, timestamps)
        wanted = self._item_lists(candidates, "candidates", len(rows))
        scores = [np.empty(0, dtype=np.float32) for _ in rows]
        for users in self._batches(rows, batch_size or self.batch_size, "Scoring"):
            times = None if timestamps is None else [timestamps[user] for user in users]
            lists = [wanted[user if len(wanted) > 1 else 0] for user in users]
            for user, values in zip(
                users, self._score_rows([rows[user] for user in users], lists, times), strict=True
            ):
                scores[user] = values
        return scores

    def _recommend_rows(self, histories, k, allowed, timestamps, num_beams) -> RankedRows:
        raise TypeError(f"{type(self).__name__} must define _recommend_rows.")

    def _score_rows(self, histories, candidates, timestamps) -> list[np.ndarray]:
        raise TypeError(f"{type(self).__name__} must define _score_rows.")

    def _cost(self, history: list[int]) -> int:
        """What users of a batch should have in common; its biggest one sets the time of a batch."""
        return len(history)

    def _users_at_once(self, batch_size: int, k: int, num_beams: int | None) -> int:
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
        return batch_size

    def _batches(self, rows: list[list[int]], size: int, description: str):
        """Indices of users of about the same cost, the most expensive first, so that lack of memory shows at once."""
        order = sorted(range(len(rows)), key=lambda user: self._cost(rows[user]), reverse=True)
        with logging.tqdm(
            total=len(order),
            desc=description,
            unit="user",
            delay=_PROGRESS_DELAY,
            leave=False,
            disable=os.environ.get("RANK", "0") != "0",
        ) as progress:
            for start in range(0, len(order), size):
                users = order[start : start + size]
                yield users
                progress.update(len(users))

    def _history_rows(self, histories, timestamps) -> list[list[int]]:
        if isinstance(histories, str) or any(isinstance(history, (str, int)) for history in histories):
            raise ValueError("`histories` must hold one list of item ids a user: for one user, wrap it: [[...]].")
        if timestamps is not None and list(map(len, timestamps)) != list(map(len, histories)):
            raise ValueError("`timestamps` must hold one list a history, with one time for each of its items.")
        return [self._rows(history, f"histories[{user}]") for user, history in enumerate(histories)]

    def _item_lists(self, lists: ItemLists, argument: str, num_users: int) -> list[list[int]]:
        """Catalog rows: one list for all users (of length 1), or one for each."""
        if isinstance(lists, (str, bytes)) or not isinstance(lists, Collection):
            raise ValueError(f"`{argument}` must be a list of item ids, or one such list a history, got {lists!r}.")
        nested = [not isinstance(entry, (str, int, np.integer)) for entry in lists]
        if not any(nested):
            return [self._rows(lists, argument)]
        if not all(nested) or len(lists) != num_users:
            raise ValueError(
                f"`{argument}` must be a list of item ids, or one such list for each of the {num_users} histories, "
                f"got {len(lists)} entries, {sum(nested)} of them lists."
            )
        return [self._rows(entry, f"{argument}[{user}]") for user, entry in enumerate(lists)]

    def _rows(self, item_ids: Collection[RawId], argument: str) -> list[int]:
        try:
            return self.catalog.rows(item_ids)
        except ValueError as error:
            raise ValueError(f"`{argument}`: {error}") from error


class LanguageModelRecommender(Recommender):
    """
    A causal LM that writes the next item, searched over the item trie.

    The score of an item is `log P_valid`: the log-probability of its token path where each token competes with the
    other children of its trie node, at temperature `tau` (https://huggingface.co/papers/2504.04178). Items with the
    same token path share it and are listed in row order.

    A list is certified where its last score beats the bound of everything the search gave up by more than rounding:
    1e-4 in float32, 2e-2 in half precision.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): Causal LM. It need not be in eval mode.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer.
        catalog ([`Catalog`]): Items.
        prompt ([`Prompt`]): How a history becomes tokens.
        trie ([`TrieCSR`]): Token paths of the items, from the same prompt.
        tau (`float`, *optional*, defaults to `1.0`): Temperature, the one that belongs to the weights.
        scoring (`str`, *optional*, defaults to `"valid"`): `"valid"`, or `"full_vocab"` for the plain log-probability.
        batch_size (`int`, *optional*, defaults to `32`): Histories searched at a time.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: "PreTrainedTokenizerBase",
        catalog: Catalog,
        prompt: "Prompt",
        trie: TrieCSR,
        tau: float = 1.0,
        scoring: str = "valid",
        batch_size: int = 32,
    ):
        super().__init__(catalog, batch_size)
        check_scoring(tau, scoring)
        vocab_size = model.get_input_embeddings().weight.shape[0]
        if trie.vocab_size > vocab_size:
            raise ValueError(
                f"`trie` holds token {trie.vocab_size - 1}, but `model` has {vocab_size} tokens. Build the trie with "
                "the model's own tokenizer, or resize the embeddings to the tokenizer."
            )
        if len(prompt) != len(catalog) or len(trie.leaf_rows) != len(catalog):
            raise ValueError(
                f"`catalog` has {len(catalog)} items, `prompt` {len(prompt)} and `trie` {len(trie.leaf_rows)}. Make "
                "the prompt and the trie from this catalog: ItemTrie.build(prompt.encode_items()).csr()."
            )
        self.model = model
        self.tokenizer = tokenizer
        self.prompt = prompt
        self.trie = trie
        self.tau = tau
        self.scoring = scoring
        self._leaf_ptr, self._leaf_rows = trie.leaf_ptr.cpu().numpy(), trie.leaf_rows.cpu().numpy()
        self._row_leaf = trie.row_leaf(len(catalog)).cpu()

    def logits_processor(self, prompt_length: int) -> TrieLogitsProcessor:
        """The processor that makes `generate()` score items as this recommender does."""
        return TrieLogitsProcessor(
            self.trie, prompt_length, self.tau, self.scoring, eos_token_id=self.tokenizer.eos_token_id
        )

    def _recommend_rows(self, histories, k, allowed, timestamps, num_beams) -> RankedRows:
        with evaluation_mode(self.model):
            found = trie_beam_search(
                self.model,
                *self._prompts(histories),
                self.trie,
                self._num_beams(k, num_beams),
                tau=self.tau,
                scoring=self.scoring,
                allowed_leaves=self._allowed_leaves(allowed),
                num_results=k,
            )
        pairs = [
            self._listed_items(*entry, k)
            for entry in zip(
                found.leaves.tolist(),
                found.scores.tolist(),
                [None] * len(histories)
                if allowed is None
                else np.broadcast_to(allowed, (len(histories), len(self.catalog))),
                strict=True,
            )
        ]
        full = np.array([len(listed) == k for listed in pairs])
        last = np.array([listed[-1][1] if len(listed) == k else -np.inf for listed in pairs])
        available = len(self.catalog) if allowed is None else allowed.sum(axis=1)
        everything = np.array([len(listed) for listed in pairs]) == available
        bound = found.pruned_bound.cpu().numpy()
        # accelerate keeps the plain forward aside where it runs a float32 model in mixed precision
        exact = self.model.dtype == torch.float32 and not hasattr(self.model, "_original_forward")
        margin = 1e-4 if exact else 2e-2
        certified = np.where(full, last >= bound + margin, everything) | everything
        return RankedRows.from_pairs(pairs, k, certified)

    def _score_rows(self, histories, candidates, timestamps) -> list[np.ndarray]:
        leaves = torch.full((len(histories), max(map(len, candidates))), -1)
        for user, rows in enumerate(candidates):
            leaves[user, : len(rows)] = self._row_leaf[rows]
        with evaluation_mode(self.model):
            input_ids, attention_mask = self._prompts(histories)
            scores = score_leaves(
                self.model,
                input_ids,
                attention_mask,
                self.trie,
                leaves.to(input_ids.device),
                tau=self.tau,
                scoring=self.scoring,
                chunk_size=max(1, _BEAMS_AT_ONCE // len(histories)),
            )
        scores = scores.cpu().numpy()
        return [scores[user, : len(rows)] for user, rows in enumerate(candidates)]

    def _cost(self, history: list[int]) -> int:
        return len(self.prompt.encode_history(history))

    def _users_at_once(self, batch_size: int, k: int, num_beams: int | None) -> int:
        size = super()._users_at_once(batch_size, k, num_beams)
        return max(1, min(size, _BEAMS_AT_ONCE // self._num_beams(k, num_beams)))

    def _num_beams(self, k: int, num_beams: int | None) -> int:
        if num_beams is None:
            num_beams = 2 * k
        elif num_beams < min(k, len(self.trie)):
            raise ValueError(f"`num_beams` must be at least `k`, {k}, got {num_beams}. Leave it out for 2 * `k`.")
        return min(num_beams, len(self.trie))

    def _prompts(self, histories: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Left-padded `input_ids` and `attention_mask` on the device of the model, where the trie goes too."""
        prompts = [self.prompt.encode_history(history) for history in histories]
        width = max(map(len, prompts))
        most = getattr(self.model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        if most is not None and width + self.trie.max_depth > most:
            raise ValueError(
                f"A prompt of {width} tokens and an item of up to {self.trie.max_depth} do not fit into the {most} "
                f"positions of the model. Make the prompt with a `max_length` of at most {most} (it is "
                f"{self.prompt.max_length})."
            )
        pad = self.tokenizer.pad_token_id or 0  # masked, so any token does
        input_ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts])
        attention_mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        device = self.model.device
        self.trie = self.trie.to(device)
        return input_ids.to(device), attention_mask.to(device)

    def _allowed_leaves(self, allowed: np.ndarray | None) -> torch.Tensor | None:
        """Leaves with at least one allowed item."""
        if allowed is None:
            return None
        leaves = np.logical_or.reduceat(allowed[:, self._leaf_rows], self._leaf_ptr[:-1], axis=1)
        return torch.from_numpy(leaves).to(self.model.device)

    def _listed_items(self, leaves, scores, allowed, k: int) -> list[tuple[int, float]]:
        """The first `k` allowed items of the leaves, with their scores."""
        listed = []
        for leaf, score in zip(leaves, scores, strict=True):
            if leaf < 0 or len(listed) >= k:
                break
            rows = self._leaf_rows[self._leaf_ptr[leaf] : self._leaf_ptr[leaf + 1]].tolist()
            listed += [(row, score) for row in rows if allowed is None or allowed[row]]
        return listed[:k]


@contextmanager
def evaluation_mode(model: nn.Module):
    """Dropout off, and every module's mode restored after."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
