"""A base that is spread over two processes trains what one process does, whatever is trained and however."""

import json
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file

from labelled_files import refused
from miniatures import SMALL_EOMT, SMALL_HEAD, TINY, write_folder
from recyclelora.recipe import make_recipe, read_recipe
from recyclelora.training.estimate import estimate
from recyclelora.training.train import train

MASKS = {"head": "mask2former", "head_args": {**SMALL_HEAD, "width": 64}}
CASES = {
    "mask2former in parts": MASKS | {"method": "recyclelora", "adapter": {"r_main": 4, "r_sub": 2}},
    "linked queries": MASKS | {"method": "rein", "adapter": {"tokens": 4}},
    "queries in the blocks": {"head": "eomt", "head_args": SMALL_EOMT, "method": "recyclelora"},
    "norms of weights": {"method": "dora", "backbone": {**TINY, "grad_checkpointing": True}},
    "only the head": {"method": "frozen"},
    "averages": {"method": "milora", "optim": {"average": 0.5, "lr": 0.003}},
}


def tensors(run):
    files = [run / "head.safetensors", *(run / "adapter").glob("*.safetensors")]
    return {f"{file.name} {name}": value for file in files for name, value in load_file(file).items()}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_spread_base_trains_what_one_process_does(case, tmp_path):
    town = write_folder(tmp_path / "town", 6)
    write_folder(town, 3, size=(40, 400))  # these need more windows, and so more passes of the model
    values = {
        "sources": [f"folder={town}"], "backbone": TINY, "crop": 64, "batch_size": 4, "steps": 5, "workers": 0,
        "precision": "64-true", "optim": {"lr": 0.003}, "validation": {"every": 2, "images": 3, "share": 0.5},
        "evaluation": {"batch_size": 2}, "checkpoint_every": 2, **CASES[case],
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    one = train(read_recipe(tmp_path / "recipe.yaml"), tmp_path / "one").path
    command = [sys.executable, "-m", "recyclelora", "train", "--recipe", tmp_path / "recipe.yaml"]
    command += ["--out", tmp_path / "two", "--set", "devices=2", "--set", "strategy=fsdp"]
    command += ["--set", "accumulate=2"] if case == "mask2former in parts" else []
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found, expected = tensors(tmp_path / "two"), tensors(one)
    assert found.keys() == expected.keys()
    assert len(expected) >= 2
    for name, value in expected.items():
        assert not value.is_floating_point() or value.dtype == torch.float64, name
        torch.testing.assert_close(found[name], value, atol=1e-9, rtol=0)
    scores = [
        [{**json.loads(line), "seconds": 0} for line in (run / "validation.jsonl").read_text().splitlines()]
        for run in (one, tmp_path / "two")
    ]
    assert scores[0] == scores[1]
    assert len(scores[0]) == 3


def test_one_device_has_nothing_to_share(tmp_path):
    town = write_folder(tmp_path / "town")
    recipe = make_recipe({"sources": [f"folder={town}"], "backbone": TINY, "crop": 32, "strategy": "fsdp"})
    for call in (lambda: train(recipe, tmp_path / "run"), lambda: estimate(recipe)):
        refused(call, "strategy fsdp", "several devices", "set devices, or strategy to ddp")
    assert not (tmp_path / "run").exists()
