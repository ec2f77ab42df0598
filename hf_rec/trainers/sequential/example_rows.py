"""
Training rows as examples for others: their times, their texts, and which of them may be an example for which label.

Shapes: R rows · E events of all rows · T width of a text vector.
"""

import json
import logging
from pathlib import Path

import numpy as np
from datasets import Dataset

from hf_rec.columns import HISTORY, HISTORY_TIMESTAMPS, TARGET, TIMESTAMP, column_values
from hf_rec.data.catalog import Catalog
from hf_rec.data.item_batches import ItemRows
from hf_rec.item_codes.item_vectors import tfidf_vectors, vectors_from_file
from hf_rec.trainers.sequential.llm_cf_config import LLMCFConfig


logger = logging.getLogger(__name__)

ALWAYS, NEVER = np.iinfo(np.int64).min, np.iinfo(np.int64).max
_TELLING = 4  # letters of a title that is looked for in a text
_SURELY_MORE = 5  # texts that name their own target beyond three times those that name the one of another row


def row_times(rows: ItemRows, dataset: Dataset) -> np.ndarray:
    """
    When each event happened: `[E]`, -1 where it is not known. The target of a row has its `timestamp`, the events
    before it have `history_timestamps` where these are as many.
    """
    times = np.full(len(rows.events), -1, dtype=np.int64)
    lengths = rows.ends - rows.starts - 1
    if HISTORY_TIMESTAMPS in dataset.column_names:
        column = column_values(dataset, HISTORY_TIMESTAMPS).combine_chunks()
        given = column.value_lengths().to_numpy().astype(np.int64)
        known = given == lengths
        of_history = np.ones(len(times), dtype=bool)
        of_history[rows.ends - 1] = False
        row = np.repeat(np.arange(len(rows)), lengths + 1)
        flat = column.flatten().to_numpy(zero_copy_only=False)  # of no type where all are empty
        times[of_history & known[row]] = flat[np.repeat(known, given)].astype(np.int64)
    if TIMESTAMP in dataset.column_names:
        times[rows.ends - 1] = column_values(dataset, TIMESTAMP).to_numpy()
    return times


def times_of_examples(rows: ItemRows, times: np.ndarray) -> np.ndarray:
    """
    When each row became known: `[R]`. Where no row says, all are long past; where others do, one that does not say is
    never past.
    """
    own = times[rows.ends - 1]
    return np.where(own >= 0, own, NEVER if (own >= 0).any() else ALWAYS)


def known_before(rows: ItemRows, times: np.ndarray, any_known: bool) -> np.ndarray:
    """
    Before which time an example must lie, to be one for each event as a label: `[E]`. No later than the event before
    it, or, where only the label itself has a time, before that. Where neither has one there is no example, unless no
    row of the training data has a time.

    Args:
        rows ([`ItemRows`]): Rows.
        times (`np.ndarray` of shape `[E]`): From [`row_times`].
        any_known (`bool`): Whether training rows have times.
    """
    if not any_known:
        return np.full(len(times), NEVER, dtype=np.int64)
    previous = np.concatenate([[-1], times[:-1]])
    previous[rows.starts] = -1
    return np.where(previous >= 0, previous + 1, np.where(times >= 0, times, ALWAYS))


def example_texts(args: LLMCFConfig, dataset: Dataset, catalog: Catalog | None) -> np.ndarray | None:
    """
    Vectors `[R, T]` of what is said about each training row: given, of a column, or of the titles of its history.
    `None` where there is no text.

    Raises:
        `ValueError`: Where the vectors or the column do not fit the rows.
    """
    if args.example_text_vectors is not None:
        try:
            return vectors_from_file(args.example_text_vectors, len(dataset))
        except (ValueError, FileNotFoundError) as error:
            found = str(error).replace("catalog", "training split").replace("items", "rows")
            raise type(error)(f"`example_text_vectors`: {found}") from error
    titles = None if catalog is None or catalog.titles is None else [title or "" for title in catalog.titles]
    histories = column_values(dataset, HISTORY).to_pylist()
    if args.example_text_column is not None:
        texts = _column(dataset, args.example_text_column)
        if titles is not None:
            _look_for_labels(texts, histories, dataset, titles)
    elif titles is not None:
        texts = [" ".join(titles[item] for item in history) for history in histories]
    else:
        return None
    return tfidf_vectors(texts, seed=0)


def _column(dataset: Dataset, name: str) -> list[str]:
    if name not in dataset.column_names:
        raise ValueError(
            f"`example_text_column` names {name!r}, which the training rows do not have: "
            f"{', '.join(dataset.column_names)}."
        )
    texts = column_values(dataset, name).to_pylist()
    wrong = next((text for text in texts if text is not None and not isinstance(text, str)), None)
    if wrong is not None:
        raise ValueError(f"`example_text_column` {name!r} holds {wrong!r:.60}. Name a column of text.")
    return [text or "" for text in texts]


def _look_for_labels(texts: list[str], histories: list[list[int]], dataset: Dataset, titles: list[str]) -> None:
    """Warn where texts name the target of their own row much more often than that of the next one."""
    targets = column_values(dataset, TARGET).to_pylist()
    own, other = (
        sum(
            len(titles[target]) >= _TELLING and titles[target].casefold() in text.casefold() and target not in history
            for text, history, target in zip(texts, histories, wanted, strict=True)
        )
        for wanted in (targets, targets[1:] + targets[:1])
    )
    if own > 3 * other + _SURELY_MORE:
        logger.warning(
            "%d of %d texts name the target of their own row, %d that of another row. Were they written by somebody "
            "who knew what came next? At test nobody does.",
            own,
            len(texts),
            other,
        )


def texts_file(path: str, num_rows: int) -> list[str]:
    """
    A text a line, as JSON strings, in the order of the training rows.

    Args:
        path (`str`): The file.
        num_rows (`int`): Training rows.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no {path}. It must hold one JSON string a line, one a training row.")
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    try:
        texts = [json.loads(line) for line in lines]
    except ValueError as error:
        raise ValueError(f"{path} must hold one JSON string a line: {error}.") from error
    if len(texts) != num_rows or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{path} holds {len(texts)} lines, not one JSON string for each of {num_rows} training rows.")
    return texts
