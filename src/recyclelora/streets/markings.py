"""What is on the surface of the road: lines, zebra crossings, arrows, repairs, cracks and manholes."""

from __future__ import annotations

import numpy as np

from recyclelora.streets.canvas import Canvas
from recyclelora.streets.ground import Paint
from recyclelora.streets.layout import Street
from recyclelora.streets.light import UP, Light

ARROW = np.array([[-0.08, 0], [-0.08, 2.2], [-0.35, 2.2], [0, 4], [0.35, 2.2], [0.08, 2.2], [0.08, 0]])
FAR = 140.0


def paint_road(canvas: Canvas, street: Street, light: Light, rng: np.random.Generator) -> None:
    """Draw the wear, then the paint over it."""
    _repairs(canvas, street, light, rng)
    white, yellow = Paint(canvas, street), Paint(canvas, street)
    _lines(white, yellow, street, rng)
    _junction(white, street, rng)
    for z in rng.uniform(6, 50, int(rng.poisson(0.9))):
        if street.free(z, z + 5, 4.0):
            _arrow(white, float(rng.choice(_lane_middles(street))), float(z), rng)
    shade, wear = light.shade(UP), rng.uniform(0.15, 0.85)
    white.blend(np.array([222, 222, 215]) * shade, rng.uniform(0.75, 0.95), wear)
    if yellow.mask.any():
        yellow.blend(np.array([205, 165, 60]) * shade, 0.85, wear)


def _lane_middles(street: Street) -> list[float]:
    left, right = _edges(street)
    width = (right - left) / street.lanes
    return [left + width * (lane + 0.5) for lane in range(street.lanes)]


def _edges(street: Street) -> tuple[float, float]:
    """The part of the road for traffic, without the places to park."""
    left, right = (2.1 if side.parked else 0.0 for side in street.sides)
    return -street.half + left, street.half - right


def _stretches(street: Street) -> list[tuple[float, float]]:
    """Where the road runs between junctions."""
    if street.cross is None:
        return [(-4.0, FAR)]
    return [(-4.0, street.cross[0] - 5)] + ([] if street.end else [(street.cross[1] + 5, FAR)])


def _lines(white: Paint, yellow: Paint, street: Street, rng: np.random.Generator) -> None:
    left, right = _edges(street)
    style = rng.random()
    dash, gap = (3.0, 6.0) if rng.random() < 0.5 else (2.0, 2.0 + 4 * rng.random())
    width = rng.uniform(0.1, 0.16)
    phase = rng.uniform(0, dash + gap)
    edge, double = rng.random() < 0.45, rng.random() < 0.2
    for start, stop in _stretches(street):
        if stop - start < 4:
            continue
        for lane in range(1, street.lanes):
            u = left + (right - left) * lane / street.lanes
            if style < 0.12:
                continue
            if style < 0.3 and lane == street.lanes // 2:
                white.strip(u, width, start, stop)
                continue
            for z in np.arange(start + phase, min(stop, 65), dash + gap):
                white.box(u, z + dash / 2, width, dash)
        for u in (left + 0.3, right - 0.3):
            if edge:
                white.strip(u, 0.12, start, stop)
            if double:
                inner = np.sign(u) * 0.22
                yellow.strip(u, 0.08, start, stop)
                yellow.strip(u - inner, 0.08, start, stop)


def _junction(white: Paint, street: Street, rng: np.random.Generator) -> None:
    """Zebra crossings and stop lines, at a junction or by themselves."""
    zebra, stop = rng.random() < 0.5, rng.random() < 0.6
    places = [rng.uniform(7, 40)] if rng.random() < 0.18 else []
    if street.cross is not None:
        places = [street.cross[0] - 3.5] + ([] if street.end else [street.cross[1] + 3.5])
    elif not places:
        return
    bar = rng.uniform(0.4, 0.6)
    for z in places:
        if zebra or street.cross is None:
            for u in np.arange(-street.half + 0.5, street.half - 0.3, 2 * bar):
                white.box(u, z, bar, 3.0)
        if stop:
            behind = street.cross is not None and z > street.cross[1]
            own = -street.drive if behind else street.drive
            white.box(own * street.half / 2, z + (2.3 if behind else -2.3), street.half * 0.92, 0.4)


def _arrow(white: Paint, u: float, z: float, rng: np.random.Generator) -> None:
    turn = rng.choice((0.0, 0.0, -1.0, 1.0))
    plan = ARROW.copy()
    plan[:, 0] += turn * 0.45 * np.clip(plan[:, 1] / 3 - 0.3, 0, 1)
    white.polygon(plan * (1.15, 1.0) + (u, z))


def _repairs(canvas: Canvas, street: Street, light: Light, rng: np.random.Generator) -> None:
    patches = Paint(canvas, street)
    for _ in range(int(rng.poisson(2.5))):
        u, z = rng.uniform(-street.half, street.half), rng.uniform(3, 45)
        patches.box(u, z, min(rng.uniform(0.6, 3), 2 * (street.half - abs(u))), rng.uniform(1, 9), 255)
    for _ in range(int(rng.poisson(2))):
        along = np.cumsum(rng.uniform(0.3, 0.9, 14)) + rng.uniform(2, 25)
        across = np.cumsum(rng.normal(0, 0.16, 14)) + rng.uniform(-0.8, 0.8) * street.half
        crack = np.stack([across.clip(-street.half + 0.1, street.half - 0.1), along], 1)
        patches.polygon(np.concatenate([crack, (crack + np.array([0.035, 0]))[::-1]]), 255)
    patches.darken(rng.uniform(0.7, 0.96), 0.6)
    manholes = Paint(canvas, street)
    turn = np.linspace(0, 2 * np.pi, 14, endpoint=False)
    for _ in range(int(rng.poisson(1.6))):
        middle = rng.uniform(-0.75, 0.75) * street.half, rng.uniform(4, 28)
        manholes.polygon(np.stack([np.cos(turn), np.sin(turn)], 1) * 0.33 + middle)
    manholes.blend(np.array([62, 60, 58]) * light.shade(UP), 0.75, 0.2)
