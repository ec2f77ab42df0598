"""
Prompts of a retrieval model: one for a user, one for an item, with places for vectors that are no words.

Each prompt is a prefix of fixed text (the same for all users, or all items), then its own tokens. Among these are
slots, which stand for an item vector, and the last one is the query, whose hidden state represents the user or the
item. Both are known by their position from here on: `slot_items` holds the item at a slot and -1 elsewhere, and the
query is the last token. No text is searched for them, so no title can be mistaken for one.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hf_rec.columns import ATTENTION_MASK, INPUT_IDS, PADDING_ITEM, SLOT_ITEMS
from hf_rec.data.catalog import Catalog
from hf_rec.data.prompts.checks import check_rows, probe_hash
from hf_rec.data.prompts.item_attributes import attribute_text
from hf_rec.data.prompts.text_encoder import PlainTextEncoder
from hf_rec.files import StandingFiles, replacing


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT_VERSION = 1
USER_PROMPT_FILE = "user_prompt.json"
USER_INSTRUCTION = "These are the items that a user has chosen, oldest first."
USER_QUESTION = "The item that the user chooses next is"
ITEM_INSTRUCTION = "This is an item that users choose, and what it is like."
FIRST_YEAR, LAST_YEAR = 1970, 2100
PLACEHOLDER = 0  # token id under slots and queries, whose embeddings are replaced


class RetrievalPrompt:
    """
    Template that turns users and items into token ids with slots.

    The user prompt numbers the items kept, each with date (where its time is known), title and slot, asks for the next
    one and ends in the query. The item prompt holds title and attributes, the slot and the query. Item text never
    becomes a control token. All items are tokenised when the prompt is made; it keeps neither tokenizer nor catalog.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Tokenizer of the language model. It is not changed and
            needs no padding token.
        catalog ([`Catalog`]): Items. One without a title is named after its id, and counted.
        max_length (`int`, *optional*, defaults to `1024`): Most tokens of a prompt. The oldest items of a history are
            dropped to fit; question and query never are.
        max_history (`int`, *optional*, defaults to `10`): Most items of a history.
        max_item_tokens (`int`, *optional*, defaults to `64`): Most tokens of an item's text; what is longer is cut.
        dates (`bool`, *optional*, defaults to `True`): Write the date (UTC) of each item whose time is known.
        item_attributes (`list[str]`, *optional*): Attributes of the catalog that follow the title in the item prompt.
        user_instruction, user_question, item_instruction (`str`, *optional*): The fixed text, in the words of your
            domain.

    Attributes:
        user_prefix, item_prefix (`list[int]`): Tokens that all prompts of a kind begin with.
        longest (`int`): Tokens that no prompt exceeds, prefix included; `max_length` or less.
        item_lengths (`np.ndarray` of shape `[N]`): Tokens of each item prompt behind the prefix.
        sha256 (`str`): Hash of the settings and of how the tokenizer encodes, but not of the catalog.
        standing ([`~hf_rec.files.StandingFiles`]): Where its file stands, for the next [`~RetrievalPrompt.save`] to
            copy.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        catalog: Catalog,
        max_length: int = 1024,
        max_history: int = 10,
        max_item_tokens: int = 64,
        dates: bool = True,
        item_attributes: Sequence[str] = (),
        user_instruction: str = USER_INSTRUCTION,
        user_question: str = USER_QUESTION,
        item_instruction: str = ITEM_INSTRUCTION,
    ):
        for name, value in (("max_history", max_history), ("max_item_tokens", max_item_tokens)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        if len(catalog) == 0:
            raise ValueError("`catalog` is empty. A prompt needs at least one item.")
        self.settings: dict[str, Any] = {
            "max_length": max_length,
            "max_history": max_history,
            "max_item_tokens": max_item_tokens,
            "dates": dates,
            "item_attributes": list(item_attributes),
            "user_instruction": user_instruction,
            "user_question": user_question,
            "item_instruction": item_instruction,
        }
        self.max_length, self.max_history, self.dates = max_length, max_history, dates
        encoder = PlainTextEncoder(tokenizer)
        start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        self.user_prefix = (start + encoder(f"{user_instruction}\n")) or [PLACEHOLDER]
        self.item_prefix = (start + encoder(f"{item_instruction}\n")) or [PLACEHOLDER]
        self._question, self._line_end = encoder(user_question), encoder("\n")
        self._numbers = encoder.encode_batch([f"{number}." for number in range(1, max_history + 1)])
        self._years = encoder.encode_batch([f" {year}" for year in range(FIRST_YEAR, LAST_YEAR + 1)])
        self._months = encoder.encode_batch([f"-{month:02}" for month in range(1, 13)])
        self._days = encoder.encode_batch([f"-{day:02}" for day in range(1, 32)])
        self._encode_catalog(encoder, catalog, max_item_tokens, item_attributes)
        self._check_room()
        self.standing = StandingFiles(USER_PROMPT_FILE)
        state = [self.settings, probe_hash(tokenizer, encoder)]
        self.sha256 = hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.item_lengths)

    def __repr__(self) -> str:
        return f"RetrievalPrompt(items={len(self)}, max_length={self.max_length}, sha256={self.sha256!r})"

    @cached_property
    def text_sha256(self) -> str:
        """Hash of the items' tokens."""
        digest = hashlib.sha256()
        for array in (self._titles, self._title_lengths, self._texts, self.item_lengths):
            digest.update(array.tobytes())
        return digest.hexdigest()

    def report(self) -> dict[str, int]:
        """Counts over the catalog: `items`, `untitled` (named after their id) and `shortened` (cut to fit)."""
        return dict(self._report)

    def encode_user(self, history: Sequence[int], timestamps: Sequence[int] | None = None) -> dict[str, list[int]]:
        """
        Prompt of a user, without the prefix.

        Args:
            history (`list[int]`): Item rows, oldest first; may be empty.
            timestamps (`list[int]`, *optional*): Time of each, in seconds; -1 where it is unknown. An empty list means
                that none is known.

        Returns:
            `dict[str, list[int]]`: `input_ids`, whose last token is the query, and `slot_items`, equal in length: the
            item row at each slot, -1 elsewhere.
        """
        rows = check_rows(len(self), history)[-self.max_history :]
        dates = self._dates(timestamps, len(history))[-self.max_history :]
        kept = self._kept(rows, dates)
        input_ids, slots = [], []
        for number, place in enumerate(range(len(rows) - kept, len(rows))):
            input_ids += self._numbers[number] + (dates[place] if dates else []) + self._title(rows[place])
            slots.append((len(input_ids), int(rows[place])))
            input_ids += [PLACEHOLDER, *self._line_end]
        input_ids += [*self._question, PLACEHOLDER]
        slot_items = [PADDING_ITEM] * len(input_ids)
        for place, row in slots:
            slot_items[place] = row
        return {INPUT_IDS: input_ids, SLOT_ITEMS: slot_items}

    def item_inputs(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """
        Prompts of items, without the prefix.

        Args:
            rows (`list[int]`): Item rows.

        Returns:
            `dict[str, torch.LongTensor]`: `input_ids`, `attention_mask` and `slot_items`, each of the shape
            `(len(rows), T)`, right-padded; the last real token of a row is the query.
        """
        items = check_rows(len(self), rows)
        lengths = self.item_lengths[items]
        columns = np.arange(lengths.max(initial=1))
        real = columns < lengths[:, None]
        text = columns < lengths[:, None] - 2
        place = self._text_starts[items][:, None] + columns
        input_ids = np.where(text, self._texts[np.where(text, place, 0)], PLACEHOLDER)
        slot_items = np.where(columns == lengths[:, None] - 2, items[:, None], PADDING_ITEM)
        arrays = {INPUT_IDS: input_ids, ATTENTION_MASK: real, SLOT_ITEMS: slot_items}
        return {name: torch.from_numpy(array.astype(np.int64)) for name, array in arrays.items()}

    def same_item(self, row: int, other: "RetrievalPrompt", other_row: int) -> bool:
        """Whether an item's prompt is, token for token, that of a row of another prompt."""
        return np.array_equal(self._text(row), other._text(other_row))

    def for_catalog(self, tokenizer: "PreTrainedTokenizerBase", catalog: Catalog) -> "RetrievalPrompt":
        """The same template over other items."""
        return RetrievalPrompt(tokenizer, catalog, **self.settings)

    def save(self, directory: str | os.PathLike) -> None:
        """Write `user_prompt.json`: settings and hash."""
        content = {"format": FORMAT_VERSION, "sha256": self.sha256, "settings": self.settings}
        Path(directory).mkdir(parents=True, exist_ok=True)
        if self.standing.copy_to(directory):
            return
        with replacing(Path(directory) / USER_PROMPT_FILE) as partial:
            partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(
        cls, directory: str | os.PathLike, tokenizer: "PreTrainedTokenizerBase", catalog: Catalog
    ) -> "RetrievalPrompt":
        """Read what [`~RetrievalPrompt.save`] wrote. A tokenizer that encodes in another way is a `ValueError`."""
        path = Path(directory) / USER_PROMPT_FILE
        try:
            saved = json.loads(path.read_bytes())
            found, expected, settings = saved["format"], saved["sha256"], saved["settings"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a saved prompt ({error!r}). Save it again.") from error
        if found != FORMAT_VERSION:
            raise ValueError(f"{path} has format {found}, this version of hf_rec reads {FORMAT_VERSION}.")
        prompt = cls(tokenizer, catalog, **settings)
        if prompt.sha256 != expected:
            raise ValueError(
                f"{path} was edited, or `tokenizer` encodes text in another way than the one that it was saved with. "
                "Load the tokenizer from the same folder as the prompt, or train again with this one."
            )
        return prompt

    # How it is put together

    def _encode_catalog(
        self, encoder: PlainTextEncoder, catalog: Catalog, limit: int, attributes: Sequence[str]
    ) -> None:
        """Fills the arrays with the tokens of all titles, and of all item texts (title and attributes)."""
        names = [" ".join(catalog.text(row).split()) for row in range(len(catalog))]
        titles = encoder.encode_batch([f" {name}" for name in names])
        for row in [row for row, title in enumerate(titles) if not title]:  # nothing that the tokenizer knows
            titles[row] = encoder(f" item {row}")
        texts = titles
        if attributes:
            extra = encoder.encode_batch([attribute_text(values, attributes) for values in catalog.attributes])
            texts = [title + more for title, more in zip(titles, extra, strict=True)]
        self._report = {
            "items": len(catalog),
            "untitled": sum(not title for title in catalog.titles or [None] * len(catalog)),
            "shortened": sum(len(text) > limit for text in texts),
        }
        self._titles, self._title_starts, self._title_lengths = _flatten([title[:limit] for title in titles])
        self._texts, self._text_starts, lengths = _flatten([text[:limit] for text in texts])
        self.item_lengths = lengths + 2  # slot and query

    def _check_room(self) -> None:
        """Refuse a length that leaves no room for one item of history, or for an item prompt."""
        date = max(map(len, self._years)) + max(map(len, self._months)) + max(map(len, self._days))
        event = (
            max(map(len, self._numbers)) + date * self.dates + int(self._title_lengths.max()) + 1 + len(self._line_end)
        )
        fixed = len(self.user_prefix) + len(self._question) + 1
        needed = max(fixed + event, len(self.item_prefix) + int(self.item_lengths.max()))
        if self.max_length < needed:
            raise ValueError(
                f"`max_length` is {self.max_length}, too few for the fixed text and one item: {needed} tokens. Raise "
                "it, or lower `max_item_tokens`."
            )
        self._room = self.max_length - fixed
        longest = max(fixed + self.max_history * event, len(self.item_prefix) + int(self.item_lengths.max()))
        self.longest = min(self.max_length, longest)
        self._numbers_before = np.cumsum([0, *map(len, self._numbers)])

    def _kept(self, rows: np.ndarray, dates: list[list[int]]) -> int:
        """How many of the newest items fit."""
        sizes = self._title_lengths[rows] + 1 + len(self._line_end)
        if dates:
            sizes = sizes + [len(date) for date in dates]
        newest = np.concatenate([[0], np.cumsum(sizes[::-1])]) + self._numbers_before[: len(rows) + 1]
        return int(np.searchsorted(newest, self._room, side="right")) - 1

    def _dates(self, timestamps: Sequence[int] | None, num_events: int) -> list[list[int]]:
        """Tokens of each date; an empty list where no date is to be written."""
        if not self.dates or timestamps is None or not len(timestamps):
            return []
        if len(timestamps) != num_events:
            raise ValueError(f"`timestamps` has {len(timestamps)} times for a history of {num_events} items.")
        return [[] if time < 0 else self._date(time) for time in timestamps]

    def _date(self, time: int) -> list[int]:
        try:
            date = datetime.fromtimestamp(time, UTC)
        except (ValueError, OverflowError, OSError):
            date = None
        if date is None or not FIRST_YEAR <= date.year <= LAST_YEAR:
            raise ValueError(
                f"`timestamps` must be seconds between {FIRST_YEAR} and {LAST_YEAR}, got {time}. Are these "
                "milliseconds?"
            )
        return self._years[date.year - FIRST_YEAR] + self._months[date.month - 1] + self._days[date.day - 1]

    def _title(self, row: int) -> list[int]:
        start = self._title_starts[row]
        return self._titles[start : start + self._title_lengths[row]].tolist()

    def _text(self, row: int) -> np.ndarray:
        start = self._text_starts[row]
        return self._texts[start : start + self.item_lengths[row] - 2]


def pad_prompts(prompts: Sequence[dict[str, Sequence[int]]]) -> dict[str, Tensor]:
    """
    Right-pad prompts of [`RetrievalPrompt.encode_user`] to a batch.

    Returns:
        `dict[str, torch.LongTensor]`: `input_ids`, `attention_mask` and `slot_items`, each of the shape `(B, T)`.
    """
    lengths = np.array([len(prompt[INPUT_IDS]) for prompt in prompts])
    real = np.arange(lengths.max()) < lengths[:, None]
    input_ids, slot_items = np.full(real.shape, PLACEHOLDER), np.full(real.shape, PADDING_ITEM)
    for name, array in ((INPUT_IDS, input_ids), (SLOT_ITEMS, slot_items)):
        array[real] = np.concatenate([np.asarray(prompt[name], dtype=np.int64) for prompt in prompts])
    arrays = {INPUT_IDS: input_ids, ATTENTION_MASK: real.astype(np.int64), SLOT_ITEMS: slot_items}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _flatten(lists: list[list[int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All tokens end to end, where each list starts, and how long it is."""
    lengths = np.fromiter(map(len, lists), dtype=np.int64, count=len(lists))
    flat = np.fromiter(chain.from_iterable(lists), dtype=np.int64, count=lengths.sum())
    return np.concatenate([flat, [PLACEHOLDER]]), np.cumsum(lengths) - lengths, lengths
