"""The augmentation of the published training: rescale, crop, flip, photometric distortion.

The settings are those of Rein (Wei et al., CVPR 2024) and its successors; their distortion is that of SSD (Liu et al.,
ECCV 2016, section 2.2). The rules are those of mmsegmentation's `RandomCrop` and `PhotoMetricDistortion`, with which
they train; the random numbers are not. Images stay uint8 RGB: the segmenter normalises them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeVar

import cv2
import numpy as np
from jaxtyping import Float64, Int32, UInt8

from recyclelora.data.labels import IGNORE
from recyclelora.errors import UserError

Padding = Literal["image", "normalised"]
Drawn = TypeVar("Drawn")

CROP_ATTEMPTS = 10
BRIGHTNESS = 32.0  # grey levels
CONTRAST = (0.5, 1.5)
SATURATION = (0.5, 1.5)
HUE = (-18, 18)  # steps of two degrees, OpenCV's unit; the upper bound is not drawn
WARP_IS_EXACT = int(cv2.__version__.split(".")[0]) >= 5
"""OpenCV 4 rounds the positions that a warp reads to 1/32 pixel, which changes colours by up to 7 grey levels."""


class Wanted(NamedTuple):
    """A train class of which a crop should hold more than so many pixels."""

    label: int
    pixels: float


class Crop(NamedTuple):
    """The (h, w) that an image is rescaled to, the rows and columns that are taken of it, and the labels there."""

    size: tuple[int, int]
    window: tuple[slice, slice]
    labels: UInt8[np.ndarray, "window_h window_w"]


class Augment:
    """Random crops of randomly rescaled images.

    The image is rescaled with its aspect ratio kept: its shorter edge becomes a multiple of a tenth of the crop's
    shorter edge, drawn at random between the bounds `scale`, and its longer edge at most four crop edges. A crop should
    hold two classes, of which the larger covers less than `cat_max_ratio` of the labelled pixels. Up to 10 crops are
    tried; if none is so, an 11th is taken, whatever it holds. A `cat_max_ratio` of 1 takes the first crop. The crop is
    flipped left to right with probability `flip` and, if `photometric`, distorted. An image smaller than the crop is
    padded at the bottom and right, its labels with 255. `pad="image"` pads with 0 before the flip and the distortion,
    as part of the image. `pad="normalised"` pads last; the size without padding is returned, so that padding is 0 after
    normalisation.

    Raises:
        UserError: a bound or a probability is out of range.
    """

    def __init__(
        self,
        crop: int | tuple[int, int],
        scale: tuple[float, float] = (0.5, 2.0),
        cat_max_ratio: float = 0.75,
        flip: float = 0.5,
        photometric: bool = True,
        pad: Padding = "image",
    ) -> None:
        self.height, self.width = (crop, crop) if isinstance(crop, int) else crop
        if min(self.height, self.width) < 1:
            raise UserError(f"crop is {crop}, expected a positive number of pixels")
        # In binary, ten times a bound such as 0.7 is not exactly a whole number.
        self.tenths = range(max(1, math.ceil(10 * scale[0] - 1e-6)), math.floor(10 * scale[1] + 1e-6) + 1)
        if not self.tenths:
            raise UserError(f"scale is {scale}, expected two multiples of 0.1 in rising order, like (0.5, 2.0)")
        if not 0 < cat_max_ratio <= 1 or not 0 <= flip <= 1:
            raise UserError(f"cat_max_ratio is {cat_max_ratio} and flip {flip}, expected shares between 0 and 1")
        self.cat_max_ratio, self.flip, self.photometric, self.pad = cat_max_ratio, flip, photometric, pad

    def __call__(
        self,
        image: UInt8[np.ndarray, "h w 3"],
        labels: UInt8[np.ndarray, "h w"],
        rng: np.random.Generator,
        wanted: Wanted | None = None,
    ) -> tuple[UInt8[np.ndarray, "crop_h crop_w 3"], UInt8[np.ndarray, "crop_h crop_w"], tuple[int, int]]:
        """One augmented crop, and the height and width of its part without `"normalised"` padding.

        The same state of `rng` gives the same bytes.
        """
        size, window, labels = self.draw_crop(labels, rng, wanted)
        image = rescaled_window(image, size, window)
        if self.pad == "image":
            image, labels = self._pad(image, 0), self._pad(labels, IGNORE)
        if rng.random() < self.flip:
            image, labels = cv2.flip(image, 1), cv2.flip(labels, 1)
        image = distort(image, rng) if self.photometric else image
        return self._pad(image, 0), self._pad(labels, IGNORE), (labels.shape[0], labels.shape[1])

    def draw_crop(
        self, labels: UInt8[np.ndarray, "h w"], rng: np.random.Generator, wanted: Wanted | None = None
    ) -> Crop:
        """A size to rescale to, a window of that size, and the labels there.

        If a class is `wanted`, up to 10 crops are tried until one holds enough of it; if none does, an 11th is taken.
        """

        def draw() -> Crop:
            size = self.draw_size(labels.shape[0], labels.shape[1], rng)
            return Crop(size, *self.draw_window(labels, size, rng))

        def holds_enough(crop: Crop) -> bool:
            return wanted is None or bool(np.count_nonzero(crop.labels == wanted.label) > wanted.pixels)

        return _tried(draw, holds_enough)

    def draw_size(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int]:
        """The height and width an image is rescaled to."""
        edge = min(self.height, self.width)
        shortest = edge * int(rng.choice(self.tenths)) // 10
        factor = min(shortest / min(height, width), 4 * edge / max(height, width))
        return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))

    def draw_window(
        self, labels: UInt8[np.ndarray, "h w"], size: tuple[int, int], rng: np.random.Generator
    ) -> tuple[tuple[slice, slice], UInt8[np.ndarray, "window_h window_w"]]:
        """The rows and columns of a crop of the labels rescaled to `size` (h, w), and the labels there.

        An edge that is shorter than the crop's is returned whole.
        """
        rows, columns = _nearest(labels.shape[0], size[0]), _nearest(labels.shape[1], size[1])

        def draw() -> tuple[tuple[slice, slice], UInt8[np.ndarray, "window_h window_w"]]:
            top = int(rng.integers(max(0, size[0] - self.height) + 1))
            left = int(rng.integers(max(0, size[1] - self.width) + 1))
            window = slice(top, min(top + self.height, size[0])), slice(left, min(left + self.width, size[1]))
            return window, labels[rows[window[0]]].take(columns[window[1]], axis=1)

        return _tried(draw, lambda drawn: self._is_mixed(drawn[1]))

    def _is_mixed(self, crop: UInt8[np.ndarray, "h w"]) -> bool:
        """Whether the crop holds two classes, and the larger covers less than `cat_max_ratio` of what is labelled."""
        if self.cat_max_ratio >= 1:
            return True
        counts = cv2.calcHist([crop], [0], None, [256], [0, 256])[:IGNORE].astype(np.int64)
        return bool(np.count_nonzero(counts) > 1 and counts.max() / counts.sum() < self.cat_max_ratio)

    def _pad(self, array: UInt8[np.ndarray, "h w *channels"], value: int) -> UInt8[np.ndarray, "H W *channels"]:
        bottom, right = max(0, self.height - array.shape[0]), max(0, self.width - array.shape[1])
        border = [(0, bottom), (0, right)] + [(0, 0)] * (array.ndim - 2)
        return np.pad(array, border, constant_values=value) if bottom or right else array


def _tried(draw: Callable[[], Drawn], fits: Callable[[Drawn], bool]) -> Drawn:
    """The first of 10 draws that fits; if none does, an 11th, whatever it is."""
    for _ in range(CROP_ATTEMPTS):
        drawn = draw()
        if fits(drawn):
            return drawn
    return draw()


def rescaled_window(
    image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int], window: tuple[slice, slice]
) -> UInt8[np.ndarray, "window_h window_w 3"]:
    """A window of the image rescaled bilinearly to `size` (h, w), equal to `cv2.resize` within one grey level."""
    (height, width), (rows, columns) = size, window
    shape = rows.stop - rows.start, columns.stop - columns.start
    if size == image.shape[:2]:
        return image[window].copy()
    # A warp costs as much as resizing to an image of twice the window's area.
    if not WARP_IS_EXACT or height * width <= 2 * shape[0] * shape[1]:
        whole = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
        return np.ascontiguousarray(whole[window])
    # Pixels have their centres at halves: the place of x before rescaling by 1 / s is (x + 1/2) s - 1/2.
    down, across = image.shape[0] / height, image.shape[1] / width
    matrix = np.array([
        [across, 0, (columns.start + 0.5) * across - 0.5],
        [0, down, (rows.start + 0.5) * down - 0.5],
    ])  # fmt: skip
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    warped = cv2.warpAffine(image, matrix, shape[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(warped, np.uint8)


def _nearest(source: int, target: int) -> Int32[np.ndarray, "target"]:
    """For each of `target` pixels in a line, which of `source` pixels `cv2.resize` takes as the nearest."""
    line = cv2.resize(np.arange(source, dtype=np.int32)[None], (target, 1), interpolation=cv2.INTER_NEAREST)
    return np.asarray(line[0], np.int32)


def distort(image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
    """Change brightness, contrast, saturation, and hue, each with probability 1/2, in this order or with contrast last.

    Saturation and hue are changed in one pass through HSV, so that colours are rounded once.
    """
    levels = np.arange(256, dtype=np.float64)
    delta = rng.uniform(-BRIGHTNESS, BRIGHTNESS) if rng.random() < 0.5 else 0.0
    gain = rng.uniform(*CONTRAST) if rng.random() < 0.5 else 1.0
    contrast_first = rng.random() < 0.5
    saturation = rng.uniform(*SATURATION) if rng.random() < 0.5 else 1.0
    hue = int(rng.integers(*HUE)) if rng.random() < 0.5 else 0

    brightness = _to_uint8(levels + delta)
    contrast = _to_uint8(levels * gain)
    image = cv2.LUT(image, contrast[brightness] if contrast_first else brightness)
    if saturation != 1.0 or hue:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        tables = np.stack([(levels + hue) % 180, levels * saturation, levels], axis=-1)
        image = cv2.cvtColor(cv2.LUT(hsv, _to_uint8(tables)[None]), cv2.COLOR_HSV2RGB)
    return image if contrast_first else cv2.LUT(image, contrast)


def _to_uint8(values: Float64[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    return np.asarray(np.clip(values, 0, 255), np.uint8)
