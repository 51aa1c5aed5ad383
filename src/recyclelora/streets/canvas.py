"""The canvas: the picture, the tags of its pixels, and how near they are.

Everything is drawn from far to near *and* tested against the nearness (1 / depth) already there, so that large surfaces
that reach from the camera to the horizon hide exactly what they should. Colours are anti-aliased, tags never are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, Int32, Shaped, UInt8

from recyclelora.streets.camera import Camera, Vector, cross
from recyclelora.streets.textures import SPRITE

NONE = 254
"""The label of a pixel of a patch on which nothing was drawn."""

Colour = Sequence[float] | Float[np.ndarray, "3"]
Window = tuple[slice, slice]
"""Rows and columns of a part of the picture."""

Lamp = tuple[Vector, float, Colour]
"""Where a light is, how far its glow reaches in metres, and its colour (0 to 255)."""


def put(
    source: Shaped[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"], target: Shaped[np.ndarray, "h w 3"]
) -> None:  # fmt: skip
    """Copy pixels into a part of a picture where a mask is true; much faster than indexing."""
    cv2.copyTo(source, mask.view(np.uint8), target)


def plain(shape: tuple[int, ...], colour: Sequence[int]) -> UInt8[np.ndarray, "h w 3"]:
    """A sheet of one colour; much faster than `np.full`."""
    sheet = np.empty((*shape, 3), np.uint8)
    cv2.rectangle(sheet, (0, 0), shape[::-1], colour, -1)
    return sheet


def fixed(pixels: Float[np.ndarray, "*n 2"]) -> Int32[np.ndarray, "*n 2"]:
    """Pixels in units of a sixteenth, as OpenCV draws polygons with `shift` 4."""
    return np.asarray(np.rint(pixels * 16), np.int32)


class Canvas:
    """The picture while it is drawn; `tags` are (label, glow of a lit window, how much snow would lie there)."""

    def __init__(self, camera: Camera) -> None:
        self.camera = camera
        self.rays = camera.rays()
        self.image: UInt8[np.ndarray, "h w 3"] = np.zeros((*camera.size, 3), np.uint8)
        self.tags: UInt8[np.ndarray, "h w 3"] = np.zeros((*camera.size, 3), np.uint8)
        self.nearness: Float32[np.ndarray, "h w"] = np.zeros(camera.size, np.float32)
        self.ground: Bool[np.ndarray, "h w"] = np.zeros(camera.size, bool)
        self.lamps: list[Lamp] = []

    def open(self, window: Window, near: float | Float32[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
        """Where something this near is visible; the ground is flat and hides nothing."""
        return np.asarray((self.nearness[window] < near) | self.ground[window])

    def mark(
        self, window: Window, drawn: Bool[np.ndarray, "h w"], tags: tuple[int, int, int],
        near: float | Float32[np.ndarray, "h w"],
    ) -> None:  # fmt: skip
        """Write tags and nearness of what was drawn."""
        put(plain(drawn.shape, tags), drawn, self.tags[window])
        self.approach(window, drawn, near)

    def approach(
        self, window: Window, drawn: Bool[np.ndarray, "h w"], near: float | Float32[np.ndarray, "h w"]
    ) -> None:  # fmt: skip
        """Write the nearness of what was drawn."""
        np.copyto(self.nearness[window], near, where=drawn)
        # True only where there was ground and nothing is drawn.
        np.greater(self.ground[window], drawn, out=self.ground[window])

    def window(self, pixels: Float[np.ndarray, "n 2"], margin: float = 1.0) -> Window | None:
        """Rows and columns of the part of the picture around some pixels; None if they are outside."""
        x, y, width, height = cv2.boundingRect(pixels.astype(np.float32))
        reach = int(margin) + 1
        x0, y0 = max(x - reach, 0), max(y - reach, 0)
        x1, y1 = min(x + width + reach, self.camera.size[1]), min(y + height + reach, self.camera.size[0])
        return (slice(y0, y1), slice(x0, x1)) if x1 > x0 and y1 > y0 else None

    def affine(self, window: Window, coefficients: Vector) -> Float32[np.ndarray, "h w"]:
        """Nearness of a plane (see `Camera.plane`) over a window."""
        rows, columns = window
        a, b, c = coefficients
        across = (a * np.arange(columns.start, columns.stop) + c).astype(np.float32)
        return np.asarray((b * np.arange(rows.start, rows.stop)).astype(np.float32)[:, None] + across)

    def surface(
        self, corner: Vector, along: Vector, up: Vector, texture: Callable[[], UInt8[np.ndarray, "th tw 4"]],
        label: int, *, see_through: bool = False, cover: int = 0,
    ) -> None:  # fmt: skip
        """Draw a texture, which is made only if it is visible, on the rectangle from its lower left corner.

        The fourth channel is the glow of windows, or the opacity if `see_through`: then the holes get the label
        too, because annotators draw around a fence and not along its bars.
        """
        outline = self.camera.polygon(np.array([corner, corner + along, corner + along + up, corner + up]))
        window = None if outline is None else self.window(outline)
        if outline is None or window is None:
            return
        near = self.affine(window, self.camera.plane(corner, cross(along, up)))
        shift = np.array([window[1].start, window[0].start])
        inside = np.zeros(near.shape, np.uint8)
        cv2.fillPoly(inside, [fixed(outline - shift)], 1, shift=4)
        # A pixel on the outline can look past the horizon of the plane, where nearness is negative.
        seen = inside.view(bool) & (near > 0) & self.open(window, near)
        if not seen.any():
            return
        sheet = texture()
        height, width = sheet.shape[:2]
        sides = np.array([along / width, -up / height, corner + up - self.camera.position])
        plane = self.camera.rotation @ sides.T.copy()
        centre = self.camera.centre - shift
        plane[:2] = self.camera.focal * plane[:2] + centre[:, None] * plane[2]
        drawn = cv2.warpPerspective(sheet, plane, near.shape[::-1], borderMode=cv2.BORDER_REPLICATE)
        picture, colours = self.image[window], cv2.cvtColor(drawn, cv2.COLOR_RGBA2RGB)
        if see_through:
            weight = cv2.extractChannel(drawn, 3).astype(np.float32) / 255
            colours = cv2.blendLinear(colours, picture.copy(), weight, 1 - weight)
        put(colours, seen, picture)
        self.mark(window, seen, (label, 0, cover), near)
        if not see_through:
            np.copyto(self.tags[window][..., 1], drawn[..., 3], where=seen)

    def sprite(
        self, centre: Vector, size: tuple[float, float], picture: Callable[[int], UInt8[np.ndarray, "th tw 4"]],
        table: UInt8[np.ndarray, "1 256 4"], label: int,
    ) -> None:  # fmt: skip
        """Draw an upright picture that faces the camera, `size` metres wide and high.

        `picture` takes the number of times that its size is halved. Its first three channels hold brightness, which
        `table` turns into colours, and the last one holds opacity. Snow lies on bright pixels.
        """
        (pixel,), (depth,) = self.camera.project(centre[None])
        half = np.array(size) * self.camera.focal / depth / 2
        if depth < 1.5 or min(half.tolist()) < 0.5:
            return
        near, window = float(1 / depth), self.window(np.array([pixel - half, pixel + half]), 0.0)
        seen = None if window is None else self.open(window, near)
        if window is None or seen is None or not seen.any():
            return
        texture = picture(int(min(max(np.log2(SPRITE / (2 * half.max())), 0), 4)))
        ways = np.array([texture.shape[1], texture.shape[0]]) / (2 * half)
        mapping = np.array([[ways[0], 0, 0], [0, ways[1], 0]])
        mapping[:, 2] = (np.array([window[1].start, window[0].start]) - pixel + half) * ways
        shape = (window[1].stop - window[1].start, window[0].stop - window[0].start)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        drawn = cv2.warpAffine(texture, mapping, shape, flags=flags)
        bright = drawn[..., 0] > 120
        drawn = cv2.LUT(drawn, table)
        weight = cv2.extractChannel(drawn, 3).astype(np.float32) * (1 / 255) * seen
        behind = self.image[window]
        colours = cv2.cvtColor(drawn, cv2.COLOR_RGBA2RGB)
        behind[:] = cv2.blendLinear(colours, behind.copy(), weight, 1 - weight)
        inside = weight > 0.4
        self.mark(window, inside, (label, 0, 0), near)
        np.copyto(self.tags[window][..., 2], bright * np.uint8(220), where=inside)


class Patch:
    """A window of a canvas on which one object is drawn, part over part, before it is hidden by what is nearer."""

    def __init__(self, canvas: Canvas, window: Window) -> None:
        self.canvas, self.span = canvas, window
        self.image = canvas.image[window].copy()
        self.tags = np.full_like(self.image, NONE)
        self.shift = np.array([window[1].start, window[0].start], float)

    def polygon(
        self, pixels: Float[np.ndarray, "n 2"], colour: Vector | None, label: int, glow: int = 0, cover: int = 0
    ) -> None:
        """Fill a polygon; without a colour, write only its tags."""
        points = [fixed(pixels - self.shift)]
        if colour is not None:
            cv2.fillPoly(self.image, points, tuple(colour.tolist()), cv2.LINE_AA, 4)
        cv2.fillPoly(self.tags, points, (label, glow, cover), cv2.LINE_8, 4)

    def disc(self, centre: Float[np.ndarray, "2"], radius: float, colour: Vector, label: int, glow: int = 0) -> None:
        """Fill a circle; radius in pixels."""
        x, y = fixed(centre - self.shift).tolist()
        reach = max(int(radius * 16), 6)
        cv2.circle(self.image, (x, y), reach, tuple(colour.tolist()), -1, cv2.LINE_AA, 4)
        cv2.circle(self.tags, (x, y), reach, (label, glow, 0), -1, cv2.LINE_8, 4)

    def limb(
        self, start: Float[np.ndarray, "2"], end: Float[np.ndarray, "2"], radii: tuple[float, float], colour: Vector,
        label: int,
    ) -> None:  # fmt: skip
        """A tapered stroke with pointed round ends; radii in pixels."""
        (x0, y0), (x1, y1) = start.tolist(), end.tolist()
        length = max(math.hypot(x1 - x0, y1 - y0), 1e-3)
        x, y = (x1 - x0) / length, (y1 - y0) / length
        one, two = max(radii[0], 0.35), max(radii[1], 0.35)
        points = (
            (x0 - y * one, y0 + x * one), (x0 - x * one * 0.8, y0 - y * one * 0.8), (x0 + y * one, y0 - x * one),
            (x1 + y * two, y1 - x * two), (x1 + x * two * 0.8, y1 + y * two * 0.8), (x1 - y * two, y1 + x * two),
        )  # fmt: skip
        self.polygon(np.array(points), colour, label)

    def commit(self, nearness: float | Float32[np.ndarray, "h w"]) -> None:
        """Copy the pixels that nothing nearer hides to the canvas; soft edges blend with what is behind."""
        canvas, window = self.canvas, self.span
        seen = canvas.open(window, nearness)
        put(self.image, seen, canvas.image[window])
        seen &= cv2.extractChannel(self.tags, 0) != NONE
        put(self.tags, seen, canvas.tags[window])
        canvas.approach(window, seen, nearness)
