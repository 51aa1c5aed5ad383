"""The frame of the package: its dependencies and their bounds, and the files at the root that repeat something."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import recyclelora

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
PROJECT = tomllib.loads(TEXT)["project"]
EXTRAS = PROJECT["optional-dependencies"]
CORE = {"torch", "peft", "numpy", "scipy", "safetensors", "tqdm", "threadpoolctl"}


def named(lines: list[str]) -> dict[str, Requirement]:
    requirements = [Requirement(line) for line in lines]
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


def constraints(file: str) -> dict[str, SpecifierSet]:
    lines = [line.partition("#")[0].strip() for line in (ROOT / file).read_text(encoding="utf-8").splitlines()]
    return {name: requirement.specifier for name, requirement in named([line for line in lines if line]).items()}


def pinned(specifier: SpecifierSet) -> Version:
    (only,) = specifier
    assert only.operator == "=="
    return Version(only.version)


NEEDED = named([*PROJECT["dependencies"], *(line for lines in EXTRAS.values() for line in lines)])
LISTS = TEXT[TEXT.index("\ndependencies") : TEXT.index("[project.scripts]")]
LINES = re.findall(r'^  "(.+)",(.*)$', LISTS, re.MULTILINE)
BOUNDED = [(line, comment.strip()) for line, comment in LINES if Requirement(line).specifier]


def test_the_core_is_seven_packages():
    assert named(PROJECT["dependencies"]).keys() == CORE


EXTRA_IN_EXTRA = [*((extra, "segment") for extra in ("demo", "cluster", "export", "dev")), ("dev", "demo")]


@pytest.mark.parametrize(("extra", "inside"), EXTRA_IN_EXTRA)
def test_an_extra_contains_another(extra, inside):
    own = named(EXTRAS[extra])["recyclelora"]
    assert inside in own.extras


@pytest.mark.parametrize("extra", ["cluster", "export"])
def test_the_workflow_does_not_install_what_only_slow_tests_need(extra):
    assert extra not in named(EXTRAS["dev"])["recyclelora"].extras
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"$(VENV)/.{extra}" in next(line for line in makefile.splitlines() if line.startswith("test-slow:"))


def test_every_requirement_has_its_own_line():
    assert {canonicalize_name(Requirement(line).name) for line, _ in LINES} == NEEDED.keys()


@pytest.mark.parametrize(("line", "comment"), BOUNDED, ids=[line for line, _ in BOUNDED])
def test_every_bound_has_a_reason_beside_it(line, comment):
    assert len(comment.removeprefix("#").split()) >= 3


@pytest.mark.parametrize(("line", "comment"), BOUNDED, ids=[line for line, _ in BOUNDED])
def test_an_upper_bound_names_what_breaks(line, comment):
    if any(bound.operator != ">=" for bound in Requirement(line).specifier):
        assert "breaks" in comment


def test_constraints_are_in_the_ranges_and_complete():
    chosen = constraints("constraints.txt")
    assert chosen.keys() == NEEDED.keys() - {"recyclelora", "pip"}
    assert str(chosen.pop("torch")) == "<2.14"
    for name, specifier in chosen.items():
        assert NEEDED[name].specifier.contains(pinned(specifier)), name


def test_the_lowest_constraints_are_the_lower_bounds():
    lowest = constraints("constraints-lowest.txt")
    for name, requirement in named(PROJECT["dependencies"]).items():
        (bound,) = requirement.specifier
        assert pinned(lowest[name]) == Version(bound.version), name


def test_the_makefile_installs_nothing_without_constraints():
    installs = [line for line in (ROOT / "Makefile").read_text(encoding="utf-8").splitlines() if "pip install" in line]
    assert installs
    assert all("-c constraints" in line for line in installs)


def test_the_version_is_the_same_everywhere():
    version = PROJECT["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changes = re.findall(r"^## \[?(\d[^\]\s]*)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert recyclelora.__version__ == version
    assert str(citation["version"]) == version
    assert changes[0] == version


def test_all_addresses_name_the_same_repository():
    urls = {name: url for name, url in PROJECT["urls"].items() if name != "Paper"}
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"Repository", "Issues", "Documentation", "Changelog"} <= urls.keys()
    assert citation["repository-code"] == urls["Repository"]
    assert all(url.startswith(urls["Repository"]) for url in urls.values())


def test_the_workflow_runs_what_a_contributor_runs():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8"))
    test, lowest = workflow["jobs"]["test"], workflow["jobs"]["lowest"]
    commands = [[step["run"] for step in job["steps"] if "run" in step] for job in (test, lowest)]
    assert commands == [["bash .ci/run"], ["make test-lowest"]]
    assert f">={min(test['strategy']['matrix']['python'])}" == PROJECT["requires-python"]


def test_the_hooks_run_what_lint_runs():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert [repo["repo"] for repo in hooks] == ["local"]
    assert [hook["id"] for hook in hooks[0]["hooks"]] == ["ruff-check", "ruff-format", "mypy"]
