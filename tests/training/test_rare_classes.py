"""Rare-class sampling: the probabilities of DAFormer, and images that hold the class that was drawn."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from in_memory import in_memory
from labelled_files import MAKERS, refused
from recyclelora.data.labels import IGNORE, LabelSpace, unchanged
from recyclelora.data.opening import open_domain
from recyclelora.recipe import RareClassSettings
from recyclelora.training.rare_classes import class_probabilities, rare_classes

NAMES = ("ground", "sky", "tree", "post", "bird")
SPACE = LabelSpace(NAMES, tuple((i, i, i) for i in range(5)))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RECYCLELORA_CACHE", str(tmp_path / "cache"))


def daformer(pixels, temperature):
    """`get_rcs_class_probs` of DAFormer's code, for the classes that occur."""
    freq = torch.tensor(pixels, dtype=torch.float64)
    freq = 1 - freq / torch.sum(freq)
    return torch.softmax(freq / temperature, dim=-1)


def rows(*counts):
    """Label maps with these numbers of pixels of each class, the rest of 100 ignored."""
    maps = [np.repeat([0, 1, 2, 3, 4], each).tolist() for each in counts]
    return in_memory("town", unchanged(SPACE), [[each + [IGNORE] * (100 - len(each))] for each in maps])


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=19), st.floats(0.001, 100))
@settings(deadline=None)
def test_the_probabilities_are_those_of_daformer(pixels, temperature):
    found = class_probabilities(np.array(pixels), temperature)
    assert found == pytest.approx(daformer(pixels, temperature).tolist(), rel=1e-9, abs=1e-300)
    with_absent = class_probabilities(np.array([0, *pixels, 0]), temperature)
    assert with_absent == pytest.approx([0, *found.tolist(), 0], rel=1e-12, abs=0)


def test_one_percent_more_pixels_is_drawn_e_times_less_often_at_the_published_temperature():
    probabilities = class_probabilities(np.array([49, 50, 1]), 0.01)
    assert probabilities[0] / probabilities[1] == pytest.approx(np.e)


COUNTS = ((50, 30, 15, 0, 5), (60, 40, 0, 0, 0), (90, 0, 0, 8, 2), (20, 20, 30, 4, 20))


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_the_drawn_class_is_never_absent_and_its_images_are_drawn_evenly(temperature):
    domain = rows(*COUNTS)
    rare = rare_classes(domain, RareClassSettings(temperature=temperature, min_pixels=3, min_crop_ratio=0.5))
    drawn = [rare.draw(np.random.default_rng((7, number))) for number in range(5000)]
    for image, (label, pixels) in drawn:
        assert COUNTS[image][label] > 3
        assert pixels == 1.5
    labels = np.array([label for _, (label, _) in drawn])
    expected = daformer(np.sum(COUNTS, axis=0).tolist(), temperature).numpy()
    assert chisquare(np.bincount(labels, minlength=5), expected * len(drawn)).pvalue > 0.01
    for label, holding in enumerate(([0, 1, 2, 3], [0, 1, 3], [0, 3], [2, 3], [0, 3])):
        images = np.array([image for image, _ in drawn])[labels == label]
        found, counts = np.unique(images, return_counts=True)
        assert found.tolist() == holding
        assert chisquare(counts).pvalue > 0.01


def test_an_image_holds_more_than_the_least_number_of_pixels():
    domain = rows((10, 9, 0, 0, 0), (9, 10, 0, 0, 0))
    rare = rare_classes(domain, RareClassSettings(min_pixels=9))
    assert [images.tolist() for images in rare.images] == [[0], [1]]
    assert rare.crop_pixels == 4.5
    assert rare_classes(domain, RareClassSettings(min_pixels=8)).images[0].tolist() == [0, 1]


def test_a_class_that_no_image_holds_enough_of_is_left_out_with_a_warning():
    domain = rows((50, 40, 0, 3, 0), (60, 30, 0, 2, 1))
    with pytest.warns(UserWarning, match="town: rare_classes: min_pixels is 9, .* more than 3 pixels of post, 1 pix"):
        rare = rare_classes(domain, RareClassSettings(min_pixels=9, temperature=0.5))
    assert rare.classes.tolist() == [0, 1]
    expected = daformer([110, 70, 5, 1], 0.5)[:2]
    assert rare.probabilities == pytest.approx((expected / expected.sum()).tolist())
    assert rare.probabilities.sum() == pytest.approx(1)


def test_too_high_a_number_of_pixels_is_refused():
    settings_ = RareClassSettings(min_pixels=60)
    refused(
        lambda: rare_classes(rows((50, 40, 0, 0, 0), (60, 30, 0, 0, 0)), settings_),
        "town: rare_classes: min_pixels is 60, but no image holds more than 60 pixels of a class; lower min_pixels",
    )


@pytest.mark.parametrize("name", MAKERS)
def test_every_data_set_can_be_drawn_from(name, tmp_path):
    domain = open_domain(f"{name}={MAKERS[name](tmp_path, count=3)}", "train", images=3, limit=2)
    rare = rare_classes(domain, RareClassSettings(min_pixels=0))
    for number in range(20):
        image, wanted = rare.draw(np.random.default_rng(number))
        assert wanted is None  # half of no pixels
        assert 0 <= image < 2
    for label, images in zip(rare.classes, rare.images, strict=True):
        assert all((domain.read(int(image))[1] == label).any() for image in images)


def test_rendered_streets_can_be_drawn_from():
    domain = open_domain("streets:fog", "train", limit=2)
    with pytest.warns(UserWarning, match=r"streets:fog: rare_classes: min_pixels is 3000"):
        rare = rare_classes(domain, RareClassSettings())
    assert (domain.read(int(rare.images[0][0]))[1] == rare.classes[0]).sum() > 3000
