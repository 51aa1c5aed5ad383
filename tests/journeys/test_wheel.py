"""The wheel that a user gets is built, installed elsewhere and used from there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import recyclelora

ROOT = Path(__file__).parents[2]
RECIPES = {path.name for path in (ROOT / "recipes").glob("*.yaml")}
TEMPLATES = {path.name for path in (ROOT / "src" / "recyclelora" / "pages" / "templates").glob("*.j2")}
READ = "import recyclelora.recipe as r; print(r.__file__); print(r.read_recipe('g2cbm') == r.read_recipe({path!r}))"


def called(*command: str, **options) -> str:
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the wheel is installed in."""
    folder = tmp_path_factory.mktemp("wheel")
    called("-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder / "dist"), str(ROOT))
    (wheel,) = (folder / "dist").glob("*.whl")
    called("-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(folder / "target"), str(wheel))
    return folder / "target"


def test_recipes_templates_and_the_mark_of_types_are_inside(target):
    package = target / "recyclelora"
    assert {path.name for path in (package / "recipes").iterdir()} == RECIPES
    assert {path.name for path in (package / "pages" / "templates").iterdir()} == TEMPLATES
    assert (package / "py.typed").is_file()


def test_the_installed_package_runs_outside_the_checkout(target, tmp_path):
    elsewhere = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": str(target)}}
    assert called("-m", "recyclelora", "--version", **elsewhere).split()[-1] == recyclelora.__version__
    file, same = called("-c", READ.format(path=str(ROOT / "recipes" / "g2cbm.yaml")), **elsewhere).splitlines()
    assert Path(file).is_relative_to(target)
    assert same == "True"
