"""Random inputs of every kind are read, or refused with one line; a fault is reported with the input that shows it."""

import json
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

import fuzz
from fuzz_inputs import KINDS, SLOW

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "fuzz.py"


@pytest.mark.parametrize("kind", [*KINDS, *SLOW])
def test_random_inputs_show_no_fault(kind, tmp_path):
    found = {fuzz.outcome(kind, number, tmp_path) for number in range(5 if kind in SLOW else 25)}
    assert found <= {"read", "refused"}


def test_an_input_follows_from_its_kind_and_number(tmp_path):
    contents = []
    for _ in range(2):
        KINDS["recipe"][0](Random("recipe:3"), tmp_path)
        contents.append((tmp_path / "recipe.yaml").read_bytes())
    assert contents[0] == contents[1]


def test_the_shares_are_a_whole_and_slow_kinds_are_few():
    assert sum(share for _, share in KINDS.values()) == 100
    assert fuzz.numbers_of_inputs(400_000)["recipe"] == 100_000
    assert fuzz.numbers_of_inputs(400_000)["adapter_config"] == 400
    assert sum(fuzz.numbers_of_inputs(400_000).values()) >= 400_000


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (KeyError("a"), "KeyError: 'a'"),
        (ValueError("x" * 9), "ValueError: xxxxxxxxx"),
        (FileNotFoundError(2, "No such file", "a"), "refused"),
        (fuzz.UserError("x" * 5000), "UserError: " + "x" * 200),
    ],
)
def test_what_is_a_fault(monkeypatch, tmp_path, error, expected):
    def fail():
        raise error

    monkeypatch.setitem(KINDS, "broken", (lambda random, place: fail, 0))
    assert fuzz.outcome("broken", 0, tmp_path) == expected


@pytest.mark.slow
def test_the_script_writes_counts_and_faults(tmp_path):
    out = tmp_path / "fuzz.json"
    subprocess.run([sys.executable, SCRIPT, "--inputs", "100", "--out", out], check=True, capture_output=True)
    written = json.loads(out.read_text())
    assert written["inputs"] == sum(sum(counts.values()) for counts in written["kinds"].values()) == 140
    assert written["faults"] == {}
