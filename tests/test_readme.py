"""The examples, commands and links in the README and docs/ work as written."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from labelled_files import picture, write
from recyclelora.cli import app
from recyclelora.recipe import make_recipe
from tiny_methods import made_run, tiny_recipe

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = {path: path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}


def blocks(language, text=README):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def lines():
    text = "".join(block for page in PAGES.values() for block in blocks("bash", page))
    return [line for line in text.splitlines() if line.startswith("recyclelora")]


def test_the_example_for_peft_users_runs_in_ten_lines(tmp_path, monkeypatch):
    code = blocks("python")[0]
    assert len([line for line in code.splitlines() if line and not line.startswith(("import", "from"))]) <= 10
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "plain-lora" / "adapter_config.json").is_file()


def test_the_examples_on_predictions_run(tmp_path, monkeypatch):
    made_run(tmp_path / "runs" / "mine", tiny_recipe("recyclelora"))
    write(tmp_path / "photos" / "street.jpg", picture(40, 56))
    monkeypatch.chdir(tmp_path)
    names = {"rgb_uint8": picture(40, 56)}
    for code in (
        *blocks("python", PAGES[ROOT / "docs" / "prediction.md"]),
        f"import recyclelora\n{blocks('python')[1]}",
    ):
        exec(compile(code, "prediction.md", "exec"), names)
    assert names["each"].name == "street"
    assert names["labels"].shape == names["result"].labels.shape == (40, 56)
    assert {file.name for file in tmp_path.glob("*.png")} == {"street.png", "street_labels.png"}


def test_the_recipe_is_valid():
    (recipe,) = blocks("yaml")
    assert make_recipe(yaml.safe_load(recipe)).steps == 1000


def test_the_example_on_data_sets_runs():
    (code,) = blocks("python", PAGES[ROOT / "docs" / "data.md"])
    names = {}
    exec(compile(code, "data.md", "exec"), names)
    assert names["image"].shape == (256, 512, 3)
    assert len(names["names"]) == 2


@pytest.mark.parametrize("page", ["data.md", "recipes.md"])
def test_sources_in_the_pages_are_valid(page):
    for text in blocks("yaml", PAGES[ROOT / "docs" / page]):
        assert len(make_recipe(yaml.safe_load(text)).sources) == 3


@pytest.mark.parametrize("line", lines())
def test_commands_parse(line):
    import typer.main

    _, verb, *arguments = shlex.split(line, comments=True)
    command = typer.main.get_command(app).commands[verb]
    while hasattr(command, "commands"):
        verb, *arguments = arguments
        command = command.commands[verb]
    command.make_context(verb, arguments)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"(?:`|^)make (\w+)", README, re.MULTILINE))))
def test_make_targets_exist(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    ("page", "link"),
    [(page, link) for page, text in PAGES.items() for link in re.findall(r"\]\((?!http)([^)]+)\)", text)],
    ids=lambda value: getattr(value, "name", value),
)
def test_links_lead_to_files_and_their_headings(page, link):
    file, _, heading = link.partition("#")
    assert (page.parent / file).is_file()
    titles = re.findall(r"^#+ (.*)$", (page.parent / file).read_text(), re.MULTILINE) if heading else []
    anchors = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
    assert not heading or heading in anchors
