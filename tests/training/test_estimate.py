"""What a dry run says is what the training then takes, and nothing is left of it."""

import os
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

import recyclelora
from labelled_files import refused
from miniatures import TINY, write_folder
from recyclelora.__main__ import main
from recyclelora.data.opening import open_domain
from recyclelora.errors import DivergedError
from recyclelora.recipe import make_recipe
from recyclelora.stopping import Stopped
from recyclelora.training import estimate as module
from recyclelora.training.estimate import Estimate, Stopwatch, estimate, print_estimate
from recyclelora.training.memory import Memory
from recyclelora.training.train import train

BASE = {
    "backbone": TINY, "adapter": {"r_main": 4, "r_sub": 2}, "crop": 32, "batch_size": 2, "steps": 10, "workers": 0,
    "optim": {"lr": 0.003}, "validation": {"every": 4, "share": 0.5},
}  # fmt: skip


@pytest.fixture(scope="module")
def towns(tmp_path_factory):
    """A folder of seven images, and one with the splits train and val."""
    flat, split = tmp_path_factory.mktemp("flat"), tmp_path_factory.mktemp("split")
    write_folder(flat, 7)
    write_folder(split / "train", 6, seed=1)
    write_folder(split / "val", 5, seed=2)
    return [f"a:folder={flat}", f"b:folder={split}"]


def recipe(towns, **changes):
    return make_recipe({**BASE, "sources": towns, **changes})


@pytest.fixture
def command(monkeypatch, capfd):
    """Call the command line; returns exit code, standard output and standard error."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["recyclelora", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capfd.readouterr()

    return call


# Figures


def test_the_figures_are_those_of_the_training(towns, tmp_path):
    found = recyclelora.estimate(recipe(towns))
    run = train(recipe(towns), tmp_path / "run")
    assert found.parameters == run.info["parameters"]
    assert found.parameters["adapters"] > 0
    assert found.images == {source["label"]: source["images"] for source in run.info["sources"]} == {"a": 4, "b": 6}
    assert found.held_out == {each["label"]: each["images"] for each in run.info["validation"]} == {"a": 3, "b": 5}
    assert found.validations == len(run.validations.read_text().splitlines()) == 3
    assert (found.steps, found.batch_size) == (10, 2)
    # Rates of other steps have other digits, in the header.
    assert found.checkpoint_bytes == pytest.approx(run.checkpoint.stat().st_size, abs=256)
    assert found.checkpoint_bytes > 4 * (found.parameters["adapters"] + found.parameters["head"]) * 3
    if not torch.cuda.is_available():
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert 2**27 < found.memory_bytes < 1.1 * peak  # the system counts it in steps


def test_a_checkpoint_is_as_large_as_that_of_as_many_steps(towns, tmp_path):
    settings = recipe(towns, steps=5, optim={"average": 0.9}, validation=None)
    assert estimate(settings).checkpoint_bytes == train(settings, tmp_path / "run").checkpoint.stat().st_size


def ticking(monkeypatch, *times):
    """A clock that shows these times, one after another."""
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=iter(times).__next__))


def test_times_are_the_median_step_and_those_of_a_validation(towns, monkeypatch):
    start, steps, validations = (0, 2), (10, 110, 170, 173, 174, 179), (200, 200.5, 300, 301)
    ticking(monkeypatch, *start, *steps, *validations)
    found = estimate(recipe(towns))
    assert found.start_seconds == 2
    assert found.step_seconds == 3  # of 3, 1 and 5; the first step took 100, the one whose memory was measured 60
    assert found.reading_seconds == 0
    assert found.validation_seconds == 3 * 0.5 + 5 * 1
    assert found.validations == 3
    assert found.seconds == 2 + 10 * 3 + 3 * 6.5


def test_slow_reading_is_the_time_of_a_step(towns, monkeypatch, capsys):
    read = []
    dataset = module.TrainingDataset.__getitem__
    monkeypatch.setattr(module.TrainingDataset, "__getitem__", lambda *a: read.append(a[1]) or dataset(*a))
    ticking(monkeypatch, 0.0, 2.0, 10, 30, 99, 100, 101, 102, 103, 104)
    found = estimate(recipe(towns[:1], workers=2, batch_size=3, steps=8, validation=None))
    assert [(key.number, key.image) for key in read] == [(0, 0), (1, 1), (2, 2)]
    assert found.reading_seconds == found.step_seconds == 20 / 2
    assert (found.validations, found.validation_seconds) == (0, None)
    assert found.seconds == 2 + 8 * 10
    print_estimate(found)
    assert "more `workers` may help" in capsys.readouterr().out


@pytest.mark.parametrize(("steps", "every", "count"), [(10, 5, 2), (11, 5, 3), (3, 5, 1), (5, 5, 1)])
def test_there_are_as_many_validations_as_in_the_training(steps, every, count, towns):
    settings = recipe(towns, steps=steps, validation={"every": every})
    due = [step for step in range(1, steps + 1) if step % every == 0 or step == steps]
    assert module._validations(settings) == len(due) == count


def test_the_steps_are_those_of_a_training_and_its_recipe_stays(towns, monkeypatch):
    losses = []
    record = Stopwatch.record
    monkeypatch.setattr(Stopwatch, "record", lambda *a: losses.append(a[2]) or record(*a))
    settings = recipe(towns)
    before = settings.model_dump()
    estimate(settings)
    assert len(losses) == module.UNTIMED + module.TIMED
    assert settings.model_dump() == before
    again = losses[:]
    losses.clear()
    estimate(settings)
    assert losses == again


# Nothing is left


def content(*folders):
    """All that is below some folders."""
    return {
        path: path.read_bytes() if path.is_file() else None for folder in folders for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def places(tmp_path, tmp_path_factory, monkeypatch):
    """The working folder and that of temporary files, both observed; the latter may not have a long path."""
    folders = [tmp_path / "cwd", tmp_path_factory.mktemp("t"), tmp_path / "cache"]
    for folder in folders:
        folder.mkdir(exist_ok=True)
        (folder / "mine.txt").write_text("mine")
    monkeypatch.chdir(folders[0])
    monkeypatch.setattr(tempfile, "tempdir", str(folders[1]))
    monkeypatch.setenv("TMPDIR", str(folders[1]))
    monkeypatch.setenv("RECYCLELORA_CACHE", str(folders[2]))
    monkeypatch.delenv("RECYCLELORA_CACHE_FACTORS", raising=False)
    return folders


def test_nothing_is_written_by_a_function_that_prints_nothing(towns, places, capfd):
    before = content(*places)
    inputs = content(*(Path(town.partition("=")[2]) for town in towns))
    assert isinstance(estimate(recipe(towns, workers=1)), Estimate)
    assert content(*places) == before
    assert content(*(Path(town.partition("=")[2]) for town in towns)) == inputs
    assert capfd.readouterr() == ("", "")


def small_scene(seed, domain):
    labels = np.zeros((48, 64), np.uint8)
    labels[: 16 + seed % 8] = 1
    return SimpleNamespace(image=np.stack([labels * 100 + 50] * 3, axis=-1), labels=labels)


def test_rendered_scenes_are_not_kept(places, tmp_path, monkeypatch):
    scenes = tmp_path / "scenes"
    monkeypatch.setattr("recyclelora.data.scenes.streets.render", small_scene)
    rare = {"data": f"rainy:streets:rain={scenes}", "images": 4, "rare_classes": {"min_pixels": 1}}
    settings = recipe([f"streets:clear={scenes}", rare], validation={"every": 4, "images": 2})
    before = content(*places)
    found = estimate(settings)
    assert found.images == {"streets:clear": 1000, "rainy": 4}
    assert found.held_out == {"streets:clear": 2, "rainy": 2}
    assert not scenes.exists()
    assert content(*places) == before
    open_domain(settings.sources[0].data, "train").read(0)
    assert len(list(scenes.rglob("*.png"))) == 1  # as a training would have kept it


@pytest.mark.parametrize("what", ["diverged", "stopped"])
def test_a_dry_run_that_fails_leaves_nothing(what, towns, places, monkeypatch):
    before = content(*places)
    if what == "diverged":
        refused(lambda: estimate(recipe(towns, method="full", adapter={}, optim={"lr": 1e30})), "dry run", "step")
        with pytest.raises(DivergedError):
            estimate(recipe(towns, method="full", adapter={}, optim={"lr": 1e30}))
    else:
        record = Stopwatch.record

        def signalled(self, step, *args):
            if step == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            record(self, step, *args)

        monkeypatch.setattr(Stopwatch, "record", signalled)
        with pytest.raises(Stopped) as stop:
            estimate(recipe(towns))
        assert str(stop.value) == "stopped by SIGTERM"  # no word of steps that are kept
        assert (stop.value.code, stop.value.begun) == (128 + signal.SIGTERM, False)
    assert content(*places) == before


def test_a_recipe_that_cannot_be_trained_is_refused_as_by_a_training(towns, tmp_path):
    refused(lambda: estimate(make_recipe(BASE)), "sources: at least 1")
    refused(lambda: estimate(recipe([f"folder={tmp_path / 'nowhere'}"])), "nowhere", "no such folder")
    refused(lambda: estimate(recipe(towns, crop=33)), "crop 33")
    one = write_folder(tmp_path / "one", 1)
    refused(lambda: estimate(recipe([f"folder={one}"])), "one", "all of its images (1)")


# The command line


@pytest.fixture
def file(towns, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**BASE, "sources": towns}))
    return path


def rows(out):
    """The table, cell by cell."""
    lines = [line.strip("│").split("│") for line in out.splitlines()]
    return {line[0].strip(): line[1].strip() for line in lines if len(line) == 2}


def test_the_command_prints_a_table_and_writes_nothing(file, command, places):
    before = content(*places)
    code, out, _ = command("train", "--recipe", file, "--dry-run", "--out", "new/run")
    assert code == 0
    assert content(*places) == before
    table = rows(out)
    assert table["images"] == "a: 4, b: 6"
    assert table["images held out for validation"] == "a: 3, b: 5"
    assert table["all steps"].startswith("10 steps: ")
    assert table["validation"].startswith("3 times ")
    assert table["in all"].startswith("about ")
    assert "steps done" not in out


def test_the_table_says_each_figure_in_its_unit(capsys):
    print_estimate(
        Estimate(
            parameters={"backbone": 21_000_000, "adapters": 1_234_567, "head": 7_700}, images={"gtav": 24_866},
            held_out={"gtav": 100}, steps=40_000, batch_size=4, start_seconds=75.0, step_seconds=0.25,
            reading_seconds=0.1, validation_seconds=120.0, validations=80, memory_bytes=3 * 2**29, device="CPU",
            memory=Memory(frozen=2**27, trained=2**24, step=2**29), checkpoint_bytes=12_897_485,
        )
    )  # fmt: skip
    assert rows(capsys.readouterr().out) == {
        "images": "gtav: 24,866",
        "images held out for validation": "gtav: 100",
        "parameters trained": "1,234,567 (adapters) + 7,700 (head)",
        "parameters of the frozen backbone": "21,000,000",
        "memory (CPU)": "1.50 GiB",
        "of it, tensors": "0.12 GiB (frozen) + 0.02 GiB (trained) + 0.50 GiB (a step)",
        "one step": "0.25 s, 16 images/s",
        "start": "75 s",
        "size of a checkpoint": "12.3 MiB",
        "all steps": "40,000 steps: 2.78 h",
        "validation": "80 times 2 min: 2 h 40 min",
        "in all": "about 5 h 28 min",
    }


def test_without_a_dry_run_a_folder_is_needed(file, command, places):
    before = content(*places)
    code, out, err = command("train", "--recipe", file)
    assert (code, out) == (1, "")
    assert err.splitlines()[-1] == "error: --out is missing: give the folder for the run, as in --out runs/mine"
    assert content(*places) == before


@pytest.mark.parametrize("change", ["crop=33", "stepz=3", "sources=[folder=nowhere]", "optim.lr=1e30"])
def test_an_error_of_a_dry_run_is_one_line(change, file, command, places):
    before = content(*places)
    words = ["--set", "method=full", "--set", "adapter={}"] if "lr" in change else []
    code, out, err = command("train", "--recipe", file, "--dry-run", "--set", change, *words)
    errors = [line for line in err.splitlines() if "gemm_4bit" not in line]
    assert code == 1
    assert "dry run" not in out  # only how the data are read
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert content(*places) == before


@pytest.mark.slow
def test_two_processes_print_one_table(file, tmp_path):
    command = [sys.executable, "-m", "recyclelora", "train", "--recipe", file, "--dry-run", "--set", "devices=2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("dry run") == done.stdout.count("in all") == 1
    assert rows(done.stdout)["images"] == "a: 4, b: 6"
