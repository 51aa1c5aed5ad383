"""What is drawn on: the picture, the tags of its pixels, and how near they are.

Everything is drawn from far to near *and* tested against the nearness (1 / depth) already there, so that large surfaces
that reach from the camera to the horizon hide exactly what they should. Colours are anti-aliased, tags never are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from recyclelora.data.streets.camera import Camera, Vector
from recyclelora.data.streets.textures import SPRITE

NONE = 254
"""The label of a pixel of a patch on which nothing was drawn."""

Colour = Sequence[float] | Float[np.ndarray, "3"]
Window = tuple[slice, slice]
"""Rows and columns of a part of the picture."""

Lamp = tuple[Vector, float, Colour]
"""Where a light is, how far its glow reaches in metres, and its colour (0 to 255)."""


def put(
    source: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"], target: UInt8[np.ndarray, "h w 3"]
) -> None:  # fmt: skip
    """Copy into a part of a picture where a mask holds; much faster than an index."""
    cv2.copyTo(np.ascontiguousarray(source), mask.view(np.uint8), target)


class Canvas:
    """A picture in the making; `tags` are (label, glow of a lit window, how much snow would lie there)."""

    def __init__(self, camera: Camera) -> None:
        self.camera = camera
        self.rays = camera.rays()
        self.image: UInt8[np.ndarray, "h w 3"] = np.zeros((*camera.size, 3), np.uint8)
        self.tags: UInt8[np.ndarray, "h w 3"] = np.zeros((*camera.size, 3), np.uint8)
        self.nearness: Float32[np.ndarray, "h w"] = np.zeros(camera.size, np.float32)
        self.ground: Bool[np.ndarray, "h w"] = np.zeros(camera.size, bool)
        self.lamps: list[Lamp] = []

    def open(self, window: Window, near: float | Float32[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
        """Where something this near is seen; the ground is flat and hides nothing."""
        return np.asarray((self.nearness[window] < near) | self.ground[window])

    def mark(
        self, window: Window, drawn: Bool[np.ndarray, "h w"], tags: tuple[int, int, int],
        near: float | Float32[np.ndarray, "h w"],
    ) -> None:  # fmt: skip
        """Write tags and nearness of what was drawn."""
        self.tags[window][drawn] = tags
        self.nearness[window][drawn] = near if np.ndim(near) == 0 else np.asarray(near)[drawn]
        self.ground[window] &= ~drawn

    def window(self, pixels: Float[np.ndarray, "n 2"], margin: float = 1.0) -> Window | None:
        """Rows and columns of the part of the picture around some pixels; None outside of it."""
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
        """Hang a texture, which is made only if it is seen, on the rectangle from its lower left corner.

        The fourth channel is the glow of windows, or the opacity if `see_through`: then the label counts in the holes
        too, as annotators draw around a fence and not along its bars.
        """
        outline = self.camera.polygon(np.stack([corner, corner + along, corner + along + up, corner + up]))
        window = None if outline is None else self.window(outline)
        if outline is None or window is None:
            return
        normal = np.cross(along, up)
        near = self.affine(window, self.camera.plane(corner, normal))
        shift = np.array([window[1].start, window[0].start])
        inside = np.zeros(near.shape, np.uint8)
        cv2.fillPoly(inside, [np.round((outline - shift) * 16).astype(np.int32)], 1, shift=4)
        # A pixel on the outline can look past the horizon of the plane, where nearness is negative.
        seen = (inside > 0) & (near > 0) & self.open(window, near)
        if not seen.any():
            return
        sheet = texture()
        height, width = sheet.shape[:2]
        plane = self.camera.rotation @ np.stack(
            [along / width, -up / height, corner + up - self.camera.position], axis=1
        )
        centre = self.camera.centre - shift
        plane[:2] = self.camera.focal * plane[:2] + centre[:, None] * plane[2]
        drawn = cv2.warpPerspective(sheet, plane, near.shape[::-1], borderMode=cv2.BORDER_REPLICATE)
        picture = self.image[window]
        if see_through:
            weight = drawn[..., 3].astype(np.float32) / 255
            drawn[..., :3] = cv2.blendLinear(np.ascontiguousarray(drawn[..., :3]), picture.copy(), weight, 1 - weight)
        put(drawn[..., :3], seen, picture)
        self.mark(window, seen, (label, 0, cover), near)
        if not see_through:
            self.tags[window][..., 1][seen] = drawn[..., 3][seen]

    def sprite(
        self, centre: Vector, size: tuple[float, float], picture: Callable[[int], UInt8[np.ndarray, "th tw 4"]],
        table: UInt8[np.ndarray, "1 256 4"], label: int,
    ) -> None:  # fmt: skip
        """Put a picture upright before the camera, `size` metres wide and high.

        `picture` takes how often it is to be halved. Its first three channels hold brightness, to be looked up in
        `table`, the last one opacity. Snow lies where it is bright.
        """
        (pixel,), (depth,) = self.camera.project(centre[None])
        half = np.array(size) * self.camera.focal / depth / 2
        if depth < 1.5 or half.min() < 0.5:
            return
        near, window = float(1 / depth), self.window(np.stack([pixel - half, pixel + half]), 0.0)
        seen = None if window is None else self.open(window, near)
        if window is None or seen is None or not seen.any():
            return
        texture = picture(int(np.clip(np.log2(SPRITE / (2 * half.max())), 0, 4)))
        ways = np.array([texture.shape[1], texture.shape[0]]) / (2 * half)
        mapping = np.array([[ways[0], 0, 0], [0, ways[1], 0]])
        mapping[:, 2] = (np.array([window[1].start, window[0].start]) - pixel + half) * ways
        shape = (window[1].stop - window[1].start, window[0].stop - window[0].start)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        drawn = cv2.warpAffine(texture, mapping, shape, flags=flags)
        bright = drawn[..., 0] > 120
        drawn = cv2.LUT(drawn, table)
        weight = drawn[..., 3].astype(np.float32) * (1 / 255) * seen
        behind = self.image[window]
        behind[:] = cv2.blendLinear(np.ascontiguousarray(drawn[..., :3]), behind.copy(), weight, 1 - weight)
        inside = weight > 0.4
        self.mark(window, inside, (label, 0, 0), near)
        self.tags[window][..., 2][inside] = bright[inside] * np.uint8(220)


class Patch:
    """A window of a canvas on which one object is drawn, part over part, before it is hidden by what is nearer."""

    def __init__(self, canvas: Canvas, window: Window) -> None:
        self.canvas, self.span = canvas, window
        self.image = canvas.image[window].copy()
        self.tags = np.full_like(self.image, NONE)
        self.shift = np.array([window[1].start, window[0].start])

    def polygon(
        self, pixels: Float[np.ndarray, "n 2"], colour: Colour | None, label: int, glow: int = 0, cover: int = 0
    ) -> None:
        """Fill a polygon; without a colour only its tags."""
        points = [np.round((pixels - self.shift) * 16).astype(np.int32)]
        if colour is not None:
            cv2.fillPoly(self.image, points, tuple(map(float, colour)), cv2.LINE_AA, 4)
        cv2.fillPoly(self.tags, points, (label, glow, cover), cv2.LINE_8, 4)

    def disc(self, centre: Float[np.ndarray, "2"], radius: float, colour: Colour, label: int, glow: int = 0) -> None:
        """Fill a circle; radius in pixels."""
        x, y = np.round((centre - self.shift) * 16).astype(int).tolist()
        reach = max(int(radius * 16), 6)
        cv2.circle(self.image, (x, y), reach, tuple(map(float, colour)), -1, cv2.LINE_AA, 4)
        cv2.circle(self.tags, (x, y), reach, (label, glow, 0), -1, cv2.LINE_8, 4)

    def limb(
        self, start: Float[np.ndarray, "2"], end: Float[np.ndarray, "2"], radii: tuple[float, float], colour: Colour,
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
        """Copy to the canvas what nothing nearer hides; soft edges blend with what lies behind."""
        canvas, window = self.canvas, self.span
        seen = canvas.open(window, nearness)
        put(self.image, seen, canvas.image[window])
        seen &= self.tags[..., 0] != NONE
        put(self.tags, seen, canvas.tags[window])
        canvas.nearness[window][seen] = nearness if np.ndim(nearness) == 0 else np.asarray(nearness)[seen]
        canvas.ground[window] &= ~seen
