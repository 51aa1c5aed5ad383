"""Every kind of image becomes the same uint8 RGB, and what is no image is refused in one line."""

import io
import os
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from labelled_files import picture, refused, write, write_png16
from recyclelora.runs.inputs import inputs_of, is_one

RGB = picture(6, 9)
GREY = RGB[..., 0]
REAL = RGB / 255
OPACITY = np.arange(54, dtype=np.uint8).reshape(6, 9, 1)


def chw(array):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, -1, 0)))


def read(images):
    return [each.read() for each in inputs_of(images)]


KINDS = {
    "rgb": RGB,
    "rgba": np.concatenate([RGB, OPACITY], 2),
    "float64": REAL,
    "float32": REAL.astype(np.float32),
    "float16": REAL.astype(np.float16),
    "float rgba": np.concatenate([REAL, OPACITY / 255], 2),
    "barely outside": REAL * (1 + 1e-7),
    "a view with steps": np.repeat(RGB[::-1, ::-1], 2, 1)[::-1, ::-2],
    "PIL": Image.fromarray(RGB),
    "PIL rgba": Image.fromarray(np.concatenate([RGB, OPACITY], 2)),
    "tensor": chw(RGB),
    "float tensor": chw(REAL).float(),
    "half tensor": chw(REAL).half(),
    "tensor with gradient": chw(REAL).requires_grad_(),
    "rgba tensor": chw(np.concatenate([RGB, OPACITY], 2)),
    "a tensor whose channels lie last in memory": torch.from_numpy(RGB.copy()).movedim(-1, 0),
}
GREYS = {
    "grey": GREY,
    "grey with an axis": GREY[..., None],
    "float grey": GREY / 255,
    "PIL grey": Image.fromarray(GREY),
    "grey tensor": torch.from_numpy(GREY.copy()),
    "grey tensor with an axis": torch.from_numpy(GREY.copy())[None],
}


@pytest.mark.parametrize("kind", [*KINDS, *GREYS])
def test_every_kind_is_read_as_the_same_rgb(kind):
    given = (KINDS | GREYS)[kind]
    expected = RGB if kind in KINDS else np.stack([GREY] * 3, -1)
    (found,) = read(given)
    assert is_one(given)
    assert (found.dtype, found.shape) == (np.uint8, (6, 9, 3))
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, expected)
    assert not isinstance(given, np.ndarray) or not np.shares_memory(found, given)


def test_real_numbers_are_rounded_to_the_nearest_step():
    (found,) = read(np.array([[0.0, 0.49 / 255, 0.51 / 255, 254.51 / 255, 1.0]]))
    assert found[0, :, 0].tolist() == [0, 0, 1, 255, 255]
    (found,) = read(torch.tensor([[0.5, 0.25]], dtype=torch.bfloat16))
    assert found[0, :, 1].tolist() == [128, 64]


def test_batches_are_several_images_even_if_they_hold_one():
    for batch in (np.stack([RGB, RGB[::-1]]), torch.stack([chw(RGB), chw(RGB[::-1])])):
        assert not is_one(batch)
        assert [each.name for each in inputs_of(batch)] == ["image[0]", "image[1]"]
        np.testing.assert_array_equal(read(batch), [RGB, RGB[::-1]])
        assert not is_one(batch[:1])
        assert len(read(batch[:1])) == 1
    np.testing.assert_array_equal(read(np.stack([GREY, GREY])[..., None])[1][..., 2], GREY)


def test_files_folders_and_lists_keep_names_and_order(tmp_path):
    for place in ("b.png", "sub/a.png", "a.png"):
        write(tmp_path / "photos" / place, picture(6, 9, seed=len(place)))
    (tmp_path / "photos" / "notes.txt").write_text("mine")
    folder, file = tmp_path / "photos", tmp_path / "photos" / "b.png"
    assert (is_one(folder), is_one(file), is_one(str(file)), is_one([file])) == (False, True, True, False)
    assert [each.name for each in inputs_of(folder)] == ["a", "b", "sub/a"]
    assert [each.name for each in inputs_of(str(file))] == [str(file)]
    several = [RGB, file, folder, np.stack([RGB] * 2), Image.fromarray(RGB)]
    names = ["images[0]", str(file), "a", "b", "sub/a", "images[3][0]", "images[3][1]", "images[4]"]
    assert [each.name for each in inputs_of(several)] == [each.name for each in inputs_of(tuple(several))] == names
    np.testing.assert_array_equal(read(several)[1], picture(6, 9, seed=5))


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_file_and_its_pil_image_are_turned_upright_alike(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    file = write(tmp_path / f"a{suffix}", RGB, exif=exif)
    with Image.open(file) as opened:
        pixels = np.asarray(opened.convert("RGB"))
        by_file, by_pillow = read([file, opened])
    np.testing.assert_array_equal(by_file, np.rot90(pixels, -1))
    np.testing.assert_array_equal(by_pillow, by_file)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "CMYK", "YCbCr"])
def test_pil_images_of_other_modes_are_read_as_pillow_converts_them(mode):
    image = Image.fromarray(RGB).convert(mode)
    np.testing.assert_array_equal(read(image)[0], np.asarray(image.convert("RGB")))


def test_the_opacity_of_a_palette_is_dropped_without_a_warning(tmp_path):
    palette = Image.fromarray(RGB).quantize(20)
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down, which Pillow reads
    palette.save(tmp_path / "a.png", transparency=bytes(range(20)), exif=exif)
    with Image.open(tmp_path / "a.png") as opened, warnings.catch_warnings():
        warnings.simplefilter("error")
        by_file, by_pillow = read([tmp_path / "a.png", opened])
    for found in (by_file, by_pillow):
        np.testing.assert_array_equal(found, np.asarray(palette.convert("RGB"))[::-1, ::-1])


WRONG = {
    "above": (REAL * 2, ["real numbers from", "expected 0 to 1", "divide it by 255"]),
    "in 0..255": (RGB.astype(np.float32), [f"to {RGB.max()}, expected 0 to 1", "divide it by 255"]),
    "normalised": (REAL - 0.5, ["real numbers from -0.5", "before it is normalised"]),
    "beyond doubt": (np.full((2, 2), 1e308), ["real numbers from 1e+308"]),
    "NaN": (np.where(OPACITY == 3, np.nan, REAL), ["3 values are NaN or infinite"]),
    "infinite": (chw(REAL).float() / 0, ["values are NaN or infinite"]),
    "bool": (GREY > 3, ["type bool", "a mask is no image"]),
    "bool tensor": (torch.from_numpy(GREY > 3), ["type torch.bool", "a mask is no image"]),
    "int64": (RGB.astype(np.int64), ["type int64", "astype(np.uint8)"]),
    "uint16": (RGB.astype(np.uint16), ["type uint16", "uint8 in 0..255"]),
    "complex": (REAL * 1j, ["type complex128"]),
    "text array": (np.array(["a"]), ["type str", "array.tolist()"]),
    "five dimensions": (np.zeros((1, 1, 6, 9, 3), np.uint8), ["shape (1, 1, 6, 9, 3)", "(n, h, w, channels)"]),
    "five dimensions of a tensor": (torch.zeros(1, 1, 3, 6, 9), ["shape (1, 1, 3, 6, 9)", "(n, channels, h, w)"]),
    "one dimension": (np.zeros(9, np.uint8), ["shape (9,)"]),
    "empty": (np.zeros((0, 9, 3), np.uint8), ["shape (0, 9, 3)", "none of them 0"]),
    "empty batch": (torch.zeros(0, 3, 6, 9), ["shape (0, 3, 6, 9)", "none of them 0"]),
    "channels first": (np.moveaxis(RGB, -1, 0), ["shape (3, 6, 9)", "np.moveaxis(array, -3, -1)"]),
    "channels last": (torch.from_numpy(RGB.copy()), ["shape (6, 9, 3)", "tensor.movedim(-1, -3)"]),
    "two channels": (RGB[..., :2], ["expected 1, 3 or 4 channels", "as a list"]),
    "sparse": (chw(REAL).to_sparse(), ["tensor.to_dense()"]),
    "no values": (torch.zeros(3, 6, 9, device="meta"), ["device meta, which holds no values"]),
    "integers of a tensor": (chw(RGB).long(), ["type torch.int64", "`image.to(torch.uint8)`"]),
    "paths in an array": (np.array(["a.png"], object), ["type object", "array.tolist()"]),
    "16 bits of PIL": (Image.fromarray(GREY.astype(np.uint16)), ["mode 'I;16'", "expected 8 bits"]),
    "real PIL": (Image.fromarray(GREY.astype(np.float32)), ["mode 'F'"]),
    "no pixels of PIL": (Image.new("RGB", (0, 5)), ["size (0, 5)"]),
    "empty list": ([], ["an empty list"]),
    "nothing": (None, ["found NoneType", "expected a path, a PIL image"]),
    "bytes": (b"\x89PNG", ["found bytes", "io.BytesIO"]),
    "bytes of a path": (os.fsencode("a.png"), ["found bytes", "os.fsdecode"]),
    "open file": (io.BytesIO(b"\x89PNG"), ["found BytesIO", "PIL.Image.open"]),
    "generator": ((each for each in [RGB]), ["found generator", "list(images)"]),
    "mapping": ({"a": RGB}, ["found dict", "list(images.values())"]),
    "something like an array": (np.float64(0.5), ["found float64", "np.asarray"]),
    "empty path": ("", ["an empty path"]),
    "long path": ("x" * 300, ["x...: cannot be read (File name too long)"]),
    "missing": ("none.png", ["none.png: no such image or folder"]),
    "list of lists": ([RGB, [RGB]], ["images[1]: found list", "join lists of images"]),
    "wrong in a list": ([RGB, REAL * 2], ["images[1]: real numbers"]),
    "wrong in a batch": (np.stack([REAL, REAL * 2]), ["image[1]: real numbers"]),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_image_is_refused_in_one_line(kind):
    given, parts = WRONG[kind]
    refused(lambda: read(given), *parts)


def test_wrong_kinds_are_refused_before_anything_is_read(tmp_path):
    file = write_png16(tmp_path / "deep.png", RGB.astype(np.uint16))
    refused(lambda: inputs_of([file, "none.png"]), "none.png: no such image")
    refused(inputs_of([file])[0].read, file, "16 or more bits")


def test_a_truncated_pil_image_is_refused(tmp_path):
    content = io.BytesIO()
    Image.fromarray(picture(64, 64)).save(content, "PNG")
    with Image.open(io.BytesIO(content.getvalue()[:-2000])) as opened:
        refused(lambda: read(opened), "image: Pillow cannot read it", "truncated")
