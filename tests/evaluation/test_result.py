"""What an evaluation found: the plans that a model predicts by, the protocol's name, and what a file holds."""

import json

import numpy as np
import pytest
from untrained import SPACE, make_run

from labelled_files import make_acdc, make_cityscapes, make_mapillary, picture, refused
from miniatures import TINY, write_folder
from recyclelora.data.labels import LabelSpace
from recyclelora.evaluation.evaluate import score_targets
from recyclelora.evaluation.result import Evaluation, predict_as, protocol_name
from recyclelora.evaluation.scores import Scores, score_domain
from recyclelora.evaluation.targets import open_targets
from recyclelora.models.plan import make_plan
from recyclelora.runs.predictor import load


@pytest.fixture
def model(tmp_path):
    return load(make_run(tmp_path / "run"))


# Plans of a model


def test_a_model_predicts_by_the_plan_of_the_data_set(tmp_path, monkeypatch):
    model = load(make_run(tmp_path / "run", evaluation={"protocol": "soma-2048", "window": 64, "batch_size": 3}))
    plans = []
    monkeypatch.setattr(type(model.segmenter), "predict", lambda self, image, plan: plans.append(plan))
    for dataset in ("", "cityscapes", "acdc"):
        model.predict(picture(), dataset)
    settings = {"window": 64, "batch_size": 3}
    assert plans == [make_plan("soma-2048", dataset, 32, 16, **settings) for dataset in ("", "cityscapes", "acdc")]
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
    model = load(make_run(tmp_path / "run", backbone=patch_14, crop=28, evaluation={"window": 28}))
    refused(
        lambda: model.with_evaluation(protocol="rein-1024", window=512).predict(picture()),
        "protocol rein-1024: window 512 is not a multiple of the backbone's patch 14",
        "set the window to 504 or 518 (--window",
    )
    assert model.with_evaluation(protocol="rein-1024", window=518).plan().name == "rein-1024, window 518"


def test_predictions_of_a_domain_follow_its_data_set(model, tmp_path):
    target = open_targets([f"cityscapes={make_cityscapes(tmp_path / 'c', size=(128, 64))}"])[0]
    model = model.with_evaluation(protocol="rein-1024", window=64, stride=64)
    small = picture(64, 128)
    as_cityscapes, alone = predict_as(model, target.domain)(small), model.predict(small)
    np.testing.assert_array_equal(as_cityscapes, model.predict(small, "cityscapes"))
    assert (as_cityscapes != alone).any()


# What a results file holds


def test_the_file_holds_the_scores_and_what_they_depend_on(model, tmp_path):
    town = write_folder(tmp_path / "town", classes=SPACE.names)
    night = write_folder(tmp_path / "night", classes=SPACE.names, seed=9, size=(50, 34))
    targets = open_targets([f"town:folder={town}", f"night:folder={night}"], limit=3)
    model = model.with_evaluation(flip=True)
    evaluation = Evaluation(model, targets, limit=3)
    score_targets(evaluation, tmp_path / "scores.json")
    result = evaluation.to_json()
    assert json.loads((tmp_path / "scores.json").read_text()) == json.loads(json.dumps(result, allow_nan=False))
    assert (result["run"], result["method"], result["complete"]) == ("run", "recyclelora", True)
    window = {"name": "full, flip", "data": "folder", "split": "test", "size": None, "window": 32, "stride": 21}
    assert result["protocol"] == {
        "name": "full, flip", "flip": True, "scales": [1.0], "limit": 3, "targets": {"town": window, "night": window},
    }  # fmt: skip
    assert (result["step"], result["checkpoint"]) == (model.run.recipe.steps, "last")
    assert result["weights_sha256"] == model.run.info["weights_sha256"]
    assert result["trained_sha256"] == model.run.trained_sha256
    assert result["recipe"] == model.run.recipe.model_dump(mode="json")
    assert {"python", "torch", "numpy"} <= result["versions"].keys()
    expected = [score_domain(model.predict, SPACE, target.domain, split="test") for target in targets]
    assert evaluation.scores == expected
    assert result["targets"] == [score.to_json() for score in expected]
    assert [Scores.from_json(score) for score in json.loads(json.dumps(result["targets"]))] == expected
    assert [score["fingerprint"] for score in result["targets"]] == [t.domain.fingerprint() for t in targets]
    assert result["mean_miou"] == evaluation.mean_miou == pytest.approx(np.mean([score.miou for score in expected]))


def test_there_is_no_mean_before_all_targets_are_scored(model):
    evaluation = Evaluation(model, open_targets(["streets:fog", "streets:rain"], limit=1))
    assert (evaluation.mean_miou, evaluation.to_json()["complete"]) == (None, False)
    evaluation.scores.append(Scores("streets:fog", 1, "", 0.25, {}))
    assert (evaluation.mean_miou, evaluation.to_json()["complete"]) == (None, False)
    evaluation.scores.append(Scores("streets:rain", 1, "", 0.75, {}))
    assert (evaluation.mean_miou, evaluation.to_json()["complete"]) == (0.5, True)


def test_the_sizes_of_each_target_are_in_the_file(model, tmp_path):
    texts = [f"mapillary={make_mapillary(tmp_path / 'm')}", f"fog:acdc:fog={make_acdc(tmp_path / 'acdc')}"]
    model, targets = model.with_evaluation(protocol="soma-2048"), open_targets(texts)
    described = Evaluation(model, targets).to_json()["protocol"]
    assert described["name"] == Evaluation(model, targets).protocol == "soma-2048"
    assert [(t["data"], t["size"], t["window"], t["stride"]) for t in described["targets"].values()] == [
        ("mapillary", (2048, 1024), 512, 341), ("acdc", (1920, 1080), 1024, 683),
    ]  # fmt: skip
    departing = model.with_evaluation(window=512)
    assert protocol_name(departing, targets) == "soma-2048 / soma-2048, window 512"
    assert protocol_name(departing, targets[:1]) == "soma-2048"


def test_the_hash_of_what_was_trained_follows_head_and_adapter(tmp_path):
    first, again = (load(make_run(tmp_path / name)).run for name in ("a", "b"))
    assert len(first.trained_sha256) == 64
    assert first.trained_sha256 == again.trained_sha256
    other_head = load(make_run(tmp_path / "c", classes=LabelSpace(("a", "b", "c"), ((0, 0, 0),) * 3))).run
    other_adapter = load(make_run(tmp_path / "d", adapter={"r_main": 4, "r_sub": 2})).run
    without = load(make_run(tmp_path / "e", method="frozen")).run
    assert len({each.trained_sha256 for each in (first, other_head, other_adapter, without)}) == 4
    assert len({each.info["weights_sha256"] for each in (first, other_head, other_adapter, without)}) == 1
