"""Pictures inside a page, as data URIs, and how pages write scores and colours."""

from __future__ import annotations

import base64
from typing import Any, Protocol, runtime_checkable

import cv2
import numpy as np
from jaxtyping import UInt8

PICTURE_WIDTH = 480


@runtime_checkable
class Palette(Protocol):
    """Gives class ids their colours."""

    def colourise(self, labels: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]: ...


def percent(value: float | None) -> str:
    """A score in 0..1 as percent; a dash for None."""
    return "–" if value is None else f"{100 * value:.1f}"


def points(value: float) -> str:
    """A difference of scores in 0..1 as percentage points, with its sign."""
    return f"{100 * value:+.1f}".replace("-", "−")


def _hex(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def jpeg(image: UInt8[np.ndarray, "h w 3"]) -> str:
    """A photograph as a data URI."""
    return _uri(".jpg", small_photo(image), [cv2.IMWRITE_JPEG_QUALITY, 85])


def png(labels: UInt8[np.ndarray, "h w"], space: Palette) -> str:
    """Labels in the colours of their classes as a data URI; void is black."""
    return _uri(".png", space.colourise(small_labels(labels)), [])


def small_photo(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h2 w2 3"]:
    """A photograph at the width of pages; it stays as it is if it is not wider."""
    return _shrink(image, cv2.INTER_AREA)


def small_labels(labels: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h2 w2"]:
    """Labels at the width of pages, each the label of one pixel; they stay as they are if they are not wider."""
    return _shrink(labels, cv2.INTER_NEAREST)


def _shrink(array: UInt8[np.ndarray, "h w *c"], interpolation: int) -> UInt8[np.ndarray, "h2 w2 *c"]:
    h, w = array.shape[:2]
    if w <= PICTURE_WIDTH:
        return array
    return cv2.resize(array, (PICTURE_WIDTH, round(h * PICTURE_WIDTH / w)), interpolation=interpolation)


def _uri(suffix: str, image: UInt8[np.ndarray, "h w 3"], options: list[int]) -> str:
    data = cv2.imencode(suffix, image[..., ::-1], options)[1].tobytes()
    kind = "jpeg" if suffix == ".jpg" else "png"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


PICTURE_FILTERS: dict[str, Any] = {"percent": percent, "points": points, "jpeg": jpeg, "png": png, "hex": _hex}
"""How templates write scores, differences, colours and pictures."""
