"""Variants, means and differences of a comparison."""

import pytest

from labelled_files import refused
from recyclelora.compare import UNSEEN, Variant, seen_labels, summarise, variants_of, write_comparison
from recyclelora.recipe import make_recipe

COMMON = make_recipe({"sources": ["clear:streets:clear"], "adapter": {"r_main": 8}, "optim": {"lr": 1e-3}})


def cell(variant, seed, scores, error=None):
    """What a grid returns of a training with these mIoU, all resamples equal to them."""
    facts = {
        "variant": variant, "seed": seed, "scale": 1.0, "settings": {"method": "lora", "optim.lr": 1e-3},
        "step_seconds": 0.5, "peak_gib": 1.0, "parameters": {"adapters": 10, "head": 2, "backbone": 100},
        "protocol": "full",
    }  # fmt: skip
    if error:
        return facts | {"error": error}
    targets = [{"label": k, "miou": v, "images": 3, "resampled": [v] * 4} for k, v in scores.items()]
    return facts | {"targets": targets}


def test_a_variant_changes_the_common_recipe_and_brings_its_methods_defaults():
    recipe = Variant("lora", {"method": "lora", "optim.lr": 3e-3}).recipe(COMMON, 5)
    assert (recipe.method, recipe.seed, recipe.optim.lr, recipe.adapter.rank) == ("lora", 5, 3e-3, 36)
    same = Variant("r", {"adapter.r_sub": 0}).recipe(COMMON, 0)
    assert (same.adapter.r_main, same.adapter.r_sub) == (8, 0)
    refused(lambda: Variant("x", {"optim.lrr": 1}).recipe(COMMON, 0), "variant x", "optim.lrr")
    refused(lambda: Variant("x", {"steps.x": 1}).recipe(COMMON, 0), "steps.x", "no group of settings")
    for key, value in (("seed", 7), ("sources", ["streets:fog"]), ("targets", [])):
        refused(lambda key=key, value=value: Variant("x", {key: value}).recipe(COMMON, 0), "variant x", key, "the same")


def test_settings_are_for_all_methods_or_for_one():
    variants = variants_of(["lora", "frozen"], ["steps=7", "lora:optim.lr=0.001"])
    assert [v.name for v in variants] == ["lora", "frozen"]
    assert [dict(v.changes) for v in variants] == [
        {"method": "lora", "steps": 7, "optim.lr": 1e-3}, {"method": "frozen", "steps": 7},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("methods", "changes", "parts"),
    [
        (["loora"], [], ["unknown method 'loora'", "'lora'"]),
        (["lora", "lora"], [], ["named twice"]),
        (["lora"], ["steps"], ["expected KEY=VALUE or METHOD:KEY=VALUE"]),
        (["lora"], ["frozen:steps=3"], ["one of the methods lora"]),
        (["lora"], ["lora:optim.lr=["], ["lora:optim.lr=[", "no valid YAML"]),
        (["lora"], ["method=full"], ["--set method=full", "--methods"]),
        (["lora"], ["lora:method=full"], ["--set lora:method=full", "--methods"]),
    ],
)
def test_wrong_variants_are_refused(methods, changes, parts):
    refused(lambda: variants_of(methods, changes), *parts)


def test_means_deviations_and_differences_over_seeds():
    cells = [
        cell("a", 0, {"clear": 0.5, "fog": 0.3, "night": 0.1}),
        cell("a", 1, {"clear": 0.7, "fog": 0.5, "night": 0.1}),
        cell("b", 0, {"clear": 0.6, "fog": 0.4, "night": 0.3}),
        cell("b", 1, {"clear": 0.6, "fog": 0.6, "night": 0.3}),
    ]
    found = summarise(cells, "a", ["clear"])
    assert found["columns"] == ["clear", "fog", "night", UNSEEN]
    a, b = found["variants"]["a"]["scores"], found["variants"]["b"]["scores"]
    assert a["clear"]["mean"] == pytest.approx(0.6)
    assert a["clear"]["std"] == pytest.approx(0.2 / 2**0.5)
    assert a[UNSEEN]["values"] == pytest.approx([0.2, 0.3])
    assert b[UNSEEN]["mean"] == pytest.approx(0.4)
    difference = found["variants"]["b"]["difference"]
    assert difference["fog"] == pytest.approx({"mean": 0.1, "low": 0.1, "high": 0.1, "seeds": 2})
    assert difference["clear"]["low"] == pytest.approx(-12.7 * 0.1, rel=0.01)  # t of one degree, times s / sqrt(2)
    assert difference["clear"]["high"] == pytest.approx(12.7 * 0.1, rel=0.01)
    assert difference[UNSEEN]["mean"] == pytest.approx(0.15)
    assert "difference" not in found["variants"]["a"]


def test_differences_are_over_the_seeds_that_both_have_and_one_seed_has_no_deviation():
    cells = [cell("a", 0, {"fog": 0.3}), cell("b", 0, {"fog": 0.4}), cell("b", 1, {"fog": 0.9})]
    found = summarise(cells, "a", [])
    assert found["variants"]["b"]["difference"]["fog"]["mean"] == pytest.approx(0.1)
    assert found["variants"]["a"]["scores"]["fog"]["std"] is None
    apart = summarise([cell("a", 0, {"fog": 0.3}), cell("b", 1, {"fog": 0.9})], "a", [])
    assert apart["variants"]["b"]["difference"] == {"fog": None, UNSEEN: None}


def test_a_variant_that_diverged_is_told_and_not_scored(tmp_path):
    found = summarise([cell("a", 0, {"fog": 0.3}), cell("b", 0, {}, "the loss is nan at step 3")], "a", [])
    assert found["variants"]["b"]["error"] == "the loss is nan at step 3"
    page = write_comparison(tmp_path / "page.html", "Two", found).read_text()
    assert "Diverged: b (the loss is nan at step 3)" in page


def test_where_every_variant_diverged_or_the_baseline_is_missing_there_is_still_a_page(tmp_path):
    nothing = summarise([cell("a", 0, {}, "the loss is nan at step 3")], "a", [])
    assert "Diverged: a" in write_comparison(tmp_path / "page.html", "One", nothing).read_text()
    assert summarise([cell("b", 0, {"fog": 0.4})], "a", [])["variants"]["b"]["difference"]["fog"] is None


def test_a_target_without_labels_is_told():
    refused(lambda: summarise([cell("a", 0, {"fog": None})], "a", []), "target fog", "no pixel")


def test_the_rate_of_a_frozen_model_is_its_heads():
    frozen = cell("frozen", 0, {"fog": 0.3}) | {"settings": {"method": "frozen", "optim.lr": 1, "optim.head_lr": 2}}
    assert summarise([frozen], "frozen", [])["variants"]["frozen"]["lr"] == 2


def test_what_was_trained_on_counts_as_seen():
    assert seen_labels(COMMON, ["clear:streets:clear", "dim:streets:night", "again:streets:clear"]) == [
        "clear",
        "again",
    ]


def test_the_page_marks_best_scores_and_differences_beyond_the_interval(tmp_path):
    scores = {"first": 0.30, "better": 0.42, "worse": 0.18}
    cells = [cell(name, seed, {"fog": score}) for name, score in scores.items() for seed in (0, 1)]
    one_seed = write_comparison(tmp_path / "one.html", "Three", summarise(cells[::2], "first", [])).read_text()
    assert '<td class="best">+12.0' not in one_seed  # it says nothing of the chance of a seed
    page = write_comparison(tmp_path / "page.html", "Three", summarise(cells, "first", [])).read_text()
    assert '<td class="best">42.0' in page
    assert '<td class="best">+12.0' in page
    assert "−12.0" in page
    assert page.count("<svg") == 2
    assert 'src="http' not in page
    assert 'href="http' not in page
