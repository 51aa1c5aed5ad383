"""An error is reported in one line that names the fix; the exit code is not 0 and nothing is lost."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import yaml
from another_process import said
from PIL import Image
from wrong_inputs import ROWS, write_workspace

from miniatures import write_folder
from recyclelora.recipe import Recipe
from recyclelora.runs.run import Run
from tiny_methods import unsealed


def refused(result, *parts):
    code, _, err = result
    assert code != 0
    assert "Traceback" not in err
    assert len(said(err)) == 1, err
    for part in parts:
        assert str(part) in err
    return err


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    place = tmp_path_factory.mktemp("workspace")
    write_workspace(place)
    return place


def contents(place):
    """The bytes of all files below a folder; links, pipes and folders by what they are."""
    return {
        str(path): path.read_bytes() if path.is_file() and not path.is_symlink() else path.lstat().st_mode
        for path in place.rglob("*")
    }


def test_more_than_a_hundred_kinds_are_in_the_table():
    names = [name for name, *_ in ROWS]
    assert len(names) == len(set(names)) > 200


@pytest.mark.parametrize(("make", "call", "words"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_wrong_input_is_one_line_and_nothing_is_changed(command, workspace, tmp_path, monkeypatch, make, call, words):
    place = tmp_path / "place"
    shutil.copytree(workspace, place)
    monkeypatch.chdir(place)
    make(place)
    before = contents(place)
    code, out, err = command(*call)
    assert code == 1, out
    assert [line for line in said(err) if line.startswith("error: ")] == said(err), err
    assert len(said(err)) == 1
    assert "--debug" not in err
    assert "Traceback" not in out + err
    for word in words:
        assert word in err
    after = contents(place)
    assert {path: after.get(path) for path in before} == before
    assert not (place / "harm").exists()


IN_ITS_OWN_PROCESS = ("ten thousand brackets", "out below a file", "run.json is not UTF-8", "photo named in escapes")


@pytest.mark.parametrize(("make", "call", "words"), [row[1:] for row in ROWS if row[0] in IN_ITS_OWN_PROCESS])
def test_a_process_of_its_own_says_the_same(workspace, tmp_path, make, call, words):
    place = tmp_path / "place"
    shutil.copytree(workspace, place)
    make(place)
    done = subprocess.run(
        [sys.executable, "-m", "recyclelora", *call], capture_output=True, check=False, cwd=place,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    lines = [line for line in done.stderr.decode("ascii").splitlines() if "gemm_4bit" not in line]  # of bitsandbytes
    assert done.returncode == 1
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert "--debug" not in lines[0]
    for word in words:
        assert word in lines[0]


@pytest.fixture
def train(command, recipe, tmp_path):
    def call(*arguments, out="run"):
        return command("train", "--recipe", recipe, "--out", tmp_path / out, *arguments)

    return call


@pytest.fixture
def run(train, tmp_path):
    assert train()[0] == 0
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ("optim.lrr=1", ["unknown key 'optim.lrr'", "did you mean 'lr'"]),
        ("stepps=3", ["unknown key 'stepps'", "did you mean 'steps'"]),
        ("steps=many", ["steps", "found 'many'"]),
        ("steps", ["--set steps: expected KEY=VALUE"]),
        ("head=linaer", ["unknown head 'linaer'", "'linear'"]),
        ("backbone.model=vit_tini_patch16_224", ["timm has no model", "vit_tiny_patch16_224"]),
        ("backbone.weights=missing.safetensors", ["missing.safetensors"]),
        ("adapter.r_main=60", ["blocks.0.attn.qkv", "rank 62 (r_main 60 + r_sub 2) exceeds min(out, in) = 48"]),
        ("crop=33", ["crop 33 is not a multiple of the patch 16", "32 or 48"]),
        ("sources=[folder=nowhere]", ["nowhere: no such folder"]),
        ("sources=[]", ["sources: at least 1 is required", "found []"]),
        ("method=recicle", ["unknown method 'recicle'"]),
        ("evaluation.stride=33", ["stride 33 leaves gaps between windows of 32", "1 to 32"]),
        ("evaluation.window=40", ["window 40 is not a multiple of the backbone's patch 16", "32 or 48"]),
        ("sources=[foldr=x]", ["unknown data set 'foldr'", "folder"]),
        ("sources=[streets:fogg]", ["unknown domain 'fogg'", "fog"]),
    ],
)
def test_wrong_settings(train, tmp_path, change, parts):
    refused(train("--set", change), *parts)
    assert not (tmp_path / "run").exists()


def test_missing_recipe(command, recipe, tmp_path):
    refused(
        command("train", "--recipe", tmp_path / "recipy.yaml", "--out", tmp_path / "run"),
        "no such recipe",
        "recipe.yaml",
        "shipped, by name: ",
        "g2cbm",
    )


def test_image_without_label(train, town):
    (town / "labels" / "02.png").unlink()
    refused(train(), "02")


def test_label_ids_outside_the_map(train, town):
    file = town / "labels" / "01.png"
    Image.open(file).point(lambda v: 7).save(file)
    refused(train(), "01.png", "7")


def test_unequal_sizes(train, town):
    Image.open(town / "labels" / "01.png").resize((10, 10)).save(town / "labels" / "01.png")
    refused(train(), "01.png", "10")


@pytest.mark.parametrize("workers", [0, 1])
def test_corrupt_image(train, town, workers):
    file = town / "images" / "03.jpg"
    file.write_bytes(file.read_bytes()[:300])
    refused(train("--set", f"workers={workers}"), "03.jpg")


def test_nothing_is_overwritten_unless_asked(train, command, run, town, tmp_path):
    before = (run / "head.safetensors").stat().st_mtime_ns
    refused(train(), "not empty", "--resume", "--overwrite")
    assert (run / "head.safetensors").stat().st_mtime_ns == before
    (run / "notes.txt").write_text("mine")
    assert train("--overwrite")[0] == 0
    assert (run / "head.safetensors").stat().st_mtime_ns != before
    assert (run / "notes.txt").read_text() == "mine"

    scores = tmp_path / "scores.json"
    scores.write_text("mine")
    evaluate = ("evaluate", run, "--target", f"folder={town}", "--out", scores)
    refused(command(*evaluate), "scores.json exists", "--overwrite")
    assert scores.read_text() == "mine"
    assert command(*evaluate, "--overwrite")[0] == 0
    assert json.loads(scores.read_text())["targets"]

    refused(command("predict", run, town / "images", "--out", run), "not empty", "--overwrite")


def test_files_that_no_training_wrote_are_kept(train, run, tmp_path):
    refused(train("--resume", "--overwrite"), "give one of them")
    assert (run / "checkpoints" / "last.safetensors").is_file()
    (run / "checkpoints" / "mine.ckpt").write_text("mine")
    assert train("--overwrite")[0] == 0
    assert (run / "checkpoints" / "mine.ckpt").read_text() == "mine"
    (tmp_path / "project" / "checkpoints").mkdir(parents=True)
    (tmp_path / "project" / "checkpoints" / "last.safetensors").write_text("mine")
    refused(train("--overwrite", out="project"), "project: not a run")
    assert (tmp_path / "project" / "checkpoints" / "last.safetensors").read_text() == "mine"


def test_a_run_is_not_resumed_with_other_data(train, run, town):
    (run / "head.safetensors").unlink()
    assert train("--resume", "--set", "workers=1", "--set", "checkpoint_every=3")[0] == 0
    (run / "head.safetensors").unlink()
    classes = (town / "classes.txt").read_text()
    (town / "classes.txt").write_text("sky\nground")
    refused(train("--resume"), "list of classes has changed")
    (town / "classes.txt").write_text(classes)
    for kind, suffix in (("images", "jpg"), ("labels", "png")):
        (town / kind / f"03.{suffix}").unlink()
    refused(train("--resume"), "files have changed", "4 images then, 3 now")


def test_a_run_is_resumed_with_its_own_recipe_only(train, run):
    refused(train("--resume", "--set", "steps=9"), "differs", "steps", "6 there, 9 here")


def test_a_folder_that_is_not_a_run_is_refused(command, town, tmp_path):
    refused(command("predict", town, town / "images", "--out", tmp_path / "p"), "not a run", "recipe.yaml is missing")
    refused(command("predict", tmp_path / "none", town / "images", "--out", tmp_path / "p"), "no such run folder")


def test_an_unfinished_run_is_not_loaded(command, run, town, tmp_path):
    (run / "head.safetensors").unlink()
    refused(command("predict", run, town / "images", "--out", tmp_path / "p"), "not finished", "--resume")


def test_another_base_is_refused(command, train, run, town, tmp_path):
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["seed"] = 5  # random weights are those of the seed
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    refused(command("predict", run, town / "images", "--out", tmp_path / "p"), "recipe.yaml: damaged, or not the file")
    unsealed(Run(run, Recipe(), {}))
    refused(command("predict", run, town / "images", "--out", tmp_path / "p"), "trained on base weights", "random")
    shutil.rmtree(run / "adapter")
    (run / "head.safetensors").unlink()
    refused(train("--resume", "--set", "seed=5"), "trained on base weights")


def test_targets_that_do_not_fit(command, run, town, tmp_path):
    out = tmp_path / "scores.json"
    other = write_folder(tmp_path / "other")
    refused(command("evaluate", run, "--target", f"folder={other}", "--out", out), "19 classes", "trained on 2 classes")
    twice = ("--target", f"folder={town}") * 2
    refused(command("evaluate", run, *twice, "--out", out), "two targets are called 'town'", "LABEL:NAME")
    refused(command("evaluate", run, "--target", f"folder={town}", "--out", tmp_path / "s.txt"), "ending in .json")
    assert not out.exists()


def test_files_that_are_not_images(command, run, town, tmp_path):
    refused(command("predict", run, tmp_path / "no.jpg", "--out", tmp_path / "p"), "no.jpg: no such image")
    (tmp_path / "empty").mkdir()
    refused(command("predict", run, tmp_path / "empty", "--out", tmp_path / "p"), "no images in this folder")
    refused(command("predict", run, town / "classes.txt", "--out", tmp_path / "p"), "classes.txt")


def test_debug_shows_the_traceback(command, run, tmp_path):
    from recyclelora import UserError

    with pytest.raises(UserError, match="no such image"):
        command("predict", run, tmp_path / "no.jpg", "--out", tmp_path / "p", "--debug")


def test_a_damaged_head_is_named(command, run, town, tmp_path):
    (run / "head.safetensors").write_bytes(b"damaged")
    refused(command("predict", run, town / "images", "--out", tmp_path / "p"), "head.safetensors", "restore the file")
