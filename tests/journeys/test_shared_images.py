"""With `--devices` the command line starts processes that share the images, and ends with them."""

import json
import os
import signal
import subprocess
import sys

import pytest
from another_process import listening, said, wait_for

from miniatures import write_folder
from tiny_methods import NAMES, made_run, tiny_recipe

pytestmark = pytest.mark.slow

SLOW = """
import os, sys, time
from recyclelora.runs.predictor import Predictor
plain = Predictor.predict
def slow(*arguments, **settings):
    os.write(1, f"{os.environ['LOCAL_RANK']} {os.getpid()}\\n".encode())  # in one piece, unlike print
    time.sleep(0.5)
    return plain(*arguments, **settings)
Predictor.predict = slow
from recyclelora.__main__ import main
main()
"""
"""A program that prints the number and the process before each prediction, and takes half a second more for it."""


@pytest.fixture
def run(tmp_path):
    return made_run(tmp_path / "run", tiny_recipe("lora"))[0].path


@pytest.fixture
def town(tmp_path):
    return write_folder(tmp_path / "town", count=9, classes=NAMES)


def finished(*arguments):
    """Standard output and the lines of standard error of a call of the command line."""
    words = [sys.executable, "-m", "recyclelora", *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done
    return done.stdout, said(done.stderr)


def pictures(out):
    return {file.name: file.read_bytes() for file in out.glob("*.png")}


def listed(out):
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    return [line["image"] for line in lines[1:] if line["sha256"]]


def test_two_devices_give_the_results_of_one(run, town, tmp_path):
    write_folder(tmp_path / "one", count=1, classes=NAMES)
    outs = []
    for devices in (1, 2):
        arguments = ["evaluate", run, "--target", f"folder={town}", "--target", f"folder={tmp_path / 'one'}"]
        finished(*arguments, "--out", tmp_path / f"{devices}.json", "--devices", devices)
        out = tmp_path / f"pictures-{devices}"
        assert finished("predict", run, town / "images", "--out", out, "--devices", devices) == (
            f"written: 18 pictures in {out}\n", [],
        )  # fmt: skip
        outs.append(out)
    for suffix in (".json", ".html"):
        assert (tmp_path / f"1{suffix}").read_bytes() == (tmp_path / f"2{suffix}").read_bytes()
    assert len(pictures(outs[0])) == 18
    assert pictures(outs[0]) == pictures(outs[1])


@pytest.mark.parametrize("killed", ["0", "1"])
def test_a_killed_process_ends_the_others_and_nothing_is_predicted_twice(killed, run, town, tmp_path):
    program, out = tmp_path / "program.py", tmp_path / "out"
    program.write_text(SLOW)
    arguments = ["predict", run, town / "images", "--out", out]
    words = [sys.executable, program, *arguments, "--devices", 2]
    process = subprocess.Popen(
        list(map(str, words)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=listening
    )
    with process:
        wait_for(lambda: (out / "predictions.jsonl").is_file() and len(listed(out)) >= 4, process)
        numbers = {}
        while len(numbers) < 2:
            rank, number = process.stdout.readline().split()
            numbers[rank] = int(number)
        os.kill(numbers[killed], signal.SIGKILL)
        err = process.communicate(timeout=60)[1]  # ends with the last process that holds the pipe
    if killed == "0":
        assert (process.returncode, said(err)) == (-signal.SIGKILL, [])
    else:
        assert process.returncode == 1
        assert [line.startswith("error: another of the 2 processes was ended") for line in said(err)] == [True]
    before, done = pictures(out), listed(out)
    assert 8 <= len(before) < 18
    there = 2 * len(done)
    assert finished(*arguments, "--devices", 2) == (
        f"written: {18 - there} pictures in {out}; {there} were there\n", [],
    )  # fmt: skip
    assert sorted(listed(out)) == sorted({*done, *listed(out)})  # each once
    assert pictures(out).items() >= before.items()
    finished("predict", run, town / "images", "--out", tmp_path / "whole")
    assert pictures(out) == pictures(tmp_path / "whole")
