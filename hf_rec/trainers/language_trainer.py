"""
What the trainers of language models share: the items, the recommender and its files, the ranking in evaluation.

Shapes: U users · P tokens of the longest prompt.
"""

from typing import Any

import torch
from torch import Tensor, nn

from hf_rec.data.catalog import Catalog
from hf_rec.data.prompts.next_item import Prompt
from hf_rec.hub import save_recommender
from hf_rec.recommenders.language_model import LanguageModelRecommender
from hf_rec.search.beam_search import trie_beam_search
from hf_rec.search.cache_probe import check_searchable
from hf_rec.trainers.base_trainer import RecommenderTrainer
from hf_rec.trainers.language_config import LanguageConfig
from hf_rec.trainers.seen_leaves import forbidding
from hf_rec.trainers.starting_point import StartingPoint
from hf_rec.trie.csr import TrieCSR
from hf_rec.trie.item_trie import ItemTrie


RANKED = 10  # places that evaluation during training measures


class LanguageTrainer(RecommenderTrainer):
    """
    The part of [`MSLTrainer`] and [`SoftmaxDPOTrainer`] that knows items.

    Attributes:
        catalog ([`Catalog`]), prompt ([`Prompt`]), trie ([`ItemTrie`]): The items; `None` where there are none.
        csr ([`TrieCSR`]): The trie on the device of the model.
    """

    catalog: Catalog | None
    prompt: Prompt | None
    trie: ItemTrie | None
    csr: TrieCSR | None
    data_collator: Any

    def take_items(self, start: StartingPoint, args: LanguageConfig) -> None:
        """Keep the items of a starting point."""
        self.catalog, self.prompt, self.trie = start.catalog, start.prompt, start.trie
        self.csr = None if start.trie is None else start.trie.csr().to(args.device)

    @property
    def tau(self) -> float:
        """The temperature in force: that of the next training step, of evaluation, and of a folder saved now."""
        raise NotImplementedError(f"{type(self).__name__} must define tau.")

    def recommender(self) -> LanguageModelRecommender:
        """The model as it is now, under the contract of `recommend` and `score`; sharded, within `whole_weights()`."""
        if self.catalog is None or self.prompt is None or self.csr is None:
            raise ValueError("A recommender needs the items: give the trainer a `catalog`.")
        return LanguageModelRecommender(
            self.accelerator.unwrap_model(self.model),
            self.processing_class,
            self.catalog,
            self.prompt,
            self.csr,
            tau=self.tau,
            scoring=self.args.scoring,
        )

    def save_recommender_files(self, output_dir: str) -> None:
        """Where there are items: catalog, trie, prompt, tokenizer and the temperature of these very weights."""
        if self.catalog is not None:
            save_recommender(
                output_dir,
                catalog=self.catalog,
                prompt=self.prompt,
                trie=self.trie,
                tau=self.tau,
                scoring=self.args.scoring,
                kind="language_model",
                tokenizer=self.processing_class,
                trained=self.accelerator.unwrap_model(self.model),
            )

    @property
    def num_beams(self) -> int:
        """Beams of the ranking in evaluation; 0 for no ranking."""
        if self.args.eval_num_beams == 0:
            return 0
        return max(self.args.eval_num_beams or 2 * RANKED, RANKED)

    def check_search(self) -> None:
        """Refuse, before the first step, a model that evaluation could not search."""
        sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled  # weights are not whole yet
        if self.eval_dataset is not None and self.csr is not None and self.num_beams and not sharded:
            check_searchable(self.accelerator.unwrap_model(self.model), self.csr)

    def rank_prompts(
        self, model: nn.Module, input_ids: Tensor, attention_mask: Tensor, seen_leaves: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """
        The best leaves behind each prompt.

        Args:
            model (`torch.nn.Module`): The causal LM as the trainer calls it, wrapped or not.
            input_ids, attention_mask (`torch.Tensor` of shape `(U, P)`): Left-padded prompts.
            seen_leaves (`torch.LongTensor` of shape `(U, H)`, *optional*): Leaves not to be found, -1 for none.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: Leaves and scores of shape `(U, 10)`, best first; -1 and `-inf` where
            there are fewer.
        """
        assert self.csr is not None  # a ranking needs items
        found = trie_beam_search(
            self.accelerator.unwrap_model(model),
            input_ids,
            attention_mask,
            self.csr,
            num_beams=self.num_beams,
            tau=self.tau,
            scoring=self.args.scoring,
            allowed_leaves=None if seen_leaves is None else forbidding(seen_leaves, len(self.csr)),
            num_results=RANKED,
        )
        leaves = torch.full((len(input_ids), RANKED), -1, device=found.leaves.device)
        scores = torch.full((len(input_ids), RANKED), -torch.inf, device=found.leaves.device)
        width = min(RANKED, found.leaves.shape[1])
        leaves[:, :width], scores[:, :width] = found.leaves[:, :width], found.scores[:, :width]
        return leaves, scores

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The card is one of the recommender files, written with every save."""
