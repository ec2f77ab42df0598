"""Rank the next item above K others, relative to a reference: S-DPO for recommendation."""

from functools import partial
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import Dataset
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel
from transformers.utils import logging
from trl import DPOTrainer

from hf_rec.columns import HISTORY, TARGET
from hf_rec.data.catalog import Catalog
from hf_rec.data.negatives import label_counts
from hf_rec.data.preference_collator import PreferenceCollator
from hf_rec.data.prompts.next_item import Prompt
from hf_rec.data.splits import seen_items
from hf_rec.hub import save_recommender
from hf_rec.metrics.ranking import list_bounds, metric_values
from hf_rec.recommenders.language_model import LanguageModelRecommender
from hf_rec.search.beam_search import trie_beam_search
from hf_rec.trainers.base_trainer import RecommenderTrainer
from hf_rec.trainers.softmax_dpo.config import SoftmaxDPOConfig
from hf_rec.trainers.softmax_dpo.packed_answers import PackedAnswers
from hf_rec.trainers.softmax_dpo.preference_trainer import PreferenceTrainer, padding_token
from hf_rec.trainers.softmax_dpo.rows import encode_items, row_kind, with_negatives
from hf_rec.trainers.starting_point import Items, StartingPoint, context_length, has_adapter, resolve_items
from hf_rec.trainers.trie_logits import valid_logits
from hf_rec.trie.item_trie import ItemTrie


logger = logging.get_logger(__name__)

_RANKED = 10  # places that evaluation during training measures
_RANKING_METRICS = ("hit_rate@5", "hit_rate@10", "ndcg@5", "ndcg@10", "mrr@10")


class SoftmaxDPOTrainer(RecommenderTrainer, PreferenceTrainer):
    """
    Trainer for Softmax-DPO: DPO with any number of rejected answers (S-DPO, https://huggingface.co/papers/2406.09215).
    It is not TRL's `SDPOTrainer`, which is another method.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): The policy to start from. A folder
            (or Hub id) that a trainer of hf_rec wrote brings tokenizer, catalog, prompt, trie and temperature along.
        ref_model ([`~transformers.PreTrainedModel`], *optional*): The reference; by default the policy as it is now: a
            frozen copy of its adapter, its base model where `peft_config` makes a new adapter, a second model
            otherwise. None is kept under `args.precompute_ref_log_probs`.
        args ([`SoftmaxDPOConfig`], *optional*): Arguments; the output folder is `<model name>-S-DPO` without them.
        train_dataset (`datasets.Dataset` or `IterableDataset`): Rows of one kind.
            - `{history, target}` (catalog rows), with rejected items in `rejected`, or drawn as `args` says;
            - `{prompt, chosen, rejected}` as text or messages, `rejected` one answer or a list of them;
            - `{prompt_ids, chosen_ids, rejected_ids}` as tokens, `rejected_ids` a list of lists.
            The number of rejected answers may differ from row to row; each is ranked against its own.
        eval_dataset (a data set, or a `dict` of them, *optional*): The same.
        processing_class (tokenizer, *optional*): Loaded from the model's folder where it is not given.
        catalog ([`Catalog`], *optional*), prompt ([`Prompt`], *optional*), trie ([`ItemTrie`], *optional*): Items, for
            item rows and for `scoring="valid"`. Prompt and trie are made from the catalog where they are not given.
        compute_metrics (*optional*): Sees `predictions [U, 1 + K]`, the rewards with the chosen one first (`-inf`
            where a row has fewer), and `label_ids [U]`, all 0.
        callbacks, optimizers, quantization_config, peft_config (*optional*): As in [`~trl.DPOTrainer`].
    """

    loss_is_scaled_for_ga = False  # a mean over rows, all of which weigh the same

    def __init__(
        self,
        model: str | PreTrainedModel,
        ref_model: PreTrainedModel | None = None,
        args: SoftmaxDPOConfig | None = None,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        catalog: Catalog | None = None,
        prompt: Prompt | None = None,
        trie: ItemTrie | None = None,
        compute_metrics=None,
        callbacks=None,
        optimizers=(None, None),
        quantization_config=None,
        peft_config=None,
    ):
        name, start = model if isinstance(model, str) else model.config.name_or_path, None
        args = args if args is not None else SoftmaxDPOConfig(f"{Path(name).name or type(model).__name__}-S-DPO")
        if isinstance(model, str):
            start = StartingPoint.find(model, (args.model_init_kwargs or {}).get("revision"))
            if start is not None and has_adapter(start.folder):
                model = str(start.folder)
        if processing_class is None:
            processing_class = (
                AutoTokenizer.from_pretrained(name, trust_remote_code=False) if start is None else start.tokenizer
            )
        settings = {"form": args.prompt_form, "max_length": args.max_length or 512, "max_history": args.max_history}
        items = resolve_items(start, processing_class, catalog, prompt, trie, **settings)
        self._set_items(items, args, context_length(model))
        self.tau = args.tau or (1.0 if start is None else start.tau)
        super().__init__(
            model=model,
            ref_model=ref_model,
            args=args,
            data_collator=PreferenceCollator(
                pad_token_id=padding_token(processing_class),
                trie=self.items.trie.csr() if args.scoring == "valid" else None,
                in_batch=args.negatives == "in_batch",
            ),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            quantization_config=quantization_config,
            peft_config=peft_config,
        )

    def _set_items(self, items: Items, args: SoftmaxDPOConfig, context: int | None) -> None:
        if items.trie is None and args.scoring == "valid":
            raise ValueError(
                "`scoring='valid'` needs `catalog` (or `trie`), or a `model` folder that a trainer of hf_rec wrote. "
                "For text rows without items use `scoring='full_vocab'`."
            )
        if items.prompt is not None and context is not None and items.prompt.max_length > context:
            raise ValueError(
                f"Prompt and answer may take {items.prompt.max_length} tokens, but the model has {context} positions. "
                "Lower `max_length`, here or where `prompt` is made."
            )
        if items.prompt is not None and args.max_length is not None and items.prompt.max_length > args.max_length:
            logger.warning(
                f"Prompts of items may take {items.prompt.max_length} tokens, as they do where the prompt comes from; "
                f"`max_length` {args.max_length} is for text rows."
            )
        self.items = items
        self.csr = None if items.trie is None else items.trie.csr().to(args.device)
        self.answer_trie = items.trie if args.scoring == "valid" else None
        self._counts = self._warm = None

    def recommender(self) -> LanguageModelRecommender:
        """The model as it is now, under the contract of `recommend` and `score`."""
        if self.items.prompt is None:
            raise ValueError("A recommender needs the items: give the trainer a `catalog`.")
        return LanguageModelRecommender(
            self.accelerator.unwrap_model(self.model),
            self.processing_class,
            self.items.catalog,
            self.items.prompt,
            self.csr,
            tau=self.tau,
            scoring=self.args.scoring,
        )

    # Data

    def _prepare_dataset(self, dataset, processing_class, args: SoftmaxDPOConfig, dataset_name: str):
        if row_kind(dataset.column_names or list(next(iter(dataset)))) == "items":
            if self.items.prompt is None:
                raise ValueError(f"Rows with `{HISTORY}` and `{TARGET}` need `catalog`, whose rows they are.")
            num_items, is_train = len(self.items.catalog), dataset_name == "train"
            leaf_of_row = self.items.trie.csr().row_leaf(num_items)
            with PartialState().main_process_first():
                if is_train and isinstance(dataset, Dataset):
                    self._counts = label_counts(dataset, num_items)
                    self._warm = torch.zeros(len(self.csr) + 1, dtype=torch.bool)  # the last for what is no item
                    self._warm[leaf_of_row[sorted(seen_items(dataset))]] = True
                dataset = with_negatives(dataset, args, leaf_of_row.numpy(), self._counts, is_train)
        return super()._prepare_dataset(dataset, processing_class, args, dataset_name)

    def _encoder(self, kind: str, processing_class):
        if kind == "items":
            return partial(encode_items, prompt=self.items.prompt)
        return super()._encoder(kind, processing_class)

    def _cache_key(self, args: SoftmaxDPOConfig) -> tuple:
        return (*super()._cache_key(args), *self.items.hashes, args.scoring)

    # Loss

    def _token_losses(self, model, head, batch: PackedAnswers, packed: bool):
        if self.args.scoring == "full_vocab":
            return super()._token_losses(model, head, batch, packed)
        tokens = batch.tokens(self.csr)
        model_inputs, labelled = self._model_inputs(model, batch, tokens, packed)
        return tokens, valid_logits(model, head, model_inputs, labelled, self.csr).losses(self.tau) / self.tau

    def _note_targets(self, losses: Tensor, nll: Tensor, batch: PackedAnswers) -> None:
        """Also this and the loss of those among the chosen items that occur in training."""
        noted = {"nll": nll}
        if self._warm is not None:
            warm = self._warm.to(nll.device)[batch.chosen_leaves(self.csr)]
            noted |= {"nll_warm": nll.masked_fill(~warm, torch.nan), "loss_warm": losses.masked_fill(~warm, torch.nan)}
        self._note("eval", noted)

    # Evaluation

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Loss and rewards and, with `eval_num_beams`, where the constrained ranking puts the chosen item."""
        inputs = self._prepare_inputs(inputs)
        if self.items.prompt is not None and self.args.eval_num_beams != 0:
            with torch.no_grad(), self.compute_loss_context_manager():
                self._note_ranks(model, PackedAnswers.from_batch(inputs))
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)

    def _note_ranks(self, model: nn.Module, batch: PackedAnswers) -> None:
        found = trie_beam_search(
            self.accelerator.unwrap_model(model),
            *batch.prompts(),
            self.csr,
            num_beams=max(self.args.eval_num_beams or 2 * _RANKED, _RANKED),
            tau=self.tau,
            scoring=self.args.scoring,
        )
        leaves, scores = found.leaves[:, :_RANKED].tolist(), found.scores[:, :_RANKED].cpu().numpy()
        places = list_bounds(leaves, scores, batch.chosen_leaves(self.csr).tolist())
        metrics = {name: torch.from_numpy(metric_values(*places, name)).float() for name in _RANKING_METRICS}
        self._note("eval", {name: values.to(found.scores.device) for name, values in metrics.items()})

    # Files

    def save_recommender_files(self, output_dir: str) -> None:
        """Where there are items: catalog, trie, prompt, tokenizer and temperature."""
        if self.items.prompt is not None:
            save_recommender(
                output_dir,
                catalog=self.items.catalog,
                prompt=self.items.prompt,
                trie=self.items.trie,
                tau=self.tau,
                scoring=self.args.scoring,
                kind="language_model",
                tokenizer=self.processing_class,
            )

    def create_model_card(self, *args, **kwargs) -> None:
        """The card of a recommender is one of its files."""
        if self.items.prompt is None:
            DPOTrainer.create_model_card(self, *args, **kwargs)
