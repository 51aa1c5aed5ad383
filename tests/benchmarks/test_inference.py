"""The table of the times of a prediction: ratios are those of rounds, and what was not measured is named."""

import time

import numpy as np
import pytest

import inference
from inference import in_turn, measured, measured_within, name_of, summary, table, write_tables

CASE = ("small", "mask2former", 512, 1, 1)
PAIRS = {"untouched": [2.0, 4.0, 8.0], "eager": [2.0, 4.0, 10.0]}
TIMES = {"eager": [2.0, 4.0, 10.0], "compiled": [1, 2, 5], "onnx": [1, 1, 1], "int8": [1, 2, 9]}


def test_a_ratio_is_the_median_of_the_rounds():
    found = summary(PAIRS, TIMES)
    assert (found["pairs"], found["rounds"]) == (3, 3)
    assert found["ways"]["eager"] == {"ratio": 1.0, "quartiles": [1.0, 1.0], "seconds": 2.0}
    assert found["ways"]["onnx"]["ratio"] == 0.25  # of 1/2, 1/4, 1/10
    assert found["ways"]["onnx"]["quartiles"] == [0.175, 0.375]
    assert found["ways"]["untouched"]["quartiles"] == [0.9, 1.0]  # of 1, 1, 0.8


def test_rounds_go_forth_and_back_until_the_budget_is_spent():
    order = []
    times = in_turn({"one": lambda: order.append(1), "two": lambda: order.append(2)}, 1, 60, (3, 5))
    assert order == [1, 2, 2, 1, 1, 2, 2, 1, 1, 2]
    assert [len(each) for each in times.values()] == [5, 5]
    slow = {"one": lambda: time.sleep(0.02)}
    assert in_turn(slow, 2, 0.05, (3, 5)) == pytest.approx(0.02, abs=0.02)  # three would take 0.06 s
    (times,) = in_turn(slow, 2, 0.03, (1, 5)).values()
    assert times == [pytest.approx(0.02, abs=0.02)]


def test_what_a_way_holds_is_free_after_its_last_turn():
    held = []
    ways = {"one": lambda: None, "two": lambda: held.append("one" in ways)}
    in_turn(ways, 1, 60, (2, 2))
    assert held == [True, True]  # the second round goes backwards
    assert ways == {}
    ways = {"one": lambda: None, "two": lambda: held.append("one" in ways)}
    in_turn(ways, 1, 60, (1, 1))
    assert held[2:] == [False]


def test_a_case_beyond_the_budget_is_named_and_not_begun(tmp_path):
    found = measured(tmp_path / "work", CASE, 120, (3, 24), 30)
    assert found == {"not_measured": "a round takes about 30 s", "budget": 40}  # 3 rounds of 2 kinds would take 180 s
    assert list(tmp_path.iterdir()) == []


def test_the_page_has_a_table_for_each_number_of_threads(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- inference: benchmarks/inference.py -->\nold\n<!-- end of inference -->\nafter\n")
    missing = {"not_measured": "a round takes about 30 s", "budget": 60}
    cases = {name_of(CASE): summary(PAIRS, TIMES), name_of((*CASE[:4], 2)): summary(PAIRS, TIMES)}
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
    single = {kind: values[:1] for kind, values in TIMES.items()}
    cases[name_of(CASE)] = summary({kind: values[:1] for kind, values in PAIRS.items()}, single)
    assert "| ViT-S, mask2former | 512 | 1 | 2.00 s | 1.00 | 0.50 | 0.50 | 0.50 |" in table(cases, 1)
    widths = {line.count("|") for line in table(cases, 1).splitlines()}
    assert len(widths) == 1


def test_a_case_that_takes_too_much_memory_is_named(tmp_path, monkeypatch):
    limits = []
    monkeypatch.setattr(inference.resource, "setrlimit", lambda kind, limit: limits.append(limit[0]))
    monkeypatch.setattr(inference, "ways_of", lambda *_: np.empty(2**62, np.uint8))
    found = measured_within(2, tmp_path / "work", CASE, 120, (3, 24), 0)
    assert found == {"not_measured": "takes more than 2 GiB", "memory": 2}
    assert limits == [2**31]
    with pytest.raises(MemoryError):
        measured_within(None, tmp_path / "work", CASE, 120, (3, 24), 0)
