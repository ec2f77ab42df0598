"""
Prompts of a language model that writes the next item's path.

A prompt is put together from pieces that are tokenised one by one: its fixed text once, each item once. So an item is
the same token path in history, label and trie, and a prompt is the same in training and in inference.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hf_rec.columns import IGNORE_INDEX, INPUT_IDS, LABELS
from hf_rec.data.catalog import Catalog
from hf_rec.data.prompts.checks import check_rows, probe_hash
from hf_rec.data.prompts.frame import check_frame, encode_frame
from hf_rec.data.prompts.item_paths import EncodedPaths, encode_catalog, resolve_separator
from hf_rec.data.prompts.path_forms import DIGITS, TITLE, PathForms, check_supervision, source_sha256
from hf_rec.data.prompts.stored_paths import PATHS_FILE, load_paths, save_paths
from hf_rec.data.prompts.text_encoder import PlainTextEncoder
from hf_rec.files import StandingFiles, replacing
from hf_rec.item_token_ids import event_tokens, user_token


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT_VERSION = 1
PROMPT_FILE = "prompt.json"


@dataclass(frozen=True)
class _Saved:
    """What a prompt takes over from its file: the fixed text, and the items' paths where they are of its catalog."""

    frame: tuple[list[int], list[int]]
    paths: tuple[EncodedPaths, EncodedPaths] | None
    report: dict[str, float]


class Prompt:
    """
    Template that turns histories and items into token ids.

    An item's token path is its title, followed by the separator, or what `item_path` says. The forms are

    - `"plain"`: the BOS token (the separator where the tokenizer has none), then one item after the other;
    - `"alpaca"`: preamble, `### Instruction:`, `### Input:` with the history, `### Response:`;
    - `"chat"`: a user message with instruction and history, through the tokenizer's chat template.

    In each, the next item's path follows directly. Item text never becomes a control token. All items are tokenised
    when the prompt is made; it keeps neither tokenizer nor catalog, so it is cheap to pickle and to hash.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the language model, fast or slow.
        catalog ([`Catalog`]):
            Items; rows of histories and targets are its rows.
        form (`str`, *optional*, defaults to `"plain"`):
            `"plain"`, `"alpaca"` or `"chat"`.
        max_length (`int`, *optional*, defaults to `512`):
            Most tokens of history, fixed text and answer together. The oldest items go first; the answer never does.
        max_history (`int`, *optional*):
            Most items of a history. Defaults to no limit.
        max_item_tokens (`int`, *optional*, defaults to `128`):
            Most tokens of an item path. A longer one is cut and ends in ` #<row>`, so that it stays unique.
        separator (`str`, *optional*, defaults to a newline):
            Text that ends every item and occurs in none, or a control token of the tokenizer. Where the tokenizer
            drops newlines (WordPiece does), its `sep_token` takes the place of the default.
        instruction (`str`, *optional*):
            Task in the words of your domain, for the forms `"alpaca"` and `"chat"`. Without it a sentence asks for the
            item chosen next.
        item_path (`str`, *optional*, defaults to `"title"`):
            What an item's path is: `"title"`; the name of a text column of the catalog's attributes;
            `"codes:<column>"`, a list of small integers, each of which is one token for its level; `"id"`, one token
            an item; or `"digits"`, the number of the item spelled out. The tokens of codes and items must have been
            added to the tokenizer ([`~hf_rec.data.prompts.path_tokens.add_path_tokens`]; a trainer does it).
        history_path (`str`, *optional*):
            What stands for an item in the history: one of these forms, or several joined by `+`, such as
            `"codes:rq+title"`. As `item_path` where not given.
        item_attributes (`list[str]`, *optional*):
            Attributes of the catalog that follow each item of the history as ` name: value`. What an item lacks is
            left out; the answer has none.
        template (`str`, *optional*):
            The whole text around the history in your own words, with `{history}` where the items go, one after the
            other, each with its separator. Other braces are text, and what spells a control token is one. Under
            `form="chat"` it is the user's message.
        item_token_start (`int`, *optional*):
            Tokens that the model has embeddings for. With it each item of the history is followed by its collaborative
            token, an id from this on ([`hf_rec.item_token_ids`]), for a model with
            [`~hf_rec.models.language.item_tokens.ItemTokens`]. A trainer with a `sequence_model` gives it.
        user_token (`bool`, *optional*, defaults to `False`):
            Whether the history ends with the collaborative token of the user.

    Attributes:
        separator_ids (`list[int]`): Tokens that end every item.
        sha256 (`str`): Hash of all settings and of how the tokenizer encodes, but not of the catalog.
        standing ([`~hf_rec.files.StandingFiles`]): Where its files stand, for the next [`~Prompt.save`] to copy.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        catalog: Catalog,
        form: str = "plain",
        max_length: int = 512,
        max_history: int | None = None,
        max_item_tokens: int = 128,
        separator: str = "\n",
        instruction: str | None = None,
        item_path: str = "title",
        history_path: str | None = None,
        item_attributes: Sequence[str] | None = None,
        template: str | None = None,
        item_token_start: int | None = None,
        user_token: bool = False,
        _saved: "_Saved | None" = None,
    ):
        check_frame(form, instruction, template)
        if user_token and item_token_start is None:
            raise ValueError("`user_token` needs `item_token_start`: the user is known by the tokens of the items.")
        if max_history is not None and max_history < 1:
            raise ValueError(f"`max_history` must be at least 1, or None for no limit, got {max_history}.")
        if len(catalog) == 0:
            raise ValueError("`catalog` is empty. A prompt needs at least one item.")
        self.form, self.separator, self.instruction = form, separator, instruction
        self.max_length, self.max_history, self.max_item_tokens = max_length, max_history, max_item_tokens
        self.template, self.item_attributes = template, list(item_attributes) if item_attributes else None
        self.item_token_start, self.user_token = item_token_start, user_token
        self.forms = PathForms.parse(item_path, history_path, item_attributes)
        self.item_path, self.history_path = item_path, None if history_path == item_path else history_path
        encoder = PlainTextEncoder(tokenizer)
        self.separator_ids = resolve_separator(tokenizer, encoder, separator)
        self._source_sha256 = source_sha256(catalog, self.forms.columns)
        if _saved is not None and _saved.paths is not None:
            (self._answers, self._items), self._report = _saved.paths, _saved.report
        else:
            self._answers, self._items, self._report = encode_catalog(
                catalog, self.forms, tokenizer, encoder, self.separator_ids, max_item_tokens
            )
        self._lengths = self._items.lengths + (item_token_start is not None)  # of an item in a history
        wording = (form, instruction, template, self.separator_ids, self.forms)
        head, tail = _saved.frame if _saved is not None else encode_frame(tokenizer, encoder, *wording)
        self._head, self._tail = np.asarray(head, dtype=np.int32), np.asarray(tail, dtype=np.int32)
        self._probes = probe_hash(tokenizer, encoder)
        longest_answer, longest_item = int(self._answers.lengths.max()), int(self._lengths.max())
        fixed = len(head) + len(tail) + user_token
        self._room = max_length - fixed - longest_answer  # tokens for the history
        if self._room < longest_item:
            raise ValueError(
                f"`max_length` is {max_length}, too few for the fixed text ({fixed} tokens), one item "
                f"of history (up to {longest_item}) and the answer (up to {longest_answer}). Raise it to "
                f"{max_length - self._room + longest_item} or lower `max_item_tokens`."
            )
        self.standing = StandingFiles(PATHS_FILE, PROMPT_FILE)
        self.sha256 = hashlib.sha256(json.dumps(self._state(), sort_keys=True).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._lengths)

    def __repr__(self) -> str:
        return f"Prompt(form={self.form!r}, items={len(self)}, max_length={self.max_length}, sha256={self.sha256!r})"

    def report(self) -> dict[str, float]:
        """
        Counts over the catalog.

        Returns:
            `dict[str, float]`: `items`; `longest_path` and `mean_path` (tokens); `shortened` (cut to
            `max_item_tokens`); `unnamed` (no text, or none that the tokenizer keeps: the item is named after its row);
            `merged` (items whose path equals that of an item with another text); `sharing` (items whose path is that
            of another item too: they are one leaf of the trie and share a score).
        """
        return dict(self._report)

    def encode_item(self, row: int) -> list[int]:
        """Token path of one item as an answer, separator included."""
        return self._answers[check_rows(len(self), [row])[0]].tolist()

    @property
    def item_paths(self) -> tuple[np.ndarray, np.ndarray]:
        """
        Token paths of all items as arrays, for [`ItemTrie.from_flat`]: `tokens` (`int32`), path after path in row
        order, and `offsets` (`int64`, one more than items), where each begins.
        """
        return self._answers.tokens, self._answers.offsets

    @cached_property
    def paths_sha256(self) -> str:
        """Hash of the tokens of all items, as answers and in histories."""
        digest = hashlib.sha256()
        for paths in (self._answers, self._items):
            digest.update(paths.tokens.tobytes())
            digest.update(paths.offsets.tobytes())
        return digest.hexdigest()

    @property
    def largest_token(self) -> int:
        """The largest id of a token in any path."""
        return int(max(self._answers.tokens.max(), self._items.tokens.max()))

    def is_made_from(self, catalog: Catalog) -> bool:
        """Whether a catalog has the ids, titles and attributes that the items' paths were made from."""
        return self._source_sha256 == source_sha256(catalog, self.forms.columns)

    def with_item_tokens(
        self, tokenizer: "PreTrainedTokenizerBase", catalog: Catalog, item_token_start: int, user_token: bool
    ) -> "Prompt":
        """The same prompt with collaborative tokens. Tokenizer and catalog must be those that it was made with."""
        settings = self._state()["settings"] | {"item_token_start": item_token_start, "user_token": user_token}
        frame = (self._head.tolist(), self._tail.tolist())
        saved = _Saved(frame, (self._answers, self._items), self._report)
        return Prompt(tokenizer, catalog, **settings, _saved=saved)

    def encode_items(self) -> list[list[int]]:
        """Token paths of all items in row order: what [`ItemTrie.build`] takes."""
        flat, bounds = self._answers.tokens.tolist(), self._answers.offsets.tolist()
        return [flat[start:stop] for start, stop in zip(bounds[:-1], bounds[1:], strict=True)]

    def encode_history(self, history: Sequence[int]) -> list[int]:
        """
        Prompt up to the answer.

        Args:
            history (`list[int]`): Item rows, oldest first; may be empty. The oldest are dropped so that the longest
                item of the catalog still fits into `max_length` as the answer.

        Returns:
            `list[int]`: Token ids, at least one.
        """
        return self._prompt(self._keep(history)).tolist()

    def num_kept(self, history: Sequence[int]) -> int:
        """How many items of a history, the newest, its prompt keeps."""
        return len(self._keep(history))

    def count_tokens(self, history: Sequence[int]) -> int:
        """`len(encode_history(history))`, without making it."""
        kept = int(self._lengths[self._keep(history)].sum())
        return len(self._head) + kept + self.user_token + len(self._tail)

    def encode_example(
        self, history: Sequence[int], target: int, supervise_from: int | None = None, supervise: str = "last"
    ) -> dict[str, list[int]]:
        """
        Prompt and answer with labels.

        Args:
            history (`list[int]`): Item rows, oldest first; may be empty.
            target (`int`): Row of the item that comes next.
            supervise_from (`int`, *optional*): Under `"all"`, the first event (index into history + target) that
                may be a label; defaults to 1, as the first event has no context. The target is always a label.
            supervise (`str`, *optional*, defaults to `"last"`): `"last"` labels the target, `"all"` also the items of
                the history from `supervise_from` on. Dropped items are no labels.

        Returns:
            `dict[str, list[int]]`: `input_ids`, which begin with `encode_history(history)`, and `labels`, equal to
            them on the paths of labelled items and `-100` elsewhere.
        """
        if supervise not in ("last", "all"):
            raise ValueError(f'`supervise` must be "last" or "all", got {supervise!r}.')
        check_supervision(supervise, self.item_path, self.history_path)
        kept, answer = self._keep(history), self._answers[check_rows(len(self), [target])[0]]
        input_ids = np.concatenate([self._prompt(kept), answer])
        labels = np.full_like(input_ids, IGNORE_INDEX)
        labels[-len(answer) :] = answer
        if supervise == "all":
            dropped = len(history) - len(kept)
            first = max((1 if supervise_from is None else supervise_from) - dropped, 0)
            starts = len(self._head) + np.cumsum(self._lengths[kept]) - self._lengths[kept]
            stops = starts + self._answers.lengths[kept]  # an item of the history begins with its path as an answer
            for start, stop in zip(starts[first:].tolist(), stops[first:].tolist(), strict=True):
                labels[start:stop] = input_ids[start:stop]
        return {INPUT_IDS: input_ids.tolist(), LABELS: labels.tolist()}

    def save(self, directory: str | os.PathLike) -> None:
        """
        Write `item_paths.safetensors` (the tokens of all items) and `prompt.json`: the settings, the tokens of the
        fixed text, and hashes.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        if self.standing.copy_to(directory):
            return
        paths = {
            "catalog": self._source_sha256,
            "sha256": save_paths(directory, self._answers, self._items),
            "report": self._report,
        }
        content = {"format": FORMAT_VERSION, "sha256": self.sha256, "item_paths": paths, **self._state()}
        with replacing(directory / PROMPT_FILE) as partial:
            partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: str | os.PathLike, tokenizer: "PreTrainedTokenizerBase", catalog: Catalog) -> "Prompt":
        """
        Read what [`~Prompt.save`] wrote. The fixed text is that of the saved prompt, token for token, also where a
        chat template has changed since or holds the date. The items' tokens are those of the file, unless `catalog` is
        another one than the prompt was made for: then its items are tokenised. A tokenizer that encodes in another way
        is a `ValueError`.
        """
        path = Path(directory) / PROMPT_FILE
        try:
            saved = json.loads(path.read_bytes())
            found = saved.pop("format")
            if found != FORMAT_VERSION:
                raise ValueError(f"{path} has format {found}, this version of hf_rec reads {FORMAT_VERSION}.")
            expected, paths = saved.pop("sha256"), saved.pop("item_paths")
            settings, probes, frame = saved["settings"], saved["probes"], (saved["head"], saved["tail"])
            paths_catalog, paths_sha256, report = paths["catalog"], paths["sha256"], paths["report"]
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not a saved prompt ({error!r}). Save it again with `Prompt.save`.") from error
        if hashlib.sha256(json.dumps(saved, sort_keys=True).encode()).hexdigest() != expected:
            raise ValueError(f"{path} does not match its own hash: it was edited. Save it again.")
        if probe_hash(tokenizer, PlainTextEncoder(tokenizer)) != probes:
            raise ValueError(
                f"`tokenizer` encodes text in another way than the one that {path} was saved with. Load the tokenizer "
                "from the same folder as the prompt, or make a new prompt and trie and train again."
            )
        names = ("history_path", "item_attributes")
        forms = PathForms.parse(settings.get("item_path", TITLE), *map(settings.get, names))
        is_same = source_sha256(catalog, forms.columns) == paths_catalog
        stored = load_paths(path.parent, paths_sha256, len(catalog)) if is_same else None
        if stored is None and DIGITS in forms.all:
            raise ValueError(
                f"{path} numbers the items of the catalog that it was made for, and `catalog` is another one: its "
                "numbers would mean other items. Make a new prompt and train again."
            )
        prompt = cls(tokenizer, catalog, **settings, _saved=_Saved(frame, stored, report))
        if prompt.sha256 != expected:
            raise ValueError(
                f"`tokenizer` gives the separator {prompt.separator_ids} instead of {saved['separator_ids']}, as in "
                f"{path}. Load the tokenizer from the same folder as the prompt."
            )
        if stored is not None:
            prompt.standing.remember(path.parent)
        return prompt

    def with_catalog(self, tokenizer: "PreTrainedTokenizerBase", catalog: Catalog) -> "Prompt":
        """
        The same prompt for other items: settings and fixed text stay, and all items are tokenised anew.

        Args:
            tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The one that this prompt was made with.
            catalog ([`Catalog`]): The items.

        Raises:
            `ValueError`: Where a model would know the items by their rows (numbers, collaborative tokens), or the
                tokenizer lacks the tokens of a new item.
        """
        if DIGITS in self.forms.all or self.item_token_start is not None:
            known = "the numbers" if DIGITS in self.forms.all else "the collaborative tokens"
            raise ValueError(f"The model knows its items by {known} of their rows. Train again for other items.")
        frame = (self._head.tolist(), self._tail.tolist())
        return Prompt(tokenizer, catalog, **self._state()["settings"], _saved=_Saved(frame, None, {}))

    def _state(self) -> dict:
        names = ("form", "max_length", "max_history", "max_item_tokens", "separator", "instruction")
        usual: dict = {"item_path": TITLE, "history_path": None, "item_attributes": None, "template": None}
        usual |= {"item_token_start": None, "user_token": False}
        unusual = {name: getattr(self, name) for name, value in usual.items() if getattr(self, name) != value}
        return {
            "settings": {name: getattr(self, name) for name in names} | unusual,
            "separator_ids": self.separator_ids,
            "head": self._head.tolist(),
            "tail": self._tail.tolist(),
            "probes": self._probes,
        }

    def _keep(self, history: Sequence[int]) -> np.ndarray:
        """Rows of the newest items that fit."""
        rows = check_rows(len(self), history)
        if self.max_history is not None:
            rows = rows[-self.max_history :]
        newest_first = np.cumsum(self._lengths[rows[::-1]])
        fitting = int(np.searchsorted(newest_first, self._room, side="right"))
        return rows[len(rows) - fitting :]

    def _prompt(self, rows: np.ndarray) -> np.ndarray:
        items: list[np.ndarray] = list(map(self._items.__getitem__, rows))
        if self.item_token_start is not None:
            tokens = event_tokens(self.item_token_start, rows)
            items = [part for pair in zip(items, tokens[:, None], strict=True) for part in pair]
            if self.user_token:
                items.append(np.array([user_token(self.item_token_start, len(rows) > 0)]))
        return np.concatenate([self._head, *items, self._tail])
