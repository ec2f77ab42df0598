"""What the trainer of Softmax-DPO does with its rows before they are batches: negatives, tokens, counts."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import numpy as np
from accelerate import PartialState
from datasets import Dataset, IterableDataset
from datasets.fingerprint import Hasher
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hf_rec.columns import HISTORY, TARGET
from hf_rec.data.negatives import label_counts
from hf_rec.data.preference_collator import (
    CHOSEN_IDS,
    PROMPT_IDS,
    REF_CHOSEN,
    REF_REJECTED,
    REJECTED_IDS,
    WEIGHT,
    PreferenceCollator,
)
from hf_rec.data.prompts.next_item import Prompt
from hf_rec.models.language.positions import num_positions
from hf_rec.trainers.item_rows import check_catalog_rows, warm_leaves
from hf_rec.trainers.language_trainer import LanguageTrainer
from hf_rec.trainers.softmax_dpo.config import SoftmaxDPOConfig
from hf_rec.trainers.softmax_dpo.rows import (
    encode_items,
    encode_text,
    most_rejected,
    row_kind,
    tokenised,
    with_negatives,
)
from hf_rec.trainers.starting_point import StartingPoint, padding_token
from hf_rec.trainers.stored_lists import StoredLists
from hf_rec.trie.item_trie import ItemTrie


class PreferenceRows(LanguageTrainer):
    """The part of [`SoftmaxDPOTrainer`] that makes token rows of all kinds of rows."""

    _before_rows: ExitStack  # what has to end before the rows are made
    _own_lists: StoredLists | None
    _answer_trie: ItemTrie | None
    _counts: np.ndarray | None = None  # how often each item was chosen in training
    _warm: Tensor | None = None  # which leaves were
    _awaits_training_rows = True

    def take_row_settings(self, start: StartingPoint, args: SoftmaxDPOConfig) -> None:
        """Keep what the making of rows depends on, once the items are known."""
        self._answer_trie = start.trie if args.scoring == "valid" else None
        limits = [length for length in (args.max_length, num_positions(start.model.config)) if length is not None]
        # The rows of a process are one another's negatives: with blank ones there would be others than without
        self._fills_with_blanks = args.negatives != "in_batch"
        self._max_length = min(limits, default=None)  # of a prompt with one answer
        self._collator = PreferenceCollator(
            pad_token_id=padding_token(start.tokenizer),
            trie=None if self._answer_trie is None else self._answer_trie.csr(),
            in_batch=args.negatives == "in_batch",
        )

    def _prepare_dataset(
        self,
        dataset: Dataset | IterableDataset,
        processing_class: PreTrainedTokenizerBase,
        args: SoftmaxDPOConfig,
        dataset_name: str,
    ) -> Dataset | IterableDataset:
        self._before_rows.close()
        is_train, self._awaits_training_rows = self._awaits_training_rows, False  # `dataset_name` may be a user's
        kind = row_kind(dataset.column_names or list(next(iter(dataset))))
        encode: Callable[[dict], dict] = dict
        if kind == "items":
            encode = partial(encode_items, prompt=self._known_prompt())
        elif kind == "text":
            encode = partial(encode_text, processing_class=processing_class)
        settings = (Hasher.hash(processing_class), self._max_length, self.tau, args.scoring)
        hashes = [part and part.sha256 for part in (self.catalog, self.prompt, self.trie)]
        with PartialState().main_process_first():
            if kind == "items":
                dataset = self._with_negatives(dataset, args, is_train)
            dataset = tokenised(
                dataset,
                kind,
                encode,
                may_lack_rejected=args.negatives == "in_batch",
                max_length=self._max_length,
                settings=(*settings, *hashes),  # what tokens and cached log-probabilities of the reference depend on
                trie=self._answer_trie,
                keeps_history=args.seen == "mask" and not is_train,
                num_proc=args.dataset_num_proc,
            )
        if isinstance(dataset, Dataset):
            self._collator.num_rejected = max(self._collator.num_rejected, most_rejected(dataset))
        return dataset

    def _with_negatives(
        self, dataset: Dataset | IterableDataset, args: SoftmaxDPOConfig, is_train: bool
    ) -> Dataset | IterableDataset:
        num_items = len(self._known_prompt())
        check_catalog_rows(dataset, num_items)
        if is_train and isinstance(dataset, Dataset):
            self._counts = label_counts(dataset, num_items)
            self._warm = warm_leaves(dataset, self.csr, num_items)
        assert self.csr is not None  # where there is a prompt, there is a trie
        leaf_of_row = self.csr.row_leaf(num_items).cpu().numpy()
        lists = None if self._own_lists is None else self._own_lists.lists
        return with_negatives(dataset, args, leaf_of_row, self._counts, is_train, lists)

    def _known_prompt(self) -> Prompt:
        if self.prompt is None:
            raise ValueError(f"Rows with `{HISTORY}` and `{TARGET}` need `catalog`, whose rows they are.")
        return self.prompt

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = [PROMPT_IDS, CHOSEN_IDS, REJECTED_IDS, REF_CHOSEN, REF_REJECTED, WEIGHT, HISTORY]
