"""
The catalog: raw item id <-> row (`0 .. N-1`) <-> title, text and attributes.

Item text is data from strangers. It is cleaned once, here, by a stated policy that is counted in [`Catalog.report`];
the string as published is kept beside it.
"""

import difflib
import gc
import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import repeat
from json.encoder import encode_basestring_ascii
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_rec.columns import ITEM_ID, TITLE
from hf_rec.data.titles import clean_title, unescape_html
from hf_rec.files import StandingFiles, replacing


if TYPE_CHECKING:
    from datasets import Dataset

FORMAT = "hf_rec.catalog"
FORMAT_VERSION = 1
ORIGINAL_TITLE = "original_title"
CATALOG_FILE, HEADER_FILE = "catalog.jsonl", "catalog.json"
ROWS_AT_ONCE = 10_000  # written at once


def is_missing(value: Any) -> bool:
    """Whether `value` stands for "no value": `None` or NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


class Catalog:
    """
    All items of a data set, in a fixed order. Everything after the sources speaks of items by row; raw ids live here.

    Make one with [`Catalog.from_records`], [`Catalog.from_dataset`] or [`Catalog.load`].

    Attributes:
        ids (`list[str | int]`): Raw item ids in row order, unique, in the type they came in.
        titles (`list[str | None]` or `None`): Cleaned titles; `None` for an item whose title is missing, `""` where
            nothing is left of it. The whole list is `None` where no item has a title.
        original_titles (`list[str | None]` or `None`): The titles as published.
        attributes (`list[dict]`): Whatever else the records held, as JSON values.
        standing ([`~hf_rec.files.StandingFiles`]): Where its files stand, for the next [`~Catalog.save`] to copy.
    """

    def __init__(
        self,
        ids: list[str | int],
        original_titles: list[str | None] | None,
        attributes: list[dict[str, Any]],
        *,
        titles: list[str | None] | None = None,
    ):
        self.ids = ids
        self.original_titles = original_titles
        self.titles = titles
        if original_titles is not None and titles is None:
            self.titles = [None if title is None else clean_title(title) for title in original_titles]
        self.attributes = attributes
        self.standing = StandingFiles(CATALOG_FILE, HEADER_FILE)
        self._rows: dict[str | int, int] = dict(zip(ids, range(len(ids)), strict=True))
        if len(self._rows) < len(ids):
            repeated = next(row for row, item_id in enumerate(ids) if self._rows[item_id] != row)
            raise ValueError(
                f"`item_id` {ids[repeated]!r} stands in records {repeated} and {self._rows[ids[repeated]]}. Ids must "
                "be unique: drop or merge the repeated records first."
            )

    @classmethod
    def from_records(cls, records: Iterable[dict[str, Any]]) -> "Catalog":
        """
        Build a catalog from dictionaries, one an item.

        Args:
            records (iterable of `dict`):
                Each with `"item_id"` (`str` or `int`), optionally `"title"` (`str`; a number is spelled out; `None`,
                NaN and an absent key mean missing). Every other key becomes an attribute, whose value must be JSON.

        Returns:
            [`Catalog`]: Row `i` is record `i`.
        """
        ids: list[str | int] = []
        titles: list[str | None] = []
        attributes: list[dict[str, Any]] = []
        with _garbage_collection_paused():
            for row, record in enumerate(records):
                if ITEM_ID not in record:
                    raise ValueError(
                        f"`records[{row}]` has no key {ITEM_ID!r}; it has {sorted(map(str, record))}. Each needs one."
                    )
                item_id = _check_id(record[ITEM_ID], row)
                ids.append(item_id)
                titles.append(_check_title(record.get(TITLE), item_id))
                attributes.append(_attributes(record, item_id))
        has_titles = any(title is not None for title in titles)
        return cls(ids, titles if has_titles else None, attributes)

    @classmethod
    def from_dataset(cls, dataset: "Dataset", id_column: str = ITEM_ID, title_column: str | None = None) -> "Catalog":
        """
        Build a catalog from a table of items.

        Args:
            dataset (`datasets.Dataset`): One row an item.
            id_column (`str`, *optional*, defaults to `"item_id"`): Column of the raw ids.
            title_column (`str`, *optional*): Column of the titles. Without it the catalog has no titles.
        """
        for argument, column in (("id_column", id_column), ("title_column", title_column)):
            if column is not None and column not in dataset.column_names:
                raise ValueError(f"`{argument}` is {column!r}, but the data set has columns {dataset.column_names}.")
        names = {id_column: ITEM_ID} | ({title_column: TITLE} if title_column is not None else {})
        reserved = {ITEM_ID, TITLE} - set(names)
        return cls.from_records(
            {names.get(key, key): value for key, value in record.items() if key not in reserved or key in names}
            for record in dataset
        )

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"Catalog(items={len(self)}, titles={'no' if self.titles is None else 'yes'})"

    def row(self, raw_id: str | int) -> int:
        """Row of a raw id. Either spelling of a number finds it: `"12"` finds `12`, unless `"12"` is an id itself."""
        try:
            row = self._rows.get(raw_id)
        except TypeError:
            row = None
        if row is None:
            row = self._rows_by_spelling.get(str(raw_id))
        if row is None:
            hint = f"Give a raw item id (first ones: {self.ids[:3]}), or look a title up with `find_title`."
            if isinstance(raw_id, str) and (rows := self.find_title(raw_id)):
                hint = f"It is the title of {' and '.join(repr(self.ids[found]) for found in rows)}: give the id."
            raise ValueError(f"Item {raw_id!r} is not among the {len(self)} items of the catalog. {hint}")
        return row

    def rows(self, raw_ids: Iterable[str | int]) -> list[int]:
        """Rows of several raw ids, in their order."""
        return [self.row(raw_id) for raw_id in raw_ids]

    def title(self, raw_id: str | int) -> str | None:
        """Title of a raw id; `None` where it has none."""
        return None if self.titles is None else self.titles[self.row(raw_id)]

    def find_title(self, title: str) -> list[int]:
        """
        Rows of all items with this title, lowest first; `[]` where there is none.

        The title is cleaned like those of the catalog; if no item has it letter for letter, case is ignored.
        """
        title = clean_title(title)
        exact, folded = self._rows_by_title
        return [*(exact.get(title) or folded.get(title.casefold()) or [])]

    def nearest(self, text: str, count: int = 3) -> list[str]:
        """At most `count` ids and titles that look most like `text`, whatever their case; `[]` where none does."""
        known = {str(item_id).lower(): str(item_id) for item_id in self.ids}
        known |= {title.lower(): title for title in self.titles or () if title}
        return [known[name] for name in difflib.get_close_matches(text.lower(), known, n=count, cutoff=0.5)]

    def text(self, row: int) -> str:
        """What an item is called in prompts: its title, or a name made of its id where it has none. Never empty."""
        if not 0 <= row < len(self):
            raise IndexError(f"`row` must be in 0..{len(self) - 1}, got {row}.")
        if self.titles is None:
            return f"item {clean_title(str(self.ids[row]))}"
        return self.titles[row] or f"untitled item {clean_title(str(self.ids[row]))}"

    def subset(self, rows: Sequence[int]) -> "Catalog":
        """A catalog of the given rows, in the given order."""
        titles = None
        if self.original_titles is not None:
            titles = [self.original_titles[row] for row in rows]
        return Catalog([self.ids[row] for row in rows], titles, [self.attributes[row] for row in rows])

    def with_records(self, records: Iterable[dict[str, Any]]) -> "Catalog":
        """
        A catalog with further items behind these.

        Args:
            records (iterable of `dict`): As of [`Catalog.from_records`].
        """
        more = Catalog.from_records(records)
        known = [item_id for item_id in more.ids if item_id in self._rows]
        if known:
            others = f", as are {len(known) - 1} others" if len(known) > 1 else ""
            raise ValueError(f"Item {known[0]!r} is in the catalog already{others}.")
        titles: list[str | None] | None = None
        if self.original_titles is not None or more.original_titles is not None:
            titles = [title for part in (self, more) for title in part.original_titles or [None] * len(part)]
        return Catalog(self.ids + more.ids, titles, self.attributes + more.attributes)

    def renamed(self, row: int, title: str) -> "Catalog":
        """A catalog in which one item has another title."""
        titles = list(self.original_titles or [None] * len(self))
        titles[row] = title
        return Catalog(self.ids, titles, self.attributes)

    def has_items_of(self, other: "Catalog") -> bool:
        """
        Whether the rows of another catalog are the same items: equal ids in equal order, and equal titles unless one
        of the two knows none.
        """
        if self.titles is not None and other.titles is not None:
            return self.sha256 == other.sha256
        return self.ids == other.ids

    def check_made_for(self, num_items: int, sha256: str | None, model: str = "the model") -> None:
        """
        Refuse a model that was made for another catalog: its item rows mean other items.

        Args:
            num_items (`int`): Items that the model knows.
            sha256 (`str` or `None`): Hash of the catalog that it was made for; `None` where it keeps none.
            model (`str`, *optional*, defaults to `"the model"`): What the message calls it.
        """
        if len(self) != num_items:
            difference = f"has {len(self)} items, but {model} was made for {num_items}"
        elif sha256 not in (None, self.sha256):
            difference = (
                f"differs from that of {model}, which was made for another catalog: item rows mean other items"
            )
        else:
            return
        raise ValueError(f"`catalog` {difference}. Load the catalog that was saved with {model}.")

    def report(self) -> dict[str, int]:
        """
        Counts of what the titles are like.

        Returns:
            `dict[str, int]`: `items`; `missing_titles` (`None`), `empty_titles` (nothing left after cleaning),
            `unique_titles`, `duplicate_titles` (items that share their title with another), `html_escaped_titles`,
            `cleaned_titles` (changed in any way), `longest_title` (characters).
        """
        titles, originals = self.titles or [None] * len(self), self.original_titles or [None] * len(self)
        counts = Counter(title for title in titles if title is not None)
        pairs = [(title, original) for title, original in zip(titles, originals, strict=True) if original is not None]
        return {
            "items": len(self),
            "missing_titles": len(self) - len(pairs),
            "empty_titles": counts[""],
            "unique_titles": len(counts),
            "duplicate_titles": sum(count for count in counts.values() if count > 1),
            "html_escaped_titles": sum(unescape_html(original) != original for _, original in pairs),
            "cleaned_titles": sum(title != original for title, original in pairs),
            "longest_title": max(map(len, counts), default=0),
        }

    @cached_property
    def sha256(self) -> str:
        """Hash of ids and cleaned titles in row order; attributes do not count."""
        digest = hashlib.sha256()
        titles = self.titles or repeat(None)
        for item_id, title in zip(self.ids, titles, strict=False):
            line = f"[{_as_json(item_id)}, {'null' if title is None else _as_json(title)}]\n"
            digest.update(line.encode("ascii"))
        return digest.hexdigest()

    def save(self, directory: str | os.PathLike) -> None:
        """
        Write `catalog.jsonl` (one item a line) and `catalog.json` (format, counts, hashes) into `directory`. Where
        they stand unchanged in another folder, they are copied from there.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        if self.standing.copy_to(directory):
            return
        encode = json.JSONEncoder(ensure_ascii=False).encode
        digest = hashlib.sha256()
        with replacing(directory / CATALOG_FILE) as partial, open(partial, "wb") as file:
            for start in range(0, len(self), ROWS_AT_ONCE):
                lines = [encode(self._record(row)) for row in range(start, min(start + ROWS_AT_ONCE, len(self)))]
                block = "\n".join([*lines, ""]).encode("utf-8", "surrogatepass")
                digest.update(block)
                file.write(block)
        header = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "counts": self.report(),
            "sha256": self.sha256,
            "file_sha256": digest.hexdigest(),
        }
        with replacing(directory / HEADER_FILE) as partial:
            partial.write_text(json.dumps(header, indent=2) + "\n", encoding="utf-8")

    def _record(self, row: int) -> dict[str, Any]:
        """An item as a line of the file holds it."""
        record: dict[str, Any] = {ITEM_ID: self.ids[row]}
        if self.titles is not None and self.original_titles is not None:
            record[TITLE] = self.titles[row]
            if self.original_titles[row] != self.titles[row]:
                record[ORIGINAL_TITLE] = self.original_titles[row]
        if self.attributes[row]:
            record["attributes"] = self.attributes[row]
        return record

    @classmethod
    def load(cls, directory: str | os.PathLike) -> "Catalog":
        """Read what [`~Catalog.save`] wrote; a `ValueError` says so where the files do not belong together."""
        directory = Path(directory)
        for name in (HEADER_FILE, CATALOG_FILE):
            if not (directory / name).is_file():
                raise FileNotFoundError(f"{directory} holds no {name}. Give a folder written by `Catalog.save`.")
        try:
            header = json.loads((directory / HEADER_FILE).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{directory / 'catalog.json'} is not JSON ({error}). Save the catalog again.") from error
        if header.get("format") != FORMAT or header.get("version") != FORMAT_VERSION:
            raise ValueError(
                f"{directory / 'catalog.json'} has format {header.get('format')!r}, version {header.get('version')!r}"
                f"; this code reads {FORMAT!r}, version {FORMAT_VERSION}. Save the catalog again."
            )
        content = (directory / CATALOG_FILE).read_bytes()
        if hashlib.sha256(content).hexdigest() != header["file_sha256"]:
            raise ValueError(
                f"{directory / 'catalog.jsonl'} does not match the hash in catalog.json: it was cut short, edited, or "
                "comes from another catalog. Save the catalog again."
            )
        lines = content.decode("utf-8", "surrogatepass").rstrip("\n")
        with _garbage_collection_paused():
            records = json.loads(f"[{lines.replace(chr(10), ',')}]")  # no line holds a line break: JSON escapes it
            titles: list[str | None] = [record.get(TITLE) for record in records]
            originals = [record.get(ORIGINAL_TITLE, title) for record, title in zip(records, titles, strict=True)]
            has_titles = any(title is not None for title in titles)
            catalog = cls(
                [record[ITEM_ID] for record in records],
                originals if has_titles else None,
                [record.get("attributes", {}) for record in records],
                titles=titles if has_titles else None,
            )
        if catalog.sha256 != header["sha256"]:
            raise ValueError(
                f"The ids and titles in {directory} do not match the hash in catalog.json: it was edited, or comes "
                "from another catalog. Save the catalog again."
            )
        catalog.standing.remember(directory)
        return catalog

    @cached_property
    def _rows_by_spelling(self) -> dict[str, int]:
        return {str(item_id): row for row, item_id in enumerate(self.ids)}

    @cached_property
    def _rows_by_title(self) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
        exact: dict[str, list[int]] = {}
        folded: dict[str, list[int]] = {}
        for row, title in enumerate(self.titles or ()):
            if title:
                exact.setdefault(title, []).append(row)
                folded.setdefault(title.casefold(), []).append(row)
        return exact, folded


@contextmanager
def _garbage_collection_paused() -> Iterator[None]:
    """Millions of new dictionaries, none of them garbage, would be walked over again and again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _as_json(value: str | int) -> str:
    return encode_basestring_ascii(value) if isinstance(value, str) else str(value)


def _check_id(value: Any, row: int) -> str | int:
    if type(value) not in (str, int) and hasattr(value, "item"):  # a numpy scalar
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise ValueError(
            f"`records[{row}]` has `{ITEM_ID}` {value!r} ({type(value).__name__}). An id must be a non-empty `str` or "
            "an `int`; drop items without one."
        )
    return value


def _check_title(value: Any, item_id: str | int) -> str | None:
    if type(value) is str:
        return value
    if is_missing(value):
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise ValueError(f"`title` of item {item_id!r} must be text, got {value!r} ({type(value).__name__}).")
    return str(value)


def _attributes(record: dict[str, Any], item_id: str | int) -> dict[str, Any]:
    return {
        str(key): value if type(value) in (str, int) else _to_json(value, item_id, key)
        for key, value in record.items()
        if key != ITEM_ID and key != TITLE
    }


def _to_json(value: Any, item_id: str | int, key: Any) -> Any:
    """`value` as plain JSON types; NaN and infinities, which JSON lacks, become `None`."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, dict):
        return {str(name): _to_json(entry, item_id, key) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(entry, item_id, key) for entry in value]
    if hasattr(value, "tolist"):  # numpy arrays and scalars
        return _to_json(value.tolist(), item_id, key)
    if hasattr(value, "isoformat"):
        return value.isoformat()
    raise ValueError(
        f"Attribute {key!r} of item {item_id!r} is a {type(value).__name__}, which JSON cannot hold. "
        "Convert or drop it."
    )
