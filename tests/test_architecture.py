"""The structure: imports go downwards, the adapter needs no other room, and the README names every room and file."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import recyclelora

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "recyclelora"

# Each room or module may import those of the floors below, and a room its own modules.
FLOORS = [
    {"errors"},
    {"files", "stopping"},
    {"adapter", "streets", "pages"},
    {"on_import"},
    {"data"},
    {"models"},
    {"methods"},
    {"recipe"},
    {"runs"},
    {"evaluation", "published"},
    {"training"},
    {"exporting"},
    {"study"},
    {"demo"},
    {"cli"},
    {"__main__"},
]
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
CORE = {"torch", "peft", "numpy", "scipy", "safetensors", "tqdm", "threadpoolctl"}
"""All that the adapter needs in addition to the standard library."""


def modules():
    return sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def room(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path, typing_too=True):
    """The dotted names that a file imports; those for type checkers only, if asked for."""
    tree = ast.parse(path.read_text())
    for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in for_types and not typing_too:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_downwards(path):
    own = room(path)
    assert own in FLOOR, f"{own} has no floor"
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "recyclelora" and len(parts) > 1 and parts[1] in FLOOR and parts[1] != own:
            assert FLOOR[parts[1]] < FLOOR[own], f"{own} imports {name}"


def test_there_are_at_most_eight_modules_at_the_top():
    assert len(list(PACKAGE.glob("*.py"))) <= 8


@pytest.mark.parametrize("path", sorted((PACKAGE / "adapter").rglob("*.py")), ids=lambda p: p.name)
def test_the_adapter_imports_only_its_seven_packages(path):
    for name in imports(path, typing_too=False):
        first, *rest = name.split(".")
        assert first in CORE | {"recyclelora"} | sys.stdlib_module_names, name
        assert first != "recyclelora" or rest[0] in ("adapter", "errors", "files"), name


@pytest.mark.parametrize("path", sorted((ROOT / "tests" / "adapter").glob("*.py")), ids=lambda p: p.name)
def test_the_adapters_tests_need_no_other_room(path):
    for name in imports(path):
        assert (
            not name.startswith("recyclelora.")
            or name.split(".")[1] in ("adapter", "errors", "files")
            or (name.removeprefix("recyclelora.") in recyclelora.__all__)
        ), name


ALONE = """
import sys
for name in ("timm", "lightning", "cv2", "pydantic", "matplotlib", "jaxtyping", "platformdirs"):
    sys.modules[name] = None  # importing it fails
import copy
import recyclelora, torch
from peft import PeftModel, get_peft_model
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(24, 40), nn.Linear(40, 24)
    def forward(self, x):
        return x + self.fc2(self.fc1(x).relu())

torch.manual_seed(0)
base = nn.Sequential(Block(), Block())
config = recyclelora.RecycleLoraConfig(r_main=3, r_sub=2, target_modules=["fc1", "fc2"])
model = get_peft_model(copy.deepcopy(base), config)
x = torch.randn(5, 24)
assert torch.equal(model(x), base(x))
optimizer = torch.optim.AdamW(recyclelora.param_groups(model, 1e-2, 0.05))
model(x).square().mean().backward()
optimizer.step()
learnt = model(x)
assert not torch.allclose(learnt, base(x))
model.save_pretrained(sys.argv[1] + "/own")
again = PeftModel.from_pretrained(copy.deepcopy(base), sys.argv[1] + "/own")
assert torch.equal(again(x), learnt)
recyclelora.to_lora(model, sys.argv[1] + "/plain")
plain = PeftModel.from_pretrained(copy.deepcopy(base), sys.argv[1] + "/plain")
torch.testing.assert_close(plain(x), learnt)
torch.testing.assert_close(model.merge_and_unload()(x), learnt)
assert recyclelora.certificate(base[0].fc1.weight) < 1 + 1e-9
assert recyclelora.directions(base[0].fc1.weight, 3, 2).main_basis.shape == (40, 3)
rooms = {n.split(".")[1] for n in sys.modules if n.startswith("recyclelora.")}
assert rooms == {"adapter", "errors", "files", "on_import"}, rooms
try:
    recyclelora.train
except ImportError as error:
    assert isinstance(error, recyclelora.UserError)
    assert 'pip install "recyclelora[segment]"' in str(error)
else:
    raise AssertionError("train was loaded")
"""


def test_the_adapter_works_without_the_other_rooms(tmp_path):
    done = subprocess.run([sys.executable, "-c", ALONE, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


RENAMING = re.compile(r"\bos\.(replace|rename)\(|\.rename\(|\bFileLock\(|tempfile\.NamedTemporaryFile|\.part\b")


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_are_renamed_and_locked_in_one_place(path):
    assert path.name == "files.py" or not RENAMING.search(path.read_text())


@pytest.mark.parametrize("path", [p for p in modules() if p.name != "__init__.py"], ids=lambda p: p.name)
def test_the_tree_in_the_readme_names_every_module(path):
    tree = (ROOT / "README.md").read_text().partition("## The tree")[2]
    assert path.name in tree or path.parent == PACKAGE / "streets", path.name


def test_every_test_file_stands_for_a_module():
    known = {p.stem.lstrip("_") for p in modules()} | {p.parent.name for p in modules()}
    known |= {p.stem for p in (ROOT / "benchmarks").glob("*.py")}
    known |= {"architecture", "frame", "readme", "command_line", "typing"}  # of the whole project
    known |= {
        "data_files",
        "check_report",
        "adapter_targets",
        "stored_files",
        "class_lists",
        "golden",
        "large_images",
        "processes",
        "results",
    }  # names that are taken, parts of a module
    for path in (ROOT / "tests").rglob("test_*.py"):
        assert {"journeys", "conformance"} & set(path.parts) or path.stem.removeprefix("test_") in known, path.name


def test_tests_lie_in_the_rooms_of_what_they_test():
    rooms = {p.name for p in (ROOT / "tests").iterdir() if p.is_dir() and not p.name.startswith("__")}
    assert rooms - {"journeys", "benchmarks"} <= {p.name for p in PACKAGE.iterdir() if p.is_dir()}


def test_no_two_test_files_have_one_name():
    """Pytest imports them by their names alone."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
