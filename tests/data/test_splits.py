import pytest
from datasets import Dataset

from hf_rec.columns import interaction_features, sequence_features
from hf_rec.data.splits import (
    check_no_leak,
    distinct_labels,
    global_time,
    leave_one_out,
    overlap,
    ready_made,
    sequence_hash,
    user_events,
    window_ends,
)


def log(**users):
    """An interaction log: `log(a=[(item, time), ...])`, ordered by (time, user)."""
    rows = [(time, user, item) for user, events in users.items() for item, time in events]
    rows.sort(key=lambda row: row[0])
    return Dataset.from_dict(
        {
            "user_id": [user for _, user, _ in rows],
            "item_id": [item for _, _, item in rows],
            "timestamp": [time for time, _, _ in rows],
        },
        features=interaction_features(),
    )


def rows_of(dataset):
    assert dataset.features == sequence_features()
    return [(row["user_id"], row["history"], row["target"], row["supervise_from"]) for row in dataset]


def labelled(dataset):
    """All (user, event) labels under "all"; events are told apart by their item in these tests."""
    return [
        (row["user_id"], event)
        for row in dataset
        for event in (row["history"] + [row["target"]])[row["supervise_from"] :]
    ]


def made_of(*rows):
    return Dataset.from_dict(
        {
            "user_id": [user for user, _, _ in rows],
            "events": [events for _, events, _ in rows],
            "timestamp": [time for _, _, time in rows],
        }
    )


class TestUserEvents:
    def test_events_keep_the_order_of_the_log(self):
        users = user_events(log(b=[(5, 1), (6, 3), (7, 3)], a=[(1, 2)]))
        assert users["user_id"] == ["b", "a"]
        assert users["events"] == [[5, 6, 7], [1]]
        assert users["event_timestamps"] == [[1, 3, 3], [2]]

    def test_log_without_rows(self):
        assert len(user_events(log())) == 0


class TestWindows:
    @pytest.mark.parametrize(
        ("arguments", "ends"),
        [
            ((10, 4, 3), [4, 7, 10]),
            ((9, 4, 3), [3, 6, 9]),
            ((8, 4, 3), [2, 5, 8]),
            ((3, 4, 3), [3]),
            ((1, 4, 3), []),
            ((6, 4, 1), [2, 3, 4, 5, 6]),
            ((6, 4, 1, 4), [4, 5, 6]),
            ((3, 4, 1, 4), [3]),
            ((9, None, 1), [9]),
        ],
    )
    def test_ends_by_hand(self, arguments, ends):
        assert window_ends(*arguments) == ends

    @pytest.mark.parametrize("num_events", [4, 5, 6, 7, 11, 12, 29])
    @pytest.mark.parametrize(("window", "stride"), [(5, 4), (5, 2), (5, 1), (2, 1), (None, None)])
    def test_each_event_but_the_first_is_a_label_once(self, num_events, window, stride):
        splits = leave_one_out(log(u=[(item, item) for item in range(num_events)]), window=window, stride=stride)
        everywhere = labelled(splits["train"]) + labelled(splits["validation"]) + labelled(splits["test"])
        assert sorted(everywhere) == [("u", item) for item in range(1, num_events)]
        assert distinct_labels(splits["train"]) == num_events - 3
        assert all(len(row["history"]) < (window or 99) and row["supervise_from"] >= 1 for row in splits["train"])

    @pytest.mark.parametrize(
        ("window", "stride", "message"),
        [
            (1, None, "`window` must be at least 2"),
            (5, 5, "`stride` must be between 1 and .* 4"),
            (None, 2, "`stride`"),
        ],
    )
    def test_impossible_windows(self, window, stride, message):
        with pytest.raises(ValueError, match=message):
            leave_one_out(log(), window=window, stride=stride)


class TestLeaveOneOut:
    def test_by_hand(self):
        splits = leave_one_out(
            log(u=[(item, 10 * item) for item in range(8)], v=[(3, 1), (4, 2)], w=[(5, 5)]), window=4
        )
        assert rows_of(splits["train"]) == [
            ("u", [0, 1], 2, 1),
            ("u", [2, 3, 4], 5, 1),
            ("v", [3], 4, 1),
        ]
        assert rows_of(splits["validation"]) == [("u", [3, 4, 5], 6, 3)]
        assert rows_of(splits["test"]) == [("u", [4, 5, 6], 7, 3)]
        assert splits["test"][0]["history_timestamps"] == [40, 50, 60]
        assert splits["test"][0]["timestamp"] == 70

    def test_three_events_are_enough_to_be_held_out(self):
        splits = leave_one_out(log(u=[(1, 1), (2, 2), (3, 3)]))
        assert len(splits["train"]) == 0
        assert rows_of(splits["validation"]) == [("u", [1], 2, 1)]
        assert rows_of(splits["test"]) == [("u", [1, 2], 3, 2)]

    def test_unknown_times_leave_no_history_of_times(self):
        splits = leave_one_out(log(u=[(item, -1) for item in range(4)]))
        assert splits["test"][0]["history_timestamps"] == []
        assert splits["test"][0]["timestamp"] == -1

    def test_two_processes_give_the_same_rows(self):
        interactions = log(**{f"u{user}": [(user, time) for time in range(5)] for user in range(6)})
        one, two = leave_one_out(interactions, window=3), leave_one_out(interactions, window=3, num_proc=2)
        assert {name: sequence_hash(split) for name, split in one.items()} == {
            name: sequence_hash(split) for name, split in two.items()
        }


class TestGlobalTime:
    def test_windows_are_split_by_the_time_of_their_target(self):
        interactions = log(
            early=[(item, item) for item in range(8)],
            late=[(item, 100 + item) for item in range(8)],
        )
        splits = global_time(interactions, window=4, ratios=(6, 2, 2))
        assert [len(split) for split in splits.values()] == [6, 2, 2]
        assert rows_of(splits["train"])[:2] == [("early", [0, 1, 2], 3, 1), ("early", [1, 2, 3], 4, 3)]
        assert splits["train"]["timestamp"] == [3, 4, 5, 6, 7, 103]
        assert splits["test"]["timestamp"] == [106, 107]
        everywhere = sum((labelled(split) for split in splits.values()), [])
        assert len(everywhere) == len(set(everywhere)) == 14

    def test_short_users_have_one_window_and_short_windows_are_an_option(self):
        interactions = log(short=[(1, 1), (2, 2)], long=[(item, item) for item in range(5)])
        count = {
            min_events: sum(map(len, global_time(interactions, window=4, min_events=min_events).values()))
            for min_events in (None, 2)
        }
        assert count == {None: 1 + 2, 2: 1 + 4}

    def test_times_are_needed(self):
        with pytest.raises(ValueError, match="needs the time"):
            global_time(log(u=[(item, -1) for item in range(4)]), window=3)

    def test_bad_arguments(self):
        with pytest.raises(ValueError, match="`ratios`"):
            global_time(log(), ratios=(1, 1))
        with pytest.raises(ValueError, match="`window` is None"):
            global_time(log(), window=None)


class TestReadyMade:
    def test_a_row_that_continues_the_one_before_has_only_its_new_events_as_labels(self):
        train = made_of(
            ("a", [1, 2, 3, 4], 10),
            ("b", [7, 8], 10),
            ("a", [4, 5, 6, 7], 30),  # one event is shared: it is context anyway
            ("a", [2, 3, 4, 5], 20),
        )
        splits = ready_made({"train": train, "test": made_of(("a", [6, 7, 8, 9], 40), ("c", [5], 41))})
        assert rows_of(splits["train"]) == [
            ("a", [1, 2, 3], 4, 1),
            ("b", [7], 8, 1),
            ("a", [4, 5, 6], 7, 2),  # continues [2, 3, 4, 5]
            ("a", [2, 3, 4], 5, 3),
        ]
        assert rows_of(splits["test"]) == [("a", [6, 7, 8], 9, 2), ("c", [], 5, 0)]
        assert distinct_labels(splits["train"]) == 3 + 1 + 2 + 1
        assert distinct_labels(splits["train"], "last") == 4
        assert distinct_labels(splits["test"]) == 2 + 1

    def test_tied_rows_are_taken_in_the_order_in_which_they_continue_each_other(self):
        rows = [("a", [3, 4, 5], 7), ("a", [1, 2, 3], 7), ("a", [2, 3, 4], 7)]
        assert rows_of(ready_made({"train": made_of(*rows)})["train"]) == [
            ("a", [3, 4], 5, 2),
            ("a", [1, 2], 3, 1),
            ("a", [2, 3], 4, 2),
        ]
        before = ("a", [0, 1, 2], 6)
        assert ready_made({"train": made_of(*rows, before)})["train"]["supervise_from"] == [2, 2, 2, 1]

    def test_overlap_of_repeated_items_leaves_the_target_new(self):
        assert overlap([5, 5, 5], [5, 5, 5]) == 2
        assert overlap([1, 2], [3, 4]) == overlap([], [1, 2]) == 0
        assert overlap([1, 2, 3], [3, 9]) == 1

    def test_row_without_events_is_named(self):
        with pytest.raises(ValueError, match="Row 1 of split 'train' has no events"):
            ready_made({"train": made_of(("a", [1], 1), ("b", [], 2))})

    def test_train_after_test_is_a_leak(self):
        splits = {"train": made_of(("a", [1, 2], 9)), "test": made_of(("b", [1, 2], 8))}
        with pytest.raises(ValueError, match="ends at 9, after the first test row at 8"):
            check_no_leak(ready_made(splits))


def test_hash_depends_on_every_part_of_a_row():
    base = ready_made({"train": made_of(("a", [1, 2, 3], 9))})["train"]
    others = [
        made_of(("b", [1, 2, 3], 9)),
        made_of(("a", [1, 4, 3], 9)),
        made_of(("a", [1, 2, 4], 9)),
        made_of(("a", [1, 2, 3], 8)),
        made_of(("a", [1, 2, 3], 9), ("a", [1, 2, 3], 9)),
    ]
    hashes = {sequence_hash(ready_made({"train": other})["train"]) for other in others}
    assert len(hashes) == len(others)
    assert sequence_hash(base) not in hashes
    assert sequence_hash(base.select([0])) == sequence_hash(base)


def test_labels_of_an_unknown_kind():
    with pytest.raises(ValueError, match="`supervise` must be 'last' or 'all'"):
        distinct_labels(ready_made({"train": made_of(("a", [1, 2], 1))})["train"], "first")
