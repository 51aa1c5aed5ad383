"""The command line and the public names start quickly, and report in one line what is missing."""

import importlib
import json
import re
import subprocess
import sys
import tomllib
import typing
from pathlib import Path

import pytest
import typer.main
from pydantic import BaseModel

import recyclelora
from recyclelora.cli import app
from recyclelora.errors import MissingExtraError, UserError
from recyclelora.methods import METHODS

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "numpy", "cv2", "timm", "transformers", "peft", "lightning", "pydantic", "matplotlib", "scipy", "PIL")
VERBS = (
    "train",
    "evaluate",
    "compare",
    "analyze",
    "predict",
    "export",
    "runs",
    "import-checkpoint",
    "demo",
    "data",
    "data check",
)

CALL = """
import atexit, json, sys
missing, arguments = json.loads(sys.argv[1])
missing.append("bitsandbytes")  # which writes to the terminal where it lacks something itself
sys.modules.update(dict.fromkeys(missing))  # importing them fails as if they were not installed
sys.argv = ["recyclelora", *arguments]
atexit.register(lambda: print("\\nmodules", *sys.modules))
import runpy
runpy.run_module("recyclelora", run_name="__main__")
"""


def called(*arguments, missing=(), **options):
    """`python -m recyclelora` where packages are missing: exit code, output, errors, and the modules it imported."""
    words = [sys.executable, "-c", CALL, json.dumps([[*missing], [*map(str, arguments)]])]
    done = subprocess.run(words, capture_output=True, text=True, check=False, **options)
    out, _, modules = done.stdout.rpartition("\nmodules ")
    return done.returncode, out, done.stderr, modules.split()


def heavy(modules):
    return sorted(set(HEAVY).intersection(modules))


# Speed. Python itself takes 33 modules; limits are about 1.5 times what was measured with Typer 0.29.


@pytest.mark.parametrize(
    ("option", "limit"),
    [("--version", 250), ("--help", 500)],  # 166 and 335 measured
)
def test_help_and_version_import_nothing_heavy(option, limit):
    code, out, err, modules = called(option)
    assert (code, err) == (0, "")
    assert heavy(modules) == []
    assert len(modules) < limit
    if option == "--version":
        assert out.strip() == f"recyclelora {recyclelora.__version__}"
    else:
        assert (recyclelora.__doc__ or "").splitlines()[0].split(":")[0] in " ".join(out.split())
        assert all(verb in out for verb in VERBS if " " not in verb)


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_imports_nothing_heavy(verb):
    code, out, err, modules = called(*verb.split(), "--help")
    assert (code, err) == (0, "")
    assert f"{verb} " in out
    if "typer._adapters" in modules:  # by which Typer, since 0.27, imports pydantic for itself
        modules = [module for module in modules if module != "pydantic"]
    assert heavy(modules) == []
    assert len(modules) < 640  # 428 measured
    assert "recyclelora.recipe" not in modules


def test_all_verbs_are_tried():
    def verbs(command, before=""):
        for name, inner in getattr(command, "commands", {}).items():
            yield before + name
            yield from verbs(inner, f"{before}{name} ")

    assert sorted(verbs(typer.main.get_command(app))) == sorted(VERBS)


def test_importing_the_package_imports_nothing_heavy():
    code = f"import sys, recyclelora; print(*sorted({{*{HEAVY}}} & {{*sys.modules}}), len(sys.modules) < 120)"  # 66
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "True"


def test_no_arguments_show_the_help():
    code, out, err, modules = called()
    assert code == 2
    assert "Usage" in out + err
    assert heavy(modules) == []


# Packages that are missing


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [
        ("train --recipe streets --out RUN", "timm"),
        ("train --recipe streets --out RUN", "lightning"),
        ("train --recipe streets --out RUN", "jaxtyping"),
        ("evaluate RUN --out scores.json", "timm"),
        ("evaluate RUN --out scores.json", "jinja2"),
        ("compare --recipe streets --methods frozen --out ALL", "pydantic"),
        ("analyze RUN --out page.html", "matplotlib"),
        ("predict RUN pictures --out OUT", "cv2"),
        ("runs RUNS", "pydantic"),
        ("import-checkpoint file.pth --kind soma --out RUN", "transformers"),
        ("demo --out DEMO", "PIL"),
        ("data check folder=town", "cv2"),
        ("data check folder=town", "jaxtyping"),
    ],
)
def test_a_verb_whose_packages_are_missing_says_so_in_one_line(tmp_path, arguments, missing):
    code, out, err, _ = called(*arguments.split(), missing=[missing], cwd=tmp_path)
    assert (code, out) == (1, "")
    assert re.fullmatch(
        rf"error: recyclelora[. ][a-z_-]+ needs the package {missing}, which is not installed; "
        r'run: pip install "recyclelora\[segment\]"\n',
        err,
    ), err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [(), ("--help",), ("train", "--recipe", "streets", "--out", "RUN")])
def test_without_typer_the_command_line_says_so_in_one_line(tmp_path, arguments):
    code, out, err, modules = called(*arguments, missing=["typer"], cwd=tmp_path)
    assert (code, out, err) == (
        1,
        "",
        "error: the command line needs the package typer, which is not installed; "
        'run: pip install "recyclelora[segment]"\n',
    )
    assert heavy(modules) == []


def test_the_traceback_of_a_missing_package_is_shown_on_demand(tmp_path):
    arguments = ["--debug", "evaluate", "RUN", "--out", "scores.json"]
    code, _, err, _ = called(*arguments, missing=["timm"], cwd=tmp_path)
    assert code == 1
    assert "Traceback" in err
    assert re.match("ModuleNotFoundError: .*timm", err.strip().splitlines()[-1])


def test_a_public_name_whose_packages_are_missing_is_an_import_error(tmp_path):
    code = """
import sys
sys.modules["timm"] = None
import recyclelora
try:
    from recyclelora import load
except ImportError as error:
    assert isinstance(error, recyclelora.UserError)
    print(error)
"""
    said = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=tmp_path)
    assert said == f"{MissingExtraError('recyclelora.load', 'timm')}\n"
    assert "recyclelora.load needs the package timm" in said


def test_the_command_and_the_extra_that_it_names_are_those_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"recyclelora": "recyclelora.__main__:main"}
    assert callable(importlib.import_module("recyclelora.__main__").main)
    assert "segment" in project["optional-dependencies"]


# The face


def test_every_public_name_is_there_and_listed():
    assert sorted(set(recyclelora.__all__)) == sorted(recyclelora.__all__)
    for name in recyclelora.__all__:
        value = getattr(recyclelora, name)
        assert value is getattr(recyclelora, name)
        if callable(value):
            assert value.__doc__
            assert value.__module__.startswith("recyclelora.")
    assert {*recyclelora.__all__} <= {*dir(recyclelora)}
    assert dir(recyclelora) == sorted(set(dir(recyclelora)))


def test_public_names_are_listed_before_loading_and_match_the_types():
    code = (
        "import sys, recyclelora; print(*dir(recyclelora)); print(*(name for name in sys.modules if '.' not in name))"
    )
    listed, modules = subprocess.check_output([sys.executable, "-c", code], text=True).splitlines()
    assert {*recyclelora.__all__} <= {*listed.split()}
    assert heavy(modules.split()) == []
    homes = {name: home for home, names in recyclelora._HOMES.items() for name in names}
    assert {*homes} == {*recyclelora.__all__} - {"__version__"}
    lines = Path(recyclelora.__file__).read_text(encoding="utf-8").split("if TYPE_CHECKING:\n")[1].split("\n\n")[0]
    imported = re.findall(r"from ([\w.]+) import (.+)", lines)
    assert homes == {name: home for home, names in imported for name in names.split(", ")}


def test_a_star_import_gives_the_public_names():
    names = {}
    exec("from recyclelora import *", names)
    assert {*recyclelora.__all__} <= names.keys()


@pytest.mark.parametrize("name", ["trian", "cli_", "_secret", "Predictor"])
def test_an_unknown_name_is_an_attribute_error_that_names_it(name):
    with pytest.raises(AttributeError, match=rf"^module 'recyclelora' has no attribute '{name}'$"):
        getattr(recyclelora, name)
    assert not hasattr(recyclelora, name)
    with pytest.raises(ImportError, match=name):
        exec(f"from recyclelora import {name}")


def test_functions_of_the_face_say_what_they_return():
    for name in ("train", "evaluate", "compare", "analyze", "load", "build", "open_domain", "import_checkpoint"):
        function = getattr(recyclelora, name)
        hints = function.__annotations__
        assert hints["return"] not in (None, "None"), name
    assert issubclass(recyclelora.Recipe, BaseModel)
    assert issubclass(recyclelora.UserError, ValueError)


# Errors of the command line


def test_an_unknown_verb_or_option_is_refused_with_code_2():
    for arguments in (["trian"], ["train", "--recpie", "x"], ["demo", "--steps", "0"], ["demo", "--steps", "few"]):
        code, _, err, modules = called(*arguments)
        assert code == 2
        assert arguments[-1] in err or arguments[-2] in err
        assert "Traceback" not in err
        assert not {"torch", "timm", "peft"}.intersection(modules)


def test_options_before_and_after_the_verb(tmp_path):
    for arguments in (["--debug", "train"], ["train", "--debug"]):
        code, _, err, _ = called(*arguments, "--recipe", "none.yaml", "--out", "RUN", cwd=tmp_path)
        assert code == 1
        assert "Traceback" in err
        assert "no such recipe" in err.strip().splitlines()[-1]


def test_methods_and_kinds_are_in_the_help():
    def text(*arguments):
        return re.sub(r"[│\s]+", " ", called(*arguments, "--help")[1])

    assert all(re.search(rf"\b{method}\b", text("compare")) for method in METHODS)
    assert "recyclelora or soma" in text("import-checkpoint")
    assert "full, soma-2048, rein-1024" in text("evaluate")


def test_verbs_return_nothing():
    import recyclelora.cli as cli

    functions = [command.callback for group in (cli.app, cli.data) for command in group.registered_commands]
    assert len(functions) == len(VERBS) - 1
    for function in functions:
        assert typing.get_type_hints(function)["return"] is type(None), function.__name__


def test_an_error_of_the_program_is_one_line_that_says_how_to_see_more(monkeypatch, capsys):
    from recyclelora.__main__ import main

    def fail(*arguments):
        raise failures.pop()

    monkeypatch.setattr(recyclelora, "read_recipe", fail)
    monkeypatch.setattr(sys, "argv", ["recyclelora", "train", "--recipe", "x", "--out", "y"])
    failures = [RuntimeError("two\nlines"), UserError("a user's\nmistake")]
    for expected in ("error: a user's mistake\n", "error: two lines (RuntimeError; --debug shows where)\n"):
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == 1
        assert capsys.readouterr() == ("", expected)
