"""Vehicles: a profile drawn across the width of the vehicle, seen from any side."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32

from recyclelora.data.streets.camera import NEAR
from recyclelora.data.streets.canvas import Canvas, Patch, Window
from recyclelora.data.streets.ground import Shadow
from recyclelora.data.streets.light import Light
from recyclelora.data.streets.shapes import CAR, TRAIN, Shape

TYRE, RIM, GLASS = np.array([24.0, 24, 25]), np.array([128.0, 130, 133]), np.array([38.0, 44, 50])


@dataclass(frozen=True)
class Vehicle:
    """A vehicle at a place (x, z) with a heading in radians to the right of z."""

    shape: Shape
    place: Float[np.ndarray, "2"]
    heading: float
    paint: Float[np.ndarray, "3"]
    braking: bool
    trim: Float[np.ndarray, "3"]

    @property
    def distance(self) -> float:
        """Metres from the camera."""
        return float(np.hypot(*self.place))

    def world(
        self, s: Float[np.ndarray, "*n"], q: Float[np.ndarray, "*n"], y: Float[np.ndarray, "*n"]
    ) -> Float[np.ndarray, "*n 3"]:
        """World points from (forward, right, up)."""
        sin, cos = math.sin(self.heading), math.cos(self.heading)
        points = np.empty((len(y), 3))
        points[:, 0] = self.place[0] + s * sin + q * cos
        points[:, 1] = y
        points[:, 2] = self.place[1] + s * cos - q * sin
        return points

    def outline(self, grow: float = 0.0) -> Float[np.ndarray, "4 2"]:
        """Corners on the ground."""
        half = np.array([self.shape.length, self.shape.width]) / 2 + grow
        s, q = np.array([1, 1, -1, -1]) * half[0], np.array([1, -1, -1, 1]) * half[1]
        return np.asarray(self.world(s, q, np.zeros(4))[:, [0, 2]])

    def shadows(self) -> list[Shadow]:
        """What casts a shadow."""
        return [(self.outline(-0.1), 0.1, self.shape.height * 0.85)]

    def draw(self, canvas: Canvas, light: Light) -> None:
        """Strips from far to near, then the side, the wheels and the lights."""
        shape = self.shape
        half = shape.width / 2
        s, y = np.tile(shape.profile[:, 0], 2), np.tile(shape.profile[:, 1], 2)
        q = np.concatenate([shape.profile[:, 2], -shape.profile[:, 2]]) * half
        points = self.world(s, q, y)
        pieces = [canvas.camera.polygon(part) for part in (points, self.world(s, q, np.zeros(len(s))))]
        pixels = [part for part in pieces if part is not None]
        window = canvas.window(np.concatenate(pixels)) if pixels else None
        if window is None or canvas.camera.local(points)[:, 2].max() < 1:
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
        """A ray meets a box where it crosses the farthest of the faces that look at the camera."""
        shape, eye = self.shape, canvas.camera.position
        near = np.full((window[0].stop - window[0].start, window[1].stop - window[1].start), 1.0, np.float32)
        zero = np.zeros(1)
        ways = ((0, 1, 0, shape.width / 2), (0, -1, 0, shape.width / 2), (1, 0, 0, shape.length / 2),
                (-1, 0, 0, shape.length / 2), (0, 0, 1, shape.height))  # fmt: skip
        for s, q, y, reach in ways:
            normal = self.world(zero + s, zero + q, zero + y)[0] - self.world(zero, zero, zero)[0]
            corner = self.world(zero + s * reach, zero + q * reach, zero + y * reach)[0]
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
        """One flat part, drawn by `finish`."""
        self.parts.append((points, colour, glow, cover))

    def finish(self) -> None:
        """Project all parts at once and draw them in the order in which they came."""
        camera = self.canvas.camera
        pixels, depth = camera.project(np.concatenate([points for points, *_ in self.parts]))
        start, whole = 0, bool((depth > NEAR).all())
        for points, colour, glow, cover in self.parts:
            outline = pixels[start : start + len(points)] if whole else camera.polygon(points)
            start += len(points)
            if outline is not None:
                self.patch.polygon(outline, colour.clip(0, 255), self.label, glow, cover)

    def strips(self, points: Float[np.ndarray, "2 n 3"]) -> None:
        """Bonnet, windscreen, roof and so on, and the front and rear with their lights."""
        shape, order = self.vehicle.shape, []
        for index in range(points.shape[1] - 1):
            along, rise = (shape.profile[index + 1] - shape.profile[index])[:2]
            normal = (rise * self.axes[0] - along * self.axes[2]) / max(np.hypot(along, rise), 1e-6)
            corners = np.stack([points[0, index], points[1, index], points[1, index + 1], points[0, index + 1]])
            if normal @ (self.eye - corners[0]) > 0:
                order.append((float(np.linalg.norm(corners.mean(axis=0) - self.eye)), index, normal, corners))
        for _, index, normal, corners in sorted(order, key=lambda part: -part[0]):
            colour = self.vehicle.paint * self.light.shade(normal)
            sheen = np.array([150.0, 165, 180]) * self.light.ambient
            colour = colour + sheen * 0.22 * max(0.0, normal[1])
            self.fill(corners, colour, cover=200 if normal[1] > 0.6 else 0)
            if index in shape.glass:
                self._pane(corners, sheen)
        self._ends(points, {index for _, index, _, _ in order})

    def _pane(self, corners: Float[np.ndarray, "4 3"], sheen: Float[np.ndarray, "3"]) -> None:
        inset = (0.06, 0.94)
        self.fill(_inner(corners, inset, (0.06, 0.95)), GLASS * 0.8 + sheen * 0.10)
        self.fill(_inner(corners, inset, (0.5, 0.95)), GLASS + sheen * 0.3)
        if self.close and self.label == CAR:
            self.fill(_inner(corners, (0.16, 0.36), (0.1, 0.4)), GLASS * 0.55)
            self.fill(_inner(corners, (0.64, 0.84), (0.1, 0.4)), GLASS * 0.55)

    def _ends(self, points: Float[np.ndarray, "2 n 3"], visible: set[int]) -> None:
        """Lamps, grille and number plate; the lamps shine at night."""
        vehicle, last = self.vehicle, points.shape[1] - 2
        shade = self.light.shade(self.axes[1])
        tall = vehicle.shape.label != CAR
        for index, front in ((0 if tall else 1, True), (last if tall else last - 1, False)):
            if index not in visible:
                continue
            corners = np.stack([points[0, index], points[1, index], points[1, index + 1], points[0, index + 1]])
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
                face = np.stack([points[0, bumper], points[1, bumper], points[1, bumper + 1], points[0, bumper + 1]])
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
        panes = list(shape.panes)
        if not panes:
            glass = rows[[4, 5, 7, 8]]
            middle = glass.mean(axis=0)
            inner = glass + (middle - glass) * [0.12, 0.13, 0.0]
            self.fill(vehicle.world(inner[:, 0], sign * half * inner[:, 2], inner[:, 1]), GLASS * 0.9 + 40 * shade)
            for post in () if not self.close else (middle[0] + 0.15, middle[0] - shape.length * 0.2):
                s, y = post + np.array([0.06, 0.06, -0.06, -0.06]), shape.height * np.array([0.66, 0.97, 0.97, 0.66])
                self.fill(vehicle.world(s, sign * half * np.array([0.95, 0.79, 0.79, 0.95]), y), colour * 0.8)
        for start, stop, low, high in panes:
            s, y = np.array([start, stop, stop, start]), np.array([low, low, high, high])
            self.fill(vehicle.world(s, np.full(4, sign * half), y), GLASS + 55 * shade, 150)

    def looks_at(self, sign: int) -> bool:
        """Whether one side turns to the camera."""
        middle = np.array([self.vehicle.place[0], 0.0, self.vehicle.place[1]])
        return bool(sign * self.axes[1] @ (self.eye - middle) > self.vehicle.shape.width * 0.485)

    def wheels(self, sign: int) -> None:
        """Arches, tyres and rims of a side that is seen."""
        shape, vehicle = self.vehicle.shape, self.vehicle
        turn = np.linspace(0, 2 * np.pi, 13)[:-1]
        parts = ((1.16, TYRE * 0.7, 0.99), (1.0, TYRE, 0.98), (0.62, RIM * self.light.ambient, 1.0))
        for axle in shape.axles if shape.label != TRAIN else ():
            for radius, colour, inset in parts:
                reach = shape.wheel * radius
                y = np.maximum(shape.wheel + reach * np.sin(turn), 0.2 if radius > 1 else 0.0)
                q = np.full(12, sign * shape.width / 2 * inset)
                self.fill(vehicle.world(axle + reach * np.cos(turn), q, y), colour)

    def far_wheels(self, sign: int) -> None:
        """What is seen of the wheels of the other side, under the body."""
        shape = self.vehicle.shape
        y, q = np.array([0, 0, 0.4, 0.4]), sign * (shape.width / 2 - np.array([0.04, 0.26, 0.26, 0.04]))
        for axle in shape.axles if shape.label != TRAIN else ():
            self.fill(self.vehicle.world(np.full(4, axle), q, y), TYRE)


def _inner(
    corners: Float[np.ndarray, "4 3"], across: tuple[float, float], up: tuple[float, float]
) -> Float[np.ndarray, "4 3"]:
    """A rectangle within a quadrilateral, by shares of its sides."""
    a = np.array([across[0], across[1], across[1], across[0]])[:, None]
    b = np.array([up[0], up[0], up[1], up[1]])[:, None]
    low, high = corners[0] * (1 - a) + corners[1] * a, corners[3] * (1 - a) + corners[2] * a
    return np.asarray(low * (1 - b) + high * b)
