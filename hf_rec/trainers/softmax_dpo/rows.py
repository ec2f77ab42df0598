"""
Preference rows of every kind, tokenised: `prompt_ids`, `chosen_ids`, and `rejected_ids`, a list of K token lists.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, IterableDataset
from datasets.fingerprint import Hasher
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging
from trl.data_utils import _tokenize, common_prefix_length, extract_prompt, is_conversational

from hf_rec.columns import CHOSEN, HISTORY, REJECTED, TARGET, column_values
from hf_rec.data.negatives import (
    ListedNegatives,
    NegativeSource,
    PopularityNegatives,
    RankedNegatives,
    UniformNegatives,
    add_negatives,
)
from hf_rec.data.preference_collator import CHOSEN_IDS, PROMPT_IDS, REJECTED_IDS
from hf_rec.data.prompts.next_item import Prompt
from hf_rec.trainers.softmax_dpo.config import SoftmaxDPOConfig
from hf_rec.trie.item_trie import ItemTrie


logger = logging.get_logger(__name__)

TEXT_PROMPT = "prompt"


def row_kind(columns: list[str]) -> str:
    """
    What the columns of a data set say about its rows.

    Returns:
        `str`: `"tokens"` (`prompt_ids`, `chosen_ids`, `rejected_ids`), `"items"` (`history`, `target`) or `"text"`
        (`chosen`, `rejected`, and `prompt` unless it is to be taken from the two).
    """
    for kind, wanted in {
        "tokens": {PROMPT_IDS, CHOSEN_IDS, REJECTED_IDS},
        "items": {HISTORY, TARGET},
        "text": {CHOSEN, REJECTED},
    }.items():
        if wanted <= set(columns):
            return kind
    raise ValueError(
        f"The data set needs the columns `{HISTORY}` and `{TARGET}` (catalog rows; `{REJECTED}` where negatives are "
        f"given), or `{TEXT_PROMPT}`, `{CHOSEN}` and `{REJECTED}` (text or messages), or `{PROMPT_IDS}`, "
        f"`{CHOSEN_IDS}` and `{REJECTED_IDS}`; it has {sorted(columns)}."
    )


def encode_items(row: dict, prompt: Prompt) -> dict[str, list]:
    """An item row: the target is chosen, the items of `rejected` (none where the column is missing) are rejected."""
    return {
        PROMPT_IDS: prompt.encode_history(row[HISTORY]),
        CHOSEN_IDS: prompt.encode_item(row[TARGET]),
        REJECTED_IDS: [prompt.encode_item(item) for item in row.get(REJECTED) or ()],
    }


def encode_text(row: dict, processing_class: PreTrainedTokenizerBase) -> dict[str, list[int] | list[list[int]]]:
    """
    A row of text or messages, tokenised as [`~trl.DPOTrainer`] does; `rejected` may be one answer or a list of them.
    """
    if TEXT_PROMPT not in row:
        if _is_list_of_answers(row[REJECTED]):
            raise ValueError(f"Rows with a list of `{REJECTED}` answers need the column `{TEXT_PROMPT}`.")
        row = row | extract_prompt(row)
    prompt, answers = row[TEXT_PROMPT], [row[CHOSEN], *_as_list(row[REJECTED])]
    options = {}
    if is_conversational({TEXT_PROMPT: prompt}):
        tools = row.get("tools")
        tools = json.loads(tools) if isinstance(tools, str) else tools
        options = {"tools": tools, **(row.get("chat_template_kwargs") or {})}
        prompt_ids = _tokenize(processing_class, prompt, add_generation_prompt=True, **options)["input_ids"]
    else:
        eos = processing_class.eos_token or ""
        answers = [answer if answer.endswith(eos) else answer + eos for answer in answers]
        prompt_ids = _tokenize(processing_class, prompt)["input_ids"]
    whole = [_tokenize(processing_class, prompt + answer, **options)["input_ids"] for answer in answers]
    # Tokens may merge over the end of the prompt, so the answers begin where one of them departs from it
    length = min(common_prefix_length(prompt_ids, ids) for ids in whole)
    chosen_ids, *rejected_ids = [ids[length:] for ids in whole]
    return {PROMPT_IDS: prompt_ids[:length], CHOSEN_IDS: chosen_ids, REJECTED_IDS: rejected_ids}


def with_negatives(
    dataset: Dataset | IterableDataset,
    args: SoftmaxDPOConfig,
    same_answer: np.ndarray,
    counts: np.ndarray | None,
    is_train: bool,
    own_lists: Sequence[Sequence[int]] | None = None,
) -> Dataset | IterableDataset:
    """
    Item rows with the column `rejected`, drawn as the arguments say where it is missing.

    Args:
        dataset: Rows `{history, target}`.
        args ([`SoftmaxDPOConfig`]): `negatives`, `num_negatives`, `ranked_lists`, `seed`.
        same_answer (`np.ndarray` of shape `(N,)`): As of [`~hf_rec.data.negatives.add_negatives`].
        counts (`np.ndarray` of shape `(N,)`, *optional*): How often each item was chosen in training.
        is_train (`bool`): Evaluation rows get random negatives in place of `"hard"`, `"in_batch"` and `"own_lists"`.
        own_lists (`Sequence[Sequence[int]]`, *optional*): For `"own_lists"`: the model's list for each training row.
    """
    columns = dataset.column_names or list(next(iter(dataset)))
    if REJECTED in columns or (args.negatives == "in_batch" and is_train):
        return dataset
    source: NegativeSource = UniformNegatives(len(same_answer))
    seed: int | tuple[int, int] = args.seed
    if own_lists is not None and is_train:
        source, seed = ListedNegatives(own_lists), (args.seed, args.self_play_round)
    if args.negatives == "hard" and args.ranked_lists is not None and is_train:
        source = RankedNegatives.from_file(args.ranked_lists, dataset, len(same_answer))
    if args.negatives == "popularity":
        if counts is None:
            raise ValueError(
                "`negatives='popularity'` needs a `train_dataset` that can be counted: a `datasets.Dataset` of item "
                "rows. Give negatives in the column `rejected`, or use 'random'."
            )
        source = PopularityNegatives(counts)
    drawn = add_negatives(
        dataset,
        source,
        args.num_negatives,
        same_answer=same_answer,
        seed=seed,
        num_proc=args.dataset_num_proc,
    )
    if isinstance(source, ListedNegatives):
        _warn_of_short_lists(drawn, source, args.num_negatives)
    return drawn


def _warn_of_short_lists(dataset: Dataset, source: ListedNegatives, num_negatives: int) -> None:
    rejected = column_values(dataset, REJECTED).to_pylist()
    drawn = sum(items[0] not in own for items, own in zip(rejected, source.lists, strict=True))
    if drawn:
        logger.warning(
            f"{drawn} of {len(dataset)} rows have lists with nothing beside target and history. They get negatives "
            "drawn from the catalog."
        )
    few = sum(len(items) < num_negatives for items in rejected)
    if few:
        logger.warning(
            f"{few} of {len(dataset)} rows have fewer than {num_negatives} negatives: their lists hold no more beside "
            "target and history. They are ranked against those."
        )


def tokenised(
    dataset: Dataset | IterableDataset,
    kind: str,
    encode: Callable[[dict], dict],
    *,
    may_lack_rejected: bool,
    max_length: int | None,
    settings: tuple,
    trie: ItemTrie | None = None,
    keeps_history: bool = False,
    num_proc: int | None = None,
) -> Dataset | IterableDataset:
    """
    Tokenise and check all rows; of text and token rows, drop those that do not fit.

    Args:
        dataset: Rows.
        kind (`str`): As [`row_kind`] says.
        encode (`Callable`): Row to token row.
        may_lack_rejected (`bool`): Whether the collator takes negatives from the batch.
        max_length (`int` or `None`): Most tokens of a prompt with one answer. Item rows fit by their making.
        settings (`tuple`): All that the result depends on besides the rows, for its fingerprint.
        trie ([`ItemTrie`], *optional*): Where every answer must be an item of it.
        keeps_history (`bool`, *optional*, defaults to `False`): Whether the column `history` stays.
        num_proc (`int`, *optional*): Processes.
    """
    columns = dataset.column_names or list(next(iter(dataset)))
    how = {"encode": encode, "may_lack_rejected": may_lack_rejected, "trie": trie}
    if isinstance(dataset, IterableDataset):
        options, fitting = {}, {}
    else:
        fingerprint = Hasher.hash((dataset._fingerprint, kind, may_lack_rejected, keeps_history, settings))
        options = {"num_proc": num_proc, "new_fingerprint": fingerprint, "desc": "Tokenising"}
        fitting = {"num_proc": num_proc, "desc": "Dropping rows that do not fit"}
    if keeps_history and HISTORY not in columns:
        raise ValueError(
            f"`seen='mask'` needs the column `{HISTORY}` of evaluation rows, the items to leave out; they have "
            f"{sorted(columns)}."
        )
    dropped_columns = [column for column in columns if kind != "tokens" and not (keeps_history and column == HISTORY)]
    encoded = dataset.map(_encode_row, with_indices=True, fn_kwargs=how, remove_columns=dropped_columns, **options)
    if kind == "items" or max_length is None:
        return encoded
    kept = encoded.filter(_fits, fn_kwargs={"max_length": max_length}, **fitting)
    if isinstance(kept, Dataset) and len(kept) < len(encoded):
        if not len(kept):
            raise ValueError(
                f"No row fits: prompt and answer take more than {max_length} tokens in all {len(encoded)}. Raise "
                "`max_length` as far as the model's context allows, or shorten the prompts."
            )
        logger.warning(
            f"{len(encoded) - len(kept)} of {len(encoded)} rows are left out: prompt and answer take more than "
            f"{max_length} tokens, and an answer is never cut."
        )
    return kept


def check_row(row: dict, number: int, may_lack_rejected: bool, trie: ItemTrie | None = None) -> dict:
    """
    Refuse a tokenised row that the loss would turn into a plausible number.

    Args:
        row (`dict`): With `prompt_ids`, `chosen_ids` and `rejected_ids`.
        number (`int`): Its place in the data set, for the message.
        may_lack_rejected (`bool`): Whether the collator takes negatives from the batch.
        trie ([`ItemTrie`], *optional*): Where every answer must be an item of it.
    """
    if not row[PROMPT_IDS]:
        raise ValueError(f"Row {number} has an empty prompt: an answer needs a token before it, such as BOS.")
    if not row[REJECTED_IDS] and not may_lack_rejected:
        raise ValueError(f"Row {number} has no `{REJECTED}` answer. Give at least one, or drop the row.")
    if not all([row[CHOSEN_IDS], *row[REJECTED_IDS]]):
        raise ValueError(f"Row {number} has an empty answer. Every answer needs at least one token.")
    if row[CHOSEN_IDS] in row[REJECTED_IDS]:
        raise ValueError(
            f"Row {number}: `{REJECTED}` answer {row[REJECTED_IDS].index(row[CHOSEN_IDS])} equals the chosen one. "
            "Drop it; items that share a title are one answer."
        )
    for answer in [row[CHOSEN_IDS], *row[REJECTED_IDS]]:
        if trie is not None and not trie.items(answer):
            raise ValueError(
                f"Row {number}: the answer {answer} is no item of the trie. Make answers with `Prompt.encode_item`, "
                "or use `scoring='full_vocab'`."
            )
    return row


def most_rejected(dataset: Dataset) -> int:
    """Largest number of rejected answers of any row."""
    column = dataset.select_columns(REJECTED_IDS).with_format("arrow")[:][REJECTED_IDS]
    return pc.max(pc.list_value_length(column)).as_py() or 0


def _is_list_of_answers(rejected: Any) -> bool:
    """Text: a list of `str`. Messages: a list of lists; a single conversation is a list of `dict`."""
    return isinstance(rejected, list) and not (rejected and isinstance(rejected[0], dict))


def _as_list(rejected: Any) -> list:
    return rejected if _is_list_of_answers(rejected) else [rejected]


def _encode_row(
    row: dict, number: int, encode: Callable[[dict], dict], may_lack_rejected: bool, trie: ItemTrie | None
) -> dict:
    return check_row(encode(row), number, may_lack_rejected, trie)


def _fits(row: dict, max_length: int) -> bool:
    return len(row[PROMPT_IDS]) + max(map(len, [row[CHOSEN_IDS], *row[REJECTED_IDS]])) <= max_length
