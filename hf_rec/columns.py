"""
Every dataset column name, once, and the `datasets.Features` of each stage.

Items are catalog rows (`0 .. N-1`) from the interactions onwards; raw item ids live in the catalog alone. An example's
events are its history followed by its target; `supervise_from` is the index of the first of them that may be a label.
"""

from typing import TYPE_CHECKING


if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, Features

USER_ID = "user_id"
ITEM_ID = "item_id"
TIMESTAMP = "timestamp"
TITLE = "title"
RATING = "rating"
HISTORY_ITEM_ID = "history_item_id"  # of a ready-made row: the list before `item_id`

EVENTS = "events"  # of a user or a window: history and target in one
EVENT_TIMESTAMPS = "event_timestamps"

HISTORY = "history"
HISTORY_TIMESTAMPS = "history_timestamps"
TARGET = "target"
SUPERVISE_FROM = "supervise_from"

INPUT_IDS = "input_ids"
ATTENTION_MASK = "attention_mask"
LABELS = "labels"
DECODER_INPUT_IDS = "decoder_input_ids"  # of an encoder-decoder model: its start token, then the answer
POSITION_IDS = "position_ids"
TASK = "task"  # of a row for training: its number among `hf_rec.data.prompts.item_tasks.TASKS`
FIRST_TOKENS = "first_tokens"  # of a batch of tasks: which of the targets at the root of the trie begin a next item
SEGMENTS = "segments"  # of packed rows: which of them each token is of
LABEL_PLACES = "label_places"  # of a batch of item ids: where its labels stand in the flattened `labels`
SLOT_ITEMS = "slot_items"  # of a prompt with slots for item vectors: the item of each slot
TEACHER_VECTOR = "teacher_vector"  # of a row: the user as a sequence model sees it
TEACHER_LIST = "teacher_list"  # of a label: the number of the ranked list that teaches it
EXAMPLES = "examples"  # of a label, or of a row to rank: numbers of the stored rows that are its examples
STORED_ROW = "stored_row"  # of a label that is the target of its row: the number of that row
SEEN = "seen"  # of a batch to rank: whole histories, also what the model is not shown

ITEM_IDS = "item_ids"  # of a ranked row: raw ids of its list; its `target` is a raw id there too; of a ready-made
# sequence: raw ids, the target last
ITEM_ROWS = "item_rows"  # the same list in catalog rows
TARGET_ROW = "target_row"

DISLIKED = "disliked"  # of a row with ratings: history is what was liked, this what was not
LIKED = "liked"  # whether the target was, 0 or 1
CANDIDATES = "candidates"  # catalog rows that a retriever lists for a row, best first
ROW = "row"  # its number in the data set

CHOSEN = "chosen"
REJECTED = "rejected"

IGNORE_INDEX = -100  # a label that no loss counts, as in transformers
PADDING_ITEM = -1  # fills a batch of histories, and `slot_items` beside the slots; real items are catalog rows, from 0
UNKNOWN_TIME = -1  # the time of an event of which only the place in the order is known
NO_CHILD = -1  # fills lists of the tokens that may follow a trie node; real token ids start at 0
DEAD_NODE = -1  # the trie node of a token outside the trie, and of a position that is no item token


def column_values(dataset: "Dataset", name: str) -> "pa.ChunkedArray":
    """One column of a data set in one read. Row by row, selected or shuffled rows would cost 0.1 ms each."""
    return dataset.select_columns(name).with_format("arrow")[:][name]


def interaction_features() -> "Features":
    """Features of a cleaned interaction log: one row an event, ordered by (timestamp, original row)."""
    from datasets import Features, Value

    return Features({USER_ID: Value("string"), ITEM_ID: Value("int64"), TIMESTAMP: Value("int64")})


def sequence_features() -> "Features":
    """Features of a split: one row an example, oldest event first."""
    from datasets import Features, List, Value

    return Features(
        {
            USER_ID: Value("string"),
            HISTORY: List(Value("int64")),
            HISTORY_TIMESTAMPS: List(Value("int64")),
            TARGET: Value("int64"),
            TIMESTAMP: Value("int64"),
            SUPERVISE_FROM: Value("int32"),
        }
    )
