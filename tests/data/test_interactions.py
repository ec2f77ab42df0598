import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset

from hf_rec.columns import interaction_features
from hf_rec.data.catalog import Catalog
from hf_rec.data.interactions import clean_interactions, k_core, parse_timestamps


CATALOG = Catalog.from_records([{"item_id": item, "title": item.upper()} for item in "abcde"])


def raw(*rows):
    columns = zip(*rows, strict=True)
    return Dataset.from_dict(dict(zip(("user_id", "item_id", "timestamp"), map(list, columns), strict=True)))


def clean(*rows, **arguments):
    log = clean_interactions(raw(*rows), CATALOG, **arguments)
    assert log.interactions.features == interaction_features()
    ids = log.catalog.ids
    return [(row["user_id"], ids[row["item_id"]], row["timestamp"]) for row in log.interactions], log


class TestOrder:
    def test_rows_are_ordered_by_time_then_by_original_row(self):
        rows, log = clean(("u", "b", 5), ("v", "a", 3), ("u", "a", 5), ("u", "c", 3))
        assert rows == [("v", "a", 3), ("u", "c", 3), ("u", "b", 5), ("u", "a", 5)]
        assert log.catalog.ids == ["a", "b", "c"]
        assert log.report["items_without_interactions"] == 2
        assert log.report["of_these_kept_in_the_catalog"] == 0

    def test_items_without_interactions_are_kept_where_it_is_asked(self):
        rows, log = clean(("u", "d", 5), ("v", "b", 3), keep_all_items=True)
        assert rows == [("v", "b", 3), ("u", "d", 5)]
        assert log.catalog.ids == list("abcde")
        assert (log.report["items"], log.report["of_these_kept_in_the_catalog"]) == (2, 3)

    def test_unknown_times_keep_the_order_of_the_file(self):
        rows, _ = clean(("u", "b", -1), ("u", "a", -1), ("u", "b", -1))
        assert rows == [("u", "b", -1), ("u", "a", -1), ("u", "b", -1)]

    def test_fractions_of_a_second_order_rows_of_one_second(self):
        assert [item for _, item, _ in clean(("u", "a", 1.9), ("u", "b", 1.2), ("u", "c", 1.5))[0]] == ["b", "c", "a"]

    def test_log_without_rows(self):
        empty = Dataset.from_dict({"user_id": [], "item_id": [], "timestamp": []})
        log = clean_interactions(empty, CATALOG, min_count=5)
        assert len(log.interactions) == len(log.catalog) == log.report["users"] == 0


class TestDuplicates:
    ROWS = (("u", "a", 2), ("u", "a", 1), ("u", "b", 1), ("u", "a", 2), ("v", "a", 2))

    @pytest.mark.parametrize(
        ("duplicates", "left", "dropped"),
        [
            ("exact", [("u", "a", 1), ("u", "b", 1), ("u", "a", 2), ("v", "a", 2)], 1),
            ("first", [("u", "a", 1), ("u", "b", 1), ("v", "a", 2)], 2),
            ("keep", [("u", "a", 1), ("u", "b", 1), ("u", "a", 2), ("u", "a", 2), ("v", "a", 2)], 0),
        ],
    )
    def test_each_policy_by_hand(self, duplicates, left, dropped):
        rows, log = clean(*self.ROWS, duplicates=duplicates)
        assert rows == left
        assert log.report["dropped_duplicates"] == dropped
        assert log.report["interactions_read"] - dropped == log.report["interactions"] == len(left)

    def test_unknown_policy(self):
        with pytest.raises(ValueError, match="`duplicates` must be"):
            clean(*self.ROWS, duplicates="last")


class TestCore:
    def test_dropping_goes_on_until_nothing_changes(self):
        # c occurs once; without it v has one row, without v's row b has one, without b's row u has one left of two.
        rows = [("u", "a", 1), ("u", "b", 2), ("v", "b", 3), ("v", "c", 4)]
        assert clean(*rows, min_count=2)[0] == []
        kept = [("w", "d", 5), ("w", "e", 6), ("x", "d", 7), ("x", "e", 8)]
        left, log = clean(*rows, *kept, min_count=2)
        assert left == kept
        assert log.catalog.ids == ["d", "e"]
        assert (log.report["dropped_by_k_core"], log.report["users"], log.report["items"]) == (4, 2, 2)

    def test_against_a_plain_loop(self):
        rng = np.random.default_rng(0)
        users, items = rng.geometric(0.06, 300), rng.geometric(0.06, 300)
        rows = list(zip(users, items, strict=True))
        keep = list(range(300))
        while True:
            left = [
                row
                for row in keep
                if sum(rows[other][0] == rows[row][0] for other in keep) >= 5
                and sum(rows[other][1] == rows[row][1] for other in keep) >= 5
            ]
            if left == keep:
                break
            keep = left
        assert 0 < len(keep) < 300
        assert k_core(users, items, 5).tolist() == keep

    def test_untitled_items_go_before_anything_is_counted(self):
        catalog = Catalog.from_records([{"item_id": 1, "title": "x"}, {"item_id": 2, "title": " "}, {"item_id": 3}])
        log = clean_interactions(raw(("u", 1, 1), ("u", 2, 2), ("u", 3, 3)), catalog, require_titles=True)
        assert (log.catalog.ids, log.report["dropped_untitled"]) == ([1], 2)

    def test_negative_count(self):
        with pytest.raises(ValueError, match="`min_count` must be at least 0, got -1"):
            clean(("u", "a", 1), min_count=-1)


class TestBadInput:
    def test_missing_column_is_named(self):
        with pytest.raises(ValueError, match="no column 'timestamp'; they have .*'time'"):
            clean_interactions(raw(("u", "a", 1)).rename_column("timestamp", "time"), CATALOG)

    @pytest.mark.parametrize("item", [None, "", "nan"])
    def test_missing_item_is_named_by_row_and_counted(self, item):
        with pytest.raises(ValueError, match="`item_id` is missing in 2 of 4 rows; the first is row 1 "):
            clean(("u", "a", 1), ("u", item, 2), ("v", "b", 3), ("v", item, 4))

    def test_nan_user_is_named_by_row(self):
        with pytest.raises(ValueError, match="`user_id` is missing in 1 of 2 rows; the first is row 1 .*nan"):
            clean((1.0, "a", 1), (float("nan"), "a", 2))

    def test_whole_numbers_that_became_floats_are_ids_and_others_are_not(self):
        assert clean((7.0, "a", 1))[0] == [("7", "a", 1)]
        with pytest.raises(ValueError, match="`user_id` is no whole number or text in 1 of 2 rows.*7.5"):
            clean((7.0, "a", 1), (7.5, "a", 2))

    @pytest.mark.parametrize("time", ["yesterday", None, "", "nan", "inf", "-5", "1960-01-01"])
    def test_bad_time_is_named_by_row(self, time):
        with pytest.raises(ValueError, match="`timestamp` is neither .* in 1 of 3 rows; the first is row 2 "):
            clean(("u", "a", "12"), ("u", "b", "2019-01-01"), ("v", "b", time))

    def test_one_unknown_time_among_known_ones_is_bad(self):
        with pytest.raises(ValueError, match="first is row 0"):
            clean(("u", "a", -1), ("u", "b", 2))

    def test_milliseconds_taken_for_seconds_are_an_error_with_the_fix(self):
        with pytest.raises(ValueError, match="row 1 .*1500000000000|`timestamp_unit` must be 'ms' or 'auto'"):
            clean(("u", "a", 1_500_000_000), ("u", "a", 1_500_000_000_000))

    def test_item_outside_the_catalog_is_named_with_its_row(self):
        with pytest.raises(ValueError, match="Row 1 of the interactions.*'zzz' is not among"):
            clean(("u", "a", 1), ("u", "zzz", 2), ("u", "zzz", 3))

    def test_ids_of_a_wrong_type(self):
        with pytest.raises(ValueError, match="Column 'item_id' is of type list"):
            clean(("u", ["a"], 1))


class TestTimes:
    @pytest.mark.parametrize(
        ("values", "unit", "seconds"),
        [
            ([1, 2], "s", [1, 2]),
            ([1.5, 2.0], "s", [1.5, 2]),
            (["1", "2.5"], "s", [1, 2.5]),
            ([1_500_000_000_123, 5], "ms", [1_500_000_000.123, 0.005]),
            ([1_500_000_000_123, 5, 1_500_000_000_000], "auto", [1_500_000_000.123, 0.005, 1_500_000_000]),
            ([1_500_000_000, 5], "auto", [1_500_000_000, 5]),
            (["1970-01-02", "1970-01-01T00:00:01Z", "1970-01-01 01:00:00+01:00"], "s", [86400, 1, 0]),
        ],
    )
    def test_forms(self, values, unit, seconds):
        assert (parse_timestamps(pa.chunked_array([values]), unit) / 1e6).tolist() == seconds

    def test_arrow_timestamps(self):
        column = pa.chunked_array([pa.array([1, 2_500], type=pa.timestamp("ms"))])
        assert parse_timestamps(column).tolist() == [1_000, 2_500_000]

    def test_unknown_unit(self):
        with pytest.raises(ValueError, match="`timestamp_unit` must be"):
            parse_timestamps(pa.chunked_array([[1]]), "ns")

    @pytest.mark.parametrize(
        "column",
        [
            pa.array([5, 2**64 - 1], pa.uint64()),
            pa.array([5, 2**62], pa.int64()).cast(pa.timestamp("ms")),
            pa.array([5, 2**62], pa.int64()).cast(pa.timestamp("s")),
            pa.array([5.0, 1e300]),
        ],
    )
    def test_times_beyond_every_calendar_are_told_and_not_overflowed(self, column):
        with pytest.raises(ValueError, match="lies beyond the year 5138 in 1 of 2 rows; the first is row 1"):
            parse_timestamps(pa.chunked_array([column]), "s")

    def test_advice_fits_what_is_wrong(self):
        with pytest.raises(ValueError) as told:
            clean(("u", "a", 1500000000900), ("u", "b", 1500000000100))
        assert "Repair or drop" not in str(told.value) and "`timestamp_unit` must be 'ms'" in str(told.value)
        rows, _ = clean(("u", "a", 1500000000900), ("u", "b", 1500000000100), timestamp_unit="ms")
        assert rows == [("u", "b", 1500000000), ("u", "a", 1500000000)]
