"""No row of a csv file is lost without a word, whatever its quotes do."""

import gzip

import pytest

from hf_rec.data.sources.csv_rows import RowCounts, count_rows, read_dicts
from hf_rec.data.sources.report import SourceReport
from hf_rec.data.sources.tables import read_table


HEADER = "user_id,item_id,timestamp,title\n"
LOG = [f"u{n},i{n % 5},{n},Film {n % 5}\n" for n in range(56)]


def write(tmp_path, text, name="log.csv"):
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return tmp_path / name


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({9: 'u1,i2,3,"The unclosed film\n'}, "nothing closes it up to the last line, 57"),
        (
            {9: 'u1,i2,3,"The unclosed film\n', 30: 'u1,i2,3,"Closed"\n'},
            "the next quote, on line 32, is followed by t",
        ),
        ({9: 'u1,i2,3,"The unclosed film\n', 30: 'u1,i2,3,A 5"\n'}, "the lines after it, up to line 32, look like ro"),
        ({9: 'u1,i2,3,"The unclosed film\n', 30: 'u1,i2,3,""\n'}, "nothing closes it up to the last line, 57"),
        ({9: '"u1,i2,3,The unclosed film\n', 10: 'u1,i2,3,"\n'}, "the lines after it, up to line 12, look like rows"),
    ],
)
@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz"])
def test_a_quote_that_swallows_rows_is_refused_with_its_line(tmp_path, changed, reason, name):
    path = write(tmp_path, HEADER + "".join(changed.get(n, line) for n, line in enumerate(LOG)), name)
    with pytest.raises(ValueError, match=f"{path}: on line 11 a quote opens a field, but {reason}"):
        read_table(path, None)


def test_quoted_line_breaks_that_close_are_read_and_counted(tmp_path):
    text = 'id,title,more\n1,"two\nlines, and ""quotes"", here","x\n\ny"\n\n2,The 5" film,"z"\n'
    text += '3,"a,""b""",\n4,"""q""",w\n'
    report = SourceReport()
    table = read_table(write(tmp_path, "\ufeff" + text, "items.csv"), None, report=report)
    assert table.to_pydict() == {
        "id": ["1", "2", "3", "4"],
        "title": ['two\nlines, and "quotes", here', 'The 5" film', 'a,"b"', '"q"'],
        "more": ["x\n\ny", "z", None, "w"],
    }
    assert report.files == {"items.csv": {"rows": 4, "lines": 9, "rows_over_lines": 1}}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_and_rows_are_counted_whatever_ends_a_line(tmp_path, end):
    path = write(tmp_path, end.join(["a,b", "1,2", "", '3,"4', '5"']))
    assert count_rows(path) == RowCounts(lines=5, rows=2, rows_over_lines=1)
    assert [row for _, row in read_dicts(path, ["a", "b"])] == [{"a": "1", "b": "2"}, {"a": "3", "b": f"4{end}5"}]
    assert len(read_table(path, None)) == 2


def test_a_row_with_too_many_or_too_few_fields_is_named(tmp_path):
    for row, word in (("1,2,3", "more"), ("1", "fewer")):
        with pytest.raises(ValueError, match=f"Line 2 of .*log.csv has {word} fields than the 2 of the header"):
            list(read_dicts(write(tmp_path, f"a,b\n{row}\n"), ["a", "b"]))
