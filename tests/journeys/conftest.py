"""A user's folder with labelled images and a recipe small enough for a test."""

import sys

import numpy as np
import pytest
import yaml
from PIL import Image

from recyclelora import cli

TINY = {"model": "vit_tiny_patch16_224", "weights": "random"}
TINY["model_args"] = {"img_size": 32, "depth": 2, "embed_dim": 48, "num_heads": 3}


def write_folder(root, count=4, size=(40, 56), seed=0, classes=None):
    """Images of coloured stripes on a ground, with labels that follow the colours."""
    rng = np.random.default_rng(seed)
    for kind in ("images", "labels"):
        (root / kind).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        labels = np.zeros(size, np.uint8)
        labels[: rng.integers(8, 20)] = 1
        labels[-2:, :4] = 255
        colours = np.array([[90, 90, 90], [60, 120, 220]])
        image = colours[labels.clip(0, 1)] + rng.integers(-20, 20, (*size, 3))
        Image.fromarray(image.astype(np.uint8)).save(root / "images" / f"{i:02d}.jpg", quality=95)
        Image.fromarray(labels).save(root / "labels" / f"{i:02d}.png")
    if classes is not None:
        (root / "classes.txt").write_text("\n".join(classes))
    return root


@pytest.fixture
def town(tmp_path):
    return write_folder(tmp_path / "town", classes=("ground", "sky 60 120 220"))


@pytest.fixture
def recipe(tmp_path, town):
    values = {
        "sources": [f"town:folder={town}"],
        "backbone": TINY,
        "adapter": {"r_main": 8, "r_sub": 2},
        "crop": 32, "batch_size": 2, "steps": 6, "checkpoint_every": 2, "workers": 0, "optim": {"lr": 0.003},
    }  # fmt: skip
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def command(monkeypatch, capsys):
    """Call the command line; returns exit code, standard output and standard error."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["recyclelora", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return call
