"""A validation changes nothing in a training, scores what would be the result, and survives stops and kills."""

import json
import os
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file

import recyclelora
from labelled_files import refused
from miniatures import SMALL_HEAD, TINY, write_folder
from recyclelora.evaluation.scores import mean_miou, score_domain
from recyclelora.recipe import make_recipe
from recyclelora.runs.checkpoint import read_state
from recyclelora.runs.facts import read_validations
from recyclelora.runs.predictor import load
from recyclelora.stopping import Stopped
from recyclelora.training import validation
from recyclelora.training.train import train

BASE = {
    "backbone": TINY, "adapter": {"r_main": 4, "r_sub": 2}, "crop": 32, "batch_size": 2, "steps": 5, "workers": 0,
    "optim": {"lr": 0.01}, "checkpoint_every": 2,
}  # fmt: skip
VALIDATION = {"every": 2, "images": 3}


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    """A folder with the splits train and val."""
    root = tmp_path_factory.mktemp("town")
    write_folder(root / "train", 6, seed=0)
    write_folder(root / "val", 4, seed=1)
    return root


def recipe(town, **changes):
    values = {**BASE, "sources": [f"town:folder={town}"], "validation": VALIDATION} | changes
    return make_recipe({key: value for key, value in values.items() if value is not None})


def weights(run):
    files = [*(run.path / "adapter").glob("*.safetensors"), run.head]
    return {f"{file.name} {name}": value for file in files for name, value in load_file(file).items()}


def assert_same(one, other):
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def scored(model, town, images=3):
    """What the evaluation says of the images that the training was validated on."""
    domain = recyclelora.open_domain(f"town:folder={town}", "val", images)
    plan = model.run.recipe.evaluation.plan("folder", model.run.recipe.crop, model.segmenter.backbone.patch_size)
    return score_domain(lambda image: model.segmenter.predict(image, plan), model.space, domain)


EVA = {"img_size": 32, "patch_size": 16, "depth": 2, "embed_dim": 48, "num_heads": 3}
KINDS = {
    "plain": {},
    "averages": {"optim": {"lr": 0.01, "average": 0.5}},
    "mask2former": {"head": "mask2former", "head_args": SMALL_HEAD, "crop": 64},
    "rein": {"method": "rein", "adapter": {"tokens": 4, "rank": 2}},
    "full": {"method": "full", "adapter": None},
    "checkpointing": {"backbone": {**TINY, "grad_checkpointing": True}},
    "bfloat16": {"precision": "bf16-mixed"},
    "rotary": {"backbone": {"model": "eva02_base_patch14_224", "weights": "random", "model_args": EVA, "norm": False}},
    "dinov3": {"backbone": {"model": "vit_small_patch16_dinov3", "weights": "random", "model_args": EVA}},
    "drop path": {"backbone": {**TINY, "model_args": {**TINY["model_args"], "drop_path_rate": 0.3}}},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_validation_changes_no_weight_and_scores_the_result(kind, town, tmp_path):
    without = train(recipe(town, **KINDS[kind], validation=None), tmp_path / "without")
    run = train(recipe(town, **KINDS[kind]), tmp_path / "with")
    assert_same(without, run)
    lines = read_validations(run.validations)
    assert [line["step"] for line in lines] == [2, 4, 5]
    scores = scored(load(run.path), town)
    assert lines[-1]["sources"]["town"] == {"images": 3, "miou": scores.miou, "iou": scores.iou}
    assert lines[-1]["miou"] == scores.miou == mean_miou([scores])
    assert not without.validations.exists()


def test_the_best_weights_are_those_of_their_step(town, tmp_path, monkeypatch):
    made = iter([0.3, 0.5, 0.4])
    monkeypatch.setattr(validation, "mean_miou", lambda scores: next(made))
    run = train(recipe(town, steps=6), tmp_path / "run")
    assert [file.name for file in run.checkpoint.parent.glob("best-*")] == ["best-4.safetensors"]
    model = load(run.path, checkpoint="best-source")
    assert model.name == "run (best-source, step 4)"
    assert (model.run.step, model.run.info["checkpoint"]) == (4, "best-source")
    assert scored(model, town).iou == read_validations(run.validations)[1]["sources"]["town"]["iou"]
    assert model.run.trained_sha256 != run.trained_sha256
    # The weights at step 4 are also in the checkpoint of that step, which is the one before the last.
    older, best = read_state(run.older_checkpoint), read_state(run.best_checkpoint(4))
    assert older["step"] == best["step"] == 4
    assert all(torch.equal(older["state_dict"][name], value) for name, value in best["state_dict"].items())


def test_the_first_of_equal_scores_is_the_best(town, tmp_path, monkeypatch):
    monkeypatch.setattr(validation, "mean_miou", lambda scores: 0.5)
    run = train(recipe(town), tmp_path / "run")
    assert [file.name for file in run.checkpoint.parent.glob("best-*")] == ["best-2.safetensors"]


def test_validations_without_a_score_have_no_best(town, tmp_path, monkeypatch):
    monkeypatch.setattr(validation, "mean_miou", lambda scores: None)
    run = train(recipe(town), tmp_path / "run")
    assert not list(run.checkpoint.parent.glob("best-*"))
    refused(lambda: load(run.path, checkpoint="best-source"), run.path, "no validation has been scored", "validation")


class Killed(BaseException):
    pass


@pytest.mark.parametrize("at", ["before", "after"])
def test_a_killed_training_repeats_what_came_after_its_checkpoint(at, town, tmp_path, monkeypatch):
    """Killed in the validation after step 4: the checkpoint is of step 3."""
    settings = recipe(town, checkpoint_every=3)
    whole = train(settings, tmp_path / "whole")
    score = validation.Validation.score

    def killed(self, step, request):
        if step == 4 and at == "after":
            score(self, step, request)
        if step == 4:
            raise Killed
        return score(self, step, request)

    with monkeypatch.context() as patch:
        patch.setattr(validation.Validation, "score", killed)
        with pytest.raises(Killed):
            train(settings, tmp_path / "run")
    run = train(settings, tmp_path / "run", resume=True)
    assert_same(whole, run)
    one, other = (read_validations(each.validations) for each in (whole, run))
    assert [{**line, "seconds": 0} for line in one] == [{**line, "seconds": 0} for line in other]
    for name in ("checkpoints", "validation", "manifests"):
        assert sorted(p.name for p in (whole.path / name).iterdir()) == sorted(
            p.name for p in (run.path / name).iterdir()
        )


def test_a_signal_ends_a_validation_which_is_made_up_for_later(town, tmp_path, monkeypatch):
    whole = train(recipe(town), tmp_path / "whole")
    counts = validation.Validation._counts

    def signalled(self, held, step, request, progress, pictured):
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return counts(self, held, step, request, progress, pictured)

    with monkeypatch.context() as patch:
        patch.setattr(validation.Validation, "_counts", signalled)
        with pytest.raises(Stopped, match="after step 4 of 5"):
            train(recipe(town), tmp_path / "run")
    stopped = recyclelora.runs.run.open_run(tmp_path / "run")
    assert [line["step"] for line in read_validations(stopped.validations)] == [2]
    run = train(recipe(town), tmp_path / "run", resume=True)
    assert_same(whole, run)
    one, other = (read_validations(each.validations) for each in (whole, run))
    assert [{**line, "seconds": 0} for line in one] == [{**line, "seconds": 0} for line in other]


def test_overwriting_removes_validations_and_pictures(town, tmp_path):
    run = train(recipe(town), tmp_path / "run")
    assert len(list(run.pictures.iterdir())) == 9
    (run.pictures / "mine.png").write_bytes(b"a user's")
    again = train(recipe(town, validation=None), tmp_path / "run", overwrite=True)
    assert [file.name for file in again.pictures.iterdir()] == ["mine.png"]
    assert not again.validations.exists()
    assert not list(again.checkpoint.parent.glob("best-*"))


def test_a_training_is_resumed_with_the_same_validation_only(town, tmp_path):
    run = train(recipe(town, steps=4), tmp_path / "run")
    run.head.unlink()
    for other in ({"every": 1, "images": 3}, {"every": 2, "images": 2}, None):
        refused(lambda other=other: train(recipe(town, steps=4, validation=other), run.path, resume=True), "validation")


def test_several_sources_are_scored_each_and_on_average(town, tmp_path):
    other = write_folder(tmp_path / "other", 20, seed=3)
    settings = recipe(town, sources=[f"town:folder={town}", f"other:folder={other}"])
    run = train(settings, tmp_path / "run")
    facts = json.loads((run.path / "run.json").read_text())
    assert [(each["label"], each["images"], each["split"]) for each in facts["validation"]] == [
        ("town", 3, "val"), ("other", 2, "train"),
    ]  # fmt: skip
    assert [each["images"] for each in facts["sources"]] == [6, 18]
    for line in read_validations(run.validations):
        mious = [scores["miou"] for scores in line["sources"].values()]
        assert line["miou"] == pytest.approx(sum(mious) / 2)


def test_an_unfinished_training_is_loaded_on_request_only(town, tmp_path):
    settings = recipe(town, optim={"lr": 0.01, "average": 0.5})
    whole = train(settings, tmp_path / "run")
    whole.head.unlink()
    shutil.rmtree(whole.adapter)
    refused(lambda: load(whole.path), whole.path, "not finished", "--resume")
    model = load(whole.path, checkpoint="last")
    assert model.name == "run (step 5 of 5)"
    assert scored(model, town).miou == read_validations(whole.validations)[-1]["miou"]
    state = read_state(whole.checkpoint)
    average = state["averages"]["segmenter.head.classifier.weight"]
    assert torch.equal(model.segmenter.head.classifier.weight.cpu(), average)


def test_a_checkpoint_of_another_model_is_refused(town, tmp_path):
    run = train(recipe(town), tmp_path / "run")
    other = train(recipe(town, adapter={"r_main": 3, "r_sub": 2}), tmp_path / "other")
    (best,) = run.checkpoint.parent.glob("best-*")
    (theirs,) = other.checkpoint.parent.glob("best-*")
    shutil.copy(theirs, best)
    refused(lambda: load(run.path, checkpoint="best-source"), best, "another model")
    best.unlink()
    refused(lambda: load(run.path, checkpoint="best-source"), best, "missing")
