"""What a source has read, and what did not join."""

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_rec.data.sources.csv_rows import RowCounts


SHOWN = 3  # ids that stand for all those that did not join


@dataclass
class SourceReport:
    """
    Filled in by the functions that read a source.

    Attributes:
        files (`dict[str, dict[str, int]]`): Name of each file -> `rows` read; of csv files, `lines` and
            `rows_over_lines` (a quoted field holds line breaks); and what a source counts besides.
        join (`dict`): Where a source has a table of items: `items_of_the_log`; `without_item_row`, how many of
            them have no row in that table; `first_without_item_row`; and `near_misses`, of these the ones that another
            spelling would join, with that spelling. Empty elsewhere.
    """

    files: dict[str, dict[str, int]] = field(default_factory=dict)
    join: dict[str, Any] = field(default_factory=dict)

    def note_file(self, path: str | os.PathLike, rows: int, counts: RowCounts | None = None, **others: int) -> None:
        """Remember the rows of a file, the lines of a csv file, and further counts under their names."""
        entry = {"rows": rows, **others}
        if counts is not None:
            entry |= {"lines": counts.lines, "rows_over_lines": counts.rows_over_lines}
        self.files[Path(path).name] = entry

    def note_join(self, known: Collection[str], unknown: Sequence[Any], num_items: int) -> None:
        """
        Remember which items of a log have no row in the table of items.

        Args:
            known (collection of `str`): Ids of the table.
            unknown (`Sequence`): Ids of the log that are not among them.
            num_items (`int`): Items of the log.
        """
        spellings = {_plain(item): item for item in known} if unknown else {}
        near = {str(item): spellings[_plain(str(item))] for item in unknown if _plain(str(item)) in spellings}
        self.join = {
            "items_of_the_log": num_items,
            "without_item_row": len(unknown),
            "first_without_item_row": [str(item) for item in unknown[:SHOWN]],
            "near_misses": dict(list(near.items())[:SHOWN]),
        }


def _plain(item: str) -> str:
    """An id without what people overlook: spaces around it, case, leading zeros, `.0` behind a number."""
    item = item.strip().casefold().removesuffix(".0")
    return item.lstrip("0") or item
