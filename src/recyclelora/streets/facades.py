"""Textures of house fronts: material, windows, doors, shops, balconies; the fourth channel is the windows' glow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from recyclelora.streets.textures import cutting, fill

Sheet = UInt8[np.ndarray, "h w 4"]

Rgb = Sequence[float]
"""A colour as plain numbers: a scene has a thousand rectangles, and arrays would take most of the time."""

WALLS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "brick": ((142, 84, 66), (158, 110, 84), (184, 156, 118), (112, 74, 62), (170, 132, 96)),
    "plaster": ((222, 214, 196), (205, 190, 160), (226, 226, 222), (196, 178, 168), (214, 196, 128), (170, 178, 180),
                (186, 140, 112), (150, 146, 138)),
    "stone": ((176, 164, 140), (146, 138, 126), (194, 182, 158), (120, 112, 102)),
    "concrete": ((150, 148, 144), (176, 174, 168), (128, 126, 122)),
    "glass": ((92, 112, 124), (112, 132, 138), (70, 84, 92)),
}  # fmt: skip
SIGNS = (
    (30, 60, 130), (160, 30, 34), (28, 96, 62), (36, 36, 40), (225, 222, 214), (212, 150, 40), (96, 30, 84),
    (34, 120, 150),
)  # fmt: skip


@dataclass(frozen=True)
class Style:
    """How a house looks; lengths in metres, colours 0 to 255."""

    wall: str
    colour: Float[np.ndarray, "3"]
    trim: Float[np.ndarray, "3"]
    floor: float
    window: tuple[float, float]
    pitch: float
    shop: bool
    balconies: bool
    bands: bool
    shutters: bool
    sky: Float[np.ndarray, "3"]

    @classmethod
    def sample(cls, rng: np.random.Generator, kind: str) -> Style:
        """A style that suits a city street, houses with gardens, or industry."""
        odds = {
            "city": (0.33, 0.33, 0.16, 0.08, 0.1),
            "houses": (0.5, 0.45, 0.05, 0, 0),
            "industry": (0.2, 0.2, 0, 0.4, 0.2),
        }
        wall = tuple(WALLS)[rng.choice(5, p=odds.get(kind, odds["city"]))]
        colour = np.array(WALLS[wall][rng.integers(len(WALLS[wall]))]) * rng.uniform(0.8, 1.1) + rng.normal(0, 5, 3)
        bright = np.array([214, 210, 202]) * rng.uniform(0.75, 1.05)
        width = rng.uniform(0.8, 1.5) if kind != "industry" else rng.uniform(1.5, 3)
        return cls(
            wall=wall, colour=colour, trim=bright if rng.random() < 0.7 else colour * rng.uniform(0.55, 0.85),
            floor=rng.uniform(2.7, 3.7), window=(width, rng.uniform(1.2, 2.0)), pitch=width + rng.uniform(0.7, 2.2),
            shop=kind == "city" and rng.random() < 0.6, balconies=kind == "city" and rng.random() < 0.2,
            bands=rng.random() < 0.35, shutters=rng.random() < 0.12,
            sky=np.array([130, 148, 168]) * rng.uniform(0.5, 1.15),
        )  # fmt: skip


class _Brush:
    """Rectangles in metres on a sheet, from its lower left corner."""

    def __init__(self, sheet: Sheet, scale: float) -> None:
        self.sheet, self.scale, self.rows = sheet, scale, sheet.shape[0]

    def box(self, x: float, y: float, width: float, height: float, colour: Rgb, glow: int = 0) -> None:
        scale = self.scale
        edge = self.rows - (y + height) * scale
        left, top = round(x * scale), round(edge)
        right, bottom = round((x + width) * scale) - 1, round(edge + height * scale) - 1
        two = (right if right > left else left, bottom if bottom > top else top)
        cv2.rectangle(self.sheet, (left, top), two, (*colour, glow), -1)


def _mixed(colour: Rgb, share: float, grey: float = 0.0) -> Rgb:
    """A grey mixed with a share of a colour."""
    r, g, b = colour
    return r * share + grey, g * share + grey, b * share + grey


def facade(
    style: Style, width: float, height: float, scale: float, rng: np.random.Generator, *, blind: bool
) -> UInt8[np.ndarray, "h w 4"]:
    """A front of `width` x `height` metres at `scale` pixels per metre; a `blind` front has hardly any windows."""
    sheet = fill(style.wall, style.colour, (width, height), scale, cutting((width, height), rng))
    brush = _Brush(sheet, scale)
    ground = style.floor * (1.25 if style.shop else 1.0)
    floors = max(1, int((height - ground - 0.3) / style.floor) + 1)
    columns = max(1, int((width - 0.6) / style.pitch))
    lit = rng.random((floors, columns)) < rng.uniform(0.1, 0.55)
    tone = rng.normal(1, 0.18, (floors, columns)).tolist()
    curtain = rng.random((floors, columns)).tolist()
    if blind:
        lit[:], columns = False, columns if rng.random() < 0.2 else 0
    trim, colour = style.trim.tolist(), style.colour.tolist()
    margin = (width - columns * style.pitch) / 2
    for level in range(floors):
        base = ground + (level - 1) * style.floor if level else 0.0
        if style.bands and level:
            brush.box(0.0, base - 0.15, width, 0.22, trim)
        if level == 0 and not blind:
            _street_level(brush, style, width, ground, rng)
        for column in range(columns if level else 0):
            x = margin + column * style.pitch + (style.pitch - style.window[0]) / 2
            _window(brush, style, (x, base), (tone[level][column], curtain[level][column]), bool(lit[level, column]))
    brush.box(0.0, height - 0.35, width, 0.35, _mixed(trim, 0.92))
    brush.box(0.0, height - 0.5, width, 0.15, _mixed(colour, 0.55))
    brush.box(0.0, 0.0, width, 0.35, _mixed(colour, 0.6))
    return sheet


def _window(
    brush: _Brush, style: Style, place: tuple[float, float], look: tuple[float, float], lit: bool
) -> None:  # fmt: skip
    """One window with frame, sill, the sky in its glass, and perhaps a curtain, shutters or a balcony."""
    (x, base), (tone, curtain) = place, look
    wide, high = style.window[0], min(style.window[1], style.floor - 0.9)
    y, glow = base + 0.85, (110 + int(120 * curtain)) if lit else 0
    trim, colour, sky = style.trim.tolist(), style.colour.tolist(), _mixed(style.sky.tolist(), tone)
    if style.wall == "glass":
        brush.box(x - 0.3, base + 0.5, style.pitch - 0.1, style.floor - 0.55, sky, glow // 2)
        return
    glass = _mixed(sky, 0.55)
    brush.box(x - 0.1, y - 0.08, wide + 0.2, high + 0.18, trim)
    brush.box(x, y, wide, high, glass, glow)
    if brush.scale < 4.5:
        return
    brush.box(x, y + high * 0.55, wide, high * 0.45, _mixed(glass, 1.35, 12), glow)
    if curtain < 0.4:
        brush.box(x, y, wide * (0.3 + curtain), high, _mixed(glass, 0.5, 80), glow)
    brush.box(x, y + high - 0.14, wide, 0.14, _mixed(glass, 0.35))
    if brush.scale > 7:
        brush.box(x + wide / 2 - 0.04, y, 0.08, high, trim)
        brush.box(x, y + high * 0.6, wide, 0.07, trim)
    brush.box(x - 0.15, y - 0.2, wide + 0.3, 0.12, _mixed(trim, 1.08))
    brush.box(x - 0.1, y - 0.36, wide + 0.2, 0.14, _mixed(colour, 0.72))
    if style.shutters:
        for side in (x - wide * 0.5, x + wide):
            brush.box(side, y, wide * 0.45, high, _mixed(trim, 0.5))
    if style.balconies and curtain > 0.35:
        brush.box(x - 0.5, base - 0.1, wide + 1.0, 0.2, _mixed(trim, 0.8))
        brush.box(x - 0.5, base + 0.1, wide + 1.0, 0.85, _mixed(colour, 0.35, 20))
        brush.box(x - 0.5, base - 0.55, wide + 1.0, 0.45, _mixed(colour, 0.55))


def _street_level(brush: _Brush, style: Style, width: float, height: float, rng: np.random.Generator) -> None:
    """Shops with signs, or doors and windows."""
    bays = max(1, int(width / rng.uniform(4, 7))) if style.shop else 1
    bay = width / bays
    for x in (np.arange(bays) * bay).tolist():
        tone = np.array(SIGNS[rng.integers(len(SIGNS))]) * rng.uniform(0.7, 1.1)
        dark = _mixed((44.0, 48.0, 52.0), rng.uniform(0.5, 1.6))
        sign, bright = tone.tolist(), bool(tone.mean() >= 120)
        letters = _mixed(sign, 0.3) if bright else _mixed(sign, 1.0, 140)
        if style.shop:
            glow = int(rng.integers(90, 250))
            brush.box(x + 0.15, 0.0, bay - 0.3, height - 0.25, _mixed(sign, 0.55))
            for pane in np.linspace(x + 0.35, x + bay - 0.35, 4)[:-1].tolist():
                shine = _mixed(dark, 1.0, rng.uniform(0, 40))
                brush.box(pane, 0.45, (bay - 0.7) / 3 - 0.1, height - 1.5, shine, glow)
                for aside, tall in rng.uniform(0, 0.7, (3, 2)).tolist():
                    stuff = rng.uniform(40, 190, 3).tolist()
                    brush.box(pane + aside * bay / 4, 0.5 + tall, 0.35, 0.2 + tall, stuff, glow)
            brush.box(x + 0.1, height - 1.0, bay - 0.2, 0.75, sign, glow // 2)
            for stroke in np.arange(x + bay * 0.22, x + bay * 0.75, 0.3).tolist():
                tall = rng.uniform(0.2, 0.42)
                brush.box(stroke, height - 0.82, rng.uniform(0.08, 0.22), tall, letters, glow // 2)
            if rng.random() < 0.2:
                brush.box(x + 0.1, height - 1.5, bay - 0.2, 0.6, _mixed(sign, 0.9, 30))
            continue
        door = rng.uniform(0.4, width - 1.5) if width > 2.5 else 0.2
        for start in np.arange(0.6, width - style.window[0] - 0.4, style.pitch).tolist():
            if not door - style.window[0] - 0.2 < start < door + 1.4:
                look = (float(rng.normal(1, 0.2)), float(rng.random()))
                _window(brush, style, (start, 0.15), look, bool(rng.random() < 0.3))
        brush.box(door - 0.15, 0.0, 1.3, 2.45, style.trim.tolist())
        brush.box(door, 0.0, 1.0, 2.2, _mixed(sign, 0.7))
        brush.box(door + 0.15, 1.3, 0.7, 0.7, dark)
