"""Numbers of items by the training rows: nothing of them comes from validation or test."""

import numpy as np
from datasets import Dataset

from hf_rec.columns import HISTORY, TARGET
from hf_rec.data.item_numbers import add_number_column, numbers_in_training_order
from hf_rec.data.prepare import load_prepared, prepare


def test_items_are_numbered_by_their_first_place_in_the_training_rows():
    train = Dataset.from_dict({HISTORY: [[4, 2], [2], [5]], TARGET: [2, 0, 4]})
    numbers = numbers_in_training_order(train, 8, seed=1)
    assert numbers[[4, 2, 0, 5]].tolist() == [0, 1, 2, 3]
    assert sorted(numbers.tolist()) == list(range(8))
    assert np.array_equal(numbers, numbers_in_training_order(train, 8, seed=1))
    assert len({tuple(numbers_in_training_order(train, 8, seed=seed).tolist()) for seed in range(8)}) > 2


def test_the_held_out_events_change_no_number(tmp_path):
    users = [[3, 1, 4, 6, 5], [2, 6, 5, 3, 1], [5, 2, 3, 1, 4], [1, 2, 3, 4, 5, 6]]
    other_ends = [[*user[:-2], user[-1], user[-2]] for user in users]
    found = []
    for name, sequences in (("one", users), ("two", other_ends)):
        path = tmp_path / f"{name}.txt"
        path.write_text("".join(f"{user} {' '.join(map(str, items))}\n" for user, items in enumerate(sequences)))
        prepare("sequence-text", tmp_path / name, path=str(path))
        catalog, splits, _ = load_prepared(tmp_path / name)
        numbers = numbers_in_training_order(splits["train"], len(catalog))
        found.append({item: numbers[catalog.row(item)] for item in (1, 2, 3, 4, 5, 6)})
    assert found[0] == found[1]
    assert [found[0][item] for item in (3, 1, 4, 2, 6, 5)] == [0, 1, 2, 3, 4, 5]


def test_a_prepared_folder_gets_a_column_and_stays_whole(tmp_path):
    prepare("demo", tmp_path / "data", num_users=20, seed=0)
    catalog, splits, card = load_prepared(tmp_path / "data")
    numbers = numbers_in_training_order(splits["train"], len(catalog))
    add_number_column(tmp_path / "data", catalog, card, "number", numbers, {"split": "train"})
    again, same_splits, new_card = load_prepared(tmp_path / "data")
    assert [values["number"] for values in again.attributes] == [str(number) for number in numbers]
    assert again.sha256 == catalog.sha256 and again.titles == catalog.titles
    assert same_splits["train"][:] == splits["train"][:]
    assert new_card["numbers"]["number"]["split"] == "train"
