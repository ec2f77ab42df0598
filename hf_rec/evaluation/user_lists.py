"""
Lists for a table of users, however many: read in parts, ranked in parts by one process or several, and put together.

Each part is a file of its own beside the result. What was ranked before an interruption is not ranked again.

Shapes: k places of a list.
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hf_rec.columns import HISTORY, HISTORY_TIMESTAMPS, ITEM_IDS, USER_ID
from hf_rec.files import file_sha256, replacing
from hf_rec.hub.files import RECOMMENDER_FILE
from hf_rec.processes import process_state
from hf_rec.recommenders.contract import Recommender


EXCLUDE = "exclude"
TITLES, SCORES, CERTIFIED = "titles", "scores", "certified"
SETTINGS_KEY = b"hf_rec.user_lists"
SETTINGS_FILE = "settings.json"
PART_ROWS = 8192
_SETTABLE = ("tau", "scoring", "gamma", "permutations")
_PARTS = ("writer", "weight", "retriever", "reranker")


def recommend_users(
    recommender: Recommender,
    users: str | os.PathLike,
    out: str | os.PathLike,
    *,
    k: int = 10,
    exclude_history: bool = False,
    num_beams: int | None = None,
    batch_size: int | None = None,
    part_rows: int = PART_ROWS,
    overwrite: bool = False,
) -> int | None:
    """
    Write the list of each user of a parquet file.

    Args:
        recommender ([`~hf_rec.recommenders.contract.Recommender`]): Any one.
        users (`str` or `os.PathLike`): Parquet with `history` (raw ids, oldest first) and `user_id`; where it has
            `history_timestamps` (Unix seconds) or `exclude` (raw ids), they are used.
        out (`str` or `os.PathLike`): Parquet to write: `user_id`, `item_ids`, `titles`, `scores` and `certified`, in
            the order of `users`. It appears complete or not at all; until then its parts stand in `out` + `.parts`.
        k, num_beams, batch_size (*optional*): As of `recommend`.
        exclude_history (`bool`, *optional*, defaults to `False`): List nothing that is in the history.
        part_rows (`int`, *optional*, defaults to `8192`): Users that are ranked before something is written.
        overwrite (`bool`, *optional*, defaults to `False`): Begin anew where `out`, or a part of it, is there already.
            A recommender that was not loaded from a folder has no hash to know its lists by, so it never goes on.

    Returns:
        `int` or `None`: Users of the file; `None` where `out` is the result of this very call already.

    Raises:
        `FileExistsError`: Where `out` or its parts come from something else; the message says from what.
        `ValueError`: Where a column is missing or a row names an unknown item.
    """
    users, out = Path(users), Path(out)
    if k < 1 or part_rows < 1:
        raise ValueError(f"`k` and `part_rows` must be at least 1, got {k} and {part_rows}.")
    if not users.is_file():
        raise FileNotFoundError(f"`users` {users} is no file. Give a parquet file with `user_id` and `history`.")
    file = pq.ParquetFile(users)
    missing = {USER_ID, HISTORY} - set(file.schema_arrow.names)
    if missing:
        raise ValueError(
            f"`users` {users} has no column {', '.join(sorted(missing))}; it has {file.schema_arrow.names}."
        )
    settings = {
        "users_sha256": file_sha256(users),
        "catalog_sha256": recommender.catalog.sha256,
        "recommender_sha256": _folder_sha256(recommender),
        "recommender_settings": _settings_of_recommender(recommender),
        "k": k,
        "exclude_history": exclude_history,
        "num_beams": num_beams,
        "part_rows": part_rows,
    }
    state, folder = process_state(), out.with_name(out.name + ".parts")
    is_known = settings["recommender_sha256"] is not None
    if out.exists() and not overwrite and is_known and _settings_of(out) == settings:
        return None
    # Every process looks before the first one makes the folder
    if not overwrite:
        _check_place(out, folder, settings)
    state.wait_for_everyone()
    if state.is_main_process:
        _make_folder(folder, settings, overwrite)
    state.wait_for_everyone()
    schema = _schema(recommender, file.schema_arrow.field(USER_ID).type)
    options = {"k": k, "num_beams": num_beams, "batch_size": batch_size}
    parts = []
    for number, table in enumerate(_parts(file, part_rows)):
        parts.append(folder / f"part-{number:05d}.parquet")
        if number % state.num_processes == state.process_index and not parts[-1].is_file():
            lists = _ranked(recommender, table, number * part_rows, exclude_history, options, schema)
            with replacing(parts[-1]) as partial:
                pq.write_table(lists, partial)
    state.wait_for_everyone()
    if state.is_main_process:
        with replacing(out) as partial:
            metadata = {SETTINGS_KEY: json.dumps(settings).encode()}
            with pq.ParquetWriter(partial, schema.with_metadata(metadata)) as writer:
                for part in parts:
                    writer.write_table(pq.read_table(part).replace_schema_metadata(metadata))
        shutil.rmtree(folder)
    state.wait_for_everyone()
    num_users: int = file.metadata.num_rows
    return num_users


def _folder_sha256(recommender: Recommender) -> str | None:
    """Hash of what lists the hashes of the folder that the recommender was loaded from."""
    if recommender.folder is None or not (recommender.folder / RECOMMENDER_FILE).is_file():
        return None
    return file_sha256(recommender.folder / RECOMMENDER_FILE)


def _settings_of_recommender(recommender: Recommender) -> dict[str, Any]:
    """What may be set after loading, and changes lists; that of its parts too."""
    found = {name: getattr(recommender, name) for name in _SETTABLE if hasattr(recommender, name)}
    if hasattr(recommender, "model"):
        found["dtype"] = str(recommender.model.dtype)
    named = [getattr(recommender, name, None) for name in _PARTS]
    parts = [part for part in (*named, *getattr(recommender, "recommenders", ())) if part is not None]
    return found | ({"parts": list(map(_settings_of_recommender, parts))} if parts else {})


def _settings_of(out: Path) -> dict[str, Any] | None:
    try:
        metadata = pq.read_schema(out).metadata or {}
    except (pa.ArrowInvalid, OSError):
        return None
    settings: dict[str, Any] | None = json.loads(metadata.get(SETTINGS_KEY, b"null"))
    return settings


def _check_place(out: Path, folder: Path, settings: dict[str, Any]) -> None:
    if out.exists():
        raise FileExistsError(f"{out} is there, from something else. Choose another `out`, or pass `overwrite`.")
    if not folder.exists():
        return
    path = folder / SETTINGS_FILE
    before = json.loads(path.read_bytes()) if path.is_file() else {}
    changed = sorted(name for name, value in settings.items() if before.get(name) != value)
    if settings["recommender_sha256"] is None:
        raise FileExistsError(
            f"{folder} holds parts of lists, and a `recommender` that was not loaded from a folder cannot be known "
            "again. Save and load it, or pass `overwrite`."
        )
    if changed:
        raise FileExistsError(
            f"{folder} holds parts of other lists: {', '.join(changed)} differ. Give what they were begun with, or "
            "pass `overwrite`."
        )


def _make_folder(folder: Path, settings: dict[str, Any], overwrite: bool) -> None:
    if overwrite and folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / SETTINGS_FILE) as partial:
        partial.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _parts(file: pq.ParquetFile, part_rows: int) -> Iterator[pa.Table]:
    """The table in parts of equal length, however its row groups lie."""
    columns = [name for name in (USER_ID, HISTORY, HISTORY_TIMESTAMPS, EXCLUDE) if name in file.schema_arrow.names]
    waiting: list[pa.Table] = []
    for batch in file.iter_batches(batch_size=part_rows, columns=columns):
        waiting.append(pa.Table.from_batches([batch]))
        while sum(map(len, waiting)) >= part_rows:
            joined = pa.concat_tables(waiting)
            yield joined.slice(0, part_rows)
            waiting = [joined.slice(part_rows)]
    if sum(map(len, waiting)):
        yield pa.concat_tables(waiting)


def _schema(recommender: Recommender, user_type: pa.DataType) -> pa.Schema:
    ids = recommender.catalog.ids
    is_number = all(type(item_id) is int for item_id in ids)
    return pa.schema(
        {
            USER_ID: user_type,
            ITEM_IDS: pa.list_(pa.int64() if is_number else pa.string()),
            TITLES: pa.list_(pa.string()),
            SCORES: pa.list_(pa.float32()),
            CERTIFIED: pa.bool_(),
        }
    )


def _ranked(
    recommender: Recommender,
    table: pa.Table,
    first_row: int,
    exclude_history: bool,
    options: dict[str, Any],
    schema: pa.Schema,
) -> pa.Table:
    """The lists of one part."""
    columns = table.to_pydict()
    histories = columns[HISTORY]
    for name in (HISTORY, HISTORY_TIMESTAMPS, EXCLUDE):
        if None in columns.get(name, []):
            row = first_row + columns[name].index(None)
            raise ValueError(f"`users`: row {row} has no `{name}`. Give an empty list where there is nothing.")
    for row, history in enumerate(histories, start=first_row):
        try:
            recommender.catalog.rows(history)
        except ValueError as error:
            raise ValueError(f"`users`: the history of row {row}: {error}") from error
    exclude = [[*own] for own in columns.get(EXCLUDE, [[]] * len(histories))]
    if exclude_history:
        exclude = [[*own, *history] for own, history in zip(exclude, histories, strict=True)]
    found = recommender.recommend(
        histories, exclude=exclude if any(exclude) else None, timestamps=columns.get(HISTORY_TIMESTAMPS), **options
    )
    is_number = pa.types.is_integer(schema.field(ITEM_IDS).type.value_type)
    lists = {
        USER_ID: table[USER_ID],
        ITEM_IDS: [ids if is_number else list(map(str, ids)) for ids in found.item_ids],
        TITLES: [[recommender.catalog.title(item_id) for item_id in ids] for ids in found.item_ids],
        SCORES: [row[: len(ids)].tolist() for row, ids in zip(found.scores, found.item_ids, strict=True)],
        CERTIFIED: found.certified.tolist(),
    }
    return pa.table(lists, schema=schema)
