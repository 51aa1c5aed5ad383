"""A file is read by what its bytes are: ids as stored, or a refusal that names what the file is."""

import io
import os
import struct
import time
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from labelled_files import ids, palette_image, picture, refused, write, write_png16
from recyclelora.data import decoding
from recyclelora.data.decoding import read_image, read_labels
from recyclelora.data.label_maps import read_first_channel, read_grey
from recyclelora.data.png import SIGNATURE

ADAM7 = ((0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1))
READERS = [read_labels, read_grey, read_first_channel]


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def packed(values, bits):
    """The rows of a PNG: values of so many bits, the first in the highest bits of a byte."""
    planes = (values[..., None] >> np.arange(bits)[::-1]) & 1
    return np.packbits(planes.reshape(len(values), -1).astype(np.uint8), axis=1)


def png(path, values, bits, colour=0, *more):
    """Write a PNG byte by byte from the specification, with these chunks before its pixels."""
    height, width = values.shape
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in packed(values, bits))
    parts = [chunk(b"IHDR", header), *more, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    path.write_bytes(SIGNATURE + b"".join(parts))
    return path


@pytest.mark.parametrize("width", [1, 7, 32])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_ids_of_any_number_of_bits_are_those_stored(tmp_path, bits, width):
    values = ids(24, width, classes=2**bits)
    assert (read_labels(png(tmp_path / "grey.png", values, bits)) == values).all()
    palette = chunk(b"PLTE", bytes(3 * 2**bits))
    assert (read_labels(png(tmp_path / "palette.png", values, bits, 3, palette)) == values).all()
    transparent = chunk(b"tRNS", b"\0\1")
    assert (read_labels(png(tmp_path / "transparent.png", values, bits, 0, transparent)) == values).all()


@pytest.mark.parametrize(("height", "width", "bits"), [(1, 1, 8), (5, 3, 1), (8, 8, 4), (24, 33, 2), (3, 200, 8)])
def test_interlaced_labels_are_read_if_they_are_whole(tmp_path, height, width, bits):
    values = ids(height, width, classes=2**bits)
    passes = [values[y::dy, x::dx] for y, dy, x, dx in ADAM7]
    rows = b"".join(b"\0" + row.tobytes() for part in passes if part.size for row in packed(part, bits))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 1))
    path = tmp_path / "a.png"
    for kept in (len(rows), len(rows) - 1):
        path.write_bytes(SIGNATURE + header + chunk(b"IDAT", zlib.compress(rows[:kept])) + chunk(b"IEND", b""))
        if kept == len(rows):
            assert (read_labels(path) == values).all()
    refused(lambda: read_labels(path), path, f"fewer bytes than the {len(rows)} of its header")


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("kind", ["JPEG", "WebP", "TIFF", "GIF", "BMP", "AVIF", "JPEG 2000"])
def test_label_that_is_no_png_is_refused_whatever_its_name(tmp_path, read, kind):
    file = io.BytesIO()
    Image.fromarray(ids()).convert("L" if kind != "AVIF" else "RGB").save(file, kind.replace(" ", ""))
    path = tmp_path / "a.png"
    path.write_bytes(file.getvalue())
    refused(lambda: read(path), path, f" {kind}, whatever its name says", "expected PNG", "write the class ids again")


OTHER_THINGS = {
    "Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git lfs pull"),
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "again|save it as one of these"),
    "video": (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2", "extract its frames"),
    "video ": (b"RIFF\0\0\0\0AVI LIST", "extract its frames"),
    "video  ": (b"\x1aE\xdf\xa3\x01\0\0\0", "extract its frames"),
    "macOS resource fork": (b"\0\x05\x16\x07\0\2\0\0", "remove it"),
    "web page": (b"<!DOCTYPE html><html>Sign in</html>", "download the file again"),
    "ZIP archive": (b"PK\x03\x04\x14\0", "again|save it as one of these"),
}


@pytest.mark.parametrize("read", [read_image, *READERS])
@pytest.mark.parametrize("kind", OTHER_THINGS)
def test_other_files_are_named_as_what_they_are(tmp_path, read, kind):
    content, fix = OTHER_THINGS[kind]
    path = tmp_path / "a.png"
    path.write_bytes(content)
    fix = fix.split("|")[-1 if read is read_image else 0]  # of a label and of an image, if they differ
    message = refused(lambda: read(path), path, f"holds a {kind.strip()}", fix)
    assert "damaged" not in message


def test_images_of_other_kinds_are_refused_and_the_five_are_read_under_any_name(tmp_path):
    for kind in ("PNG", "JPEG", "WebP", "BMP", "TIFF"):
        Image.fromarray(picture()).save(tmp_path / "a.jpg", kind)
        assert read_image(tmp_path / "a.jpg").shape == (24, 32, 3)
    Image.fromarray(picture()).save(tmp_path / "a.jpg", "GIF")
    refused(lambda: read_image(tmp_path / "a.jpg"), "holds a GIF", "expected PNG, JPEG, WebP, BMP or TIFF")


def of_16_bits(path, mode):
    array = (np.arange(24 * 32).reshape(24, 32) % 4096).astype(np.uint16)
    if mode == "rgb.png":
        return write_png16(path, np.dstack([array, array, array]))
    if mode == "float.tif":
        return write(path, array.astype(np.float32))
    if mode == "rgb.tif":
        assert cv2.imwrite(str(path), np.dstack([array, array, array]))
        return path
    return write(path, array)


@pytest.mark.parametrize("mode", ["grey.png", "rgb.png", "grey.tif", "rgb.tif", "float.tif"])
def test_images_of_more_than_8_bits_are_refused_with_the_way_out(tmp_path, mode):
    path = of_16_bits(tmp_path / mode, mode)
    refused(lambda: read_image(path), path, "16 or more bits", "convert it to 8 bits", "divide by 16")


@pytest.mark.parametrize("read", [read_image, *READERS])
def test_wrong_checksum_of_any_chunk_is_refused(tmp_path, read):
    whole = png(tmp_path / "a.png", ids(classes=4), 2).read_bytes()
    for place in (whole.index(b"IDAT") + 6, len(whole) - 1):
        content = bytearray(whole)
        content[place] ^= 1
        (tmp_path / "a.png").write_bytes(content)
        refused(lambda: read(tmp_path / "a.png"), tmp_path / "a.png", "wrong checksum", "replace the damaged file")


def test_label_that_its_exif_data_turn_is_refused(tmp_path):
    exif = Image.Exif()
    exif[0x112] = 3
    path = write(tmp_path / "a.png", ids(), exif=exif)
    for read in (read_labels, read_grey):
        refused(lambda read=read: read(path), path, "orientation 3", "save the label and its image upright")
    exif[0x112] = 1
    assert (read_labels(write(tmp_path / "a.png", ids(), exif=exif)) == ids()).all()


def test_grey_label_in_colours_is_read_and_one_in_16_bits_refused(tmp_path):
    path = write(tmp_path / "a.png", np.dstack([ids()] * 3))
    assert (read_grey(path) == ids()).all()
    deep = write_png16(tmp_path / "b.png", np.dstack([ids().astype(np.uint16)] * 3))
    refused(lambda: read_grey(deep), deep, "16 or more bits")


# What is not a file


@pytest.fixture(params=["pipe", "folder", "link", "loop", "device"])
def no_file(request, tmp_path):
    path = tmp_path / "a.png"
    if request.param == "pipe":
        os.mkfifo(path)
    elif request.param == "folder":
        path.mkdir()
    else:
        path.symlink_to({"link": "gone.png", "loop": "a.png", "device": "/dev/zero"}[request.param])
    return path, {"loop": "link"}.get(request.param, request.param)


@pytest.mark.parametrize("read", [read_image, *READERS])
def test_what_is_no_file_is_named_at_once(no_file, read):
    path, kind = no_file
    start = time.monotonic()
    message = refused(lambda: read(path), path, f"a {kind}", "the file")
    assert time.monotonic() - start < 1
    assert "damaged" not in message


# Sizes


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WebP", "BMP", "TIFF"])
def test_size_is_one_limit_for_all_kinds(tmp_path, monkeypatch, kind):
    path = tmp_path / "a.png"
    Image.fromarray(ids()).convert("RGB").save(path, kind)
    monkeypatch.setattr(decoding, "MOST_PIXELS", 24 * 32)
    assert read_image(path).shape == (24, 32, 3)
    monkeypatch.setattr(decoding, "MOST_PIXELS", 24 * 32 - 1)
    message = refused(lambda: read_image(path), path, "768 pixels, expected at most 767", "cut it into tiles")
    assert "damaged" not in message
    if kind == "PNG":
        palette_image(ids()).save(path)
        refused(lambda: read_labels(path), path, "768 pixels", "cut it into tiles")


@pytest.mark.parametrize("read", [read_image, read_labels])
def test_huge_size_is_refused_by_the_header_alone(tmp_path, read):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0))
    path = tmp_path / "a.png"
    path.write_bytes(SIGNATURE + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))
    refused(lambda: read(path), path, "10,000,000,000 pixels", "at most 178,956,970", "cut it into tiles")


@pytest.mark.parametrize("read", [read_image, *READERS])
@pytest.mark.parametrize(
    ("start", "fix"), [(SIGNATURE, "cut the image into tiles"), (b"\x1aE\xdf\xa3", "extract its frames")]
)
def test_huge_file_is_refused_without_reading_it(tmp_path, read, start, fix):
    path = tmp_path / "a.png"
    path.write_bytes(start)
    os.truncate(path, 2**40)  # takes no space on the disk
    refused(lambda: read(path), path, "a file of 1,099,511,627,776 bytes", "expected at most 1,073,741,824", fix)
