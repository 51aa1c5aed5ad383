"""Masks of objects from polygons and from COCO's run lengths.

A polygon covers the pixels whose centres it holds; the first pixel reaches from 0 to 1. OpenCV and Pillow would also
colour each pixel that an edge touches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64


class Mask(NamedTuple):
    """The part of an image in which an object lies, and which of its pixels belong to the object."""

    row: int
    column: int
    pixels: Bool[np.ndarray, "h w"]


def polygon_mask(polygons: Sequence[Float64[np.ndarray, "_"]], height: int, width: int) -> Mask:
    """The pixels that any of the polygons holds (even-odd rule); each is a list of x, y, x, y, ... in pixels."""
    points = np.concatenate([polygon.reshape(-1, 2) for polygon in polygons])
    left, top = np.clip(np.floor(points.min(axis=0)), 0, (width, height)).astype(int)
    right, bottom = np.clip(np.ceil(points.max(axis=0)), (left, top), (width, height)).astype(int)
    pixels = np.zeros((bottom - top, right - left), bool)
    for polygon in polygons:
        pixels |= _inside(polygon.reshape(-1, 2) - (left, top), *pixels.shape)
    return Mask(int(top), int(left), pixels)


def _inside(points: Float64[np.ndarray, "points 2"], height: int, width: int) -> Bool[np.ndarray, "h w"]:
    """Walk along each row from the left; every edge that is crossed between two centres changes inside to outside."""
    ends = np.stack([points, np.roll(points, -1, axis=0)])
    order = np.argsort(ends[..., 1], axis=0)
    (x0, y0), (x1, y1) = np.take_along_axis(ends, order[..., None], axis=0).transpose(0, 2, 1)
    first, last = (np.ceil(np.clip(y, 0, height) - 0.5).astype(int) for y in (y0, y1))  # rows from first to below last
    count = last - first
    edge = np.repeat(np.arange(len(points)), count)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
    x = x0[edge] + (row + 0.5 - y0[edge]) * (x1 - x0)[edge] / (y1 - y0)[edge]
    crossings = np.zeros((height, width + 1), np.int32)
    np.add.at(crossings, (row, np.clip(np.ceil(x - 0.5), 0, width).astype(int)), 1)
    return np.asarray(crossings.cumsum(axis=1)[:, :width] % 2 == 1)


def run_lengths(outline: dict[str, Any], height: int, width: int) -> Int64[np.ndarray, "runs"]:
    """The lengths of COCO's runs, which are down the columns: outside, inside, outside, ...

    Raises:
        ValueError: they are not valid, or not of an image of this size.
    """
    counts, size = outline.get("counts"), outline.get("size")
    if size != [height, width]:
        raise ValueError(f"its run lengths have the size {size!r}, expected [{height}, {width}] as its image")
    if isinstance(counts, str):
        runs = _unpacked(counts)
    elif isinstance(counts, list) and all(isinstance(count, int) for count in counts):
        runs = counts
    else:
        raise ValueError("its run lengths are neither a list of whole numbers nor a text")
    if min(runs, default=0) < 0 or sum(runs) != height * width:
        raise ValueError(f"its run lengths cover {sum(runs)} pixels, expected {height * width}, none negative")
    return np.array(runs, np.int64)


def _unpacked(text: str) -> list[int]:
    """COCO's packed run lengths: numbers in groups of 5 bits, lowest first, 48 to 79 + 32 if another group follows.

    From the fourth on, a number is the difference from the run length two before.
    """
    runs: list[int] = []
    value, shift = 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"its run lengths hold the character {character!r}")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:  # a negative number
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value, shift = 0, 0
    if shift:
        raise ValueError("its run lengths end within a number")
    return runs


def run_length_mask(runs: Int64[np.ndarray, "runs"], height: int, width: int) -> Mask:
    """The pixels of an object in an image of this size."""
    inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    pixels = inside.reshape(width, height).T
    rows, columns = (np.flatnonzero(pixels.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return Mask(0, 0, np.zeros((0, 0), bool))
    top, left = int(rows[0]), int(columns[0])
    return Mask(top, left, pixels[top : rows[-1] + 1, left : columns[-1] + 1])
