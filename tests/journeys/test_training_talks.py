"""A training says how it goes, can be looked at while it trains, and has its best step scored beside the last."""

import json
import re
import subprocess
import sys
import time
from itertools import pairwise

import pytest
import yaml
from another_process import listening, started, steps_of, wait_for

from miniatures import write_folder
from recyclelora.runs.checkpoint import read_state
from recyclelora.runs.facts import read_validations

HELD_OUT = "validation={every: 2, images: 3}"

FAST_LINES = """
import time
from recyclelora.pages import progress
progress.PAUSE = 0.4
"""
SLOW_STEPS = """
from recyclelora.training.module import SegmentationModule
forward = SegmentationModule.forward
def slow(self, batch, *rest):
    time.sleep({seconds})
    return forward(self, batch, *rest)
SegmentationModule.forward = slow
"""


@pytest.fixture
def split(tmp_path, recipe):
    """A recipe for a folder with the splits train, val and test, which is validated on val."""
    for number, name in enumerate(("train", "val", "test")):
        write_folder(tmp_path / "city" / name, seed=number)
    (tmp_path / "city" / "classes.txt").write_text("ground\nsky\n")
    values = yaml.safe_load(recipe.read_text()) | {"sources": [f"folder={tmp_path / 'city'}"]}
    recipe.write_text(yaml.safe_dump(values))
    return recipe


def lines_of(text):
    return [line for line in text.splitlines() if "gemm_4bit" not in line]


def test_outside_a_terminal_there_are_lines_at_the_start_and_then_in_time(recipe, tmp_path):
    run = tmp_path / "run"
    with started(
        "train", "--recipe", recipe, "--out", run, "--set", "validation={every: 3, images: 1}",
        before=FAST_LINES + SLOW_STEPS.format(seconds=0.6), ignored=(),
    ) as process:  # fmt: skip
        times, lines = [], []
        for line in process.stderr:
            times.append(time.monotonic())
            lines += lines_of(line)
        out = process.stdout.read()
    assert process.returncode == 0
    assert lines[0] == (
        "training recyclelora on vit_tiny_patch16_224 with head linear (15,360 + 98 parameters), sources: town "
        f"(3 images); 6 steps of 2 images; validated on 1 image every 3 steps; into {run}"
    )
    shown = [line for line in lines if line.startswith("training run: ")]
    assert len(shown) >= 8  # 6 steps of at least 0.6 s: a line every 0.4 s, also within a step
    pattern = r"training run: (\d) of 6 steps \((\d+) %\)(, loss \d\.\d{3}, images/s [\d.]+)?(, about \d+ s left)?"
    for line in shown[:-1]:
        assert re.fullmatch(pattern, line), line
    assert any("left" in line and "loss" in line for line in shown), shown
    assert re.fullmatch(r"training run: 6 of 6 steps in \d+ s", shown[-1])
    assert max(after - before for before, after in pairwise(times[1:])) < 2
    for step, line in zip((3, 6), [line for line in lines if line.startswith("step ")], strict=True):
        assert re.fullmatch(rf"step {step}: mIoU [\d.]+ % on held-out images of the source", line)
    assert out.startswith(f"{run}: 6 steps done; trained 15,360 adapter and 98 head parameters")


def test_below_nohup_everything_is_in_the_log_and_metrics_are_on_disk(recipe, tmp_path):
    run, log = tmp_path / "run", tmp_path / "nohup.log"
    code = "import sys; sys.argv[0] = 'recyclelora'\n" + FAST_LINES + SLOW_STEPS.format(seconds=0.5)
    code += "from recyclelora.__main__ import main; main()"
    words = ["nohup", sys.executable, "-c", code, "train", "--recipe", recipe, "--out", run]
    with log.open("wb") as file:
        process = subprocess.Popen([*map(str, words)], stdout=file, stderr=file, preexec_fn=listening)
        try:
            wait_for(lambda: steps_of(run) >= 2, process)
            text = log.read_text()
            assert "training recyclelora on vit_tiny" in text
            assert re.search(r"training run: \d of 6 steps", text)
        finally:
            process.kill()
            process.wait()


def test_a_training_is_scored_while_it_trains(split, tmp_path, command):
    run, file = tmp_path / "run", tmp_path / "scores.json"
    arguments = ["train", "--recipe", split, "--out", run, "--set", HELD_OUT, "--set", "steps=400"]
    before = "import time\n" + SLOW_STEPS.format(seconds=0.2)
    target = f"folder={tmp_path / 'city'}"
    with started(*arguments, before=before) as process:
        try:
            wait_for(lambda: (run / "checkpoints" / "previous.safetensors").is_file(), process)
            code, out, err = command("evaluate", run, "--target", target, "--out", file)
            assert process.poll() is None
            code_of_best, out_of_best, _ = command(
                "evaluate", run, "--target", target, "--out", tmp_path / "best.json", "--checkpoint", "best-source"
            )
            assert command("predict", run, tmp_path / "city" / "test" / "images", "--out", tmp_path / "p")[0] == 1
            taken = ["--checkpoint", "last"]
            assert command("predict", run, tmp_path / "city/test/images", "--out", tmp_path / "q", *taken)[0] == 0
            listed = command("runs", tmp_path)[1]
        finally:
            process.kill()
    assert (code, code_of_best) == (0, 0), err
    scores = json.loads(file.read_text())
    assert scores["step"] % 2 == 0
    assert (scores["checkpoint"], scores["finished"], scores["complete"]) == ("last", False, True)
    assert f"run (step {scores['step']} of 400)" in out
    assert f"The training is not finished: step {scores['step']} of 400" in file.with_suffix(".html").read_text()
    assert "run (best-source, step " in out_of_best
    assert re.search(r"training +│$", listed, re.M), listed


def test_the_best_step_is_scored_beside_the_last(split, tmp_path, command):
    run, file, target = tmp_path / "run", tmp_path / "scores.json", f"folder={tmp_path / 'city'}"
    assert command("train", "--recipe", split, "--out", run, "--set", HELD_OUT)[0] == 0
    lines = read_validations(run / "validation.jsonl")
    best = max(lines, key=lambda line: line["miou"])["step"]
    evaluate = ["evaluate", run, "--target", target, "--checkpoint", "best-source", "--out"]
    code, out, err = command(*evaluate, file)
    assert code == 0, err
    scores = json.loads(file.read_text())
    assert (scores["checkpoint"], scores["step"]) == ("last", 6)
    beside = scores["beside"]
    assert (beside["checkpoint"], beside["step"]) == ("best-source", best)
    assert command("evaluate", run, "--target", target, "--out", tmp_path / "last.json")[0] == 0
    alone = json.loads((tmp_path / "last.json").read_text())
    assert alone["targets"] == scores["targets"]
    assert "beside" not in alone
    assert [line.split("│")[1].strip() for line in out.splitlines() if line.startswith("│")] == [
        "run", f"run (best-source, step {best})",
    ]  # fmt: skip
    page = file.with_suffix(".html").read_text()
    assert page.count(f"<td>run (best-source, step {best})</td>") >= 2
    assert "The result is the model of the last step." in page
    code, _, err = command(*evaluate, tmp_path / "v.json", "--split", "val")
    assert (code, (tmp_path / "v.json").exists()) == (1, False)
    assert err.splitlines()[-1].startswith("error: city: the best checkpoint of ")
    assert "was chosen on images of its split val; score another split with --split" in err


def test_a_stopped_evaluation_goes_on_with_the_best_step_too(split, tmp_path, command, monkeypatch):
    run, file, target = tmp_path / "run", tmp_path / "scores.json", f"folder={tmp_path / 'city'}"
    assert command("train", "--recipe", split, "--out", run, "--set", HELD_OUT)[0] == 0
    evaluate = ["evaluate", run, "--target", target, "--checkpoint", "best-source", "--out", file]
    assert command(*evaluate)[0] == 0
    whole = json.loads(file.read_text())
    for kept in ("neither", "last"):
        torn = json.loads(json.dumps(whole))
        torn["complete"] = torn["beside"]["complete"] = False
        torn["beside"]["targets"], torn["beside"]["mean_miou"] = [], None
        if kept == "neither":
            torn["targets"], torn["mean_miou"] = [], None
        file.write_text(json.dumps(torn))
        assert command(*evaluate)[0] == 0
        assert json.loads(file.read_text()) == whole
    torn["complete"] = False
    file.write_text(json.dumps(torn))
    code, _, err = command("evaluate", run, "--target", target, "--out", file)
    assert code == 1
    assert "another evaluation (it differs in checkpoint)" in err


def test_a_run_without_a_validation_has_no_best_step(split, tmp_path, command):
    run, target = tmp_path / "run", f"folder={tmp_path / 'city'}"
    assert command("train", "--recipe", split, "--out", run)[0] == 0
    arguments = ["evaluate", run, "--target", target, "--checkpoint", "best-source", "--out", tmp_path / "s.json"]
    code, _, err = command(*arguments)
    assert code == 1
    assert "no validation has been scored, so there is no best checkpoint" in err
    assert not (tmp_path / "s.json").exists()
    assert read_state(run / "checkpoints" / "last.safetensors")["step"] == 6
