"""The overlay mixes an image with colours, and its legend names each class that occurs without covering the picture."""

import numpy as np
import pytest

from labelled_files import picture
from recyclelora.data.labels import CITYSCAPES, LabelSpace
from recyclelora.runs.overlay import LARGEST, SMALLEST, overlay, with_legend

WHITE = np.array([255, 255, 255])


@pytest.mark.parametrize("opacity", [0.0, 0.25, 1.0])
def test_the_overlay_mixes_the_image_with_the_colours(opacity):
    space = LabelSpace(("one", "two"), ((200, 0, 40), (0, 120, 255)))
    image, labels = picture(6, 5), np.random.default_rng(1).integers(0, 2, (6, 5), dtype=np.uint8)
    colours = np.array(space.colours)[labels]
    expected = (1 - opacity) * image + opacity * colours
    found = overlay(image, labels, space, opacity)
    assert np.abs(found - expected).max() <= 0.5 + 1e-9


@pytest.mark.parametrize(("height", "width"), [(1, 1), (50, 34), (256, 512), (700, 2048), (40, 6000)])
@pytest.mark.parametrize("present", [[3], [0, 10, 18], range(19)])
def test_the_legend_stands_below_the_picture_and_shows_the_classes_that_occur(height, width, present):
    image = picture(height, width)
    labels = np.resize(np.array(present, np.uint8), (height, width))
    present = np.unique(labels)
    found = with_legend(image, labels, CITYSCAPES)
    assert found.dtype == np.uint8
    assert (found[:height, :width] == image).all()
    assert (found[:height, width:] == WHITE).all()
    strip = found[height:]
    for identity, colour in enumerate(CITYSCAPES.colours):
        pixels = (strip == colour).all(axis=-1).sum()
        if identity in present:
            assert pixels >= (SMALLEST - 2) ** 2
        else:
            assert pixels < SMALLEST  # a grey class has the colour of some edges of letters
    assert (strip[:2] == WHITE).all()
    assert (strip[:, -1] == WHITE).all()


def rows_of_text(found, height):
    """How many rows of the legend there are."""
    ink = (found[height:] != 255).any(axis=(1, 2))
    return int((np.diff(ink.astype(int)) == 1).sum())


def test_names_of_a_narrow_picture_stand_below_each_other():
    labels = np.resize(np.arange(19, dtype=np.uint8), (50, 60))
    found = with_legend(picture(50, 60), labels, CITYSCAPES)
    assert rows_of_text(found, 50) >= 10
    assert rows_of_text(with_legend(picture(50, 3000), np.resize(labels, (50, 3000)), CITYSCAPES), 50) == 2


def test_names_get_larger_with_the_picture_and_differ():
    space = LabelSpace(("ööö", "straße"), ((255, 0, 0), (255, 0, 0)))

    def drawn(identity, width):
        return with_legend(np.zeros((8, width, 3), np.uint8), np.full((8, width), identity, np.uint8), space)[8:]

    assert (drawn(0, 512)[:, :200] != drawn(1, 512)[:, :200]).any()
    heights = [drawn(0, width).shape[0] for width in (100, 900, 2000, 4608, 9000)]
    assert heights == sorted(heights)
    assert heights[0] > SMALLEST
    assert heights[3] == heights[4] <= 3 * LARGEST
