"""A JPEG that is short inside is refused although it ends as a whole one does; a whole one never is."""

import io

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from labelled_files import ids, picture, refused
from recyclelora.data import jpeg
from recyclelora.data.decoding import read_image

END = b"\xff\xd9"
KINDS = {
    "baseline": {},
    "full colour": {"subsampling": 0},
    "restarts": {"restart_marker_blocks": 5},
    "grey": {"mode": "L"},
    "CMYK": {"mode": "CMYK"},
    "turned": {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"},
}


def stored(array, mode="RGB", **options):
    file = io.BytesIO()
    Image.fromarray(array).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


def smooth(height=96, width=128):
    return cv2.GaussianBlur(picture(height, width), (0, 0), 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lost", [0.05, 0.4, 0.8])
def test_jpeg_that_ends_too_early_is_refused_though_it_has_an_end_marker(tmp_path, kind, lost):
    content = stored(smooth(), **KINDS[kind])
    scan = content.index(b"\xff\xda") + 20
    path = tmp_path / "a.jpg"
    path.write_bytes(content[: scan + int((1 - lost) * (len(content) - scan))].rstrip(b"\xff") + END)
    refused(lambda: read_image(path), path, "compressed data end before its last pixels", "replace the damaged file")


def test_part_that_is_missing_between_two_restarts_is_noticed(tmp_path):
    content = stored(smooth(), **KINDS["restarts"])
    third, fourth = (content.index(bytes([0xFF, 0xD0 + number])) for number in (2, 3))
    path = tmp_path / "a.jpg"
    path.write_bytes(content[: third + 5] + content[fourth:])
    refused(lambda: read_image(path), path, "compressed data end before its last pixels")


@pytest.mark.parametrize("kind", [*KINDS, "progressive"])
def test_whole_jpeg_with_grey_blocks_is_read(tmp_path, kind):
    image = smooth()
    image[32:72, 40:100] = 128
    content = stored(image, **(KINDS | {"progressive": {"progressive": True}})[kind])
    assert not jpeg.is_short(content)
    (tmp_path / "a.jpg").write_bytes(content)
    pixels = read_image(tmp_path / "a.jpg")
    assert kind == "CMYK" or jpeg.has_grey_block(pixels)
    assert not jpeg.has_grey_block(smooth())


@given(st.integers(0, 20), st.integers(0, 20), st.integers(8, 20), st.integers(8, 20))
@settings(max_examples=50)
def test_every_block_of_grey_is_seen_wherever_it_lies(row, column, height, width):
    image = np.stack([ids(41, 43, classes=100)] * 3, axis=-1)
    assert not jpeg.has_grey_block(image)
    image[row : row + height, column : column + width] = jpeg.GREY
    assert jpeg.has_grey_block(image)
    assert not jpeg.has_grey_block(image[:3, :3])
