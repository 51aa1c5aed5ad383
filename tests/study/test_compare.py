"""Variants of a comparison, and the verb `compare` itself."""

import json

import numpy as np
import pytest
from cells import cell

import recyclelora
from labelled_files import refused
from miniatures import write_folder
from recyclelora.recipe import make_recipe
from recyclelora.study import compare as module
from recyclelora.study.compare import Variant, compare, make_cells, take_pictures, variants_of

COMMON = make_recipe({"sources": ["clear:streets:clear"], "adapter": {"r_main": 8}, "optim": {"lr": 1e-3}})


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data") / "town")


def test_a_variant_changes_the_common_recipe_and_brings_its_methods_defaults():
    recipe = Variant("lora", {"method": "lora", "optim.lr": 3e-3}).recipe(COMMON, 5)
    assert (recipe.method, recipe.seed, recipe.optim.lr, recipe.adapter.rank) == ("lora", 5, 3e-3, 36)
    same = Variant("r", {"adapter.r_sub": 0}).recipe(COMMON, 0)
    assert (same.adapter.r_main, same.adapter.r_sub) == (8, 0)
    refused(lambda: Variant("x", {"optim.lrr": 1}).recipe(COMMON, 0), "variant x", "optim.lrr")
    refused(lambda: Variant("x", {"steps.x": 1}).recipe(COMMON, 0), "steps.x", "is not a group of settings")
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
        (["lora"], ["lora:optim.lr=["], ["lora:optim.lr=[", "not valid YAML"]),
        (["lora"], ["method=full"], ["--set method=full", "--methods"]),
        (["lora"], ["lora:method=full"], ["--set lora:method=full", "--methods"]),
    ],
)
def test_wrong_variants_are_refused(methods, changes, parts):
    refused(lambda: variants_of(methods, changes), *parts)


# The verb


def test_methods_are_trained_scored_and_written_without_a_word_on_the_terminal(town, tmp_path, capsys, monkeypatch):
    recipe = cell(town).recipe
    variants = [Variant("ours", {}), "frozen"]  # a name stands for a method
    targets = [f"town:folder={town}", f"again:folder={town}"]
    found = compare(recipe, variants, [0], str(tmp_path / "out"), targets, limit=2, jobs=0)
    assert recyclelora.compare is compare
    assert capsys.readouterr() == ("", "")
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == json.loads(json.dumps(found.to_json()))
    assert (found.baseline, found.seen, list(found.variants)) == ("ours", ["town", "again"], ["ours", "frozen"])
    assert found.images == {"town": 2, "again": 2}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "2 methods side by side" in page
    assert page.count("data:image/png") == 2 * 3  # of each target the labels, and what both models say
    monkeypatch.setattr(module, "run_grid", _only_read(module.run_grid))
    again = compare(recipe, variants, [0], tmp_path / "out", targets, "frozen", limit=2, jobs=0, pictures=0)
    assert again.baseline == "frozen"
    assert again.variants["ours"]["scores"] == found.variants["ours"]["scores"]


def _only_read(run_grid):
    """The grid, where no training may be missing."""

    def read(cells, out, jobs, present, cluster):
        assert all((out / "cells" / f"{each.name}.json").is_file() for each in cells)
        return run_grid(cells, out, jobs, present=present, cluster=cluster)

    return read


def test_wrong_comparisons_are_refused_before_anything_is_trained(town, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "run_grid", None)
    recipe = cell(town).recipe

    def call(variants=("lora", "frozen"), targets=(f"town:folder={town}",), **options):
        return lambda: compare(recipe, variants, [0], tmp_path / "out", targets, **options)

    refused(call(baseline="loora"), "--baseline loora", "'lora'")
    refused(call(targets=()), "no targets", "--target")
    refused(call(targets=[f"unseen:folder={town}"]), "target unseen", "another label")
    two = write_folder(tmp_path / "two", classes=("ground", "sky"))
    refused(call(targets=[f"folder={two}"]), "two: labelled in 2 classes", "trained on 19 classes")
    refused(call(variants=["loora"]), "loora")
    refused(call(variants="loora"), "unknown method 'loora'")
    refused(call(variants=()), "nothing to compare", "one or more variants")
    refused(lambda: compare(recipe, "lora", [], tmp_path / "out"), "nothing to compare", "seeds")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.json").write_text("{}")
    refused(call(), "results.json is there, and not of a comparison")


def test_results_of_other_images_than_those_there_now_are_refused(tmp_path):
    town = write_folder(tmp_path / "town")
    cells = [cell(town, "frozen")]
    made = make_cells(cells, tmp_path / "out", 0)
    assert make_cells(cells, tmp_path / "out", 0) == made
    write_folder(tmp_path / "town", seed=1)
    refused(lambda: make_cells(cells, tmp_path / "out", 0), "images of town", "what is there now")


def test_pictures_are_of_the_first_seeds_models_that_are_there(town, tmp_path):
    cells = [cell(town, "frozen", seed) for seed in (0, 1)] + [cell(town, "full")]
    make_cells(cells[:2], tmp_path, 0)  # of the third there is no run
    (examples,) = take_pictures(cells, tmp_path, 2).values()
    assert [list(example.predictions) for example in examples] == [["frozen"], ["frozen"]]
    assert all(isinstance(example.image, np.ndarray) for example in examples)
    assert take_pictures(cells, tmp_path, 0) == {}
