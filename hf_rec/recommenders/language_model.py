"""
Language models under the contract: the search over the item trie, its certificate, and its scores as item lists.

Shapes: U users · k places of a list · N items of the catalog · L leaves of the trie.
"""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from hf_rec.data.catalog import Catalog
from hf_rec.data.collators import left_padded, right_padded
from hf_rec.models.evaluation_mode import evaluation_mode
from hf_rec.models.language.item_tokens import ItemTokens, check_item_tokens
from hf_rec.recommenders.allowed_items import AllowedItems
from hf_rec.recommenders.contract import (
    ItemLists,
    RankedRows,
    RawId,
    Recommendations,
    Recommender,
    Times,
    default_num_beams,
)
from hf_rec.search.beam_search import score_leaves, trie_beam_search
from hf_rec.search.found_leaves import SearchResult
from hf_rec.search.leaf_filter import LeafFilter
from hf_rec.search.logits_process import TrieLogitsProcessor, check_scoring
from hf_rec.search.model_inputs import base_model, decoder_start_token, is_encoder_decoder
from hf_rec.search.priors import ItemPrior, TriePrior
from hf_rec.trie.csr import TrieCSR
from hf_rec.trie.item_trie import ItemTrie


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hf_rec.data.prompts.next_item import Prompt

_MARGINS = {  # rounding of hidden states and, under "full_vocab", of logits
    torch.float32: {"valid": 1e-4, "full_vocab": 1e-4},
    torch.float16: {"valid": 2e-2, "full_vocab": 1e-1},
    torch.bfloat16: {"valid": 1e-1, "full_vocab": 5e-1},
}
_BEAMS_AT_ONCE = 4096  # of all users in one search; bounds its memory when `k` is large


class LanguageModelRecommender(Recommender):
    """
    A causal LM or an encoder-decoder model that writes the next item, searched over the item trie.

    The score of an item is `log P_valid`: the log-probability of its token path where each token competes with the
    other children of its trie node, at temperature `tau` (https://huggingface.co/papers/2504.04178). Items with the
    same token path share it and are listed in row order.

    A list is certified where its last score beats the bound of everything the search gave up by more than rounding:
    1e-4 nats in float32, .02 in float16 and .1 in bfloat16 (.1 and .5 under `scoring="full_vocab"`, where whole rows
    of logits are rounded too). It is then the top k of the scores that this model computes, those of `score`. Half
    precision also rounds the scores themselves: the order of items whose scores are near may not be that of the same
    weights in float64.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): Causal LM, or an encoder-decoder model such
            as T5, which reads the prompt in its encoder. It need not be in eval mode.
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
        check_item_tokens(ItemTokens.of(model), prompt.item_token_start, prompt.user_token)
        self.has_encoder = is_encoder_decoder(model)
        if self.has_encoder:
            decoder_start_token(base_model(model).config)  # is there
        self.model = model
        self.tokenizer = tokenizer
        self.prompt = prompt
        self.trie = trie
        self.tau = tau
        self.scoring = scoring
        self._leaf_ptr, self._leaf_rows = trie.leaf_ptr.cpu().numpy(), trie.leaf_rows.cpu().numpy()
        self._leaf_sizes = np.diff(self._leaf_ptr)
        self._row_leaf = trie.row_leaf(len(catalog)).cpu().numpy()

    def with_catalog(self, catalog: Catalog) -> "LanguageModelRecommender":
        """
        The same model over other items, without training: it writes what they are called.

        Args:
            catalog ([`Catalog`]): The items to recommend; also those that histories may hold.

        Raises:
            `ValueError`: See [`~hf_rec.Prompt.with_catalog`].
        """
        prompt = self.prompt.with_catalog(self.tokenizer, catalog)
        trie = ItemTrie.from_flat(*prompt.item_paths).csr()
        return LanguageModelRecommender(
            self.model, self.tokenizer, catalog, prompt, trie, self.tau, self.scoring, self.batch_size
        )

    def logits_processor(self, prompt_length: int) -> TrieLogitsProcessor:
        """
        The processor that makes `generate()` score items as this recommender does.

        Args:
            prompt_length (`int`): As of [`TrieLogitsProcessor`]; 1 for an encoder-decoder model, whose decoder reads
                one token before the item, however long the prompt in the encoder is.
        """
        if self.has_encoder and prompt_length != 1:
            raise ValueError(
                f"`prompt_length` must be 1 for an encoder-decoder model, got {prompt_length}: its decoder reads one "
                "token before the item, and the prompt stands in the encoder."
            )
        return TrieLogitsProcessor(
            self.trie, prompt_length, self.tau, self.scoring, eos_token_id=self.tokenizer.eos_token_id
        )

    def recommend(
        self,
        histories: Sequence[Sequence[RawId]],
        k: int = 10,
        exclude: ItemLists | None = None,
        allow: ItemLists | None = None,
        timestamps: Times | None = None,
        num_beams: int | None = None,
        batch_size: int | None = None,
        priors: "Mapping[Recommender | str | os.PathLike, float] | None" = None,
    ) -> Recommendations:
        """
        The best next items for each history; see [`Recommender.recommend`].

        Args:
            histories, k, exclude, allow, timestamps, num_beams, batch_size: As there.
            priors (`dict`, *optional*): Other recommenders over the same catalog, or their folders, and what the log
                of their probabilities is multiplied by before it is added to the score; negative weights hold it
                against an item. See [`~hf_rec.recommenders.fused.FusedRecommender`], which this is for one call. A
                folder is loaded at each call; give the recommender itself to load it once.
        """
        if priors is None:
            return super().recommend(histories, k, exclude, allow, timestamps, num_beams, batch_size)
        from hf_rec.recommenders.folders import load
        from hf_rec.recommenders.fused import FusedRecommender

        parts = [prior if isinstance(prior, Recommender) else load(prior, self.model.device) for prior in priors]
        fused = FusedRecommender([self, *parts], [1.0, *priors.values()])
        return fused.recommend(histories, k, exclude, allow, timestamps, num_beams, batch_size)

    def _recommend_rows(
        self,
        histories: list[list[int]],
        k: int,
        allowed: AllowedItems | None,
        timestamps: Times | None,
        num_beams: int | None,
    ) -> RankedRows:
        return self.search_rows(histories, k, allowed, num_beams)

    def search_rows(
        self,
        histories: list[list[int]],
        k: int,
        allowed: AllowedItems | None,
        num_beams: int | None,
        prior: ItemPrior | None = None,
    ) -> RankedRows:
        """
        The lists of a batch, in catalog rows.

        Args:
            histories, k, allowed, num_beams: As `recommend` has them, in catalog rows.
            prior ([`ItemPrior`], *optional*): What is added to the scores. It gives `-inf` to what is not allowed.
        """
        found = self.search(histories, k, allowed, num_beams, prior)
        listed = zip(found.leaves.tolist(), found.scores.tolist(), strict=True)
        if prior is None:
            pairs = [self._listed_items(user, *entry, allowed, k) for user, entry in enumerate(listed)]
        else:
            values = prior.items.cpu().numpy()
            pairs = [self._items_by_prior(*entry, values[user], k) for user, entry in enumerate(listed)]
        lengths = np.array(list(map(len, pairs)))
        last = np.array([listed[-1][1] if len(listed) == k else -np.inf for listed in pairs])
        everything = lengths == [len(self.catalog) if allowed is None else allowed.count(u) for u in range(len(pairs))]
        nan_scores = found.nan_scores.cpu().numpy()
        margin = rounding_margin(self.model, self.scoring)
        bound = found.pruned_bound.cpu().numpy() + (
            margin if prior is None else (margin * prior.weight + prior.margin).cpu().numpy()
        )
        certified = (((lengths == k) & (last >= bound)) | everything) & (nan_scores == 0)
        return RankedRows.from_pairs(pairs, k, certified, nan_scores)

    def search(
        self,
        histories: list[list[int]],
        k: int,
        allowed: AllowedItems | None,
        num_beams: int | None,
        prior: ItemPrior | None = None,
    ) -> SearchResult:
        """The leaves that [`~LanguageModelRecommender.search_rows`] makes its lists from, and their certificate."""
        with evaluation_mode(self.model):
            input_ids, attention_mask = self.prompt_tokens(histories)
            of_trie = None
            if prior is not None:  # which also says what is allowed
                of_trie, allowed = TriePrior.below_nodes(prior.to(input_ids.device), self.trie), None
            return trie_beam_search(
                self.model,
                input_ids,
                attention_mask,
                self.trie,
                self._num_beams(k, num_beams),
                tau=self.tau,
                scoring=self.scoring,
                allowed_leaves=None if allowed is None else self._allowed_leaves(allowed),
                num_results=k,
                prior=of_trie,
            )

    def _score_rows(
        self, histories: list[list[int]], candidates: list[list[int]], timestamps: Times | None
    ) -> list[np.ndarray]:
        leaves = torch.full((len(histories), max(map(len, candidates))), -1)
        for user, rows in enumerate(candidates):
            leaves[user, : len(rows)] = torch.from_numpy(self._row_leaf[rows])
        with evaluation_mode(self.model):
            input_ids, attention_mask = self.prompt_tokens(histories)
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
        values = scores.cpu().numpy()
        return [values[user, : len(rows)] for user, rows in enumerate(candidates)]

    def _cost(self, history: list[int]) -> int:
        return self.prompt.count_tokens(history)

    def _users_at_once(self, batch_size: int | None, k: int, num_beams: int | None) -> int:
        size = super()._users_at_once(batch_size, k, num_beams)
        return max(1, min(size, _BEAMS_AT_ONCE // self._num_beams(k, num_beams)))

    def _num_beams(self, k: int, num_beams: int | None) -> int:
        if num_beams is None:
            num_beams = default_num_beams(k)
        elif num_beams < min(k, len(self.trie)):
            raise ValueError(
                f"`num_beams` must be at least `k`, {k}, got {num_beams}. Leave it out for {default_num_beams(k)}."
            )
        return min(num_beams, len(self.trie))

    def prompt_tokens(self, histories: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """
        `input_ids` and `attention_mask` on the device of the model, where the trie goes too: padded on the left, or on
        the right for an encoder, as in training.
        """
        prompts = [self.prompt.encode_history(history) for history in histories]
        self._check_room(max(map(len, prompts)))
        padded = right_padded if self.has_encoder else left_padded
        input_ids, attention_mask = padded(prompts, self.tokenizer.pad_token_id or 0)  # masked, so any token does
        device = self.model.device
        self.trie = self.trie.to(device)
        return input_ids.to(device), attention_mask.to(device)

    def _check_room(self, width: int) -> None:
        """Refuse prompts that the model has no positions for."""
        most = getattr(self.model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        needed = max(width, 1 + self.trie.max_depth) if self.has_encoder else width + self.trie.max_depth
        if most is not None and needed > most:
            raise ValueError(
                f"A prompt of {width} tokens and an item of up to {self.trie.max_depth} do not fit into the {most} "
                f"positions of the model. Make the prompt with a `max_length` of at most {most} (it is "
                f"{self.prompt.max_length})."
            )

    def _allowed_leaves(self, allowed: AllowedItems) -> LeafFilter:
        """A leaf is allowed where one of its items is."""
        lists = []
        for rows in allowed.lists:
            leaves, counts = np.unique(self._row_leaf[rows], return_counts=True)
            lists.append(leaves if allowed.are_allowed else leaves[counts == self._leaf_sizes[leaves]])
        return LeafFilter.from_lists(lists, len(self.trie), allowed.are_allowed, self.model.device)

    def _listed_items(
        self, user: int, leaves: list[int], scores: list[float], allowed: AllowedItems | None, k: int
    ) -> list[tuple[int, float]]:
        """The first `k` allowed items of the leaves, with their scores."""
        listed: list[tuple[int, float]] = []
        for leaf, score in zip(leaves, scores, strict=True):
            if leaf < 0 or len(listed) >= k:
                break
            rows = self._leaf_rows[self._leaf_ptr[leaf] : self._leaf_ptr[leaf + 1]]
            if allowed is not None and len(rows) > 1:
                rows = rows[allowed.has(user, rows)]
            listed += [(row, score) for row in rows.tolist()]
        return listed[:k]

    def _items_by_prior(
        self, leaves: list[int], scores: list[float], prior: np.ndarray, k: int
    ) -> list[tuple[int, float]]:
        """
        The `k` best items of the `k` best leaves. The score of a leaf is that of its best item, and the items of a
        leaf differ in their prior, `(N,)`, alone; equal ones come in row order.
        """
        kept = np.array(leaves[:k])[np.array(leaves[:k]) >= 0]
        if not len(kept):
            return []
        sizes = self._leaf_sizes[kept]
        starts = sizes.cumsum() - sizes
        rows = self._leaf_rows[np.arange(sizes.sum()) + np.repeat(self._leaf_ptr[kept] - starts, sizes)]
        behind = prior[rows] - np.repeat(np.maximum.reduceat(prior[rows], starts), sizes)
        values = np.repeat(np.array(scores[: len(kept)], dtype=np.float32), sizes) + behind
        order = np.lexsort((rows, -values))[:k]
        return [(int(rows[place]), float(values[place])) for place in order if values[place] > -np.inf]


def rounding_margin(model: nn.Module, scoring: str) -> float:
    """
    Nats that the score of an item may differ by, when its beams share a batch with others.

    Logits of chosen columns are float32 whatever the model is; under `"full_vocab"` whole rows of them are rounded to
    the type of the model.
    """
    # accelerate keeps the plain forward aside where it runs a float32 model in mixed precision
    dtype = torch.bfloat16 if hasattr(model, "_original_forward") else base_model(model).dtype
    if torch.is_autocast_enabled(base_model(model).device.type):
        dtype = torch.get_autocast_dtype(base_model(model).device.type)
    return _MARGINS.get(dtype, _MARGINS[torch.bfloat16])[scoring]
