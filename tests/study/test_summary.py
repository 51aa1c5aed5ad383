"""Means and differences of a comparison, and how they are shown."""

import json
from dataclasses import replace

import pytest
from cells import result

from labelled_files import refused
from recyclelora.pages import plots
from recyclelora.study.summary import UNSEEN, draw_comparison, print_comparison, summarise, write_comparison


def test_means_deviations_and_differences_over_seeds():
    cells = [
        result("a", 0, {"clear": 0.5, "fog": 0.3, "night": 0.1}),
        result("a", 1, {"clear": 0.7, "fog": 0.5, "night": 0.1}),
        result("b", 0, {"clear": 0.6, "fog": 0.4, "night": 0.3}),
        result("b", 1, {"clear": 0.6, "fog": 0.6, "night": 0.3}),
    ]
    found = summarise(cells, "a", ["clear"])
    assert found.columns == ["clear", "fog", "night", UNSEEN]
    assert (found.baseline, found.seen, found.protocol) == ("a", ["clear"], "full")
    assert found.images == {"clear": 3, "fog": 3, "night": 3}
    a, b = found.variants["a"]["scores"], found.variants["b"]["scores"]
    assert a["clear"]["mean"] == pytest.approx(0.6)
    assert a["clear"]["std"] == pytest.approx(0.2 / 2**0.5)
    assert a[UNSEEN]["values"] == pytest.approx([0.2, 0.3])
    assert b[UNSEEN]["mean"] == pytest.approx(0.4)
    difference = found.variants["b"]["difference"]
    assert difference["fog"] == pytest.approx({"mean": 0.1, "low": 0.1, "high": 0.1, "seeds": 2})
    assert difference["clear"]["low"] == pytest.approx(-12.7 * 0.1, rel=0.01)  # t of one degree, times s / sqrt(2)
    assert difference["clear"]["high"] == pytest.approx(12.7 * 0.1, rel=0.01)
    assert difference[UNSEEN]["mean"] == pytest.approx(0.15)
    assert "difference" not in found.variants["a"]
    assert list(found.scored) == ["a", "b"]


def test_a_row_holds_seeds_costs_and_settings():
    cells = [result("a", seed, {"fog": 0.3}) for seed in (3, 4, 5)]
    cells[0] = replace(cells[0], step_seconds=0.9, peak_gib=None)
    cells[1] = replace(cells[1], peak_gib=3.0)
    row = summarise(cells, "a", []).variants["a"]
    assert (row["seeds"], row["scale"], row["lr"]) == ([3, 4, 5], 1.0, 1e-3)
    assert (row["step_seconds"], row["peak_gib"]) == (0.5, 2.0)  # medians of what is known
    assert row["parameters"] == {"adapters": 10, "head": 2, "backbone": 100}
    unknown = summarise([replace(cell, peak_gib=None) for cell in cells], "a", []).variants["a"]
    assert unknown["peak_gib"] is None


def test_differences_are_over_the_seeds_that_both_have_and_one_seed_has_no_deviation():
    cells = [result("a", 0, {"fog": 0.3}), result("b", 0, {"fog": 0.4}), result("b", 1, {"fog": 0.9})]
    found = summarise(cells, "a", [])
    assert found.variants["b"]["difference"]["fog"]["mean"] == pytest.approx(0.1)
    assert found.variants["a"]["scores"]["fog"]["std"] is None
    apart = summarise([result("a", 0, {"fog": 0.3}), result("b", 1, {"fog": 0.9})], "a", [])
    assert apart.variants["b"]["difference"] == {"fog": None, UNSEEN: None}


def test_a_variant_that_diverged_is_reported_and_not_scored(tmp_path, capsys):
    found = summarise([result("a", 0, {"fog": 0.3}), result("b", 0, {}, "the loss is nan at step 3")], "a", [])
    assert found.variants["b"]["error"] == "the loss is nan at step 3"
    assert list(found.scored) == ["a"]
    page = write_comparison(tmp_path / "page.html", "Two", found).read_text()
    assert "Diverged: b (the loss is nan at step 3)" in page
    print_comparison(found)
    assert "the loss is nan at step 3" in capsys.readouterr().out


def test_where_every_variant_diverged_or_the_baseline_is_missing_there_is_still_a_page(tmp_path, capsys):
    nothing = summarise([result("a", 0, {}, "the loss is nan at step 3")], "a", [])
    assert "Diverged: a" in write_comparison(tmp_path / "page.html", "One", nothing).read_text()
    assert (nothing.columns, nothing.images, nothing.protocol) == ([], {}, "")
    print_comparison(nothing)
    assert "the loss is nan at step 3" in capsys.readouterr().out
    alone = summarise([result("b", 0, {"fog": 0.4})], "a", [])
    assert alone.variants["b"]["difference"]["fog"] is None
    print_comparison(alone)
    assert "40.00" in capsys.readouterr().out


def test_a_target_without_labels_is_named():
    refused(lambda: summarise([result("a", 0, {"fog": None})], "a", []), "target fog", "no pixel")


def test_the_rate_of_a_frozen_model_is_its_heads():
    rates = {"optim.lr": 1, "optim.head_lr": 2}
    for method, rate in (("frozen", 2), ("lora", 1)):
        cells = [result("x", 0, {"fog": 0.3}, settings={"method": method, **rates})]
        assert summarise(cells, "x", []).variants["x"]["lr"] == rate
    plain = result("x", 0, {"fog": 0.3}, settings={"method": "frozen", "optim.lr": 1, "optim.head_lr": None})
    assert summarise([plain], "x", []).variants["x"]["lr"] == 1


def test_a_comparison_is_plain_values_for_a_file():
    found = summarise([result(name, 0, {"fog": miou}) for name, miou in (("a", 0.3), ("b", 0.4))], "a", [])
    told = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert list(told) == ["baseline", "seen", "columns", "variants", "images", "protocol"]
    assert told == found.to_json()
    assert told["variants"]["b"]["difference"]["fog"]["mean"] == pytest.approx(0.1)


def test_the_plots_are_of_the_scores_and_of_the_differences_on_what_is_unseen():
    cells = [result(name, 0, {"clear": 0.5, "fog": miou}) for name, miou in (("a", 0.3), ("b", 0.4))]
    found = summarise(cells, "a", ["clear"])
    scores = {name: row["scores"] for name, row in found.variants.items()}
    dots, forest = draw_comparison(found)
    assert dots == plots.spread_dots(scores, ["clear", "fog", UNSEEN])
    difference = found.variants["b"]["difference"]
    assert forest == plots.difference_forest({"b": difference[UNSEEN]}, UNSEEN, "a")
    seen = summarise(cells, "a", ["clear", "fog"])  # the first target where nothing is unseen
    difference = seen.variants["b"]["difference"]
    assert draw_comparison(seen)[1] == plots.difference_forest({"b": difference["clear"]}, "clear", "a")


def test_the_page_marks_best_scores_and_differences_beyond_the_interval(tmp_path):
    scores = {"first": 0.30, "better": 0.42, "worse": 0.18}
    cells = [result(name, seed, {"fog": score}) for name, score in scores.items() for seed in (0, 1)]
    one_seed = write_comparison(tmp_path / "one.html", "Three", summarise(cells[::2], "first", [])).read_text()
    assert '<td class="best">+12.0' not in one_seed  # it says nothing of the chance of a seed
    page = write_comparison(tmp_path / "page.html", "Three", summarise(cells, "first", [])).read_text()
    assert '<td class="best">42.0' in page
    assert '<td class="best">+12.0' in page
    assert "−12.0" in page
    assert page.count("<svg") == 2
    assert 'src="http' not in page
    assert 'href="http' not in page


def test_the_table_of_the_terminal_has_means_deviations_and_the_last_columns_difference(capsys):
    cells = [result("a", 0, {"clear": 0.5, "fog": 0.3}), result("a", 1, {"clear": 0.5, "fog": 0.5})]
    cells += [result("b", seed, {"clear": 0.6, "fog": miou}) for seed, miou in ((0, 0.4), (1, 0.6))]
    print_comparison(summarise(cells, "a", ["clear"]))
    lines = [line.replace("┃", "│").strip("│").split("│") for line in capsys.readouterr().out.splitlines()]
    assert [[cell.strip() for cell in line] for line in lines if len(line) > 1] == [
        ["method", "clear", "fog", UNSEEN, f"{UNSEEN} − a"],
        ["a", "50.00 ± 0.00", "40.00 ± 14.14", "40.00 ± 14.14", ""],
        ["b", "60.00 ± 0.00", "50.00 ± 14.14", "50.00 ± 14.14", "+10.00 [+10.00, +10.00]"],
    ]
