"""A user's type checker sees the types of the public names."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

USE = """
import recyclelora
from recyclelora import RecycleLoraConfig, load, make_recipe

recipe = make_recipe({"sources": ["streets"]})
reveal_type(recipe.steps)
reveal_type(load("runs/mine").predict)
reveal_type(load("runs/mine")(["a.png"])[0].labels)
reveal_type(load("runs/mine")("a.png"))
reveal_type(RecycleLoraConfig(r_main=3).scale)
reveal_type(recyclelora.evaluate("runs/mine").mean_miou)
reveal_type(recyclelora.train(recipe, "runs/mine").path)
recyclelora.train(recipe, out=3)
recyclelora.nothing
"""


@pytest.mark.slow
def test_a_users_mypy_sees_the_types(tmp_path):
    (tmp_path / "use.py").write_text(USE)
    command = [sys.executable, "-m", "mypy", "--config-file", ROOT / "pyproject.toml", tmp_path / "use.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    shown = [line.partition("use.py:")[2] for line in done.stdout.splitlines() if "use.py:" in line]
    steps, predict, several, result, scale, mean, path = (
        line.partition(" is ")[2] for line in shown if "Revealed type" in line
    )
    assert "int" in steps
    assert "ndarray" in predict
    assert "ndarray" in several
    assert "Segmentation | list[" in result.replace("recyclelora.runs.segmentation.", "").replace("builtins.", "")
    assert "float" in scale
    assert "float" in mean
    assert "None" in mean
    assert "pathlib" in path
    wrong_argument, wrong_name = (line for line in shown if "error:" in line)
    assert 'Argument "out" to "train"' in wrong_argument
    assert 'no attribute "nothing"' in wrong_name
