"""Attributes of items as words behind a title or a path."""

from collections.abc import Sequence
from typing import Any

from hf_rec.data.catalog import Catalog, is_missing
from hf_rec.data.titles import clean_title


def attribute_text(values: dict[str, Any], names: Sequence[str]) -> str:
    """` name: value` for each attribute that an item has; a list of strings is joined."""
    pieces = []
    for name in names:
        value = values.get(name)
        text = clean_title(" ".join(map(str, value)) if isinstance(value, list) else str(value))
        if value not in (None, "", []) and text:
            pieces.append(f" {name}: {text}")
    return "".join(pieces)


def attribute_texts(catalog: Catalog, names: Sequence[str]) -> list[str]:
    """[`attribute_text`] of each item, in row order. An attribute that no item has is a `ValueError`."""
    for name in names:
        if all(is_missing(attributes.get(name)) for attributes in catalog.attributes):
            raise no_such_attribute(catalog, name, "`item_attributes`")
    return [attribute_text(values, names) for values in catalog.attributes]


def no_such_attribute(catalog: Catalog, name: str, argument: str) -> ValueError:
    """What to raise where no item has an attribute that an argument names: it says which there are."""
    known = sorted({known for attributes in catalog.attributes for known in attributes})
    return ValueError(
        f"{argument}: no item of the catalog has an attribute {name!r}. "
        + (f"There are {', '.join(map(repr, known))}." if known else "Its items have no attributes at all.")
    )
