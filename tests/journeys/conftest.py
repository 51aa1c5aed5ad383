"""A user's folder with labelled images, a recipe for it, and the command line."""

import sys

import pytest
import yaml

from miniatures import TINY, write_folder
from recyclelora.__main__ import main


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
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return call
