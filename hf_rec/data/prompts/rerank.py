"""
Prompts that hold candidates, answered by one token.

A prompt is put together from pieces that are tokenised one by one, as in
[`~hf_rec.data.prompts.next_item.Prompt`]. What is known of the user comes first, so that all candidates of a user, and
all orders of them, share one beginning.
"""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from hf_rec.data.catalog import Catalog
from hf_rec.data.prompts.checks import check_rows, probe_hash
from hf_rec.data.prompts.frame import PREAMBLE
from hf_rec.data.prompts.item_paths import encode_catalog, resolve_separator
from hf_rec.data.prompts.path_forms import TITLE, PathForms, source_sha256
from hf_rec.data.prompts.text_encoder import PlainTextEncoder
from hf_rec.data.prompts.verbalizers import default_verbalizers, verbalizer_tokens
from hf_rec.files import replacing
from hf_rec.item_token_ids import candidate_tokens, event_tokens, user_token


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RerankForm = Literal["yes_no", "letters"]
PromptForm = Literal["plain", "alpaca", "chat"]
RERANK_PROMPT_FILE = "rerank_prompt.json"
FORMAT_VERSION = 1
HISTORY, DISLIKED = "{history}", "{disliked}"
CANDIDATES = {"yes_no": "{candidate}", "letters": "{candidates}"}  # the place of what is judged
_SLOT = re.compile(r"(\{(?:history|disliked|candidate|candidates)\})")
_INPUT = {
    "yes_no": "The user liked, oldest first:\n{history}The user did not like:\n{disliked}In question:\n{candidate}",
    "letters": "The user chose, oldest first:\n{history}Candidates:\n{candidates}",
}
_MARK_END = ": "  # between a letter and its candidate
_CHAT_MARK = "[[slot {}]]"  # stands for a slot while a chat template is filled in


class RerankPrompt:
    """
    Template that turns a history and candidates into token ids whose next token is the answer.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of the language model, fast or slow.
        catalog ([`Catalog`]):
            Items; rows of histories and candidates are its rows.
        form (`str`):
            `"yes_no"`: one candidate, and the answer is one of two words. `"letters"`: up to `num_candidates`
            candidates, each behind a letter, and the answer is a letter.
        verbalizers (`list[str]`, *optional*):
            The answers, in the order yes, no, or one for each candidate. Each must be one token of the tokenizer.
            Defaults to `Yes` and `No`, or to the letters from `A` on.
        num_candidates (`int`, *optional*, defaults to `20`):
            Most candidates of a prompt of letters.
        prompt_form (`str`, *optional*, defaults to `"plain"`):
            `"plain"`: the text alone, behind the BOS token. `"alpaca"`: preamble, instruction, input, response.
            `"chat"`: a user message, through the tokenizer's chat template.
        max_length (`int`, *optional*, defaults to `1024`):
            Most tokens of prompt and answer, with the longest candidates there are. The oldest items of histories go
            first; candidates never do.
        max_history (`int`, *optional*):
            Most items of a history, and of what was disliked. Defaults to no limit.
        max_item_tokens (`int`, *optional*, defaults to `64`):
            Most tokens of an item. A longer one is cut and ends in ` #<row>`, so that it stays unique.
        item_attributes (`list[str]`, *optional*):
            Attributes of the catalog that follow each item as ` name: value`.
        template (`str`, *optional*):
            The whole text in your own words for the forms `"plain"` and `"chat"`: with `{history}`, then `{candidate}`
            or `{candidates}`, and, where rows have dislikes, `{disliked}` before it. Items end in a newline.
        item_token_start (`int`, *optional*):
            Tokens that the model has embeddings for. With it each item of the history and each candidate is followed
            by its collaborative token, an id from this on ([`hf_rec.item_token_ids`]). A trainer with a
            `sequence_model` gives it.
        user_token (`bool`, *optional*, defaults to `False`):
            Whether the history ends with the collaborative token of the user.

    Attributes:
        verbalizer_ids (`list[int]`): Tokens of the answers.
        sha256 (`str`): Hash of all settings, of the fixed text and of the items that it is made from.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        catalog: Catalog,
        form: RerankForm,
        verbalizers: Sequence[str] | None = None,
        num_candidates: int = 20,
        prompt_form: PromptForm = "plain",
        max_length: int = 1024,
        max_history: int | None = None,
        max_item_tokens: int = 64,
        item_attributes: Sequence[str] | None = None,
        template: str | None = None,
        item_token_start: int | None = None,
        user_token: bool = False,
        _saved: tuple[list[list[int]], list[int]] | None = None,
    ):
        _check_settings(form, prompt_form, num_candidates, max_history, template)
        if len(catalog) == 0:
            raise ValueError("`catalog` is empty. A prompt needs at least one item.")
        self.form, self.prompt_form, self.template = form, prompt_form, template
        self.num_candidates = num_candidates if form == "letters" else 1
        self.verbalizers = list(verbalizers or default_verbalizers(form, num_candidates))
        self.max_length, self.max_history, self.max_item_tokens = max_length, max_history, max_item_tokens
        self.item_attributes = list(item_attributes) if item_attributes else None
        self.item_token_start, self.user_token = item_token_start, user_token
        if user_token and item_token_start is None:
            raise ValueError("`user_token` needs `item_token_start`: the user is known by the tokens of the items.")
        _check_number(form, self.verbalizers, self.num_candidates)
        encoder = PlainTextEncoder(tokenizer)
        separator = resolve_separator(tokenizer, encoder, "\n")
        forms = PathForms.parse(TITLE, None, self.item_attributes)
        _, self._items, self._report = encode_catalog(catalog, forms, tokenizer, encoder, separator, max_item_tokens)
        self._lengths = self._items.lengths + (item_token_start is not None)
        self._source_sha256 = source_sha256(catalog, forms.columns)
        texts, self._slots = _pieces(tokenizer, form, prompt_form, template, self.verbalizers)
        if _saved is None:
            pieces = [list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else [] for text in texts]
            if prompt_form != "chat" and tokenizer.bos_token_id is not None:
                pieces[0] = [tokenizer.bos_token_id, *pieces[0]]
            self._pieces = pieces
            self.verbalizer_ids = verbalizer_tokens(tokenizer, texts[-1], self.verbalizers)
        else:
            self._pieces, self.verbalizer_ids = _saved
        self._mark_end = encoder(_MARK_END) if form == "letters" else []
        self._probes = probe_hash(tokenizer, encoder)
        self._room = self._room_for_history()
        self.sha256 = hashlib.sha256(json.dumps(self._state(), sort_keys=True).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._items.lengths)

    def __repr__(self) -> str:
        return f"RerankPrompt(form={self.form!r}, items={len(self)}, sha256={self.sha256!r})"

    def report(self) -> dict[str, float]:
        """Counts over the catalog, as [`~hf_rec.data.prompts.next_item.Prompt.report`] has them."""
        return dict(self._report)

    def is_made_from(self, catalog: Catalog) -> bool:
        """Whether a catalog has the items, titles and attributes that the prompt was made from."""
        return self._source_sha256 == source_sha256(
            catalog, PathForms.parse(TITLE, None, self.item_attributes).columns
        )

    def encode_user(self, history: Sequence[int], disliked: Sequence[int] = ()) -> list[int]:
        """
        The beginning of a prompt, up to the candidates.

        Args:
            history (`list[int]`): Item rows, oldest first; may be empty.
            disliked (`list[int]`, *optional*): Item rows that the user did not like, oldest first.

        Returns:
            `list[int]`: Token ids, at least one.
        """
        shown = disliked if DISLIKED in self._slots else ()
        lists = dict(zip((HISTORY, DISLIKED), self._kept(history, shown), strict=True))
        tokens: list[int] = []
        for piece, slot in zip(self._pieces, self._slots[:-1], strict=False):
            tokens += piece
            tokens += self._history(lists[slot]) if slot == HISTORY else self._words(lists[slot])
        return tokens + self._pieces[len(self._slots) - 1]

    def encode_candidates(self, rows: Sequence[int]) -> list[int]:
        """
        The rest of a prompt: candidates in the order given, and what follows up to the answer.

        Args:
            rows (`list[int]`): Item rows: one under `"yes_no"`, at least one and at most `num_candidates` under
                `"letters"`.

        Returns:
            `list[int]`: Token ids.
        """
        if not 1 <= len(rows) <= self.num_candidates:
            raise ValueError(
                f"A prompt of the form {self.form!r} takes 1 to {self.num_candidates} candidates, got {len(rows)}."
            )
        tokens: list[int] = []
        for place, row in enumerate(check_rows(len(self), rows).tolist()):
            if self.form == "letters":
                tokens += [self.verbalizer_ids[place], *self._mark_end]
            tokens += self._items[row].tolist()
            if self.item_token_start is not None:
                tokens += candidate_tokens(self.item_token_start, [row]).tolist()
        return tokens + self._pieces[-1]

    def text_tokens(self) -> list[int]:
        """Tokens of the fixed text and of the answers, each once."""
        return list(dict.fromkeys([*self.verbalizer_ids, *(token for piece in self._pieces for token in piece)]))

    def with_item_tokens(
        self, tokenizer: "PreTrainedTokenizerBase", catalog: Catalog, item_token_start: int, user_token: bool
    ) -> "RerankPrompt":
        """The same prompt with collaborative tokens. Tokenizer and catalog must be those that it was made with."""
        settings = self._state()["settings"] | {"item_token_start": item_token_start, "user_token": user_token}
        return RerankPrompt(tokenizer, catalog, **settings, _saved=(self._pieces, self.verbalizer_ids))

    def save(self, directory: str | os.PathLike) -> None:
        """Write `rerank_prompt.json`: the settings, the tokens of the fixed text, and a hash of all."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        content = {"format": FORMAT_VERSION, "sha256": self.sha256, **self._state()}
        with replacing(directory / RERANK_PROMPT_FILE) as partial:
            partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(
        cls, directory: str | os.PathLike, tokenizer: "PreTrainedTokenizerBase", catalog: Catalog
    ) -> "RerankPrompt":
        """Read what [`~RerankPrompt.save`] wrote; a tokenizer or catalog that changes it is a `ValueError`."""
        path = Path(directory) / RERANK_PROMPT_FILE
        try:
            saved = json.loads(path.read_bytes())
            found, expected = saved["format"], saved["sha256"]
            settings, fixed = saved["settings"], (saved["pieces"], saved["verbalizer_ids"])
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a saved prompt ({error!r}). Save it again.") from error
        if found != FORMAT_VERSION:
            raise ValueError(f"{path} has format {found}, this version of hf_rec reads {FORMAT_VERSION}.")
        prompt = cls(tokenizer, catalog, **settings, _saved=fixed)
        if prompt.sha256 != expected:
            raise ValueError(
                f"{path} was edited, or `tokenizer` or `catalog` is not the one that it was saved with. Load both "
                "from the same folder as the prompt, or train again with these."
            )
        return prompt

    def _state(self) -> dict[str, Any]:
        names = ("form", "verbalizers", "num_candidates", "prompt_form", "max_length", "max_history")
        more = ("max_item_tokens", "item_attributes", "template")
        settings = {name: getattr(self, name) for name in (*names, *more)}
        if self.item_token_start is not None:
            settings |= {"item_token_start": self.item_token_start, "user_token": self.user_token}
        return {
            "settings": settings,
            "pieces": self._pieces,
            "verbalizer_ids": self.verbalizer_ids,
            "catalog": self._source_sha256,
            "probes": self._probes,
        }

    def _room_for_history(self) -> int:
        """Tokens that are left for items of the user beside the longest candidates."""
        longest = np.sort(self._lengths)[::-1]
        candidates = longest[: self.num_candidates].sum()
        if self.form == "letters":
            candidates += self.num_candidates * (1 + len(self._mark_end))
        fixed = sum(map(len, self._pieces)) + 1 + self.user_token  # and the answer
        room = int(self.max_length - fixed - candidates)
        if room < longest[0]:
            raise ValueError(
                f"`max_length` is {self.max_length}, too few for the fixed text and the answer ({fixed} tokens), the "
                f"longest candidates ({int(candidates)}) and one item of history (up to {longest[0]}). Raise it to "
                f"{self.max_length - room + int(longest[0])}, or lower `max_item_tokens` or `num_candidates`."
            )
        return room

    def _words(self, rows: list[int]) -> list[int]:
        return [token for row in rows for token in self._items[row].tolist()]

    def _history(self, rows: list[int]) -> list[int]:
        """Items of the history, each with its collaborative token where there are such, and the user behind them."""
        if self.item_token_start is None:
            return self._words(rows)
        events = event_tokens(self.item_token_start, rows).tolist()
        tokens = [token for row, event in zip(rows, events, strict=True) for token in [*self._words([row]), event]]
        return tokens + [user_token(self.item_token_start, bool(rows))] * self.user_token

    def _kept(self, *lists: Sequence[int]) -> list[list[int]]:
        """The newest items of each list that fit together; the longest list gives way first."""
        kept = [check_rows(len(self), rows)[-self.max_history if self.max_history else 0 :].tolist() for rows in lists]
        lengths = self._lengths
        total = sum(int(lengths[rows].sum()) for rows in kept)
        while total > self._room:
            longest = max(kept, key=len)
            total -= int(lengths[longest.pop(0)])
        return kept


def _check_settings(
    form: str, prompt_form: str, num_candidates: int, max_history: int | None, template: str | None
) -> None:
    for name, value, known in (("form", form, RerankForm), ("prompt_form", prompt_form, PromptForm)):
        if value not in get_args(known):
            raise ValueError(f"`{name}` must be one of {', '.join(get_args(known))}, got {value!r}.")
    if form == "letters" and num_candidates < 2:
        raise ValueError(f"`num_candidates` must be at least 2, got {num_candidates}: one alone is no choice.")
    if max_history is not None and max_history < 1:
        raise ValueError(f"`max_history` must be at least 1, or None for no limit, got {max_history}.")
    if template is not None:
        check_template(template, form, prompt_form)


def check_template(template: str, form: str, prompt_form: str) -> None:
    """Refuse a template in which history and candidates have not one place each, the candidates last."""
    if prompt_form == "alpaca":
        raise ValueError('`template` is the whole wording: it goes with prompt_form="plain" or prompt_form="chat".')
    slots, last = _SLOT.findall(template), CANDIDATES[form]
    if sorted(slots) not in (sorted([HISTORY, last]), sorted([HISTORY, DISLIKED, last])) or slots[-1] != last:
        raise ValueError(
            f"`template` must have {HISTORY} once, {DISLIKED} at most once, and then {last} once, got "
            f"{', '.join(slots) or 'none of them'} in {template!r}."
        )


def _check_number(form: str, verbalizers: list[str], num_candidates: int) -> None:
    wanted = 2 if form == "yes_no" else num_candidates
    if len(verbalizers) < wanted or form == "yes_no" and len(verbalizers) != 2:
        raise ValueError(
            f"`verbalizers` must hold {wanted} answers, {'yes and no' if form == 'yes_no' else 'one a candidate'}, "
            f"got {len(verbalizers)}: {verbalizers}. Give as many, or lower `num_candidates`."
        )


def _pieces(
    tokenizer: "PreTrainedTokenizerBase", form: str, prompt_form: str, template: str | None, verbalizers: list[str]
) -> tuple[list[str], list[str]]:
    """Fixed text before, between and behind the slots, and the slots."""
    question = f"Does the user like it? Answer {verbalizers[0]} or {verbalizers[-1]}."
    if form == "letters":
        question = "Which of the candidates does the user choose next? Answer with its letter."
    text = template or f"{_INPUT[form]}{question}\n"
    if prompt_form == "alpaca":
        text = f"{PREAMBLE}\n\n### Instruction:\n{question}\n\n### Input:\n{_INPUT[form]}\n### Response:\n"
    parts = _SLOT.split(text)
    texts, slots = parts[::2], parts[1::2]
    return (texts if prompt_form != "chat" else _chat_pieces(tokenizer, texts)), slots


def _chat_pieces(tokenizer: "PreTrainedTokenizerBase", texts: list[str]) -> list[str]:
    """The same pieces inside a user's message of the chat template."""
    if tokenizer.chat_template is None:
        raise ValueError(
            '`prompt_form="chat"` needs a tokenizer with a chat template. Set one, or use prompt_form="alpaca".'
        )
    marks = [_CHAT_MARK.format(place) for place in range(len(texts) - 1)]
    content = "".join(text + mark for text, mark in zip(texts, [*marks, ""], strict=True))
    message = {"role": "user", "content": content}
    rest = tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    pieces = []
    for mark in marks:
        if rest.count(mark) != 1:
            raise ValueError(
                "The chat template repeats or changes the user's message, so the items have not one place. Use "
                'prompt_form="alpaca".'
            )
        piece, rest = rest.split(mark)
        pieces.append(piece)
    return [*pieces, rest]
