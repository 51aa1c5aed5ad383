"""Street furniture, on poles and on the ground: lamps, signs, traffic lights, bollards, bins."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float

from recyclelora.streets.camera import Vector, raised
from recyclelora.streets.canvas import Canvas, Patch
from recyclelora.streets.classes import IDS, VOID
from recyclelora.streets.ground import Shadow
from recyclelora.streets.light import Light

Pixel = Float[np.ndarray, "2"]
POLE, LIGHT, SIGN = (IDS[name] for name in ("pole", "traffic light", "traffic sign"))
RED, BLUE, WHITE, YELLOW = (np.array(c, float) for c in ((188, 28, 34), (28, 70, 160), (230, 230, 226), (236, 190, 40)))
GREEN, BLACK, GREY = (np.array(c, float) for c in ((20, 96, 66), (26, 26, 28), (140, 142, 144)))
PHASES = {"red": (0, (255, 50, 40)), "amber": (1, (255, 180, 50)), "green": (2, (60, 255, 150))}

SQUARE = np.array([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])


@dataclass(frozen=True)
class Post:
    """A pole at a place (x, z) with what hangs on it; lengths in metres.

    `arm` is how far a street light or a gantry reaches sideways (signed). `heads` are (kind, right, height above the
    ground, size, seed): kinds are "lamp", "signal", "sign" and "board".
    """

    place: Float[np.ndarray, "2"]
    height: float
    radius: float
    colour: Float[np.ndarray, "3"]
    arm: float
    heads: tuple[tuple[str, float, float, float, int], ...]

    @cached_property
    def distance(self) -> float:
        """Metres from the camera."""
        return float(np.hypot(*self.place))

    def shadows(self) -> list[Shadow]:
        """The outlines that cast shadows."""
        return [(self.place + SQUARE * self.radius, 0.0, self.height)]

    def draw(self, canvas: Canvas, light: Light) -> None:
        """Draw the pole and the arm, then the heads."""
        foot = np.array([self.place[0], 0.0, self.place[1]])
        (base, tip), depth = canvas.camera.project(np.array([foot, foot + raised(self.height)]))
        if min(depth.tolist()) < 1.2:
            return
        scale = canvas.camera.focal / float(depth[0])
        reach = np.array([abs(self.arm) + 1.5, 0]) * scale
        window = canvas.window(np.array([base - reach, base + reach, tip - reach - np.array([0, scale]), tip + reach]))
        if window is None:
            return
        patch, shade = Patch(canvas, window), light.shade(np.array([0.0, 0.0, -1.0]))
        thick, colour = max(self.radius * scale, 0.45), self.colour * shade
        patch.limb(base, tip, (thick, thick * 0.75), colour, POLE)
        if thick > 1.2:
            edge = np.array([thick * 0.45, 0])
            patch.limb(base + edge, tip + edge, (thick * 0.4, thick * 0.3), colour * 0.7, POLE)
        if self.arm:
            end = tip + np.array([self.arm, -0.25]) * scale
            patch.limb(tip, end, (thick * 0.7, thick * 0.5), colour, POLE)
        for kind, right, height, size, seed in self.heads:
            (middle,), _ = canvas.camera.project(foot[None] + raised(height))
            middle = middle + np.array([right * scale, 0])
            rng = np.random.default_rng(seed)
            world = foot + canvas.camera.rotation[0] * right + np.array([0, height, -0.1])
            draw = {"lamp": _lamp, "signal": _signal, "sign": _sign, "board": _board}[kind]
            draw(patch, middle, size * scale, shade, rng, canvas, world)
        patch.commit(float(1 / depth[0]))


def _rectangle(middle: Pixel, width: float, height: float) -> Float[np.ndarray, "4 2"]:
    return middle + SQUARE * (width / 2, height / 2)


def _lamp(
    patch: Patch, middle: Pixel, size: float, shade: Vector, rng: np.random.Generator, canvas: Canvas, world: Vector
) -> None:
    patch.polygon(_rectangle(middle, size, max(size * 0.3, 0.8)), np.array([150, 150, 146]) * shade, POLE, 255)
    warm = np.array([255, 190, 110]) if rng.random() < 0.6 else np.array([235, 240, 255])
    canvas.lamps.append((world, 1.4, warm))


def _signal(
    patch: Patch, middle: Pixel, size: float, shade: Vector, rng: np.random.Generator, canvas: Canvas, world: Vector
) -> None:
    """Three lamps in a box, one of them lit; `size` is the height."""
    body = np.array([30, 32, 32]) * shade
    if rng.random() < 0.3:
        rim = WHITE * shade if rng.random() < 0.5 else body
        patch.polygon(_rectangle(middle, size * 0.58, size * 1.12), rim, LIGHT)
    patch.polygon(_rectangle(middle, size * 0.44, size), body, LIGHT)
    place, colour = tuple(PHASES.values())[rng.choice(3, p=(0.45, 0.1, 0.45))]
    for row in range(3):
        spot = middle + np.array([0, (row - 1) * size * 0.31])
        lit = row == place
        patch.disc(spot, size * 0.13, np.array(colour, float) if lit else body + 22 * shade, LIGHT, 255 if lit else 0)
    lift = np.array([0, (1 - place) * 0.3, 0])
    canvas.lamps.append((world + lift, 0.35, colour))


def _sign(
    patch: Patch, middle: Pixel, size: float, shade: Vector, rng: np.random.Generator, _: Canvas, __: Vector
) -> None:
    """A traffic sign of one of the usual shapes; `size` is its width."""
    kind = ("limit", "warning", "mandatory", "stop", "yield", "square", "diamond", "back", "entry")[rng.integers(9)]
    glyph = _rectangle(middle, size * 0.34, size * 0.4)
    if kind in ("limit", "mandatory", "entry", "back"):
        ring = {"limit": RED, "mandatory": BLUE, "entry": RED, "back": GREY}[kind] * shade
        patch.disc(middle, size / 2, ring, SIGN)
        if kind == "limit":
            patch.disc(middle, size * 0.37, WHITE * shade, SIGN)
        if kind != "back":
            mark = {"limit": BLACK, "mandatory": WHITE, "entry": WHITE}[kind] * shade
            patch.polygon(glyph if kind != "entry" else _rectangle(middle, size * 0.7, size * 0.2), mark, SIGN)
        return
    sides = {"warning": 3, "yield": 3, "stop": 8, "square": 4, "diamond": 4}[kind]
    start = {"warning": -90, "yield": 90, "stop": 22.5, "square": 45, "diamond": 0}[kind]
    turn = np.radians(start + np.arange(sides) * 360 / sides)
    shape = np.stack([np.cos(turn), np.sin(turn)], 1) * size * (0.62 if sides < 8 else 0.52)
    outer, inner, mark = {
        "warning": (RED, WHITE, BLACK), "yield": (RED, WHITE, WHITE), "stop": (RED, RED, WHITE),
        "square": (BLUE, BLUE, WHITE), "diamond": (WHITE, YELLOW, YELLOW),
    }[kind]  # fmt: skip
    patch.polygon(middle + shape, outer * shade, SIGN)
    patch.polygon(middle + shape * 0.68, inner * shade, SIGN)
    if kind == "stop":
        glyph = _rectangle(middle, size * 0.7, size * 0.22)
    patch.polygon(middle + (glyph - middle) * 0.8, mark * shade, SIGN)


def _board(
    patch: Patch, middle: Pixel, size: float, shade: Vector, rng: np.random.Generator, _: Canvas, __: Vector
) -> None:
    """A rectangular sign with lines of writing."""
    ground = (BLUE, WHITE, YELLOW, GREEN, WHITE)[rng.integers(5)]
    ink = BLACK if ground.mean() > 140 else WHITE
    tall = size * rng.uniform(0.4, 1.3)
    patch.polygon(_rectangle(middle, size, tall), ink * shade, SIGN)
    patch.polygon(_rectangle(middle, size * 0.93, tall - size * 0.07), ground * shade, SIGN)
    for row in np.arange(-tall * 0.3, tall * 0.35, size * 0.22):
        length = rng.uniform(0.3, 0.75) * size
        patch.polygon(_rectangle(middle + np.array([0, row]), length, size * 0.08), ink * shade, SIGN)


@dataclass(frozen=True)
class Bin:
    """A bin, cabinet or kiosk, which belongs to no class; `size` is (width, height) in metres."""

    place: Float[np.ndarray, "2"]
    size: tuple[float, float]
    colour: Float[np.ndarray, "3"]

    @cached_property
    def distance(self) -> float:
        """Metres from the camera."""
        return float(np.hypot(*self.place))

    def shadows(self) -> list[Shadow]:
        """The outlines that cast shadows."""
        return [(self.place + SQUARE * self.size[0] / 2, 0.0, self.size[1])]

    def draw(self, canvas: Canvas, light: Light) -> None:
        """Draw a block with a lid."""
        foot = np.array([self.place[0], 0.0, self.place[1]])
        (base, tip), depth = canvas.camera.project(np.array([foot, foot + raised(self.size[1])]))
        width = self.size[0] * canvas.camera.focal / max(float(depth[0]), 0.1)
        window = canvas.window(np.array([base, tip]), width) if min(depth.tolist()) > 1.2 else None
        if window is None:
            return
        patch, half = Patch(canvas, window), np.array([width / 2, 0])
        colour = self.colour * light.shade(np.array([0.0, 0.0, -1.0]))
        patch.polygon(np.array([base - half, base + half, tip + half, tip - half]), colour, VOID)
        lid = tip + (base - tip) * 0.16
        patch.polygon(
            np.array([lid - half, lid + half, tip + half * 0.9, tip - half * 0.9]), colour * 0.6, VOID, cover=200
        )
        patch.commit(float(1 / depth[0]))
