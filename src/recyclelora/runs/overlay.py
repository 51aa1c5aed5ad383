"""Draws a prediction over its image, with a legend of the classes that occur."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from recyclelora.data.labels import LabelSpace

SMALLEST, LARGEST = 13, 64
"""The sizes of the letters in pixels."""


def overlay(
    image: UInt8[np.ndarray, "h w 3"], labels: UInt8[np.ndarray, "h w"], space: LabelSpace, opacity: float
) -> UInt8[np.ndarray, "h w 3"]:
    """The image with the colours of its classes over it."""
    return np.asarray(cv2.addWeighted(image, 1 - opacity, space.colourise(labels), opacity, 0), np.uint8)


def with_legend(
    picture: UInt8[np.ndarray, "h w 3"], labels: UInt8[np.ndarray, "_ _"], space: LabelSpace
) -> UInt8[np.ndarray, "taller wider 3"]:
    """The picture with a white strip below it that names the classes of `labels`, of any size, beside their colours.

    The picture stays as it is, in the upper left corner. It gets a white margin on its right if it is narrower than the
    longest name.
    """
    height, width = picture.shape[:2]
    size = min(max(SMALLEST, round(max(height, width) / 72)), LARGEST)
    font, gap, row = _font(size), size // 2, round(1.6 * size)
    names = {identity: space.names[identity] for identity in np.unique(labels).tolist()}
    widths = {identity: round(font.getlength(name)) + size + 3 * gap for identity, name in names.items()}
    width = max(width, gap + max(widths.values()))
    places, x, y = {}, gap, height + gap
    for identity, wide in widths.items():
        if x > gap and x + wide > width:
            x, y = gap, y + row
        places[identity] = x, y
        x += wide
    canvas = Image.new("RGB", (width, y + row), "white")
    canvas.paste(Image.fromarray(picture))
    draw = ImageDraw.Draw(canvas)
    for identity, (x, y) in places.items():
        draw.rectangle((x, y, x + size, y + size), space.colours[identity], "black")
        draw.text((x + size + gap, y + size / 2), names[identity], "black", font, "lm")
    return np.array(canvas)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with Matplotlib; it has the letters of most alphabets."""
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)
