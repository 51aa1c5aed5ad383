"""Methods side by side through the command line."""

import json

import pytest
import timm
from safetensors.torch import load_file, save_file

from miniatures import TINY


@pytest.fixture
def compare(command, recipe, town, tmp_path):
    def call(*arguments):
        return command(
            "compare", "--recipe", recipe, "--out", tmp_path / "all", "--target", f"town:folder={town}",
            "--seeds", "0,1", "--set", "steps=3", "--limit", 2, *arguments,
        )  # fmt: skip

    return call


def test_from_one_command_to_a_table_and_a_page(compare, tmp_path):
    code, out, _ = compare("--methods", "frozen,recyclelora,lora", "--set", "lora:adapter.rank=4", "--jobs", 0)
    assert code == 0, out
    for word in ("frozen", "recyclelora", "lora", "±", "report.html"):
        assert word in out
    result = json.loads((tmp_path / "all/results.json").read_text())
    assert list(result["variants"]) == ["frozen", "recyclelora", "lora"]
    assert result["baseline"] == "frozen"
    assert result["variants"]["lora"]["scale"] == 9.0
    assert len(result["variants"]["lora"]["scores"]["town"]["values"]) == 2
    page = (tmp_path / "all/report.html").read_text()
    assert page.count("data:image") == 5  # an image, its truth, three predictions
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "all").rglob("*.safetensors")}
    code, out, _ = compare("--methods", "frozen,recyclelora,lora", "--set", "lora:adapter.rank=4", "--baseline", "lora")
    assert code == 0
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "all").rglob("*.safetensors")} == before
    assert json.loads((tmp_path / "all/results.json").read_text())["baseline"] == "lora"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--methods", "loora"], ["unknown method 'loora'", "did you mean"]),
        (["--methods", "frozen", "--seeds", "a"], ["--seeds a", "0,1,2"]),
        (["--methods", "frozen", "--baseline", "lora"], ["--baseline lora", "frozen"]),
        (["--methods", "frozen", "--set", "lora:steps=2"], ["one of the methods frozen"]),
        (["--methods", "frozen", "--target", "folder=nowhere"], ["nowhere"]),
        (["--methods", "frozen", "--target", "streets:fog"], ["streets:fog", "19 classes", "2 classes"]),
        (["--methods", "frozen", "--set", "sources=[]"], ["sources is the same for all"]),
        (["--methods", "frozen", "--set", "seed=3"], ["seed is the same for all"]),
        (["--methods", "frozen", "--target", "unseen:streets:fog"], ["target unseen", "another label"]),
    ],
)
def test_wrong_input_is_one_line_before_anything_is_trained(compare, tmp_path, arguments, parts):
    code, _, err = compare(*arguments)
    assert code == 1
    assert err.startswith("error: ")
    for part in parts:
        assert part in err
    assert not (tmp_path / "all").exists()


def test_a_recipe_without_sources_is_not_compared(command, recipe, town, tmp_path):
    recipe.write_text(recipe.read_text().replace(f"sources:\n- town:folder={town}\n", ""))
    target = ("--target", f"folder={town}", "--methods", "frozen", "--jobs", 0)
    code, _, err = command("compare", "--recipe", recipe, "--out", tmp_path / "all", *target)
    assert (code, "sources: at least 1 is required" in err) == (1, True), err
    assert not (tmp_path / "all").exists()


def test_what_is_in_the_way_or_has_changed_is_reported(compare, recipe, town, tmp_path):
    (tmp_path / "all").mkdir()
    (tmp_path / "all/report.html").write_text("mine")
    code, _, err = compare("--methods", "frozen")
    assert (code, "report.html is there, and not of a comparison" in err) == (1, True)
    assert (tmp_path / "all/report.html").read_text() == "mine"
    (tmp_path / "all/report.html").unlink()
    assert compare("--methods", "frozen", "--jobs", 0)[0] == 0
    image = next(path for path in (town / "images").rglob("*") if path.is_file())
    content = image.read_bytes()
    try:
        image.write_bytes(content + b"0")
        code, _, err = compare("--methods", "frozen", "--jobs", 0)
    finally:
        image.write_bytes(content)
    assert (code, "images of t" in err, "what is there now" in err, "frozen--0.json" in err) == (1, True, True, True)


def test_weights_and_images_may_move_but_not_change(compare, tmp_path):
    weights = tmp_path / "base.safetensors"
    save_file(timm.create_model(TINY["model"], num_classes=0, **TINY["model_args"]).state_dict(), weights)

    def again(where, *more):
        return compare(
            "--methods", "frozen", "--jobs", 0, "--set", f"backbone.weights={where}", "--set", "limit=3", *more
        )

    assert again(weights)[0] == 0
    assert again(weights)[0] == 0
    moved = tmp_path / "elsewhere" / weights.name
    moved.parent.mkdir()
    weights.rename(moved)
    code, _, err = again(moved)
    assert code == 0, err
    assert (tmp_path / "all/report.html").read_text().count("data:image") == 3
    save_file({name: value + 1 for name, value in load_file(moved).items()}, moved)
    code, _, err = again(moved)
    assert (code, "base weights" in err, "what is there now" in err) == (1, True, True)


def test_a_run_is_looked_into(command, recipe, town, tmp_path):
    assert command("train", "--recipe", recipe, "--out", tmp_path / "mine", "--set", "steps=2")[0] == 0
    page = tmp_path / "analysis.html"
    analyze = ("analyze", tmp_path / "mine", "--target", f"town:folder={town}", "--images", 1, "--out")
    code, out, _ = command(*analyze, page)
    assert code == 0, out
    for word in ("mine: main", "mine: sub", "effective rank", "Grassmann", "analysis.html"):
        assert word in out
    assert {"main", "sub"} == set(json.loads(page.with_suffix(".json").read_text())["mine"]["means"])
    assert "change by sub" in page.read_text()
    code, _, err = command(*analyze, page)
    assert (code, "analysis.html exists" in err, "--overwrite" in err) == (1, True, True)
    assert command(*analyze, page, "--overwrite")[0] == 0
    code, _, err = command(*analyze, tmp_path / "analysis.txt")
    assert (code, "ending in .html" in err) == (1, True)
    code, _, err = command("analyze", tmp_path / "yours", "--out", tmp_path / "other.html")
    assert (code, "yours: no such run folder" in err) == (1, True)
