"""
What an item's path is made of: `item_path` and `history_path`, read and held against a catalog.

A form is `"title"`, the name of a text column of the catalog's attributes, `"codes:<column>"` (a list of small
integers), `"id"` (one token an item) or `"digits"` (a number spelled out).
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_rec.data.catalog import Catalog, is_missing
from hf_rec.data.item_numbers import numbers_in_hashed_order
from hf_rec.data.prompts.item_attributes import no_such_attribute
from hf_rec.data.titles import clean_title


TITLE, ID, DIGITS, CODES = "title", "id", "digits", "codes:"
_SHOWN = 3  # items that a message names


@dataclass(frozen=True)
class PathForms:
    """
    The forms of an answer and of a history item.

    Attributes:
        answer (`str`): Form of the path that the model writes.
        history (`tuple[str, ...]`): Forms whose paths, one after the other, are an item of the history.
        attributes (`tuple[str, ...]`): Attributes that follow them there.
    """

    answer: str
    history: tuple[str, ...]
    attributes: tuple[str, ...] = ()

    @classmethod
    def parse(
        cls, item_path: str, history_path: str | None = None, item_attributes: Sequence[str] | None = None
    ) -> "PathForms":
        """
        Read the settings.

        Args:
            item_path (`str`): One form.
            history_path (`str`, *optional*): One form, or several joined by `+`; as the answer where not given.
            item_attributes (`list[str]`, *optional*): Names of attributes.
        """
        if not isinstance(item_path, str) or "+" in item_path:
            raise ValueError(
                f"`item_path` must be one form, got {item_path!r}. Several forms, joined by '+', go into "
                "`history_path`."
            )
        if history_path is not None and not isinstance(history_path, str):
            raise ValueError(f"`history_path` must be text, such as 'codes:rq+title', got {history_path!r}.")
        history = (item_path,) if history_path is None else tuple(history_path.split("+"))
        for name, forms in (("item_path", (item_path,)), ("history_path", history)):
            for form in forms:
                if not form.strip() or form == CODES:
                    raise ValueError(
                        f"`{name}` has a form {form!r} without a name. Use 'title', 'id', 'digits', the name of a "
                        "text column, or 'codes:' and the name of a column of codes."
                    )
            if repeated := [form for form, count in Counter(forms).items() if count > 1]:
                raise ValueError(f"`{name}` names {repeated[0]!r} twice. Name it once.")
        attributes = item_attributes or ()
        if isinstance(attributes, str) or not all(isinstance(name, str) and name for name in attributes):
            raise ValueError(f"`item_attributes` must be a list of names, such as [brand], got {item_attributes!r}.")
        return cls(item_path, history, tuple(attributes))

    @property
    def all(self) -> list[str]:
        """Each form once, that of the answer first."""
        return list(dict.fromkeys([self.answer, *self.history]))

    @property
    def history_begins_with_answer(self) -> bool:
        """Whether an item of the history begins with the path that it has as an answer."""
        return self.history[0] == self.answer

    @property
    def one_item_a_line(self) -> bool:
        """Whether each item of a history ends with the one separator that it has."""
        *before, last = self.history
        return is_text(last) and not any(map(is_text, before)) and not self.attributes

    @property
    def worded(self) -> list[str]:
        """The forms whose text has words: titles and text columns."""
        return [form for form in self.all if is_text(form) and form != DIGITS]

    @property
    def columns(self) -> list[str]:
        """Columns of the catalog's attributes that the paths are made from."""
        return [form.removeprefix(CODES) for form in self.all if form not in (TITLE, ID, DIGITS)] + [*self.attributes]


def is_text(form: str) -> bool:
    """Whether a form is written with the tokenizer's own tokens; the others have tokens of their own."""
    return form != ID and not form.startswith(CODES)


def check_supervision(supervise: str, item_path: str, history_path: str | None) -> None:
    """Refuse to take items of the history for labels behind another form of theirs, which gives them away."""
    forms = PathForms.parse(item_path, history_path)
    if supervise == "all" and not forms.history_begins_with_answer:
        raise ValueError(
            f"`supervise='all'` makes the items of the history labels, so each must begin with its answer: "
            f"`history_path` {history_path!r} must begin with `item_path` {item_path!r}. Put it first, or use "
            "`supervise='last'`."
        )


def source_sha256(catalog: Catalog, columns: Sequence[str]) -> str:
    """Hash of what paths are made from: ids, titles, and the values of some columns of attributes."""
    if not columns:
        return catalog.sha256
    digest = hashlib.sha256(catalog.sha256.encode())
    for values in catalog.attributes:
        digest.update(json.dumps([values.get(column) for column in columns]).encode())
    return digest.hexdigest()


def item_texts(catalog: Catalog, form: str) -> list[str]:
    """
    The text of each item under a form of text, in row order; `""` where a column has none.

    The number of an item under `"digits"` is that of [`~hf_rec.data.item_numbers.numbers_in_hashed_order`].
    """
    if form == TITLE:
        return [" ".join(catalog.text(row).split()) for row in range(len(catalog))]
    if form == DIGITS:
        return list(map(str, numbers_in_hashed_order(catalog.ids).tolist()))
    values = ["" if is_missing(value) else value for value in _column(catalog, form, form)]
    for row, value in enumerate(values):
        if not isinstance(value, str):
            hint = f"For codes use 'codes:{form}'." if isinstance(value, list) else "Spell it out in the catalog."
            raise ValueError(
                f"{_argument(form)} must name a column of text, but item {catalog.ids[row]!r} has {value!r} "
                f"({type(value).__name__}). {hint}"
            )
    return [" ".join(clean_title(value).split()) for value in values]


def item_codes(catalog: Catalog, column: str) -> np.ndarray:
    """Codes of each item, `int64` of shape `(items, levels)`, in row order."""
    form = f"{CODES}{column}"
    values = _column(catalog, column, form)
    if missing := [row for row, value in enumerate(values) if is_missing(value) or value == ""]:
        ids = ", ".join(repr(catalog.ids[row]) for row in missing[:_SHOWN])
        raise ValueError(
            f"{_argument(form)} finds no codes for {len(missing)} of {len(catalog)} items ({ids}"
            f"{', ...' if len(missing) > _SHOWN else ''}). Every item needs a path: give them codes, or leave these "
            "items out of the catalog."
        )
    levels = len(values[0]) if isinstance(values[0], list) else 0
    for row, value in enumerate(values):
        if not isinstance(value, list) or not value or not all(type(code) is int and code >= 0 for code in value):
            raise ValueError(
                f"{_argument(form)} must name a column with a list of integers from 0 on for each item, such as "
                f"[37, 30, 59], but item {catalog.ids[row]!r} has {value!r}."
            )
        if len(value) != levels:
            raise ValueError(
                f"{_argument(form)} must name a column of codes of one length, but item {catalog.ids[0]!r} has "
                f"{levels} of them and item {catalog.ids[row]!r} has {len(value)}: {value!r}. Fill up the "
                "shorter ones."
            )
    return np.asarray(values, dtype=np.int64)


def _argument(form: str) -> str:
    """How a message about a form begins: where it was given, and what as."""
    return f"`item_path` or `history_path` {form!r}"


def _column(catalog: Catalog, column: str, form: str) -> list[Any]:
    values = [attributes.get(column) for attributes in catalog.attributes]
    if all(is_missing(value) or value == "" for value in values):
        raise no_such_attribute(catalog, column, _argument(form))
    return values
