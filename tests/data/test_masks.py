"""Masks are those that Matplotlib finds by the centres of pixels, and that pycocotools encodes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.path import Path as Outline

from recyclelora.data.masks import polygon_mask, run_length_mask, run_lengths


def whole(mask, height, width):
    """The mask in its image."""
    image = np.zeros((height, width), bool)
    h, w = mask.pixels.shape
    image[mask.row : mask.row + h, mask.column : mask.column + w] = mask.pixels
    return image


def by_centres(points, height, width):
    """The reference: Matplotlib's test of each pixel's centre; star-shaped outlines, in which all rules agree."""
    rows, columns = np.mgrid[:height, :width] + 0.5
    return Outline(points).contains_points(np.stack([columns.ravel(), rows.ravel()], axis=1)).reshape(height, width)


@given(st.integers(0, 10**6), st.integers(3, 25), st.floats(0.5, 90))
@settings(max_examples=100)
def test_polygon_covers_the_pixels_whose_centres_it_holds(seed, corners, radius):
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
    reach = radius * rng.uniform(0.3, 1, corners)
    points = rng.uniform(-10, 110, 2) + np.stack([reach * np.cos(angles), reach * np.sin(angles)], axis=1)
    found = whole(polygon_mask([points.ravel()], 90, 100), 90, 100)
    assert (found == by_centres(points, 90, 100)).all()


def test_rectangle_covers_its_pixels_and_not_those_beside():
    found = whole(polygon_mask([np.array([2.0, 1, 7, 1, 7, 4, 2, 4])], 6, 9), 6, 9)
    expected = np.zeros((6, 9), bool)
    expected[1:4, 2:7] = True
    assert (found == expected).all()
    assert (whole(polygon_mask([np.array([7.0, 4, 7, 1, 2, 1, 2, 4])], 6, 9), 6, 9) == expected).all()


def test_several_polygons_are_one_object_and_outside_of_the_image_is_nothing():
    two = [np.array([0.0, 0, 3, 0, 3, 3, 0, 3]), np.array([2.0, 2, 5, 2, 5, 5, 2, 5])]
    found = whole(polygon_mask(two, 8, 8), 8, 8)
    assert found.sum() == 17
    assert found[2, 2]  # where they overlap
    assert not polygon_mask([np.array([20.0, 20, 30, 20, 30, 30])], 8, 8).pixels.size
    assert whole(polygon_mask([np.array([-50.0, -50, 90, -50, 90, 90, -50, 90])], 8, 8), 8, 8).all()


SMALL = np.zeros((7, 9), bool)
SMALL[1:4, 2:7] = SMALL[5, 8] = SMALL[0, 0] = True
HOLE = np.zeros((300, 500), bool)
HOLE[:, 100:400] = True
HOLE[150, 250] = False

PACKED = [  # what pycocotools 2.0's `mask.encode` makes of them
    (SMALL, "01>2F0000000;NB"),
    (HOLE, "`Ym0nR\\11cF_Ym0"),
]


@pytest.mark.parametrize(("mask", "text"), PACKED)
def test_packed_run_lengths_are_those_of_pycocotools(mask, text):
    runs = run_lengths({"counts": text, "size": list(mask.shape)}, *mask.shape)
    assert (whole(run_length_mask(runs, *mask.shape), *mask.shape) == mask).all()


def test_run_lengths_go_down_the_columns():
    counts = [0, 1, 14, 3, 4, 3, 4, 3, 4, 3, 4, 3, 15, 1, 1]
    runs = run_lengths({"counts": counts, "size": [7, 9]}, 7, 9)
    assert (whole(run_length_mask(runs, 7, 9), 7, 9) == SMALL).all()
    assert not run_length_mask(run_lengths({"counts": [63], "size": [7, 9]}, 7, 9), 7, 9).pixels.size


@pytest.mark.parametrize(
    ("outline", "message"),
    [
        ({"counts": [62], "size": [7, 9]}, "cover 62 pixels, expected 63"),
        ({"counts": [70, -7], "size": [7, 9]}, "cover 63 pixels"),
        ({"counts": [2**70, 1], "size": [7, 9]}, "cover 1180591620717411303425 pixels"),
        ({"counts": [63], "size": [9, 7]}, r"the size \[9, 7\], expected \[7, 9\]"),
        ({"counts": [63]}, "the size None"),
        ({"counts": "01>2F0000000;NB`", "size": [7, 9]}, "end within a number"),
        ({"counts": "01>2F0000000;N ", "size": [7, 9]}, "the character ' '"),
        ({"counts": 63, "size": [7, 9]}, "neither a list of whole numbers nor a text"),
        ({"counts": [31.5, 31.5], "size": [7, 9]}, "neither a list of whole numbers nor a text"),
    ],
)
def test_wrong_run_lengths_are_refused(outline, message):
    with pytest.raises(ValueError, match=message):
        run_lengths(outline, 7, 9)
