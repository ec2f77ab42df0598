"""
Last.fm of HetRec 2011: which artists 1,892 people have tagged, and when, in `user_taggedartists-timestamps.dat`; names
in `artists.dat`. (`user_artists.dat` counts plays and has no times.)
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset

from hf_rec.columns import ITEM_ID, TIMESTAMP, TITLE, USER_ID
from hf_rec.data.catalog import Catalog
from hf_rec.data.sources.delimited import parse_rows, read_fields, whole_number
from hf_rec.data.sources.files import find_file, reading, resolve_path
from hf_rec.data.sources.report import SourceReport
from hf_rec.data.sources.tables import complete_catalog
from hf_rec.data.timestamps import LATEST_SECOND, MICROSECONDS


EVENT_FIELDS = ("userID", "artistID", "tagID", "timestamp")
ARTIST_FIELDS = ("id", "name", "url", "pictureURL")


def load_lastfm(path: str | os.PathLike, *, report: SourceReport | None = None) -> tuple[Dataset, Catalog]:
    """
    Read the tags that people gave to artists, each tag an event.

    Papers keep the first event of a user and an artist, `duplicates="first"`, and a 5-core.

    Args:
        path (`str` or `os.PathLike`): The unpacked folder `hetrec2011-lastfm-2k`.
        report ([`SourceReport`], *optional*): Is filled in with what was read and what did not join. A few times of
            the published file lie before 1970; they are taken as 1970-01-01 and counted.

    Returns:
        `tuple[datasets.Dataset, Catalog]`: All events in the order of the file, and all artists, with their `url`.
    """
    folder, report = resolve_path(path), SourceReport() if report is None else report
    events_file = find_file(folder, "user_taggedartists-timestamps.dat")
    artists_file = find_file(folder, "artists.dat")
    events = _rows(events_file, EVENT_FIELDS, "tag of an artist", _event, report)
    artists = _rows(artists_file, ARTIST_FIELDS, "artist", _artist, report)
    early = sum(seconds < 0 for _, _, seconds in events)
    report.note_file(events_file, len(events), before_1970=early)
    users, items, times = list(zip(*events, strict=True)) or [()] * 3
    micros = [max(0, time) * MICROSECONDS["ms"] for time in times]
    table = pa.table(
        {
            USER_ID: pa.array(users, pa.int64()),
            ITEM_ID: pa.array(items, pa.int64()),
            TIMESTAMP: pa.array(micros, pa.timestamp("us")),
        }
    )
    with reading(artists_file, "file of artists of Last.fm"):
        return Dataset(table), complete_catalog(artists, table[ITEM_ID], report)


def _rows(
    path: Path, names: tuple[str, ...], what: str, make: Callable[[list[str]], Any], report: SourceReport
) -> list[Any]:
    """What `make` makes of the lines behind the header, which must be that of the published file."""
    (_, header), *rows = read_fields(path, "\t") or [(1, [""])]
    if tuple(header) != names:
        raise ValueError(f"{path} must begin with a line of {', '.join(names)}, got {header!r}. Download it again.")
    return parse_rows(path, rows, what, make, report)


def _event(fields: list[str]) -> tuple[int, int, int]:
    user, artist, _, time = fields
    milliseconds = int(time)
    if milliseconds > LATEST_SECOND * 1_000:
        raise ValueError(f"{TIMESTAMP!r} is {time:.40}, not milliseconds since 1970")
    return whole_number(user), whole_number(artist), milliseconds


def _artist(fields: list[str]) -> dict[str, Any]:
    item, name, *rest = fields
    return {ITEM_ID: whole_number(item), TITLE: name} | ({"url": rest[0]} if rest and rest[0] else {})
