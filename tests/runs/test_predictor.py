"""Trained models are used, and saved with their merged backbone: then only their folder is needed."""

import json
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import recyclelora
from labelled_files import refused
from miniatures import TINY, write_folder
from recyclelora.errors import UserError
from recyclelora.evaluation.evaluate import evaluate
from recyclelora.methods import METHODS
from recyclelora.models import backbone as backbones
from recyclelora.models.backbone import Backbone
from recyclelora.models.weights import weights_hash
from recyclelora.runs.predictor import load
from recyclelora.runs.run import open_run
from recyclelora.stopping import Stopped
from recyclelora.training import loop
from recyclelora.training.train import train
from tiny_methods import NAMES, images, made_run, tiny_recipe, unsealed

CASES = [(method, "linear") for method in METHODS]
CASES += [(method, "mask2former") for method in ("recyclelora", "soma", "frozen", "rein", "qr-lora")]
CASES += [(method, "eomt") for method in ("recyclelora", "rein")]


def picture(seed=0, size=(40, 56)):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def scores(model):
    with torch.no_grad():
        return model.segmenter(images())


@pytest.fixture
def base(tmp_path):
    """Base weights in a file, which can be taken away."""
    torch.manual_seed(3)
    file = tmp_path / "base.safetensors"
    save_file(Backbone(TINY["model"], "random", model_args=TINY["model_args"]).model.state_dict(), file)
    return file


def on_base(base, method="recyclelora", head="linear", **values):
    return tiny_recipe(method, head, backbone={**TINY, "weights": str(base)}, **values)


@pytest.mark.parametrize(("method", "head"), CASES)
def test_a_saved_model_needs_no_base_and_predicts_the_same_bit_for_bit(method, head, base, tmp_path, monkeypatch):
    run, segmenter = made_run(tmp_path / "run", on_base(base, method, head))
    model = load(run.path, device="cpu")
    with torch.no_grad():
        torch.testing.assert_close(scores(model), segmenter(images()), atol=2e-4, rtol=1e-3)
    saved = model.save(tmp_path / "saved")
    assert sorted(path.name for path in saved.path.iterdir()) == [
        "backbone.safetensors", "head.safetensors", "recipe.yaml", "run.json",
    ]  # fmt: skip

    base.unlink()
    taken, read = [], backbones.load_weights
    monkeypatch.setattr(backbones, "load_weights", lambda name, source: taken.append(source) or read(name, source))
    again = load(saved.path, device="cpu")
    assert taken == ["random"]
    assert torch.equal(scores(again), scores(model))
    for seed in range(3):
        assert np.array_equal(again.predict(picture(seed)), model.predict(picture(seed)))
    assert not any(p.requires_grad for p in again.segmenter.parameters())
    assert not again.segmenter.training

    assert again.run.recipe == run.recipe
    assert again.run.trained_sha256 == model.run.trained_sha256 == run.trained_sha256
    assert again.run.info["weights_sha256"] == run.info["weights_sha256"]
    assert again.run.step == run.step
    assert again.run.info["backbone_sha256"] == weights_hash(model.segmenter.backbone.model.state_dict())
    assert method == "rein" or again.run.info["backbone_sha256"] == weights_hash(load_file(saved.backbone))
    with pytest.raises(UserError, match="no such file"):
        load(run.path)

    twice = load(again.save(tmp_path / "twice").path, device="cpu")
    assert torch.equal(scores(twice), scores(model))
    assert json.loads((tmp_path / "twice" / "run.json").read_text()) == json.loads(
        (saved.path / "run.json").read_text()
    )


def test_a_model_of_a_real_training_is_saved(tmp_path):
    town = write_folder(tmp_path / "town", classes=("ground", "sky"))
    run = train(tiny_recipe("rein", "mask2former", sources=[f"folder={town}"]), tmp_path / "run")
    model = load(run.path, device="cpu")
    saved = recyclelora.load(model.save(tmp_path / "saved").path, device="cpu")
    assert np.array_equal(saved.predict(picture()), model.predict(picture()))
    assert train(run.recipe, saved.run.path, resume=True).step == 2  # it is finished: nothing is trained
    assert saved.run.backbone.is_file()


def test_masks_of_the_queries_are_gone_when_a_training_ends_and_not_before(tmp_path, monkeypatch):
    town = write_folder(tmp_path / "town", classes=("ground", "sky"))
    recipe = tiny_recipe("recyclelora", "eomt", sources=[f"folder={town}"], steps=3)
    run = train(recipe, tmp_path / "run")
    assert load(run.path, device="cpu").segmenter.head.masked == (False,)
    monkeypatch.setattr(loop, "agreed", lambda *_: signal.SIGTERM)  # another stops after its first step
    with pytest.raises(Stopped):
        train(recipe, tmp_path / "stopped")
    head = load(tmp_path / "stopped", device="cpu", checkpoint="last").segmenter.head
    assert (head.shares.tolist(), head.masked) == ([1.0], (True,))


def test_a_checkpoint_of_no_kind_is_refused(tmp_path):
    run, _ = made_run(tmp_path / "run", tiny_recipe("recyclelora"))
    refused(lambda: load(run.path, checkpoint="bset-source"), "'bset-source'", "did you mean 'best-source'")


def test_a_saved_folder_is_evaluated_like_its_run(tmp_path):
    run, _ = made_run(tmp_path / "run", tiny_recipe("recyclelora"))
    saved = load(run.path, device="cpu").save(tmp_path / "saved")
    target = f"folder={write_folder(tmp_path / 'town', classes=NAMES)}"
    results = [evaluate(folder, [target], tmp_path / f"{folder.name}.json") for folder in (run.path, saved.path)]
    first, second = (result.to_json() for result in results)
    assert (first.pop("run"), second.pop("run")) == ("run", "saved")
    assert second == first
    assert (tmp_path / "saved.html").is_file()
    assert recyclelora.evaluate(saved.path, [target]).mean_miou == results[0].mean_miou


@pytest.fixture
def saved(tmp_path):
    run, _ = made_run(tmp_path / "run", tiny_recipe("recyclelora"))
    return load(run.path, device="cpu").save(tmp_path / "saved")


def test_a_changed_backbone_is_refused(saved):
    state = load_file(saved.backbone)
    state["blocks.0.attn.qkv.weight"][0, 0] += 1e-3
    save_file(state, saved.backbone)
    expected = open_run(saved.path).hashes["backbone.safetensors"][:12]
    refused(lambda: load(saved.path), saved.backbone, f"run.json says {expected}")
    unsealed(saved)
    expected = saved.info["backbone_sha256"][:12]
    refused(lambda: load(saved.path), saved.backbone, "was saved with", expected, weights_hash(state)[:12])


@pytest.mark.parametrize("name", ["backbone", "head"])
@pytest.mark.parametrize("damage", ["cut", "nonsense", "a tensor more", "a tensor less", "another shape"])
@pytest.mark.parametrize("hashed", [True, False])
def test_a_damaged_file_is_refused(saved, name, damage, hashed):
    if not hashed:
        unsealed(saved)
    file = getattr(saved, name)
    state = load_file(file)
    first = next(iter(state))
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "nonsense":
        file.write_bytes(b"nonsense")
    elif damage == "a tensor more":
        save_file({**state, "strange": torch.zeros(1)}, file)
    elif damage == "a tensor less":
        save_file({key: value for key, value in state.items() if key != first}, file)
    else:
        save_file({**state, first: torch.zeros(7)}, file)
    refused(lambda: load(saved.path), file, "of this run", "restore the file")


@pytest.mark.parametrize("place", ["run", "run/../run", "."])
def test_a_model_is_not_saved_into_its_own_run(place, tmp_path, monkeypatch):
    run, _ = made_run(tmp_path / "run", tiny_recipe("lora"))
    model = load(run.path, device="cpu")
    if place == ".":
        monkeypatch.chdir(run.path)
    before = sorted(run.path.rglob("*"))
    for overwrite in (False, True):
        folder = "." if place == "." else tmp_path / place
        refused(lambda: model.save(folder, overwrite), "this is the run itself", "choose another folder")  # noqa: B023
    assert sorted(run.path.rglob("*")) == before


def test_a_link_to_the_run_is_the_run_itself(tmp_path):
    run, _ = made_run(tmp_path / "run", tiny_recipe("lora"))
    (tmp_path / "link").symlink_to(run.path)
    model = load(run.path, device="cpu")
    refused(lambda: model.save(tmp_path / "link", overwrite=True), "this is the run itself")
    assert run.finished


def test_nothing_is_overwritten_unless_asked(saved, tmp_path):
    model = load(saved.path, device="cpu")
    other, _ = made_run(tmp_path / "other", tiny_recipe("full"))
    (other.path / "notes.txt").write_text("mine")
    refused(lambda: model.save(other.path), other.path, "exists", "--overwrite")
    assert load(other.path).run.recipe.method == "full"
    (tmp_path / "file").write_text("mine")
    refused(lambda: model.save(tmp_path / "file", overwrite=True), "is a file")

    replaced = model.save(other.path, overwrite=True)
    assert sorted(path.name for path in replaced.path.iterdir()) == [
        "backbone.safetensors", "head.safetensors", "notes.txt", "recipe.yaml", "run.json",
    ]  # fmt: skip
    assert torch.equal(scores(load(replaced.path, device="cpu")), scores(model))


def test_the_model_in_use_is_untouched_by_saving(saved):
    model = load(saved.path, device="cpu")
    before = scores(model)
    model.save(saved.path.with_name("more"))
    assert torch.equal(scores(model), before)
    assert model.run.path == saved.path


def test_other_settings_of_evaluation_leave_the_model_as_it_is(saved):
    model = load(saved.path, device="cpu")
    other = model.with_evaluation(window=64, flip=True, stride=None)
    assert (other.evaluation.window, other.evaluation.flip, model.evaluation.window) == (64, True, None)
    assert other.segmenter is model.segmenter
    assert other.plan().window == 64
    assert model.plan().window == model.run.recipe.crop
    refused(lambda: model.with_evaluation(windw=64), "windw", "'window'")
    refused(lambda: model.with_evaluation(window=40).plan(), "40", "16")
    kept = load(other.save(saved.path.with_name("more")).path, device="cpu")
    assert kept.evaluation == other.evaluation


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 3)),
        np.zeros((0, 8, 3), "u1"),
        "a.jpg",
    ],
)
def test_only_rgb_images_are_predicted(saved, image):
    with pytest.raises(ValueError, match="expected a uint8 RGB image"):
        load(saved.path, device="cpu").predict(image)


@pytest.mark.parametrize("size", [(1, 1), (31, 33), (100, 20)])
def test_an_image_of_any_size_is_predicted_at_its_own(saved, size):
    labels = load(saved.path, device="cpu").predict(picture(1, size))
    assert (labels.dtype, labels.shape) == (np.uint8, size)
    assert labels.max() < len(NAMES)
