"""What a logger shows of a training is what metrics.jsonl says, each step once, also after a kill."""

import csv
import importlib.util
import json
import subprocess
import sys
import time

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from labelled_files import refused
from miniatures import TINY, write_folder
from recyclelora.errors import MissingExtraError
from recyclelora.recipe import make_recipe
from recyclelora.runs.facts import read_validations
from recyclelora.runs.logs import remove_logs, wandb_id_file
from recyclelora.runs.run import Run
from recyclelora.training.loggers import check_logger, make_logger, of_validation
from recyclelora.training.recorder import RunRecorder
from recyclelora.training.train import train

SCORES = {"step": 2, "seconds": 1.0, "miou": 0.5}
SCORES["sources"] = {
    "a": {"images": 2, "miou": 0.4, "iou": {"road": 0.4, "sky": None, "car": None}},
    "b": {"images": 2, "miou": 0.6, "iou": {"road": 0.8, "sky": 0.25, "car": None}},
}
VALIDATED = {"val/miou": 0.5, "val/iou/road": 0.6, "val/iou/sky": 0.25}

CHILD = """
import sys, time, yaml
from recyclelora.recipe import make_recipe
from recyclelora.training.recorder import RunRecorder
from recyclelora.training.train import train

record = RunRecorder.record

def slow(self, step, *args):
    record(self, step, *args)
    if step == 6:
        print("step 6", flush=True)
        time.sleep(60)

RunRecorder.record = slow
train(make_recipe(yaml.safe_load(sys.argv[1])), sys.argv[2])
"""


@pytest.fixture
def values(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    own = {"backbone": TINY, "adapter": {"r_main": 4, "r_sub": 2}, "crop": 32, "batch_size": 2, "steps": 7}
    own |= {"workers": 0, "checkpoint_every": 2, "optim": {"lr": 0.003}, "validation": {"every": 2, "images": 1}}
    return own | {"sources": [f"folder={write_folder(tmp_path / 'town')}"]}


def metrics(run):
    """Loss and rate by step, as the training wrote them down."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: {"train/loss": line["loss"], "train/lr": line["lr"]} for line in lines}


def once(pairs):
    """A mapping of pairs that fails if a key occurs twice."""
    pairs = list(pairs)
    assert len(dict(pairs)) == len(pairs), pairs
    return dict(pairs)


def from_csv(run):
    with (run / "logs" / "csv" / "metrics.csv").open(newline="") as file:
        rows = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
    names = {name for row in rows for name in row} - {"step"}
    return {name: once((row["step"], row[name]) for row in rows if name in row) for name in names}


def from_tensorboard(run):
    events = EventAccumulator(str(run / "logs" / "tensorboard"))
    events.Reload()
    return {name: once((e.step, e.value) for e in events.Scalars(name)) for name in events.Tags()["scalars"]}


def from_wandb(run):
    """As `wandb leet inspect` reads the only file of the run."""
    (file,) = (run / "logs" / "wandb").glob("offline-run-*/run-*.wandb")
    words = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", file]
    lines = map(json.loads, subprocess.check_output(words, text=True).splitlines())
    rows = [line["history"]["item"] for line in lines if line["type"] == "history"]
    names = {name for row in rows for name in row if not name.startswith("_")}
    return {name: once((row["_step"], row[name]) for row in rows if name in row) for name in names}


READERS = {"csv": from_csv, "tensorboard": from_tensorboard, "wandb": from_wandb}


def check(found, run, steps, validated):
    expected = metrics(run)
    for name in ("train/loss", "train/lr"):
        assert list(found[name]) == steps
        for step in steps:
            assert found[name][step] == pytest.approx(expected[step][name], rel=1e-6)
    scores = {line["step"]: of_validation(line) for line in read_validations(run / "validation.jsonl")}
    assert list(scores) == list(found["val/miou"]) == validated
    assert found.keys() == {"train/loss", "train/lr"} | {name for values in scores.values() for name in values}
    for step, values in scores.items():
        for name, value in values.items():
            assert found[name][step] == pytest.approx(value, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("logger", READERS)
def test_a_killed_training_has_its_steps_on_disk_and_shows_each_once_when_it_goes_on(logger, values, tmp_path):
    run, values = tmp_path / "run", values | {"logger": logger}
    words = [sys.executable, "-c", CHILD, yaml.safe_dump(values), run]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "step 6\n"
            time.sleep(4 if logger == "wandb" else 0)  # the others write at once
        finally:
            process.kill()
    time.sleep(1 if logger == "tensorboard" else 0)  # the names of its files have the second
    last = 5 if logger == "wandb" else 6  # wandb writes a step when the next one begins
    check(READERS[logger](run), run, [*range(1, last + 1)], [2, 4])
    train(make_recipe(values), run, resume=True)  # from step 4
    check(READERS[logger](run), run, [*range(1, 8)], [2, 4, 6, 7])


def test_a_logger_changes_nothing_else(values, tmp_path):
    train(make_recipe(values), tmp_path / "without")
    for logger in READERS:
        train(make_recipe(values | {"logger": logger}), tmp_path / logger)
        a, b = (load_file(tmp_path / name / "head.safetensors") for name in ("without", logger))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)
        found = READERS[logger](tmp_path / logger)
        for name in ("train/loss", "train/lr"):
            steps = metrics(tmp_path / logger)
            assert found[name] == {step: pytest.approx(steps[step][name], rel=1e-6) for step in range(1, 8)}
    assert not (tmp_path / "without" / "logs").exists()


def cut(values, run, monkeypatch):
    """A training that loses its power after step 5, with a checkpoint after step 4."""
    record = RunRecorder.record

    def power_cut(self, step, *args):
        if step == 6:
            raise RuntimeError("power cut")
        record(self, step, *args)

    with monkeypatch.context() as patch:
        patch.setattr(RunRecorder, "record", power_cut)
        with pytest.raises(RuntimeError, match="power cut"):
            train(make_recipe(values), run)


def test_tensorboard_shows_each_step_once_also_if_the_clock_was_put_back(values, tmp_path, monkeypatch):
    run, values = tmp_path / "run", values | {"logger": "tensorboard"}
    cut(values, run, monkeypatch)
    (file,) = (run / "logs" / "tensorboard").iterdir()
    parts = file.name.split(".")
    file.rename(file.with_name(".".join([*parts[:3], f"{int(time.time()) + 3600}", *parts[4:]])))
    train(make_recipe(values), run, resume=True)
    assert sorted(from_tensorboard(run)["train/loss"]) == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("logger", READERS)
def test_a_logger_that_comes_later_shows_the_steps_before_it_too(logger, values, tmp_path, monkeypatch):
    cut(values, tmp_path / "run", monkeypatch)
    train(make_recipe(values | {"logger": logger}), tmp_path / "run", resume=True)
    assert list(READERS[logger](tmp_path / "run")["train/loss"]) == [1, 2, 3, 4, 5, 6, 7]


def test_wandb_keeps_its_id_when_a_training_goes_on_and_takes_another_for_a_new_one(values, tmp_path):
    run, recipe = tmp_path / "run", make_recipe(values | {"logger": "wandb"})

    def begun(done):
        (logger,) = make_logger(recipe, run, done)
        logger.finalize("success")
        assert logger.run.project == "recyclelora"
        assert logger.name == "run"
        assert logger.run.config["optim"]["lr"] == 0.003
        return logger.version

    assert begun(0) == begun(2)
    first = begun(2)
    Run(run, recipe, {"classes": {}}).start({})
    assert begun(0) != first


@pytest.mark.parametrize("logger", READERS)
def test_a_new_training_removes_the_logs_of_the_old_one_and_nothing_else(logger, values, tmp_path):
    run, recipe = tmp_path / "run", make_recipe(values | {"logger": logger})
    (logs,) = make_logger(recipe, run, 0)
    logs.log_metrics({"train/loss": 1.0}, 1)
    logs.finalize("success")
    assert any(file.is_file() for file in (run / "logs" / logger).rglob("*"))
    notes = [run / "logs" / "notes.txt", run / "logs" / logger / "notes.txt"]
    for note in notes:
        note.write_text("mine")
    Run(run, recipe, {}).start({})
    assert [path for path in sorted(run.glob("logs/**/*")) if not path.is_dir()] == sorted(notes)
    for note in notes:
        note.unlink()
    Run(run, recipe, {}).start({})
    assert not (run / "logs").exists()


@pytest.mark.parametrize("content", ["", "*", "other"])
def test_a_damaged_id_removes_no_folder_of_another_run(content, tmp_path):
    other = tmp_path / "logs" / "wandb" / "run-20260101_000000-0123456789abcdef"
    other.mkdir(parents=True)
    wandb_id_file(tmp_path).write_text(content)
    remove_logs(tmp_path)
    assert other.is_dir()


def test_tensorboard_knows_the_recipe(values, tmp_path):
    (logger,) = make_logger(make_recipe(values | {"logger": "tensorboard"}), tmp_path / "run", 0)
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path / "run" / "logs" / "tensorboard"))
    events.Reload()
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    settings = HParamsPluginData.FromString(content).session_start_info.hparams
    assert settings["optim.lr"].number_value == 0.003
    assert settings["method"].string_value == "recyclelora"


def test_scores_are_named_by_class_over_all_sources():
    found = of_validation(SCORES)
    assert found == {name: pytest.approx(value) for name, value in VALIDATED.items()}
    assert of_validation({**SCORES, "miou": None, "sources": {}}) == {}


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_named_before_anything_is_written(name, values, tmp_path, monkeypatch):
    recipe = make_recipe(values | {"logger": name})
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, name, None)
        refused(
            lambda: train(recipe, tmp_path / "run"),
            f"logger: {name} needs the package {name}, which is not installed",
            'pip install "recyclelora[logging]"',
        )
    assert not (tmp_path / "run").exists()
    (tmp_path / name).mkdir()  # as wandb leaves it where it is called
    find = importlib.util.find_spec
    from importlib.machinery import PathFinder

    monkeypatch.setattr(importlib.util, "find_spec", lambda word: PathFinder.find_spec(word, [str(tmp_path)]))
    with pytest.raises(MissingExtraError):
        check_logger(recipe)
    monkeypatch.setattr(importlib.util, "find_spec", find)
    check_logger(recipe)


def test_wandb_without_a_login_says_what_to_do(values, tmp_path, monkeypatch):
    import wandb

    wandb.teardown()  # it reads its environment once
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    recipe = make_recipe(values | {"logger": "wandb"})
    refused(
        lambda: make_logger(recipe, tmp_path / "run", 0), "logger: wandb: ", "run `wandb login`", "WANDB_MODE=offline"
    )
    wandb.teardown()
