"""The verb predict writes two pictures for each image."""

import cv2
import numpy as np
import pytest
from PIL import Image

from labelled_files import picture, refused, write
from recyclelora.data.labels import LabelSpace
from recyclelora.runs.predict import overlay, predict
from recyclelora.runs.predictor import load
from tiny_methods import made_run, tiny_recipe


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return made_run(tmp_path_factory.mktemp("runs") / "run", tiny_recipe("lora"))[0]


@pytest.fixture
def photos(tmp_path):
    for number, name in enumerate(("a.png", "north/b.png")):
        write(tmp_path / "photos" / name, picture(40, 56 + number, seed=number))
    return tmp_path / "photos"


def test_labels_and_an_overlay_of_each_image(run, photos, tmp_path):
    written = predict(run.path, [photos], tmp_path / "out", opacity=1.0)
    names = ["a_labels.png", "a_overlay.png", "north/b_labels.png", "north/b_overlay.png"]
    assert written == [tmp_path / "out" / name for name in names]
    assert sorted(p for p in (tmp_path / "out").rglob("*") if p.is_file()) == sorted(written)
    model = load(run.path)
    for image, labels, coloured in zip(sorted(photos.rglob("*.png")), written[::2], written[1::2], strict=True):
        expected = model.predict(np.asarray(Image.open(image)))
        found = np.asarray(Image.open(labels))
        assert found.dtype == np.uint8
        assert np.array_equal(found, expected)
        assert np.array_equal(np.asarray(Image.open(coloured)), model.space.colourise(expected))


def test_a_merged_model_predicts_the_same_pictures(run, photos, tmp_path):
    saved = load(run.path, device="cpu").save(tmp_path / "saved")
    one = predict(run.path, [photos], tmp_path / "one")
    two = predict(saved.path, [photos], tmp_path / "two")
    assert [file.read_bytes() for file in one] == [file.read_bytes() for file in two]


def test_nothing_is_overwritten_unless_asked(run, photos, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "a_labels.png").write_text("mine")
    (out / "notes.txt").write_text("mine")
    refused(lambda: predict(run.path, [photos], out), out, "is not empty", "--overwrite")
    assert (out / "a_labels.png").read_text() == "mine"
    predict(run.path, [photos / "a.png"], out, overwrite=True)
    assert np.asarray(Image.open(out / "a_labels.png")).shape == (40, 56)
    assert (out / "notes.txt").read_text() == "mine"
    refused(lambda: predict(run.path, [photos / "none.png"], out, overwrite=True), "no such image or folder")


def test_a_folder_that_cannot_be_written_is_named(run, photos, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a_labels.png").mkdir()
    refused(lambda: predict(run.path, [photos / "a.png"], tmp_path / "out", overwrite=True), "a_labels.png", "written")


@pytest.mark.parametrize("opacity", [0.0, 0.25, 1.0])
def test_the_overlay_mixes_the_image_with_the_colours(opacity):
    space = LabelSpace(("one", "two"), ((200, 0, 40), (0, 120, 255)))
    image, labels = picture(6, 5), np.random.default_rng(1).integers(0, 2, (6, 5), dtype=np.uint8)
    colours = np.array(space.colours)[labels]
    expected = (1 - opacity) * image + opacity * colours
    found = overlay(image, labels, space, opacity)
    assert np.abs(found - expected).max() <= 0.5 + 1e-9
    assert cv2.imencode(".png", found)[0]
