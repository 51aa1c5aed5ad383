"""A run scored on its targets: the results file, what it keeps when a target fails, and the protocol it names."""

import functools
import json

import numpy as np
import pytest

from labelled_files import make_acdc, make_cityscapes, make_mapillary, picture, refused
from miniatures import TINY, write_folder
from recyclelora import cli, run
from recyclelora.data.benchmarks import parse_spec
from recyclelora.data.labels import LabelSpace
from recyclelora.evaluation.evaluate import score_domain
from recyclelora.evaluation.protocols import make_plan
from recyclelora.recipe import make_recipe
from recyclelora.results import describe, open_targets, predict_as, protocol_name, same_domain, score_targets

SPACE = LabelSpace(("ground", "sky"), ((90, 90, 90), (60, 120, 220)))


def make_run(path, classes=SPACE, **settings):
    """A finished run of a tiny model that was never trained."""
    adapter = {"r_main": 8, "r_sub": 2}
    recipe = make_recipe({"sources": ["streets"], "backbone": TINY, "adapter": adapter, "crop": 32, **settings})
    segmenter = run.build(recipe, len(classes))
    info = {
        "classes": {"names": list(classes.names), "colours": [list(colour) for colour in classes.colours]},
        "weights_sha256": segmenter.backbone.weights_sha256,
        "parameters": {"adapters": 1, "head": 2},
        "sources": [{"label": "streets", "images": 3}],
    }
    made = run.Run(path, recipe, info)
    made.write()
    made.save_result(segmenter)
    return made.path


@pytest.fixture
def town(tmp_path):
    return write_folder(tmp_path / "town", classes=SPACE.names)


@pytest.fixture
def night(tmp_path):
    return write_folder(tmp_path / "night", classes=SPACE.names, seed=9, size=(50, 34))


@pytest.fixture
def model(tmp_path):
    return run.load(make_run(tmp_path / "run"))


# Plans of a model


def test_a_model_predicts_by_the_plan_of_the_data_set(tmp_path, monkeypatch):
    model = run.load(make_run(tmp_path / "run", evaluation={"protocol": "soma-2048", "window": 64, "batch_size": 3}))
    plans = []
    monkeypatch.setattr(type(model.segmenter), "predict", lambda self, image, plan: plans.append(plan))
    for dataset in ("", "cityscapes", "acdc"):
        model.predict(picture(), dataset)
    settings = {"window": 64, "batch_size": 3}
    assert plans == [make_plan("soma-2048", dataset, 32, **settings) for dataset in ("", "cityscapes", "acdc")]
    assert [plan.box for plan in plans] == [None, (2048, 1024), (1920, 1080)]


def test_settings_of_evaluation_can_be_changed_and_the_model_stays(model):
    changed = model.with_evaluation(window=16, flip=True, scales=[0.5, 1.0], stride=None)
    assert changed.plan() == make_plan("full", "", 32, window=16, batch_size=4, flip=True, scales=[0.5, 1.0])
    assert model.plan() == make_plan("full", "", 32, batch_size=4)
    assert changed.segmenter is model.segmenter
    image = picture(64, 64)
    assert (changed.predict(image) != model.predict(image)).any()


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"protocol": "soma"}, ["evaluation", "unknown protocol 'soma'", "soma-2048"]),
        ({"window": -1}, ["evaluation.window", "-1"]),
        ({"scales": [0.0]}, ["scales"]),
        ({"windows": 3}, ["unknown key 'evaluation.windows'", "window"]),
    ],
)
def test_wrong_settings_of_evaluation_are_refused(model, change, parts):
    refused(lambda: model.with_evaluation(**change), *parts)


def test_a_protocol_that_does_not_fit_the_patch_is_refused_with_the_way_out(tmp_path):
    patch_14 = {**TINY, "model_args": {**TINY["model_args"], "img_size": 28, "patch_size": 14}}
    model = run.load(make_run(tmp_path / "run", backbone=patch_14, crop=28, evaluation={"window": 28}))
    refused(
        lambda: model.with_evaluation(protocol="rein-1024", window=512).predict(picture()),
        "protocol rein-1024: window 512 is no multiple of the patch 14",
        "set the window to 504 or 518 (--window",
    )
    assert model.with_evaluation(protocol="rein-1024", window=518).plan().name == "rein-1024, window 518"


# Targets


def test_each_data_set_is_scored_on_its_usual_split_unless_one_is_given(tmp_path, town):
    texts = [f"cityscapes={make_cityscapes(tmp_path / 'cityscapes')}", "streets:fog", f"town:folder={town}"]
    targets = open_targets(texts, limit=2)
    assert [(t.spec.label, t.split, len(t.domain)) for t in targets] == [
        ("cityscapes", "val", 2), ("streets:fog", "test", 2), ("town", "test", 2),
    ]  # fmt: skip
    assert targets[0].domain.name(0).startswith("frankfurt")
    assert [t.domain.name(0) for t in open_targets(texts[:2], "train", 1)] != [t.domain.name(0) for t in targets[:2]]
    refused(lambda: open_targets(["a:streets", "a:streets:fog"]), "two targets are called 'a'", "LABEL:NAME")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("streets:fog", "night:streets:fog", True),
        ("streets:fog", "streets:night", False),
        ("acdc", "acdc:fog", True),
        ("acdc:rain", "acdc:fog", False),
        ("mapillary", "mapillary-half", True),
        ("cityscapes=/a", "city:cityscapes=/b", True),
        ("cityscapes=/a", "bdd100k=/a", False),
        ("folder=/a", "b:folder=/a/../a", True),
        ("folder=/a", "folder=/b", False),
    ],
)
def test_domains_are_the_same_whatever_their_label_and_place(one, other, same):
    assert same_domain(parse_spec(one), parse_spec(other)) is same
    assert same_domain(parse_spec(other), parse_spec(one)) is same


# The results file


def test_the_file_holds_the_scores_and_what_they_depend_on(model, town, night, tmp_path):
    targets = open_targets([f"town:folder={town}", f"night:folder={night}"], limit=3)
    model = model.with_evaluation(flip=True)
    result = score_targets(model, targets, tmp_path / "scores.json", limit=3)
    assert json.loads((tmp_path / "scores.json").read_text()) == json.loads(json.dumps(result))
    assert (result["run"], result["method"], result["complete"]) == ("run", "recyclelora", True)
    window = {"name": "full, flip", "data": "folder", "split": "test", "size": None, "window": 32, "stride": 21}
    assert result["protocol"] == {
        "name": "full, flip", "flip": True, "scales": [1.0], "limit": 3, "targets": {"town": window, "night": window},
    }  # fmt: skip
    assert (result["step"], result["checkpoint"]) == (model.run.recipe.steps, "last")
    assert result["weights_sha256"] == model.run.info["weights_sha256"]
    assert result["recipe"] == model.run.recipe.model_dump(mode="json")
    assert {"python", "torch", "numpy"} <= result["versions"].keys()
    expected = [score_domain(model.predict, SPACE, target.domain) for target in targets]
    assert result["targets"] == [score.to_json() for score in expected]
    assert [score["fingerprint"] for score in result["targets"]] == [t.domain.fingerprint() for t in targets]
    assert result["mean_miou"] == pytest.approx(np.mean([score.miou for score in expected]))


def test_the_sizes_of_each_target_are_in_the_file(model, tmp_path):
    texts = [f"mapillary={make_mapillary(tmp_path / 'm')}", f"fog:acdc:fog={make_acdc(tmp_path / 'acdc')}"]
    model, targets = model.with_evaluation(protocol="soma-2048"), open_targets(texts)
    described = describe(model, targets, [], None)["protocol"]
    assert described["name"] == "soma-2048"
    assert [(t["data"], t["size"], t["window"], t["stride"]) for t in described["targets"].values()] == [
        ("mapillary", (2048, 1024), 512, 341), ("acdc", (1920, 1080), 1024, 683),
    ]  # fmt: skip
    departing = model.with_evaluation(window=512)
    assert protocol_name(departing, targets) == "soma-2048 / soma-2048, window 512"
    assert protocol_name(departing, targets[:1]) == "soma-2048"


def test_predictions_of_a_domain_follow_its_data_set(model, tmp_path):
    target = open_targets([f"cityscapes={make_cityscapes(tmp_path / 'c', size=(128, 64))}"])[0]
    model = model.with_evaluation(protocol="rein-1024", window=64, stride=64)
    small = picture(64, 128)
    as_cityscapes, alone = predict_as(model, target.domain)(small), model.predict(small)
    np.testing.assert_array_equal(as_cityscapes, model.predict(small, "cityscapes"))
    assert (as_cityscapes != alone).any()


def test_the_hash_of_what_was_trained_follows_head_and_adapter(tmp_path):
    first, again = (run.load(make_run(tmp_path / name)) for name in ("a", "b"))
    assert len(first.trained_sha256()) == 64
    assert first.trained_sha256() == again.trained_sha256()
    other_head = run.load(make_run(tmp_path / "c", classes=LabelSpace(("a", "b", "c"), ((0, 0, 0),) * 3)))
    other_adapter = run.load(make_run(tmp_path / "d", adapter={"r_main": 4, "r_sub": 2}))
    without = run.load(make_run(tmp_path / "e", method="frozen"))
    assert len({each.trained_sha256() for each in (first, other_head, other_adapter, without)}) == 4
    assert len({each.run.info["weights_sha256"] for each in (first, other_head, other_adapter, without)}) == 1


def test_a_target_that_fails_does_not_lose_those_before(model, town, night, tmp_path):
    targets = open_targets([f"town:folder={town}", f"night:folder={night}"])
    file = tmp_path / "scores.json"
    page = file.with_suffix(".html")
    page.write_text("of an earlier result")
    (night / "labels" / "03.png").write_bytes(b"damaged")
    refused(lambda: score_targets(model, targets, file), "03.png")
    result = json.loads(file.read_text())
    assert (result["complete"], result["mean_miou"]) == (False, None)
    assert [score["label"] for score in result["targets"]] == ["town"]
    assert list(result["protocol"]["targets"]) == ["town", "night"]
    assert not page.exists()


def test_nothing_is_scored_if_a_target_cannot_be(model, town, tmp_path, monkeypatch):
    monkeypatch.setattr(run.Predictor, "predict", None)
    file = tmp_path / "scores.json"
    targets = open_targets([f"folder={town}", "streets:fog"], limit=1)
    refused(lambda: score_targets(model, targets, file), "19 classes", "trained on 2 classes")
    narrow = model.with_evaluation(window=40)
    refused(lambda: score_targets(narrow, targets[:1], file), "window 40 is no multiple of the patch 16", "32 or 48")
    assert not file.exists()


# Through the command line's function


@pytest.fixture
def evaluate(tmp_path):
    return functools.partial(cli.evaluate, out=tmp_path / "scores.json", pictures=1)


def test_the_targets_of_the_recipe_are_scored_unless_others_are_named(tmp_path, evaluate, town, night):
    path = make_run(tmp_path / "run", targets=[f"town:folder={town}"])
    assert [score["label"] for score in evaluate(path, [])["targets"]] == ["town"]
    named = evaluate(path, [f"folder={night}"], limit=1, overwrite=True)
    assert [(score["label"], score["images"]) for score in named["targets"]] == [("night", 1)]
    without = make_run(tmp_path / "other")
    refused(lambda: evaluate(without, [], overwrite=True), "its recipe names no targets", "--target")


def test_file_page_and_terminal_name_the_protocol(tmp_path, evaluate, town, capsys):
    path = make_run(tmp_path / "run", sources=[f"folder={town}"])
    result = evaluate(path, [f"a:folder={town}"], window=16, stride=8, batch_size=2, flip=True, scales="0.5,1")
    name = "full, flip, scales 0.5 1"
    assert result["protocol"]["name"] == name
    assert result["protocol"]["scales"] == [0.5, 1]
    assert result["protocol"]["targets"]["a"].items() >= {"window": 16, "stride": 8}.items()
    assert f"mIoU (%), protocol {name}" in capsys.readouterr().out
    page = (tmp_path / "scores.html").read_text()
    assert f"Protocol: {name}" in page
    assert "scored on a (test)" in page
    assert 'badge seen">seen' in page


def test_earlier_results_are_replaced_only_if_asked(tmp_path, evaluate, town):
    path = make_run(tmp_path / "run", targets=[f"folder={town}"])
    evaluate(path, [])
    refused(lambda: evaluate(path, []), "scores.json exists", "--overwrite")
    assert evaluate(path, [], protocol="rein-1024", overwrite=True)["protocol"]["name"] == "rein-1024"


def test_scales_that_are_no_numbers_are_refused(tmp_path, evaluate, town):
    path = make_run(tmp_path / "run", targets=[f"folder={town}"])
    refused(lambda: evaluate(path, [], scales="0.5;1"), "--scales 0.5;1", "0.75,1,1.25")
