"""In every path that a user gives, `~` stands for the folder of the user, in Python as on the command line."""

import pytest
import yaml

import recyclelora
from labelled_files import picture, refused, write
from miniatures import write_folder
from recyclelora.files import user_path, write_text
from tiny_methods import made_run, tiny_recipe


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


def test_verbs_read_and_write_below_the_users_folder(home, tmp_path):
    town = write_folder(home / "town", classes=("ground", "sky", "tree"))
    made_run(home / "run", tiny_recipe("lora"))
    write(home / "photos" / "a.png", picture(40, 56))
    recyclelora.predict("~/run", "~/photos", "~/out", save="labels")
    recyclelora.export("~/run", "~/exported", images="~/photos")
    recyclelora.evaluate("~/run", "folder=~/town", "~/scores.json")
    recyclelora.analyze("~/run", "~/page.html")
    recyclelora.load("~/exported").save("~/saved")
    settings = tiny_recipe("lora").model_dump(mode="json") | {"sources": [{"data": "folder=~/town"}], "steps": 1}
    (home / "mine.yaml").write_text(yaml.safe_dump(settings))
    recipe = recyclelora.read_recipe("~/mine.yaml")
    assert recipe.steps == 1
    recyclelora.train(recipe, "~/trained")
    write_text(home / "compared" / "results.json", "{}")
    refused(
        lambda: recyclelora.compare(recipe, "lora", [0], "~/compared", "folder=~/town"), home, "is there, and not of"
    )
    assert {run.path.parent for run in recyclelora.list_runs("~")} >= {home}
    for name in ("out/a_labels.png", "exported/export.json", "scores.json", "page.html", "saved/run.json",
                 "trained/run.json"):  # fmt: skip
        assert (home / name).is_file(), name
    assert list((tmp_path / "work").iterdir()) == []
    assert town == home / "town"


def test_only_a_leading_tilde_is_the_users_folder(home):
    assert user_path("~/a") == home / "a"
    assert str(user_path("a~/~b")) == "a~/~b"
