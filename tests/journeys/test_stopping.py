"""A training that is asked to stop keeps its last step, says how to go on, and then ends as if nothing had happened."""

import json
import os
import re
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from another_process import SIGNALS, SLOW, said, started, steps_of, wait_for
from safetensors.torch import load_file

from recyclelora.recipe import read_recipe
from recyclelora.runs.checkpoint import read_state
from recyclelora.training.train import train

STEPS = 150
CHANGES = {"steps": str(STEPS), "checkpoint_every": "1000"}
SETTINGS = [part for key, value in CHANGES.items() for part in ("--set", f"{key}={value}")]


def weights(run):
    return load_file(run / "head.safetensors") | load_file(run / "adapter" / "adapter_model.safetensors")


def assert_same(a, b):
    a, b = weights(a), weights(b)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("number", "workers"), [*zip(SIGNALS, (1, 0, 1, 0), strict=True)])
def test_a_signal_keeps_the_last_step_and_says_how_to_go_on(number, workers, recipe, tmp_path):
    run = tmp_path / "run"
    arguments = ["train", "--recipe", recipe, "--out", run, *SETTINGS, "--set", f"workers={workers}"]
    process = started(*arguments, group=True)
    with process:
        wait_for(lambda: steps_of(run) >= 3, process)
        os.killpg(process.pid, number)  # as a terminal or a cluster sends it: to helping processes too
        out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert out == ""
    (line,) = said(err)
    done = read_state(run / "checkpoints" / "last.safetensors")["step"]
    assert steps_of(run) == done < STEPS
    again = " ".join(map(str, [*arguments, "--resume"]))
    assert line == (
        f"{run}: stopped by {signal.Signals(number).name} after step {done} of {STEPS}, which is kept; "
        f"go on with: recyclelora {again}"
    )
    if number == signal.SIGTERM:
        settings = read_recipe(recipe, {**CHANGES, "workers": str(workers)})
        train(settings, run, resume=True)
        train(settings, tmp_path / "whole")
        assert_same(tmp_path / "whole", run)


def test_a_second_signal_stops_at_once(recipe, tmp_path):
    process = started("train", "--recipe", recipe, "--out", tmp_path / "run", before=SLOW)
    with process:
        assert process.stdout.readline() == "step\n"
        process.send_signal(signal.SIGTERM)
        time.sleep(1)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    (line,) = said(err)
    assert line.startswith("stopped by SIGINT; go on with: recyclelora train ")


def test_a_signal_that_is_ignored_stays_ignored(recipe, tmp_path):
    run = tmp_path / "run"
    process = started("train", "--recipe", recipe, "--out", run, *SETTINGS, ignored=[signal.SIGHUP])  # as `nohup` does
    with process:
        wait_for(lambda: steps_of(run) >= 1, process)
        process.send_signal(signal.SIGHUP)
        before = steps_of(run)
        wait_for(lambda: steps_of(run) > before + 2, process)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM


ELSEWHERE = [["--jobs", "1"], pytest.param(["--cluster", "local"], marks=pytest.mark.slow)]


@pytest.mark.parametrize("where", ELSEWHERE, ids=lambda where: where[0])
def test_a_comparison_stops_the_training_in_its_process(recipe, town, tmp_path, where):
    if "--cluster" in where:
        pytest.importorskip("ray")
    arguments = ["compare", "--recipe", recipe, "--methods", "lora", "--seeds", "0", "--out", tmp_path / "all"]
    arguments += ["--target", f"folder={town}", *where, "--set", "steps=5000", "--set", "checkpoint_every=5000"]
    run = tmp_path / "all" / "runs" / "lora--0"
    process = started(*arguments)
    with process:
        wait_for(lambda: steps_of(run) >= 2, process)
        process.send_signal(signal.SIGTERM)  # to the parent alone
        _, err = process.communicate(timeout=90)
    assert process.returncode == 128 + signal.SIGTERM
    assert said(err)[-1].startswith("stopped by SIGTERM; go on with: recyclelora compare --recipe")
    assert read_state(run / "checkpoints" / "last.safetensors")["step"] == steps_of(run) < 5000
    assert not processes_of_session(process.pid)


def processes_of_session(process):
    """What a Ray of this process has started, which names the process in its folder."""
    commands = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            commands[folder.name] = (folder / "cmdline").read_bytes()
    return [name for name, command in commands.items() if re.search(rb"/session_[-\d_]+_%d[/\0]" % process, command)]


def test_two_trainings_do_not_share_a_folder(recipe, tmp_path, command):
    run = tmp_path / "run"
    process = started("train", "--recipe", recipe, "--out", run, before=SLOW)
    with process:
        assert process.stdout.readline() == "step\n"
        before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        for way in ("--resume", "--overwrite"):
            code, _, err = command("train", "--recipe", recipe, "--out", run, way)
            assert code == 1
            assert f"error: {run}: another process is at work there" in err
        assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        process.kill()
    code, _, err = command("train", "--recipe", recipe, "--out", run, "--resume")
    assert (code, said(err)) == (0, [])


def test_an_evaluation_that_is_stopped_says_how_to_go_on(recipe, town, tmp_path, command):
    run, file = tmp_path / "run", tmp_path / "scores.json"
    assert command("train", "--recipe", recipe, "--out", run)[0] == 0
    slow = "from recyclelora.runs.predictor import Predictor\nimport time\n"
    slow += "Predictor.predict = lambda *a, **k: print('image', flush=True) or time.sleep(60)"
    arguments = ["evaluate", run, "--target", f"folder={town}", "--out", file]
    process = started(*arguments, before=slow)
    with process:
        assert process.stdout.readline() == "image\n"
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert said(err) == [f"stopped by SIGTERM; go on with: recyclelora {' '.join(map(str, arguments))}"]
    assert command(*arguments)[0] == 0
    assert json.loads(file.read_text())["complete"] is True
    assert not list(tmp_path.glob(".*"))


def test_a_training_that_fails_ends_with_its_helping_processes(recipe, town, tmp_path):
    """They ignore the signals that Python would end them with."""
    label = town / "labels" / "03.png"
    label.write_bytes(label.read_bytes()[:-20])
    process = started("train", "--recipe", recipe, "--out", tmp_path / "run", "--set", "workers=2", group=True)
    with process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    (line,) = said(err)
    assert line.startswith(f"error: {label}: ")
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_helping_processes_end_with_a_killed_training(recipe, tmp_path, command):
    run = tmp_path / "run"
    arguments = ["train", "--recipe", recipe, "--out", run, *SETTINGS, "--set", "workers=2"]
    process = started(*arguments, group=True)
    with process:
        wait_for(lambda: steps_of(run) >= 1, process)
        process.kill()
        process.wait()
        code, _, err = command(*arguments, "--resume", "--set", "steps=3", "--set", "workers=0")
    assert (code, "differs" in err) == (1, True)  # no other process is at work there: the folder could be locked


BUILDING = """
import time
from recyclelora.training import train
def slow(*arguments, **settings):
    print("building", flush=True)
    time.sleep(60)
sys.modules["recyclelora.training.train"].build = slow
"""


def test_a_run_that_was_to_be_replaced_is_not_taken_for_the_new_one(recipe, tmp_path, command):
    """Before the new training has begun, the old run is whole: `--resume` would give it back."""
    run = tmp_path / "run"
    assert command("train", "--recipe", recipe, "--out", run)[0] == 0
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    process = started("train", "--recipe", recipe, "--out", run, "--overwrite", before=BUILDING)
    with process:
        assert process.stdout.readline() == "building\n"
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    (line,) = said(err)
    assert line == f"stopped by SIGTERM; go on with: recyclelora train --recipe {recipe} --out {run} --overwrite"
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert command("train", "--recipe", recipe, "--out", run, "--overwrite")[0] == 0
