"""The times of a log, in any of the forms that logs have, and how a bad value of a column is told."""

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hf_rec.columns import TIMESTAMP, UNKNOWN_TIME


MICROSECONDS = {"s": 1_000_000, "ms": 1_000}
LATEST_SECOND = 10**11  # beyond it (the year 5138) a number of seconds is a number of milliseconds


def parse_timestamps(column: pa.ChunkedArray, unit: str = "s") -> np.ndarray:
    """
    Times as microseconds since 1970.

    Args:
        column (`pyarrow.ChunkedArray`): Numbers, numbers as text, ISO dates as text, or Arrow timestamps.
        unit (`str`, *optional*, defaults to `"s"`): Of numbers: `"s"`, `"ms"`, or `"auto"`, which takes them as
            milliseconds if their median would otherwise lie beyond the year 5138.

    Returns:
        `np.ndarray` of `int64`; -1 in every entry if the column holds nothing but -1 (unknown).
    """
    if unit not in (*MICROSECONDS, "auto"):
        raise ValueError(f"`timestamp_unit` must be 's', 'ms' or 'auto', got {unit!r}.")
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        raise_if_bad(pc.is_null(column), column, TIMESTAMP, "is missing")
        times = pc.cast(column, pa.timestamp("s"), safe=False).cast(pa.int64()).to_numpy()
        raise_if_bad(times < 0, column, TIMESTAMP, "lies before 1970")
        raise_if_bad(times > LATEST_SECOND, column, TIMESTAMP, "lies beyond the year 5138")
        return pc.cast(column, pa.timestamp("us"), safe=False).cast(pa.int64()).to_numpy()
    if pa.types.is_null(column.type):
        column = column.cast(pa.string())
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        numbers, dates = _parse_text(column)
    elif pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        dates = np.full(len(column), np.nan)
        numbers = pc.cast(column, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        exact = pc.fill_null(column, -2).to_numpy() if pa.types.is_signed_integer(column.type) else numbers
        if len(exact) and (exact == UNKNOWN_TIME).all():
            return np.full(len(column), UNKNOWN_TIME)
    else:
        raise ValueError(f"Column {TIMESTAMP!r} is of type {column.type}; give seconds or ISO dates.")
    if unit == "auto":
        finite = numbers[np.isfinite(numbers)]
        unit = "ms" if len(finite) and np.median(finite) > LATEST_SECOND else "s"
    with np.errstate(invalid="ignore"):
        bad = ~(numbers >= 0) & ~(dates >= 0) | np.isinf(numbers)
        late = numbers * (MICROSECONDS[unit] / MICROSECONDS["s"]) > LATEST_SECOND
    raise_if_bad(bad, column, TIMESTAMP, "is neither a time since 1970 nor an ISO date")
    if unit == "s" and 2 * late.sum() > len(late):
        hint = "lies beyond the year 5138 and looks like milliseconds"
        raise_if_bad(late, column, TIMESTAMP, hint, "For these `timestamp_unit` must be 'ms' or 'auto'.")
    raise_if_bad(late, column, TIMESTAMP, "lies beyond the year 5138")
    return np.where(np.isfinite(dates), dates, np.round(numbers * MICROSECONDS[unit])).astype(np.int64)


def raise_if_bad(
    bad: pa.ChunkedArray | np.ndarray,
    values: pa.ChunkedArray,
    column: str,
    what: str,
    remedy: str = "Repair or drop these rows.",
) -> None:
    """
    Refuse a column with bad values.

    Args:
        bad (`pyarrow.ChunkedArray` or `np.ndarray` of `bool`): Which of the values are bad.
        values (`pyarrow.ChunkedArray`): The column, of which the first bad value is shown.
        column (`str`): Its name.
        what (`str`): What is wrong with them.
        remedy (`str`, *optional*): What to do.
    """
    places = np.flatnonzero(bad if isinstance(bad, np.ndarray) else bad.to_numpy())
    if len(places):
        row = int(places[0])
        try:
            value = repr(values[row].as_py())
        except (ValueError, OverflowError):  # a time that Python's dates cannot hold
            value = f"{values[row].value} ({values.type})"
        raise ValueError(
            f"`{column}` {what} in {len(places)} of {len(values)} rows; the first is row {row} (counted from 0), "
            f"which has {value}. {remedy}"
        )


def _parse_text(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Text as (numbers, microseconds of ISO dates), NaN in both where it is neither."""
    encoded = pc.dictionary_encode(column).combine_chunks()
    texts = encoded.dictionary.to_pylist()
    numbers, dates = np.full(len(texts) + 1, np.nan), np.full(len(texts) + 1, np.nan)
    for code, text in enumerate(texts):
        try:
            numbers[code] = float(text)
        except ValueError:
            try:
                date = datetime.fromisoformat(text.strip())
            except ValueError:
                continue
            date = date if date.tzinfo else date.replace(tzinfo=UTC)
            dates[code] = date.timestamp() * MICROSECONDS["s"]
    codes = pc.fill_null(encoded.indices, len(texts)).to_numpy()
    return numbers[codes], dates[codes]
