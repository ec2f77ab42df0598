import numpy as np
import pytest
import torch
from datasets import Dataset

from hf_rec.columns import HISTORY, INPUT_IDS, LABELS, SEEN, SUPERVISE_FROM, TARGET
from hf_rec.data.item_batches import EvaluationBatches, ItemCollator, ItemRows, TrainingBatches


ROWS = {  # events of the rows: 5 6 7 8 | 1 2 | 9 | 4 3 2 1 0, of which the last two alone are new
    HISTORY: [[5, 6, 7], [1], [], [4, 3, 2, 1]],
    TARGET: [8, 2, 9, 0],
    SUPERVISE_FROM: [1, 1, 0, 3],
}


@pytest.fixture
def rows():
    return ItemRows.from_dataset(Dataset.from_dict(ROWS), num_items=10)


def everything(batches):
    return {name: values.tolist() for name, values in batches.__getitems__(range(len(batches))).items()}


def test_of_a_sequence_every_event_is_predicted_from_those_before_it(rows):
    batches = TrainingBatches(rows, max_length=5, layout="sequences")
    assert everything(batches) == {
        INPUT_IDS: [[-1, 5, 6, 7], [-1, -1, -1, 1], [4, 3, 2, 1]],
        LABELS: [
            [-100, 6, 7, 8],
            [-100, -100, -100, 2],
            [-100, -100, 1, 0],
        ],  # of the last row, 3 and 2 are old labels
    }
    assert (batches.num_labels, batches.num_dropped_rows, batches.num_dropped_events) == (6, 1, 0)


def test_the_oldest_events_of_a_long_row_are_dropped_and_counted(rows):
    batches = TrainingBatches(rows, max_length=2, layout="sequences")
    assert everything(batches) == {
        INPUT_IDS: [[6, 7], [-1, 1], [2, 1]],
        LABELS: [[7, 8], [-100, 2], [1, 0]],
    }
    assert (batches.num_labels, batches.num_dropped_events) == (5, 1 + 2)


def test_prefixes_are_one_sample_a_label(rows):
    batches = TrainingBatches(rows, max_length=2, layout="prefixes")
    assert everything(batches) == {
        INPUT_IDS: [[-1, 5], [5, 6], [6, 7], [-1, 1], [3, 2], [2, 1]],
        LABELS: [[6], [7], [8], [2], [1], [0]],
    }
    assert (len(batches), batches.num_labels, batches.num_dropped_rows) == (6, 6, 1)
    assert batches.num_dropped_events == 1 + 1 + 2


def test_of_short_prefixes_only_the_longest_of_its_row_stays(rows):
    batches = TrainingBatches(rows, max_length=9, layout="prefixes", shortest_prefix=3)
    assert everything(batches) == {
        INPUT_IDS: [[-1, 5, 6, 7], [-1, -1, -1, 1], [-1, 4, 3, 2], [4, 3, 2, 1]],
        LABELS: [[8], [2], [1], [0]],
    }
    assert (batches.num_labels, batches.num_dropped_rows) == (4, 1)


def test_prefixes_and_sequences_have_the_same_labels(rows):
    by_layout = []
    for layout in ("sequences", "prefixes"):
        labels = np.array(sum(everything(TrainingBatches(rows, 9, layout))[LABELS], []))
        by_layout.append(sorted(labels[labels >= 0].tolist()))
    assert by_layout[0] == by_layout[1] == [0, 1, 2, 6, 7, 8]


def test_masked_rows_hold_their_target_and_name_their_labels(rows):
    batches = TrainingBatches(rows, max_length=3, layout="masked")
    assert everything(batches) == {
        INPUT_IDS: [[6, 7, 8], [-1, 1, 2], [2, 1, 0]],
        LABELS: [[6, 7, 8], [-100, -100, 2], [-100, 1, 0]],
    }


@pytest.mark.parametrize("layout", ["sequences", "prefixes", "masked"])
def test_last_only_labels_the_target_alone(rows, layout):
    labels = np.array(sum(everything(TrainingBatches(rows, 9, layout, last_only=True))[LABELS], []))
    assert labels[labels >= 0].tolist() == [8, 2, 0]


def test_a_batch_to_rank_has_the_newest_events_and_all_that_was_seen(rows):
    batch = everything(EvaluationBatches(rows, max_length=2))
    assert batch == {
        INPUT_IDS: [[6, 7], [-1, 1], [-1, -1], [2, 1]],
        TARGET: [8, 2, 9, 0],
        SEEN: [[-1, 5, 6, 7], [-1, -1, -1, 1], [-1, -1, -1, -1], [4, 3, 2, 1]],
    }


def test_batches_are_as_short_as_their_rows_allow(rows):
    batches = TrainingBatches(rows, max_length=5, layout="sequences")
    assert batches.__getitems__([1])[INPUT_IDS].tolist() == [[1]]
    assert batches[0][LABELS].tolist() == [6, 7, 8]


@pytest.mark.parametrize("layout", ["sequences", "prefixes", "masked", "ranking"])
def test_a_stream_of_rows_makes_the_same_batch(rows, layout):
    collator = ItemCollator(max_length=3, num_items=10, layout=layout)
    stream = [dict(zip(ROWS, values, strict=True)) for values in zip(*ROWS.values(), strict=True)]
    batches = collator.batches(rows)
    expected = collator(batches.__getitems__(range(len(batches))))
    found = collator(stream)
    assert found.keys() == expected.keys()
    for name in found:
        assert found[name].dtype == torch.int64
        torch.testing.assert_close(found[name], expected[name])


def test_a_selection_of_a_dataset_is_read_in_its_order():
    dataset = Dataset.from_dict(ROWS).select([3, 0])
    assert ItemRows.from_dataset(dataset).events.tolist() == [4, 3, 2, 1, 0, 5, 6, 7, 8]


def test_an_item_outside_the_table_is_named_with_its_row():
    with pytest.raises(ValueError, match="Row 3 of the dataset has the item 4, but the model knows the items 0..3"):
        ItemRows.from_dataset(Dataset.from_dict({HISTORY: [[1], [2], [], [4]], TARGET: [0, 3, 1, 2]}), num_items=4)
    with pytest.raises(ValueError, match="Row 0 of the dataset has the item -1"):
        ItemRows.from_dataset(Dataset.from_dict({HISTORY: [[-1]], TARGET: [0]}), num_items=4)


def test_a_missing_column_is_named():
    with pytest.raises(ValueError, match="lacks `target`"):
        ItemRows.from_dataset(Dataset.from_dict({HISTORY: [[1]]}))
