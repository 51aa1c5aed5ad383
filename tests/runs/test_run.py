"""The folder of a run: what is read from it, what is refused, and what is removed."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import recyclelora
from labelled_files import refused
from recyclelora.recipe import Recipe
from recyclelora.runs.run import Run, check_empty, is_run, is_torn, open_finished, open_run, remove_run, versions
from tiny_methods import COLOURS, NAMES, made_run, tiny_recipe, unsealed


@pytest.fixture
def run(tmp_path):
    return made_run(tmp_path / "run", tiny_recipe("recyclelora"))[0]


def test_a_run_is_read_as_it_was_written(run):
    opened = open_finished(str(run.path))
    assert opened.recipe == run.recipe
    assert type(opened.recipe.adapter) is type(run.recipe.adapter)
    assert opened.info == json.loads(json.dumps(run.info))
    assert opened.space.names == tuple(NAMES)
    assert opened.space.colours == tuple(map(tuple, COLOURS))
    assert opened.step == run.recipe.steps
    assert opened.trained_sha256 == run.trained_sha256
    assert run.info["versions"] == versions()
    assert (versions()["torch"], versions()["recyclelora"]) == (torch.__version__, recyclelora.__version__)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    refused(lambda: open_run(tmp_path / "none"), tmp_path / "none", "no such run folder", "recyclelora train")
    (tmp_path / "file").write_text("text")
    refused(lambda: open_run(tmp_path / "file"), tmp_path / "file", "no such run folder")


@pytest.mark.parametrize("name", ["recipe.yaml", "run.json"])
def test_a_folder_without_one_of_its_files_is_not_a_run(run, name):
    (run.path / name).unlink()
    refused(lambda: open_run(run.path), run.path, f"not a run, {name} is missing", "--out folder")


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("recipe.yaml", b"steps: [1", ["damaged", "restore the file"]),
        ("recipe.yaml", b"\xff\xfe\x00", ["damaged", "restore the file"]),
        ("recipe.yaml", b"- 1", ["recipe.yaml"]),
        ("recipe.yaml", b"", ["recipe.yaml"]),
        ("recipe.yaml", b"stepz: 3", ["unknown key 'stepz'", "'steps'"]),
        ("recipe.yaml", b"method: imported", ["unknown method 'imported'"]),
        ("run.json", b"{", ["damaged, it is not JSON", "restore the file"]),
        ("run.json", b"\xff\xfe\x00", ["damaged, it is not JSON"]),
        ("run.json", b"", ["damaged, it is not JSON"]),
        ("run.json", b"[]", ["damaged", "restore the file"]),
        ("run.json", b"{}", ["damaged", "classes", "restore the file"]),
    ],
)
def test_a_damaged_file_is_named(run, name, content, parts):
    if name == "recipe.yaml":
        unsealed(run)
    (run.path / name).write_bytes(content)
    refused(lambda: open_run(run.path), run.path / name, *parts)


def test_a_training_that_stopped_is_open_but_not_finished(run):
    run.head.unlink()
    assert not open_run(run.path).finished
    refused(lambda: open_finished(run.path), run.path, "not finished", "recyclelora train --resume")
    refused(lambda: recyclelora.load(run.path), run.path, "not finished")


@pytest.mark.parametrize("part", ["head.safetensors", "adapter/adapter_model.safetensors"])
def test_the_hash_depends_only_on_the_trained_weights(run, part):
    before = run.trained_sha256
    state = load_file(run.path / part)
    save_file(dict(reversed(state.items())), run.path / part, {"note": "another file, the same numbers"})
    assert open_run(run.path).trained_sha256 == before
    name = next(name for name, value in state.items() if value.is_floating_point())
    state[name].view(-1)[0] += 1
    save_file(state, run.path / part)
    assert open_run(run.path).trained_sha256 != before


@pytest.mark.parametrize("method", ["recyclelora", "soma", "full", "frozen"])
def test_only_the_files_of_a_run_are_removed(method, tmp_path):
    run, _ = made_run(tmp_path / "run", tiny_recipe(method))
    for file in (run.metrics, run.checkpoint, run.manifests / "1_town.txt", run.backbone):
        file.parent.mkdir(exist_ok=True)
        file.write_text("of the run")
    mine = [run.path / name for name in ("notes.txt", "adapter/mine.txt", "manifests/list.txt", "checkpoints/best.pt")]
    for file in mine:
        file.parent.mkdir(exist_ok=True)
        file.write_text("mine")
    remove_run(run.path)
    assert sorted(path for path in run.path.rglob("*") if path.is_file()) == sorted(mine)
    for file in mine:
        file.unlink()
    remove_run(run.path)
    assert list(run.path.iterdir()) == []  # and its own folders, once they are empty


def test_removing_from_a_folder_that_is_not_a_run_is_harmless(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    remove_run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_nothing_is_lost_unless_asked(tmp_path):
    check_empty(tmp_path / "new", False)
    (tmp_path / "empty").mkdir()
    check_empty(tmp_path / "empty", False)
    (tmp_path / "file").write_text("mine")
    for overwrite in (False, True):
        refused(lambda overwrite=overwrite: check_empty(tmp_path / "file", overwrite), "is a file")
    refused(lambda: check_empty(tmp_path, False), tmp_path, "exists", "--overwrite")
    check_empty(tmp_path, True)


def test_the_step_is_the_last_of_the_recipe_unless_the_facts_say_another(tmp_path):
    recipe = Recipe(steps=7)
    assert Run(tmp_path, recipe, {}).step == 7
    assert Run(tmp_path, recipe, {"step": 3}).step == 3
    assert Run(tmp_path, recipe, {"step": None}).step is None


def test_the_head_is_written_last(tmp_path, monkeypatch):
    """A run that has its head has all the rest."""
    monkeypatch.setattr(Run, "save_head", lambda run, head: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        made_run(tmp_path / "run", tiny_recipe("soma"))
    run = open_run(tmp_path / "run")
    assert not run.finished
    assert sorted(path.name for path in run.adapter.iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "trained.safetensors",
    ]  # fmt: skip


def files_of(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_start_replaces_what_a_run_left_and_a_stop_in_it_is_noticed(tmp_path, monkeypatch):
    run, _ = made_run(tmp_path / "run", tiny_recipe("lora"))
    (run.path / "notes.txt").write_text("mine")
    with monkeypatch.context() as patch:
        patch.setattr(Run, "write", lambda run: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run.start({"1_town.txt": "a\n"})
    assert is_run(run.path)
    assert is_torn(run.path)
    refused(lambda: open_run(run.path), run.path, "stopped while it began", "--resume")
    run.start({"1_town.txt": "a\nb\n"})
    found = files_of(run.path)
    assert found.keys() == {"notes.txt", "manifests/1_town.txt", "run.json", "recipe.yaml"}
    assert found["manifests/1_town.txt"] == b"a\nb\n"
    assert is_run(run.path)
    assert not is_torn(run.path)
    assert not open_run(run.path).finished


def test_a_folder_is_torn_only_if_nothing_is_lost(tmp_path):
    run, _ = made_run(tmp_path / "run", tiny_recipe("lora"))
    (run.path / "recipe.yaml").unlink()
    assert not is_torn(run.path)  # there is a head
    run.head.unlink()
    assert is_torn(run.path)
    run.older_checkpoint.parent.mkdir()
    run.older_checkpoint.write_text("something")
    assert not is_torn(run.path)
    assert not is_torn(tmp_path)
    assert not is_run(tmp_path)
