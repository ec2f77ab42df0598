"""
Ids of collaborative tokens: input tokens behind the vocabulary that stand for what a sequence model knows.

The id of an item is the size of the vocabulary + its catalog row. High bits say what else a token is; all that the
embedding needs to know stands in the ids, so whatever carries tokens carries histories too.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


# The first event of a history: rows packed end to end are told apart by it. On a user token: a history without events.
FIRST = 1 << 27
# An item that is asked about: no event of the history
CANDIDATE = 1 << 28
# The user after all events of the history so far
USER = 1 << 29
# Largest row; no item's: an item that nothing is to be known of
UNKNOWN_ROW = FIRST - 1


def event_tokens(vocab_size: int, rows: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """
    Tokens of the events of one history, in their order.

    Args:
        vocab_size (`int`): Tokens that the model has embeddings for.
        rows (`list[int]`): Catalog rows, oldest first.

    Returns:
        `np.ndarray` of `int64`, shape `(events,)`.
    """
    tokens = vocab_size + np.asarray(rows, dtype=np.int64)
    tokens[:1] += FIRST
    return tokens


def candidate_tokens(vocab_size: int, rows: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Tokens of items that a prompt asks about behind a history; the arguments are those of [`event_tokens`]."""
    return vocab_size + CANDIDATE + np.asarray(rows, dtype=np.int64)


def user_token(vocab_size: int, has_events: bool) -> int:
    """Token of the user after the events before it in the same prompt."""
    return vocab_size + USER + (0 if has_events else FIRST)
