"""
Codes as one more column of a prepared folder.

```
DIR/catalog.jsonl, catalog.json, splits/, data.json, README.md   as `hf-rec prepare` writes them, the column added
DIR/codes_COLUMN.json, .md, .png                                 what the codes are like
```
"""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import DatasetDict

from hf_rec.columns import ITEM_ID, TITLE
from hf_rec.data.catalog import Catalog
from hf_rec.data.data_card import data_card_markdown
from hf_rec.files import replacing_folder
from hf_rec.item_codes.code_report import report_markdown


if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = re.compile(r"[A-Za-z_][\w-]*", re.ASCII)


def check_place(catalog: Catalog, column: str, data: str | os.PathLike, out: str | os.PathLike) -> None:
    """
    Refuse a column or a folder that stands for something else already.

    Args:
        catalog ([`Catalog`]): Of `data`.
        column (`str`): Name of the new attribute.
        data, out (`str` or `os.PathLike`): The folder that is read, and the one that is written: the same, or new, or
            empty.
    """
    if not NAME.fullmatch(column) or column in (ITEM_ID, TITLE):
        raise ValueError(f"`column` must be a word of letters, digits, _ and -, and no name of ours, got {column!r}.")
    if any(column in attributes for attributes in catalog.attributes):
        raise ValueError(f"`column` {column!r} stands in the catalog of {data} already. Choose another name.")
    out = Path(out)
    if out.resolve() == Path(data).resolve():
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(
            f"`out` = {str(out)!r} exists and is not empty. Choose another folder; `data` itself gets one more column."
        )


def write_codes(
    out: str | os.PathLike,
    catalog: Catalog,
    splits: DatasetDict,
    card: dict[str, Any],
    *,
    column: str,
    codes: np.ndarray,
    settings: dict[str, Any],
    report: dict[str, Any],
    figure: "Figure | None" = None,
) -> None:
    """
    Write a prepared folder whose catalog has one more column, and the report on it. Splits and card are those given,
    the card with an entry of the column in `codes`. A folder that is prepared already keeps its splits.

    Args:
        out (`str` or `os.PathLike`): The folder; see [`check_place`].
        catalog ([`Catalog`]), splits (`datasets.DatasetDict`), card (`dict`): As read.
        column (`str`): Name of the column.
        codes (`np.ndarray` of `int`, shape `(N, L)`): Codes of the items in row order.
        settings (`dict`): How they were made, JSON values.
        report (`dict`): Of [`~hf_rec.item_codes.code_report.code_report`].
        figure (`matplotlib.figure.Figure`, *optional*): The picture of the tree.
    """
    attributes = [old | {column: path} for old, path in zip(catalog.attributes, codes.tolist(), strict=True)]
    catalog = Catalog(catalog.ids, catalog.original_titles, attributes, titles=catalog.titles)
    digest = hashlib.sha256(np.ascontiguousarray(codes, dtype="<i8").tobytes()).hexdigest()
    settings = settings | {"sha256": digest}
    card = card | {"codes": card.get("codes", {}) | {column: settings}}
    out = Path(out)
    has_splits = (out / "data.json").is_file()
    with replacing_folder(out, last="data.json") as partial:
        if not has_splits:
            splits.save_to_disk(str(partial / "splits"))
        name = f"codes_{column}"
        if figure is not None:
            figure.savefig(partial / f"{name}.png", format="png")
        text = report_markdown(column, report, settings, None if figure is None else f"{name}.png")
        (partial / f"{name}.md").write_text(text, encoding="utf-8")
        whole = json.dumps({"column": column, "settings": settings, "report": report}, indent=2)
        (partial / f"{name}.json").write_text(whole + "\n", encoding="utf-8")
        catalog.save(partial)
        (partial / "README.md").write_text(data_card_markdown(card), encoding="utf-8")
        (partial / "data.json").write_text(json.dumps(card, indent=2, default=str) + "\n", encoding="utf-8")
