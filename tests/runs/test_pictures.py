"""What is saved of an image is what the model says of it, in forms that other programs read."""

import io

import numpy as np
import pytest
from PIL import Image

from labelled_files import picture, refused, write
from recyclelora.data.label_maps import cityscapes_ids
from recyclelora.data.labels import CAMVID, CITYSCAPES, LabelSpace
from recyclelora.runs.pictures import OF_IMAGES, Style, checked_kinds, contents, drawn
from recyclelora.runs.predict import predict
from recyclelora.runs.predictor import load
from tiny_methods import NAMES, made_run, tiny_recipe


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return made_run(tmp_path_factory.mktemp("runs") / "run", tiny_recipe("lora"))[0]


@pytest.mark.parametrize("kinds", [["labels", "confidence", "probabilities"], ["overlay", "confidence"], ["labels"]])
def test_files_hold_what_the_model_says(kinds, run, tmp_path):
    image = picture(40, 56)
    made = predict(run.path, [write(tmp_path / "a.png", image)], tmp_path / "out", save=kinds).written
    assert [file.name for file in made] == [f"a_{kind}{OF_IMAGES[kind]}" for kind in OF_IMAGES if kind in kinds]
    expected = load(run.path)(image)
    for file in made:
        kind = file.stem.partition("_")[2]
        found = np.load(file) if file.suffix == ".npy" else np.asarray(Image.open(file))
        if kind == "labels":
            np.testing.assert_array_equal(found, expected.labels)
        if kind == "confidence":
            assert found.dtype == np.uint16
            np.testing.assert_allclose(found / 65535, expected.confidence, atol=0.5 / 65535 + 1e-6)
        if kind == "probabilities":
            assert found.dtype == np.float16
            np.testing.assert_allclose(found, expected.probabilities(), atol=2**-11)
            assert file.stat().st_size == 128 + 2 * len(NAMES) * 40 * 56


def test_probabilities_of_0_and_1_are_the_ends_of_16_bits(run, monkeypatch):
    model = load(run.path)
    result = model(picture(2, 2))
    result.confidence[:] = [[0, 1], [0.5, 1 / 65535]]
    monkeypatch.setattr(type(model), "__call__", lambda self, image: result)
    content = contents(model, picture(2, 2), ["confidence"], Style(model.space, 0.5, True))["confidence"]
    assert np.asarray(Image.open(io.BytesIO(content))).tolist() == [[0, 65535], [32768, 1]]


def test_cityscapes_ids_are_by_name_and_others_have_none():
    # https://github.com/mcordts/cityscapesScripts, helpers/labels.py
    assert cityscapes_ids(LabelSpace(("sky", "road", "bicycle"), ((0, 0, 0),) * 3), "x").tolist() == [23, 7, 33]
    assert len(set(cityscapes_ids(CITYSCAPES, "x").tolist())) == 19
    refused(lambda: cityscapes_ids(CAMVID, "runs/mine"), "runs/mine: 5 of the model's classes", "pavement, tree, sign")


def test_classes_without_ids_are_refused_before_anything_is_made(run, tmp_path):
    write(tmp_path / "a.png", picture())
    call = lambda: predict(run.path, [tmp_path / "a.png"], tmp_path / "out", save=["cityscapes-ids"])  # noqa: E731
    refused(call, run.path, "2 of the model's classes have no id in Cityscapes (ground, tree)")
    assert not (tmp_path / "out").exists()


def test_an_overlay_has_a_legend_if_the_style_says_so():
    image, labels = picture(20, 30), np.zeros((20, 30), np.uint8)
    with_it, without = (drawn(image, labels, Style(CITYSCAPES, 0.5, legend)) for legend in (True, False))
    assert without.shape == (20, 30, 3)
    assert with_it.shape[0] > 20
    np.testing.assert_array_equal(with_it[:20, :30], without)


def test_kinds_are_known_and_each_is_made_once():
    assert checked_kinds(["overlay", "labels", "overlay"]) == ("labels", "overlay")
    assert checked_kinds("confidence") == ("confidence",)
    refused(lambda: checked_kinds(["label"]), "save: 'label' is nothing that is saved", "'labels'")
    refused(lambda: checked_kinds([]), "nothing to save")
