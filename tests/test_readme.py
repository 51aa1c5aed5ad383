"""What the README shows works as it stands there."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from recyclelora.cli import app
from recyclelora.recipe import make_recipe

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_example_for_peft_users_runs_in_ten_lines(tmp_path, monkeypatch):
    code = blocks("python")[0]
    assert len([line for line in code.splitlines() if line and not line.startswith(("import", "from"))]) <= 10
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "plain-lora" / "adapter_config.json").is_file()


def test_the_recipe_is_one():
    (recipe,) = blocks("yaml")
    assert make_recipe(yaml.safe_load(recipe)).steps == 1000


@pytest.mark.parametrize("line", [b for b in "".join(blocks("bash")).splitlines() if b.startswith("recyclelora")])
def test_commands_parse(line):
    import typer.main

    verb, *arguments = shlex.split(line, comments=True)[1:]
    command = typer.main.get_command(app).commands[verb]
    command.make_context(verb, arguments)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"(?:`|^)make (\w+)", README, re.MULTILINE))))
def test_make_targets_exist(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)([^)]+)\)", README))
def test_links_lead_to_files(link):
    assert (ROOT / link).is_file()
