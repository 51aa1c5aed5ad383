"""Files are decoded as Pillow decodes them, and refused if they are not whole."""

import contextlib
import io
import struct
import warnings
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, PngImagePlugin

from labelled_files import ids, palette_image, picture, refused, write
from recyclelora.data import decoding
from recyclelora.data.decoding import as_jpeg, read_image, read_labels
from recyclelora.data.png import SIGNATURE as PNG_SIGNATURE
from recyclelora.errors import UserError


def smooth(height=40, width=56, seed=0):
    """A smooth picture, whose JPEG is not only noise."""
    return cv2.GaussianBlur(picture(height, width, seed), (0, 0), 2)


def pillow(path):
    """The reference: the whole image decoded by Pillow, upright."""
    with Image.open(path) as image:
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))


def exif(orientation):
    data = Image.Exif()
    data[0x0112] = orientation
    return data


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(rows, height):
    """A grey PNG of these rows, whose header promises `height` of them."""
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", len(rows[0]), height, 8, 0, 0, 0, 0))
    return PNG_SIGNATURE + header + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.fixture
def by_opencv(monkeypatch):
    """One entry for each file that OpenCV decoded."""
    decoded, plain = [], decoding._decode

    def record(content):
        pixels = plain(content)
        decoded.extend(["by OpenCV"] * (pixels is not None))
        return pixels

    monkeypatch.setattr(decoding, "_decode", record)
    return decoded


def transparent_palette(path):
    palette_image(ids(classes=256)).save(path, transparency=3)


KINDS = {
    "rgb.png": lambda path: write(path, smooth()),
    "rgba.png": lambda path: write(path, np.dstack([smooth(), smooth()[..., 0]])),
    "grey.png": lambda path: write(path, smooth()[..., 0]),
    "grey-alpha.png": lambda path: Image.fromarray(smooth()[..., 0]).convert("LA").save(path),
    "palette.png": lambda path: palette_image(ids(classes=256)).save(path),
    "palette-transparent.png": transparent_palette,
    "rgb-transparent.png": lambda path: Image.fromarray(smooth()).save(path, transparency=(1, 2, 3)),
    "rgb.jpg": lambda path: write(path, smooth()),
    "full.jpg": lambda path: Image.fromarray(smooth(41, 57)).save(path, quality=95, subsampling=0),
    "progressive.jpeg": lambda path: Image.fromarray(smooth(41, 57)).save(path, progressive=True),
    "grey.jpg": lambda path: write(path, smooth()[..., 0]),
    "upright.jpg": lambda path: write(path, smooth(), exif=exif(1)),
}


@pytest.mark.parametrize("name", KINDS)
def test_opencv_gives_the_bytes_of_pillow(tmp_path, by_opencv, name):
    path = tmp_path / name
    KINDS[name](path)
    pixels = read_image(path)
    assert by_opencv == ["by OpenCV"]
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    assert (pixels == pillow(path)).all()


def xmp(orientation):
    info = PngImagePlugin.PngInfo()
    packet = f'<x:xmpmeta><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'
    info.add_itxt("XML:com.adobe.xmp", packet)
    return info


def animated(path):
    frames = [Image.fromarray(smooth(seed=seed)) for seed in range(2)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


OTHERS = {
    **{f"turned-{way}.jpg": lambda path, way=way: write(path, smooth(), exif=exif(way)) for way in range(2, 9)},
    **{f"turned-{way}.png": lambda path, way=way: write(path, smooth(), exif=exif(way)) for way in (3, 6)},
    "turned-by-xmp.png": lambda path: Image.fromarray(smooth()).save(path, pnginfo=xmp(6)),
    "cmyk.jpg": lambda path: Image.fromarray(smooth()).convert("CMYK").save(path),
    "animated.png": animated,
    "binary.png": lambda path: write(path, smooth()[..., 0] > 127),
    "picture.webp": lambda path: write(path, smooth()),
    "picture.bmp": lambda path: write(path, smooth()),
    "picture.tif": lambda path: write(path, smooth()),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_opencv_reads_otherwise_is_read_by_pillow(tmp_path, by_opencv, name):
    path = tmp_path / name
    OTHERS[name](path)
    assert (read_image(path) == pillow(path)).all()
    assert by_opencv == []


def test_turned_photograph_is_upright(tmp_path):
    path = write(tmp_path / "a.png", smooth(), exif=exif(6))
    assert (read_image(path) == np.rot90(smooth(), -1)).all()
    Image.fromarray(smooth()).save(path, pnginfo=xmp(3))
    assert (read_image(path) == smooth()[::-1, ::-1]).all()


def test_jpeg_with_bytes_after_its_end_is_read(tmp_path, by_opencv):
    path = write(tmp_path / "a.jpg", smooth())
    expected = pillow(path)
    path.write_bytes(path.read_bytes() + b"\0\0trailer")
    assert (read_image(path) == expected).all()
    assert by_opencv == []


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp", ".tif"])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.02, 0.5, 0.9, 0.99])
def test_truncated_image_is_refused(tmp_path, suffix, kept, capfd):
    path = write(tmp_path / f"a{suffix}", picture(200, 200))
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    refused(lambda: read_image(path), path, "cannot be read as an image", "replace the damaged file")
    assert not capfd.readouterr().err


def test_file_cut_at_the_end_of_its_thumbnail_is_refused(tmp_path):
    path = write(tmp_path / "a.jpg", smooth())
    thumbnail, whole = path.read_bytes(), path.read_bytes()
    segment = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    path.write_bytes(whole[:2] + segment)
    assert path.read_bytes().endswith(decoding.JPEG_END)
    refused(lambda: read_image(path), path, "cannot be read as an image")


PNG_FILE = io.BytesIO()
Image.fromarray(smooth()).save(PNG_FILE, "PNG")


@given(st.integers(0, len(PNG_FILE.getvalue()) - 1), st.integers(0, 7))
@settings(max_examples=60)
def test_png_with_one_wrong_bit_is_refused_or_read_as_by_pillow(tmp_path_factory, place, bit):
    content = bytearray(PNG_FILE.getvalue())
    content[place] ^= 1 << bit
    path = tmp_path_factory.getbasetemp() / "wrong.png"
    path.write_bytes(content)
    with contextlib.suppress(UserError):
        assert (read_image(path) == pillow(path)).all()


@pytest.mark.parametrize("read", [read_image, read_labels])
def test_png_with_missing_or_surplus_rows_is_refused(tmp_path, read):
    rows = [bytes(range(8 * i, 8 * i + 8)) for i in range(6)]
    path = tmp_path / "a.png"
    path.write_bytes(png(rows, height=9))
    refused(lambda: read(path), path, "fewer bytes than the 81 of its header", "replace the damaged file")
    path.write_bytes(png(rows, height=6))
    assert (read(path).reshape(48, -1)[:, 0] == np.arange(48)).all()
    if read is read_labels:
        path.write_bytes(png(rows, height=5))
        refused(lambda: read(path), path, "more bytes than the 45 of its header")


def test_damaged_exif_is_named_with_its_file(tmp_path):
    path = write(tmp_path / "a.png", smooth(), exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03")
    with warnings.catch_warnings(record=True):  # Pillow warns of what it leaves out
        warnings.simplefilter("always")
        assert (read_image(path) == smooth()).all()
    path = write(tmp_path / "b.png", smooth(), exif=b"Exif\0\0no header")
    refused(lambda: read_image(path), path, "cannot be read as an image", "TIFF")


def test_missing_files_other_files_and_16_bits_are_refused(tmp_path):
    refused(lambda: read_image(tmp_path / "none.png"), tmp_path / "none.png", "No such file")
    text = tmp_path / "text.png"
    text.write_text("this is no image")
    refused(lambda: read_image(text), text, "cannot be read as an image")
    deep = write(tmp_path / "deep.png", ids().astype(np.uint16) * 256)
    refused(lambda: read_image(deep), deep, "16 or more bits", "convert it to 8 bits")


def test_labels_are_grey_values_palette_indices_or_bits(tmp_path):
    indices = ids(classes=256)
    path = tmp_path / "a.png"
    palette_image(indices).save(path)
    assert (read_labels(path) == indices).all()
    assert read_labels(path).dtype == np.uint8
    write(path, indices)
    assert (read_labels(path) == indices).all()
    write(path, indices > 99)
    assert (read_labels(path) == (indices > 99)).all()
    write(path, smooth())
    refused(lambda: read_labels(path), path, "mode 'RGB' (3 channels)", "one channel of 8-bit ids")


def test_an_image_goes_through_a_jpeg_as_through_a_file(tmp_path):
    for number, image in enumerate((smooth(), smooth(41, 57), picture(1, 3), np.full((20, 20, 3), 77, np.uint8))):
        path = tmp_path / f"{number}.jpg"
        Image.fromarray(image).save(path)
        assert (as_jpeg(image) == read_image(path)).all()


def test_a_large_image_is_read_without_pillows_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 24 * 31)  # from 744 pixels Pillow warns, from 1,488 it refuses
    for suffix in ("png", "jpg", "webp", "bmp", "tif"):
        path = write(tmp_path / f"a.{suffix}", picture())
        assert read_image(path).shape == (24, 32, 3)
    assert read_labels(write(tmp_path / "b.png", ids())).shape == (24, 32)
