"""Vehicles: a profile drawn across the width of the vehicle, seen from any side."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from jaxtyping import Float, Float32

from recyclelora.streets.camera import NEAR, Vector, norm
from recyclelora.streets.canvas import Canvas, Patch, Window
from recyclelora.streets.ground import Shadow
from recyclelora.streets.light import Light
from recyclelora.streets.shapes import CAR, TRAIN, Shape

TYRE, RIM, GLASS = np.array([24.0, 24, 25]), np.array([128.0, 130, 133]), np.array([38.0, 44, 50])
_TURN = np.linspace(0, 2 * np.pi, 13)[:-1]
WHEEL = np.cos(_TURN), np.sin(_TURN)
"""Rim of a wheel of radius 1: forward and up."""


@dataclass(frozen=True)
class Vehicle:
    """A vehicle at a place (x, z) with a heading in radians to the right of z."""

    shape: Shape
    place: Float[np.ndarray, "2"]
    heading: float
    paint: Float[np.ndarray, "3"]
    braking: bool
    trim: Float[np.ndarray, "3"]

    @cached_property
    def distance(self) -> float:
        """Metres from the camera."""
        return float(np.hypot(*self.place))

    def world(
        self, s: Float[np.ndarray, "*#n"], q: Float[np.ndarray, "*#n"], y: Float[np.ndarray, "*n"]
    ) -> Float[np.ndarray, "*n 3"]:
        """World points from (forward, right, up)."""
        sin, cos = math.sin(self.heading), math.cos(self.heading)
        points = np.empty((*y.shape, 3))
        points[..., 0] = self.place[0] + s * sin + q * cos
        points[..., 1] = y
        points[..., 2] = self.place[1] + s * cos - q * sin
        return points

    def point(self, s: float, q: float, y: float) -> Vector:
        """`world` for a single point."""
        sin, cos = math.sin(self.heading), math.cos(self.heading)
        x, z = self.place.tolist()
        return np.array([x + s * sin + q * cos, y, z + s * cos - q * sin])

    def outline(self, grow: float = 0.0) -> Float[np.ndarray, "4 2"]:
        """Corners on the ground."""
        half = np.array([self.shape.length, self.shape.width]) / 2 + grow
        s, q = np.array([1, 1, -1, -1]) * half[0], np.array([1, -1, -1, 1]) * half[1]
        return np.asarray(self.world(s, q, np.zeros(4))[:, [0, 2]])

    def shadows(self) -> list[Shadow]:
        """The outlines that cast shadows."""
        return [(self.outline(-0.1), 0.1, self.shape.height * 0.85)]

    def draw(self, canvas: Canvas, light: Light) -> None:
        """Draw the strips from far to near, then the side, the wheels and the lights."""
        shape = self.shape
        half = shape.width / 2
        s, y = np.tile(shape.profile[:, 0], 2), np.tile(shape.profile[:, 1], 2)
        q = np.concatenate([shape.profile[:, 2], -shape.profile[:, 2]]) * half
        points = self.world(s, q, y)
        pieces = [canvas.camera.polygon(part) for part in (points, self.world(s, q, np.zeros(len(s))))]
        pixels = [part for part in pieces if part is not None]
        window = canvas.window(np.concatenate(pixels)) if pixels else None
        if window is None or max(canvas.camera.local(points)[:, 2].tolist()) < 1:
            return
        brush = _VehicleBrush(self, canvas, light, Patch(canvas, window))
        seen = [sign for sign in (-1, 1) if brush.looks_at(sign)]
        for sign in (-1, 1):
            if sign in seen:
                brush.side(sign)
            else:
                brush.far_wheels(sign)
        brush.strips(points.reshape(2, -1, 3))
        for sign in seen:
            brush.wheels(sign)
        brush.finish()
        brush.patch.commit(self._nearness(canvas, window))

    def _nearness(self, canvas: Canvas, window: Window) -> Float32[np.ndarray, "h w"]:
        """A ray meets a box where it crosses the farthest of the sides that face the camera."""
        shape, eye = self.shape, canvas.camera.position
        near = np.full((window[0].stop - window[0].start, window[1].stop - window[1].start), 1.0, np.float32)
        centre = self.point(0, 0, 0)
        ways = ((0, 1, 0, shape.width / 2), (0, -1, 0, shape.width / 2), (1, 0, 0, shape.length / 2),
                (-1, 0, 0, shape.length / 2), (0, 0, 1, shape.height))  # fmt: skip
        for s, q, y, reach in ways:
            normal = self.point(s, q, y) - centre
            corner = self.point(s * reach, q * reach, y * reach)
            if normal @ (eye - corner) > 0.02:
                near = np.minimum(near, canvas.affine(window, canvas.camera.plane(corner, normal)))
        return np.maximum(near, np.float32(1 / (self.distance + shape.length)))


class _VehicleBrush:
    """Draws the parts of one vehicle on its patch."""

    def __init__(self, vehicle: Vehicle, canvas: Canvas, light: Light, patch: Patch) -> None:
        self.vehicle, self.canvas, self.light, self.patch = vehicle, canvas, light, patch
        self.label = vehicle.shape.label
        self.eye = canvas.camera.position
        self.close = vehicle.distance < 0.12 * canvas.camera.focal
        self.parts: list[tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, "3"], int, int]] = []
        self.axes = vehicle.world(*np.eye(3)) - vehicle.world(*np.zeros((3, 3)))

    def fill(
        self, points: Float[np.ndarray, "n 3"], colour: Float[np.ndarray, "3"], glow: int = 0, cover: int = 0
    ) -> None:
        """Add one flat part, which `finish` draws."""
        self.parts.append((points, colour, glow, cover))

    def finish(self) -> None:
        """Project all parts at once and draw them in the order in which they came."""
        camera = self.canvas.camera
        pixels, depth = camera.project(np.concatenate([points for points, *_ in self.parts]))
        start, whole = 0, min(depth.tolist()) > NEAR
        # OpenCV clips the colours.
        for points, colour, glow, cover in self.parts:
            outline = pixels[start : start + len(points)] if whole else camera.polygon(points)
            start += len(points)
            if outline is not None:
                self.patch.polygon(outline, colour, self.label, glow, cover)

    def strips(self, points: Float[np.ndarray, "2 n 3"]) -> None:
        """Bonnet, windscreen, roof and so on, and the front and rear with their lights."""
        shape, order = self.vehicle.shape, []
        along, rise = np.diff(shape.profile[:, :2], axis=0).T[..., None]
        normals = (rise * self.axes[0] - along * self.axes[2]) / np.maximum(np.hypot(along, rise), 1e-6)
        quads = _quads(points)
        ways = quads.mean(axis=1) - self.eye
        for index, normal in enumerate(normals):
            corners = quads[index]
            if normal @ (self.eye - corners[0]) > 0:
                order.append((norm(ways[index]), index, normal, corners))
        for _, index, normal, corners in sorted(order, key=lambda part: -part[0]):
            colour = self.vehicle.paint * self.light.shade(normal)
            sheen = np.array([150.0, 165, 180]) * self.light.ambient
            upward = float(normal[1])
            colour = colour + sheen * 0.22 * max(0.0, upward)
            self.fill(corners, colour, cover=200 if upward > 0.6 else 0)
            if index in shape.glass:
                self._pane(corners, sheen)
        self._ends(quads, {index for _, index, _, _ in order})

    def _pane(self, corners: Float[np.ndarray, "4 3"], sheen: Float[np.ndarray, "3"]) -> None:
        inset = (0.06, 0.94)
        self.fill(_inner(corners, inset, (0.06, 0.95)), GLASS * 0.8 + sheen * 0.10)
        self.fill(_inner(corners, inset, (0.5, 0.95)), GLASS + sheen * 0.3)
        if self.close and self.label == CAR:
            self.fill(_inner(corners, (0.16, 0.36), (0.1, 0.4)), GLASS * 0.55)
            self.fill(_inner(corners, (0.64, 0.84), (0.1, 0.4)), GLASS * 0.55)

    def _ends(self, quads: Float[np.ndarray, "n 4 3"], visible: set[int]) -> None:
        """Lamps, grille and number plate; the lamps shine at night."""
        vehicle, last = self.vehicle, len(quads) - 1
        shade = self.light.shade(self.axes[1])
        tall = vehicle.shape.label != CAR
        for index, front in ((0 if tall else 1, True), (last if tall else last - 1, False)):
            if index not in visible:
                continue
            corners = quads[index]
            low, high = (0.3, 0.6) if tall else (0.25, 0.98)
            lamp = np.array([232.0, 232, 220]) if front else np.array([150.0, 20, 22]) * (1.5 if vehicle.braking else 1)
            if front and not tall:
                self.fill(_inner(corners, (0.25, 0.75), (0.1, 0.9)), TYRE * 1.4)
            wide = 0.22 if front and not tall else 0.13
            low, high = (low, high) if front or tall else (0.05, 0.6)
            for span in ((0.02, wide), (1 - wide, 0.98)):
                part = _inner(corners, span, (low, high))
                self.fill(part, lamp * np.maximum(shade, 0.6) if front else lamp * np.maximum(shade, 0.75), 0)
                colour = (255, 240, 210) if front else (255, 40, 30)
                self.canvas.lamps.append((part.mean(axis=0), 0.5 if front else 0.22, colour))
            bumper = 0 if front else last
            if bumper in visible:
                face = quads[bumper]
                if not tall:
                    self.fill(_inner(face, (0.0, 1.0), (0.0, 0.35) if front else (0.65, 1.0)), TYRE * 1.5)
                plate = np.array([226.0, 226, 220]) if front else np.array([224.0, 200, 90])
                self.fill(_inner(face, (0.38, 0.62), (0.3, 0.62) if not tall else (0.1, 0.22)), plate * shade)

    def side(self, sign: int) -> None:
        """Body, windows and doors of one side."""
        shape, vehicle = self.vehicle.shape, self.vehicle
        half, rows = shape.width / 2, shape.profile
        shade = self.light.shade(self.axes[1] * sign)
        colour = vehicle.paint * shade
        flank = sign * half * rows[:, 2]
        self.fill(vehicle.world(rows[:, 0], flank, rows[:, 1]), colour)
        ends = rows[[0, -1], 0]
        stripe = np.array([ends[0], ends[1], ends[1], ends[0]])
        sill = np.array([0.26, 0.26, 0.5, 0.5]) if shape.label == CAR else np.array([0.35, 0.35, 0.8, 0.8])
        self.fill(vehicle.world(stripe, np.full(4, sign * half * 0.96), sill), vehicle.trim * shade)
        if not shape.panes:
            glass = rows[[4, 5, 7, 8]]
            middle = glass.mean(axis=0)
            inner = glass + (middle - glass) * [0.12, 0.13, 0.0]
            self.fill(vehicle.world(inner[:, 0], sign * half * inner[:, 2], inner[:, 1]), GLASS * 0.9 + 40 * shade)
            for post in () if not self.close else (middle[0] + 0.15, middle[0] - shape.length * 0.2):
                s, y = post + np.array([0.06, 0.06, -0.06, -0.06]), shape.height * np.array([0.66, 0.97, 0.97, 0.66])
                self.fill(vehicle.world(s, sign * half * np.array([0.95, 0.79, 0.79, 0.95]), y), colour * 0.8)
            return
        panes = np.array(shape.panes)
        s, y = panes[:, [0, 1, 1, 0]], panes[:, [2, 2, 3, 3]]
        for pane in vehicle.world(s, np.full_like(s, sign * half), y):
            self.fill(pane, GLASS + 55 * shade, 150)

    def looks_at(self, sign: int) -> bool:
        """Whether one side faces the camera."""
        middle = np.array([self.vehicle.place[0], 0.0, self.vehicle.place[1]])
        return bool(sign * self.axes[1] @ (self.eye - middle) > self.vehicle.shape.width * 0.485)

    def wheels(self, sign: int) -> None:
        """Arches, tyres and rims of a side that is seen."""
        shape, vehicle = self.vehicle.shape, self.vehicle
        reach = shape.wheel * np.array([[1.16], [1.0], [0.62]])
        y = np.maximum(shape.wheel + reach * WHEEL[1], [[0.2], [0.0], [0.0]])
        q = sign * shape.width / 2 * np.array([[0.99], [0.98], [1.0]])
        colours = (TYRE * 0.7, TYRE, RIM * self.light.ambient)
        for axle in shape.axles if shape.label != TRAIN else ():
            for disc, colour in zip(vehicle.world(axle + reach * WHEEL[0], q, y), colours, strict=True):
                self.fill(disc, colour)

    def far_wheels(self, sign: int) -> None:
        """Draw the visible part of the other side's wheels, under the body."""
        shape = self.vehicle.shape
        y, q = np.array([0, 0, 0.4, 0.4]), sign * (shape.width / 2 - np.array([0.04, 0.26, 0.26, 0.04]))
        for axle in shape.axles if shape.label != TRAIN else ():
            self.fill(self.vehicle.world(np.full(4, axle), q, y), TYRE)


def _inner(
    corners: Float[np.ndarray, "4 3"], across: tuple[float, float], up: tuple[float, float]
) -> Float[np.ndarray, "4 3"]:
    """A rectangle within a quadrilateral, by shares of its sides."""
    left, right, low, high = _shares(across, up)
    return np.asarray((corners[0] * left + corners[1] * right) * low + (corners[3] * left + corners[2] * right) * high)


@cache
def _shares(across: tuple[float, float], up: tuple[float, float]) -> tuple[Float[np.ndarray, "4 1"], ...]:
    """Weights of the left, right, lower and upper sides for the corners of `_inner`."""
    a = np.array([across[0], across[1], across[1], across[0]])[:, None]
    b = np.array([up[0], up[0], up[1], up[1]])[:, None]
    return 1 - a, a, 1 - b, b


def _quads(points: Float[np.ndarray, "2 n 3"]) -> Float[np.ndarray, "n-1 4 3"]:
    """The strips between one point of both sides and the next."""
    one, two = points
    return np.stack([one[:-1], two[:-1], two[1:], one[1:]], axis=1)
