"""The table of the times of a prediction: ratios are those of rounds, and what was not measured is named."""

import numpy as np
import pytest

from inference import measured, name_of, summary, table, write_tables

CASE = ("small", "mask2former", 512, 1, 1)
TIMES = {
    "untouched": [2.0, 4.0, 8.0],
    "eager": [2.0, 4.0, 10.0],
    "compiled": [1, 2, 5],
    "onnx": [1, 1, 1],
    "int8": [1, 2, 9],
}


def test_a_ratio_is_the_median_of_the_rounds():
    found = summary(TIMES)
    assert found["rounds"] == 3
    assert found["ways"]["eager"] == {"ratio": 1.0, "quartiles": [1.0, 1.0], "seconds": 2.0}
    assert found["ways"]["onnx"]["ratio"] == 0.25  # of 1/2, 1/4, 1/10
    assert found["ways"]["onnx"]["quartiles"] == [0.175, 0.375]
    assert found["ways"]["untouched"]["quartiles"] == [pytest.approx(np.quantile([1, 1, 0.8], 0.25)), 1.0]


def test_a_case_beyond_the_budget_is_named_and_not_begun(tmp_path):
    found = measured(tmp_path / "work", CASE, 60, 30)
    assert found == {"not_measured": "a round takes about 30 s", "budget": 60}
    assert list(tmp_path.iterdir()) == []


def test_the_page_has_a_table_for_each_number_of_threads(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- inference: benchmarks/inference.py -->\nold\n<!-- end of inference -->\nafter\n")
    missing = {"not_measured": "a round takes about 30 s", "budget": 60}
    cases = {name_of(CASE): summary(TIMES), name_of((*CASE[:4], 2)): summary(TIMES)}
    cases[name_of(("base", "linear", 1024, 8, 1))] = missing
    write_tables({"cases": cases}, page)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("<!-- end of inference -->\nafter\n")
    assert "old" not in text
    assert text.count("| ViT-S, mask2former | 512 | 1 | 2.00 s | 1.00 (0.90 to 1.00) |") == 2
    assert "| ViT-B, linear | 1024 | 8 | not measured: a round takes about 30 s |" in text
    assert "With 1 thread:" in text
    assert "With 2 threads:" in text
    widths = {line.count("|") for line in table(cases, 1).splitlines()}
    assert len(widths) == 1
