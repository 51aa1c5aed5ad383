"""The kinds of images that a model takes, all as uint8 RGB.

    path of a file      read as everywhere: upright by its EXIF data, 8 bits a channel
    path of a folder    all images below it, in the order of their names
    PIL image           upright by its EXIF data
    NumPy array         (h, w), (h, w, 1) grey, (h, w, 3) RGB, (h, w, 4) RGBA; or (n, h, w, channels): n images
    torch tensor        (h, w), (1, h, w) grey, (3, h, w) RGB, (4, h, w) RGBA; or (n, channels, h, w): n images
    list or tuple       of any of these

Numbers are uint8 in 0..255, or real numbers in 0..1. An opacity is dropped, as it is of files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from recyclelora.data.decoding import MOST_PIXELS, in_rgb, read_image
from recyclelora.data.finding import as_path, find_images
from recyclelora.errors import UserError, shortened

OneOrMore = str | os.PathLike[str] | np.ndarray | Tensor
"""A file or a folder, one array or a batch."""
Images = Image.Image | OneOrMore | list[Any] | tuple[Any, ...]

TAKEN = "expected a path, a PIL image, a NumPy array, a torch tensor, or a list of these"
CHANNELS = (1, 3, 4)
"""Grey, RGB, and RGB with an opacity."""


@dataclass(frozen=True)
class Input:
    """An image that is read when it is needed, and its name: its file's, or its place as in `images[3]`."""

    name: str
    read: Callable[[], UInt8[np.ndarray, "h w 3"]]


def is_one(images: Images) -> bool:
    """Whether this is one image, and not several, such as a folder or a batch."""
    if isinstance(images, str | os.PathLike):
        return not as_path(images).is_dir()
    return not isinstance(images, list | tuple) and getattr(images, "ndim", 0) != 4


def inputs_of(images: Images) -> list[Input]:
    """The images of any of the kinds above. Kinds and shapes are checked now, files and values when they are read.

    Raises:
        UserError: a path that does not exist, an empty list or array, or something that is no image.
    """
    if isinstance(images, list | tuple):
        found = [each for place, image in enumerate(images) for each in _inputs_at(image, f"images[{place}]")]
    else:
        found = list(_inputs_at(images, "image"))
    if not found:
        raise UserError("images: an empty list, expected at least one image")
    return found


def _inputs_at(image: Any, place: str) -> Iterator[Input]:
    """The inputs of one entry of a list."""
    if isinstance(image, str | os.PathLike):
        yield from _of_path(as_path(image))
    elif isinstance(image, Image.Image):
        if 0 in image.size:
            raise UserError(f"{place}: a PIL image of size {image.size}, expected at least one pixel")
        yield Input(place, partial(_of_pillow, image, place))
    elif isinstance(image, np.ndarray):
        yield from _of_array(image, place)
    elif isinstance(image, Tensor):
        yield from _of_tensor(image, place)
    else:
        raise UserError(f"{place}: found {type(image).__name__}, {TAKEN}{_way_in(image)}")


def _way_in(thing: Any) -> str:
    """How to make something that is taken of something that is not; empty if that is not known."""
    if isinstance(thing, list | tuple):
        return "; join lists of images, or make an array of lists of numbers: np.array(...)"
    if isinstance(thing, bytes | bytearray | memoryview):
        return "; open an image file's bytes with PIL.Image.open(io.BytesIO(...)), a path's with os.fsdecode(...)"
    if hasattr(thing, "read"):
        return "; open it with PIL.Image.open(...)"
    if hasattr(thing, "__array__"):
        return "; make it an array: np.asarray(...)"
    if isinstance(thing, Mapping):
        return "; give its values as a list: list(images.values())"
    return "; make a list of it: list(images)" if isinstance(thing, Iterable) else ""


def _of_path(place: Path) -> Iterator[Input]:
    for name, file in find_images([place]).items():
        yield Input(name if place.is_dir() else str(place), partial(read_image, file))


def _of_pillow(image: Image.Image, place: str) -> UInt8[np.ndarray, "h w 3"]:
    if image.mode.startswith(("I", "F")):
        raise UserError(
            f"{place}: a PIL image of mode {image.mode!r} with 16 or more bits per channel, expected 8 bits; convert "
            "it to 8 bits, divided so that its own brightest value becomes 255 (12 bits stored in 16: divide by 16)"
        )
    try:
        upright = ImageOps.exif_transpose(image)
        array = np.asarray(in_rgb(upright))
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, EOFError, struct.error, ...
        raise UserError(f"{place}: Pillow cannot read it ({shortened(str(error))}); replace the image") from error
    return _rgb(array, place)


def _of_array(array: np.ndarray, place: str) -> Iterator[Input]:
    order = "(h, w), (h, w, channels) or (n, h, w, channels)"
    _check_type(array.dtype.name, array.dtype == np.uint8 or array.dtype.kind == "f", place, "astype(np.uint8)")
    found = f"{place}: an array of shape {array.shape}"
    if array.ndim not in (2, 3, 4) or 0 in array.shape:
        raise UserError(f"{found}, expected {order}, none of them 0")
    if array.ndim > 2 and array.shape[-1] not in CHANNELS:
        swapped = array.shape[-3] in CHANNELS
        fix = "move the channels to the end: np.moveaxis(array, -3, -1)" if swapped else "give several as a list"
        raise UserError(f"{found}, expected 1, 3 or 4 channels in the order {order}; {fix}")
    several = array.ndim == 4
    for number, each in enumerate(array if several else [array]):
        name = f"{place}[{number}]" if several else place
        yield Input(name, partial(_rgb, each, name))


def _of_tensor(tensor: Tensor, place: str) -> Iterator[Input]:
    _check_type(str(tensor.dtype), tensor.dtype == torch.uint8 or tensor.is_floating_point(), place, "to(torch.uint8)")
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
        raise UserError(f"{place}: a sparse, nested or quantised tensor; give it dense, as in tensor.to_dense()")
    if tensor.is_meta:
        raise UserError(f"{place}: a tensor on the device meta, which holds no values; give one on another device")
    shape, order = tuple(tensor.shape), "(h, w), (channels, h, w) or (n, channels, h, w)"
    if tensor.ndim not in (2, 3, 4) or 0 in shape:
        raise UserError(f"{place}: a tensor of shape {shape}, expected {order}, none of them 0")
    if tensor.ndim > 2 and shape[-3] not in CHANNELS:
        fix = "move the channels: tensor.movedim(-1, -3)" if shape[-1] in CHANNELS else "give several as a list"
        raise UserError(f"{place}: a tensor of shape {shape}, expected 1, 3 or 4 channels in the order {order}; {fix}")
    several = tensor.ndim == 4
    for number, each in enumerate(tensor if several else [tensor]):
        name = f"{place}[{number}]" if several else place
        yield Input(name, partial(_of_chw, each, name))


def _of_chw(tensor: Shaped[Tensor, "*channels h w"], place: str) -> UInt8[np.ndarray, "h w 3"]:
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point():
        tensor = tensor.double()  # NumPy has no bfloat16
    return _rgb((tensor if tensor.ndim == 2 else tensor.movedim(0, -1)).numpy(), place)


def _check_type(name: str, taken: bool, place: str, conversion: str) -> None:
    if not taken:
        fix = "a mask is no image" if "bool" in name else f"convert it, as in `image.{conversion}` for 0 to 255"
        fix = "give paths as a list, as in `array.tolist()`" if name.startswith(("str", "bytes", "object")) else fix
        raise UserError(f"{place}: values of type {name}, expected uint8 in 0..255 or real numbers in 0..1; {fix}")


def _rgb(array: Shaped[np.ndarray, "h w *channels"], place: str) -> UInt8[np.ndarray, "h w 3"]:
    """A copy of an image of grey, RGB or RGBA values as RGB; real numbers are rounded to the nearest of 256 steps."""
    if array.shape[0] * array.shape[1] > MOST_PIXELS:
        found = array.shape[0] * array.shape[1]
        raise UserError(f"{place}: an image of {found:,} pixels, expected at most {MOST_PIXELS:,}; cut it into tiles")
    array = np.asarray(array)[..., None] if array.ndim == 2 else np.asarray(array)[..., :3]
    if array.dtype != np.uint8:
        with np.errstate(over="ignore"):
            steps = np.rint(array.astype(np.float64) * 255)
        if not (np.isfinite(steps).all() and steps.min() >= 0 and steps.max() <= 255):
            raise UserError(f"{place}: {_wrong_values(array)}")
        array = steps.astype(np.uint8)
    return np.repeat(array, 3 // array.shape[2], axis=2)


def _wrong_values(array: np.ndarray) -> str:
    if not np.isfinite(array).all():
        return f"{np.count_nonzero(~np.isfinite(array))} values are NaN or infinite, expected 0 to 1"
    fix = (
        "give the image before it is normalised" if array.min() < 0 else "divide it by 255, or by its own largest value"
    )
    return f"real numbers from {array.min():.4g} to {array.max():.4g}, expected 0 to 1; {fix}"
