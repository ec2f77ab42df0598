import numpy as np
import pytest

from hf_rec.item_codes.code_report import code_report, level_table, report_markdown, summary_lines


def test_counts_of_a_toy_by_hand():
    codes = np.array([[0, 0, 0], [0, 0, 0], [0, 1, 0], [3, 1, 1]])
    report = code_report(codes, [8.0, 4.0, 1.0])
    assert (report["items"], report["paths"]) == (4, 3)
    assert (report["items_that_share_a_path"], report["largest_path"]) == (2, 2)
    first, second, third = report["levels"]
    # shares 3/4 and 1/4: exp of the entropy is 4 / 3^(3/4)
    assert first["codes_used"] == 2 and first["perplexity"] == pytest.approx(4 / 3**0.75)
    assert (first["error"], first["error_share"], first["prefixes"], first["largest_prefix"]) == (4, 0.5, 2, 3)
    assert second["perplexity"] == pytest.approx(2) and second["prefixes"] == 3 and second["largest_prefix"] == 2
    assert third["error"] is None  # a level without centroids
    assert summary_lines(report)[1] == "items that share a path: 2 (50.0%), at most 2"
    assert level_table(report).splitlines()[2] == "| 1 | 2 | 1.8 | 4 | 50.0% | 2 | 3 |"
    text = report_markdown("codes", report, {"kmeans": "sklearn"}, "codes.png")
    assert "![The tree of codes](codes.png)" in text and "| kmeans | sklearn |" in text


def test_one_item_at_the_origin():
    report = code_report(np.array([[0]]), [0.0, 0.0])
    assert report["levels"][0]["error_share"] is None and report["levels"][0]["perplexity"] == 1
    assert summary_lines(report)[1] == "no two items share a path"
