"""The answer of a model against scipy on the logits of the whole image, and what is drawn and stored of it."""

import io
import threading
from contextlib import nullcontext

import cv2
import numpy as np
import pytest
import torch
from cityscapesscripts.helpers.labels import labels as cityscapes_labels
from matplotlib.figure import Figure
from PIL import Image
from scipy.special import softmax
from scipy.stats import entropy

import recyclelora
from labelled_files import picture, refused, write
from recyclelora.data.decoding import read_labels
from recyclelora.data.labels import CITYSCAPES
from recyclelora.models.sliding import summed_scores
from recyclelora.pages import progress
from recyclelora.runs import predictor
from recyclelora.runs.overlay import overlay, with_legend
from recyclelora.runs.predictor import load
from recyclelora.runs.segmentation import SHOWN, Segmentation
from tiny_methods import COLOURS, NAMES, made_run, tiny_recipe


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    return {
        head: made_run(place / head, tiny_recipe("recyclelora", head))[0].path for head in ("linear", "mask2former")
    }


@pytest.fixture(params=["linear", "mask2former"])
def model(request, paths):
    return load(paths[request.param], device="cpu")


@pytest.fixture
def linear(paths):
    return load(paths["linear"], device="cpu")


def drawn(space=CITYSCAPES, size=(40, 60)):
    """A result that no model made."""
    image, labels = picture(*size), np.random.default_rng(1).integers(0, len(space), size, dtype=np.uint8)
    doubt = np.full(size, 0.5, np.float32)
    return Segmentation("photos/a.jpg", image, labels, doubt, doubt, space, lambda: np.ones((1, 1, 1), np.float32))


# What the model says


@pytest.mark.parametrize("settings", [{}, {"flip": True, "scales": [0.5, 1.0]}, {"blend": "hann"}])
def test_a_result_holds_what_the_logits_of_the_whole_image_say(model, settings):
    image = picture(72, 100)
    model = model.with_evaluation(**settings)
    result = model(image)
    logits = summed_scores(model.segmenter, image, model.plan(), 16, "cpu").double().numpy()
    of_masks = model.run.recipe.head == "mask2former"
    expected = logits / logits.sum(0) if of_masks else softmax(logits / (4 if settings.get("flip") else 1), axis=0)
    np.testing.assert_array_equal(result.labels, expected.argmax(0))
    np.testing.assert_allclose(result.confidence, expected.max(0), atol=2e-6)
    np.testing.assert_allclose(result.entropy, entropy(expected, axis=0), atol=5e-6)
    np.testing.assert_allclose(result.probabilities(), expected, atol=2e-6)
    assert [each.dtype for each in (result.labels, result.confidence, result.entropy, result.probabilities())] == [
        np.uint8, np.float32, np.float32, np.float32,
    ]  # fmt: skip
    assert result.names == tuple(NAMES)
    np.testing.assert_array_equal(result.image, image)


def test_the_labels_are_those_of_predict_and_windows_are_blended_if_a_setting_says_so(model):
    image = picture(72, 100)
    blended = model.with_evaluation(blend="hann")
    assert (model.plan().blend, blended.plan().blend) == ("uniform", "hann")
    for each in (model, blended):
        np.testing.assert_array_equal(each(image).labels, each.predict(image))
    assert (model(image).probabilities() != blended(image).probabilities()).any()


def test_several_images_give_a_list_and_say_how_far_they_are(linear, tmp_path, caplog, monkeypatch):
    for name in "abc":
        write(tmp_path / f"{name}.png", picture(40, 56, seed=ord(name)))
    monkeypatch.setattr(progress, "FIRST_PARTS", 1)
    monkeypatch.setattr(progress, "FIRST_SECONDS", 0.0)
    monkeypatch.setattr(progress, "SHORT", -1.0)
    with caplog.at_level("INFO", progress.LOGGER):
        results = linear(tmp_path)
    assert "predicting: " in caplog.text
    assert "of 3 images" in caplog.text
    assert [result.name for result in results] == ["a", "b", "c"]
    for result in results:
        np.testing.assert_array_equal(result.labels, linear(tmp_path / f"{result.name}.png").labels)
    assert isinstance(linear([tmp_path / "a.png"]), list)
    assert isinstance(linear(torch.zeros(3, 40, 56)), Segmentation)
    assert [result.labels.shape for result in linear(torch.zeros(2, 3, 40, 56))] == [(40, 56)] * 2


def test_small_images_fill_a_batch_together(linear, monkeypatch):
    model, sizes = linear.with_evaluation(batch_size=8), []
    images = [picture(24, 30, seed=number) for number in range(8)]
    alone = [model(image) for image in images]
    plain = model.segmenter.head.forward
    monkeypatch.setattr(
        model.segmenter.head, "forward", lambda maps, size: sizes.append(len(maps[0])) or plain(maps, size)
    )
    results = model(images)
    assert sizes == [8]
    for result, expected in zip(results, alone, strict=True):
        np.testing.assert_array_equal(result.labels, expected.labels)
        np.testing.assert_allclose(result.confidence, expected.confidence, atol=1e-6)
        np.testing.assert_allclose(result.probabilities(), expected.probabilities(), atol=1e-6)


def test_errors_name_the_run_and_the_image(linear, tmp_path):
    refused(lambda: linear(tmp_path / "none.png"), "none.png: no such image")
    torch.nn.init.constant_(linear.segmenter.head.classifier.bias, float("nan"))
    refused(lambda: linear([picture()]), linear.run.path, "images[0]: the scores of", "NaN or infinite")


def test_threads_get_the_results_of_one_after_another(model):
    images = [picture(72, 100 + 7 * number, seed=number) for number in range(6)]
    expected = [model(image) for image in images]
    found = {}
    started = threading.Barrier(len(images))

    def work(number):
        started.wait()
        result = model(images[number])
        found[number] = result, result.probabilities()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(images))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, one in enumerate(expected):
        result, probabilities = found[number]
        np.testing.assert_array_equal(result.labels, one.labels)
        np.testing.assert_array_equal(result.confidence, one.confidence)
        np.testing.assert_array_equal(probabilities, one.probabilities())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_changes_results_slightly_and_is_taken_back(model, dtype):
    image = picture(72, 100)
    exact = model(image)
    assert model.to("cpu", dtype) is model
    halved = model(image)
    difference = np.abs(halved.confidence - exact.confidence).max()
    assert 0 < difference < 0.1
    assert np.abs(halved.probabilities() - exact.probabilities()).max() < 0.1
    assert model.with_evaluation(flip=True).dtype == getattr(torch, dtype)
    assert {weight.dtype for weight in model.segmenter.parameters()} == {torch.float32}
    np.testing.assert_array_equal(model.to(dtype="float32")(image).confidence, exact.confidence)
    loaded = load(model.run.path, device="cpu", dtype=dtype)
    np.testing.assert_array_equal(loaded(image).confidence, halved.confidence)


def test_a_model_is_moved_in_place(linear, monkeypatch):
    assert linear.device == torch.device("cpu")
    refused(lambda: linear.to("meta"), "device meta")
    monkeypatch.setattr(predictor, "checked_device", torch.device)  # meta stands for a device that is not there
    assert linear.to("meta") is linear
    assert {weight.device.type for weight in linear.segmenter.state_dict().values()} == {"meta"}
    monkeypatch.undo()
    refused(lambda: linear.to("cuda:97"), "device cuda:97")


@pytest.mark.parametrize("around", ["dtype", "device", "autocast"])
def test_what_a_program_sets_for_torch_does_not_change_results(around, linear, paths):
    image, model = picture(72, 100), linear.with_evaluation(blend="hann")
    expected = model(image)
    torch.set_default_dtype(torch.float16 if around == "dtype" else torch.float32)
    settings = {"device": lambda: torch.device("meta"), "autocast": lambda: torch.autocast("cpu", torch.bfloat16)}
    try:
        with settings.get(around, nullcontext)():
            found = [model(image), load(paths["linear"], device="cpu").with_evaluation(blend="hann")(image)]
    finally:
        torch.set_default_dtype(torch.float32)
    for each in found:
        np.testing.assert_array_equal(each.confidence, expected.confidence)


# What is drawn and stored


def test_the_overlay_is_that_of_the_command_line():
    result = drawn()
    mixed = overlay(result.image, result.labels, CITYSCAPES, 0.3)
    np.testing.assert_array_equal(result.overlay(0.3), mixed)
    np.testing.assert_array_equal(result.overlay(0.3, legend=True), with_legend(mixed, result.labels, CITYSCAPES))
    for opacity in (-0.1, 1.1, float("nan")):
        refused(lambda: result.overlay(opacity), f"opacity {opacity}")  # noqa: B023


def test_the_pil_image_is_a_label_file_in_the_colours_of_the_classes(linear, tmp_path):
    result = linear(picture(40, 56))
    stored = result.to_pil()
    assert stored.mode == "P"
    np.testing.assert_array_equal(np.asarray(stored.convert("RGB")), np.array(COLOURS)[result.labels])
    stored.save(tmp_path / "labels.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "labels.png"), result.labels)


def test_cityscapes_ids_are_those_of_its_scripts(linear):
    result = drawn()
    by_train_id = {label.trainId: label.id for label in cityscapes_labels}
    expected = np.vectorize(by_train_id.get)(result.labels)
    found = result.to_cityscapes_ids()
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)
    refused(linear(picture()).to_cityscapes_ids, "2 of the model's classes have no id in Cityscapes (ground, tree)")


@pytest.mark.parametrize(
    ("size", "shown"), [((40, 60), (40, 60)), ((300, 2 * SHOWN), (150, SHOWN)), ((2048, 1), (1024, 1))]
)
def test_a_notebook_shows_the_overlay_with_its_legend(size, shown):
    result = drawn(size=size)
    found = np.asarray(Image.open(io.BytesIO(result._repr_png_())))
    below = found[shown[0] :]
    if size == shown:
        np.testing.assert_array_equal(found, result.overlay(legend=True))
    assert found.shape[1] >= shown[1]
    for colour in CITYSCAPES.colours:
        assert (below == colour).all(-1).sum() > 50
    small = cv2.resize(result.image, shown[::-1], interpolation=cv2.INTER_AREA).astype(float)
    assert np.abs(found[: shown[0], : shown[1]] - 0.4 * small).max() <= 0.6 * 255 + 1


def test_the_figure_shows_overlay_entropy_and_the_classes_that_occur():
    result = drawn()
    figure = result.plot()
    assert isinstance(figure, Figure)
    left, right = figure.axes[:2]
    np.testing.assert_array_equal(left.images[0].get_array(), result.overlay())
    np.testing.assert_array_equal(right.images[0].get_array(), result.entropy)
    assert right.images[0].get_clim() == (0, pytest.approx(np.log(19)))
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert named == [CITYSCAPES.names[number] for number in np.unique(result.labels)]
    assert Image.open(io.BytesIO(figure._repr_png_())).size[0] == 1200


def test_a_result_says_what_it_is():
    result = drawn()
    result.labels[:] = 10
    assert repr(result) == "Segmentation('photos/a.jpg', 40 x 60, sky)"
    assert recyclelora.Segmentation is Segmentation
