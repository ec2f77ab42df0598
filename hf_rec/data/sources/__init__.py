"""
Readers of data sets as published, one module a format. Each returns `(interactions, Catalog)`, or ready-made splits in
place of the interactions.

`SOURCES` is the one list of them: `hf-rec prepare --source` and [`~hf_rec.data.prepare.prepare`] read it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Source:
    """
    Where the reader of a format is; it is imported when it is needed.

    Attributes:
        module (`str`): Module of this package.
        function (`str`): Its reader. The keyword arguments of this are the options of the source; one named `report`
            is given a [`~hf_rec.data.sources.report.SourceReport`] to fill in.
        fixed (`dict`): Arguments that the name of the source settles.
        has_splits (`bool`): Whether it reads ready-made splits in place of interactions.
    """

    module: str
    function: str
    fixed: Mapping[str, Any] = field(default_factory=dict)
    has_splits: bool = False

    def reader(self) -> Callable[..., Any]:
        """The function, its fixed arguments filled in."""
        return partial(getattr(import_module(f"{__name__}.{self.module}"), self.function), **self.fixed)


SOURCES = {
    "table": Source("tables", "load_table"),
    "amazon-2014": Source("amazon", "load_amazon", {"year": 2014}),
    "amazon-2018": Source("amazon", "load_amazon", {"year": 2018}),
    "amazon-2023": Source("amazon", "load_amazon", {"year": 2023}),
    "movielens": Source("movielens", "load_movielens"),
    "yelp": Source("yelp", "load_yelp"),
    "steam": Source("steam", "load_steam"),
    "lastfm": Source("lastfm", "load_lastfm"),
    "goodreads": Source("goodreads", "load_goodreads"),
    "sequence-csv": Source("sequences", "load_sequence_csv", has_splits=True),
    "history-csv": Source("histories", "load_history_csv", has_splits=True),
    "sequence-text": Source("sequences", "load_sequence_text"),
    "demo": Source("demo", "load_demo"),
}
