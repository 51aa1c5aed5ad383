"""Houses: boxes with textured fronts and, at times, pitched roofs; walls, fences, hedges as upright panels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, partial

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from recyclelora.streets.camera import Vector, cross, grounded, norm
from recyclelora.streets.canvas import Canvas, fixed
from recyclelora.streets.classes import IDS
from recyclelora.streets.facades import Style, facade
from recyclelora.streets.ground import Shadow
from recyclelora.streets.layout import Street
from recyclelora.streets.light import Light
from recyclelora.streets.textures import cutting, fill, foliage, tint

BUILDING, WALL, FENCE, VEGETATION = (IDS[name] for name in ("building", "wall", "fence", "vegetation"))
ROOFS = ((92, 62, 54), (70, 70, 76), (116, 76, 58), (84, 80, 76))
FINEST = 26.0
"""Pixels per metre of the finest texture."""


def texture_scale(canvas: Canvas, ends: Float[np.ndarray, "2 3"]) -> float:
    """Pixels per metre that a surface between these points needs: those in the middle of its visible part."""
    one, two = (max(depth, 3.0) for depth in canvas.camera.local(ends)[:, 2].tolist())
    return min(max(canvas.camera.focal / math.sqrt(min(one, two) * ((one + two) / 2)), 1.5), FINEST)


@dataclass(frozen=True)
class Building:
    """A house on four corners (x, z), ordered so that the inside is to the right of each edge.

    `front` says which edges have windows. `ridge` is the height of a pitched roof over the eaves, 0 for a flat one.
    """

    corners: Float[np.ndarray, "4 2"]
    height: float
    ridge: float
    style: Style
    front: tuple[bool, bool, bool, bool]
    seed: int

    @cached_property
    def distance(self) -> float:
        """Metres from the origin, which is near the camera, for the order of drawing."""
        return float(np.hypot(*self.corners.mean(axis=0)))

    def shadows(self) -> list[Shadow]:
        """The outlines that cast shadows."""
        return [(self.corners, 0.0, self.height + self.ridge / 2)]

    def draw(self, canvas: Canvas, light: Light) -> None:
        """Draw the fronts that face the camera, then the roof."""
        eye = canvas.camera.position
        up = np.array([0.0, self.height, 0.0])
        feet = grounded(self.corners)
        for index in range(4):
            start, end = feet[index], feet[(index + 1) % 4]
            along = end - start
            width = norm(along)
            normal = np.array([-along[2], 0.0, along[0]]) / width
            if normal @ (eye - start) <= 0.05:
                continue
            scale = texture_scale(canvas, np.array([start, end]))
            canvas.surface(start, along, up, partial(self._front, index, width, scale, light.shade(normal)), BUILDING)
        if self.ridge:
            self._roof(canvas, light, feet + up)

    def _front(self, index: int, width: float, scale: float, shade: Vector) -> UInt8[np.ndarray, "h w 4"]:
        rng = np.random.default_rng([self.seed, index])
        return tint(facade(self.style, width, self.height, scale, rng, blind=not self.front[index]), shade)

    def _roof(self, canvas: Canvas, light: Light, eaves: Float[np.ndarray, "4 3"]) -> None:
        """Two slopes along the first edge and the gables between them."""
        rng = np.random.default_rng([self.seed, 9])
        colour = np.array(ROOFS[rng.integers(len(ROOFS))]) * rng.uniform(0.8, 1.2)
        rise = np.array([0.0, self.ridge, 0.0])
        tops = (eaves[[1, 0]] + eaves[[2, 3]]) / 2 + rise
        for start, end, top in ((eaves[0], eaves[1], tops[1]), (eaves[2], eaves[3], tops[0])):
            along, slope = end - start, top - start
            normal = cross(along, slope)
            normal = normal / norm(normal)
            if normal @ (canvas.camera.position - start) <= 0:
                continue
            metres = norm(along), norm(slope)
            scale, part = texture_scale(canvas, np.array([start, end])) / 1.5, cutting(metres, rng)
            texture = partial(_slates, colour, metres, scale, part, light.shade(normal))
            canvas.surface(start, along, slope, texture, BUILDING, cover=255)
        for one, two, top in ((eaves[1], eaves[2], tops[0]), (eaves[3], eaves[0], tops[1])):
            along = two - one
            normal = np.array([-along[2], 0.0, along[0]]) / norm(along)
            if normal @ (canvas.camera.position - one) > 0:
                triangle(canvas, np.array([one, two, top]), normal, self.style.colour * light.shade(normal))


def _slates(
    colour: Vector, metres: tuple[float, float], scale: float, part: tuple[slice, slice], shade: Vector
) -> UInt8[np.ndarray, "h w 4"]:  # fmt: skip
    return tint(fill("slate", colour, metres, scale, part), shade)


def triangle(canvas: Canvas, points: Float[np.ndarray, "n 3"], normal: Vector, colour: Vector) -> None:
    """A flat polygon of one colour with its exact depth, part of a building."""
    outline = canvas.camera.polygon(points)
    window = None if outline is None else canvas.window(outline)
    if outline is None or window is None:
        return
    near = canvas.affine(window, canvas.camera.plane(points[0], normal))
    inside = np.zeros(near.shape, np.uint8)
    shift = np.array([window[1].start, window[0].start])
    cv2.fillPoly(inside, [fixed(outline - shift)], 1, shift=4)
    seen = inside.view(bool) & canvas.open(window, near)
    canvas.image[window][seen] = colour.clip(0, 255)
    canvas.mark(window, seen, (BUILDING, 0, 0), near)


@dataclass(frozen=True)
class Panel:
    """An upright panel from one point (x, z) to another: "wall", "fence", "mesh", "railing" or "hedge"."""

    ends: Float[np.ndarray, "2 2"]
    height: float
    kind: str
    seed: int

    @cached_property
    def distance(self) -> float:
        """Metres from the camera."""
        return float(np.hypot(*self.ends.mean(axis=0)))

    def shadows(self) -> list[Shadow]:
        """The outlines that cast shadows."""
        return [(self.ends, 0.0, self.height)] if self.kind in ("wall", "hedge") else []

    def draw(self, canvas: Canvas, light: Light) -> None:
        """Draw the panel."""
        start, end = grounded(self.ends)
        along = end - start
        width = norm(along)
        normal = np.array([-along[2], 0.0, along[0]]) / width
        if normal @ (canvas.camera.position - start) < 0:
            normal = -normal
        scale = texture_scale(canvas, np.array([start, end]))
        make = {"wall": _wall, "hedge": _hedge}.get(self.kind, _bars)
        label = {"wall": WALL, "hedge": VEGETATION}.get(self.kind, FENCE)
        see_through = self.kind != "wall"
        up = np.array([0.0, self.height, 0.0])

        def texture() -> UInt8[np.ndarray, "h w 4"]:
            rng = np.random.default_rng(self.seed)
            return tint(make(self.kind, (width, self.height), scale, rng), light.shade(normal))

        cover = 90 if self.kind == "hedge" else 0
        canvas.surface(start, along, up, texture, label, see_through=see_through, cover=cover)


def _wall(_: str, metres: tuple[float, float], scale: float, rng: np.random.Generator) -> UInt8[np.ndarray, "h w 4"]:
    name, colour = (
        ("brick", (140, 88, 70)), ("brick", (172, 142, 108)), ("stone", (152, 144, 130)), ("concrete", (150, 148, 144)),
        ("plaster", (208, 202, 188)),
    )[rng.integers(5)]  # fmt: skip
    sheet = fill(name, np.array(colour) * rng.uniform(0.8, 1.1), metres, scale, cutting(metres, rng))
    coping = max(1, round(0.1 * scale))
    sheet[:coping, :, :3] = (np.array(colour) * 1.15).clip(0, 255)
    return sheet


def _hedge(_: str, metres: tuple[float, float], scale: float, rng: np.random.Generator) -> UInt8[np.ndarray, "h w 4"]:
    """Leaves that are darker towards the ground, with an opaque body and a trimmed top edge."""
    tile = foliage()
    wide, high = (min(512, max(2, int(side * 40))) for side in metres)
    shape = max(2, round(metres[0] * scale)), max(2, round(metres[1] * scale))
    tone = cv2.resize(tile[:high, :wide], shape, interpolation=cv2.INTER_AREA).astype(np.float32)
    tone *= np.linspace(1.15, 0.55, shape[1], dtype=np.float32)[:, None]
    colour = np.array([86, 106, 52]) * rng.uniform(0.6, 1.1) + rng.normal(0, 8, 3)
    sheet = np.full((*tone.shape, 4), 255, np.uint8)
    sheet[..., :3] = (tone[..., None] * (colour / 110)).clip(0, 255)
    return sheet


def _bars(kind: str, metres: tuple[float, float], scale: float, rng: np.random.Generator) -> UInt8[np.ndarray, "h w 4"]:
    """Posts, rails and pickets; thin ones fade rather than alias at a distance."""
    width, height = metres
    gap, bar = {"fence": (0.16, 0.1), "mesh": (0.1, 0.018), "railing": (0.14, 0.03)}[kind]
    wood = np.array([126, 96, 66]) if rng.random() < 0.6 else np.array([206, 204, 198])
    metal = np.array([58, 64, 62]) if rng.random() < 0.6 else np.array([150, 152, 150])
    colour = (wood if kind == "fence" else metal) * rng.uniform(0.75, 1.1)
    columns = np.arange(max(4, round(width * scale)))
    rows = np.arange(max(4, round(height * scale)))
    pixel = 1 / scale
    share = np.clip((bar / 2 + pixel / 2 - np.abs((columns * pixel) % gap - gap / 2)) / pixel, 0, 1)
    share = share if gap > 2 * pixel else np.full_like(share, bar / gap)
    share = np.maximum(share, (columns * pixel) % 2.4 < 0.07 + pixel / 2)
    rails = np.zeros(len(rows))
    for rail in (0.03, 0.5 if kind == "mesh" else 0.82):
        rails = np.maximum(rails, np.abs(rows * pixel / height - rail) < 0.035 + pixel / 4)
    sheet = np.zeros((len(rows), len(columns), 4), np.uint8)
    sheet[..., :3] = colour.clip(0, 255)
    sheet[..., 3] = 255 * np.maximum(share[None], rails[:, None] * 0.9)
    return sheet


def build_row(street: Street, sign: int, rng: np.random.Generator) -> list[Building]:
    """The houses along one side of the street."""
    side = street.side(sign)
    row: list[Building] = []
    z = rng.uniform(-14, -6)
    length = {"city": (7, 20), "houses": (7, 12), "industry": (16, 40), "park": (12, 25)}[side.kind]
    common = rng.uniform(7, 19)
    while z < 125 and len(row) < 14:
        stop = z + rng.uniform(*length)
        if not street.free(z, stop, side.pavement + 1):
            z = stop if street.end is None else 200.0
            if street.cross is not None and street.end is None:
                z = street.cross[1] + side.pavement + 1.2
            stop = z + rng.uniform(*length)
            if z > 125 or not street.free(z, stop, 1.0):
                break
        lonely = rng.random() < {"city": 0.12, "houses": 0.75, "industry": 0.6, "park": 0.9}[side.kind]
        if side.kind != "park" or rng.random() < 0.4:
            row.append(_house(street, sign, (z, stop), common, rng))
        z = stop + (rng.uniform(1.5, 9) if lonely else 0.0)
    return row


def _house(
    street: Street, sign: int, span: tuple[float, float], common: float, rng: np.random.Generator
) -> Building:  # fmt: skip
    side = street.side(sign)
    face = sign * (street.half + side.face + rng.uniform(0, 0.6))
    deep = face + sign * rng.uniform(8, 13)
    corners = np.array([street.spot(u, z) for u, z in zip((face, face, deep, deep), (*span, *span[::-1]), strict=True)])
    height = {
        "city": common * rng.uniform(0.75, 1.3), "houses": rng.uniform(4.8, 7.5), "industry": rng.uniform(5, 12),
        "park": rng.uniform(6, 16),
    }[side.kind]  # fmt: skip
    pitched = rng.random() < {"city": 0.45, "houses": 0.92, "industry": 0.15}.get(side.kind, 0.4)
    return Building(
        corners if sign > 0 else corners[[1, 0, 3, 2]], height, rng.uniform(1.8, 3.6) if pitched else 0.0,
        Style.sample(rng, side.kind), (True, rng.random() < 0.3, True, rng.random() < 0.3), int(rng.integers(2**31)),
    )  # fmt: skip


def build_end(street: Street, rng: np.random.Generator) -> list[Building]:
    """The houses that close a T-junction."""
    if street.end is None or street.cross is None:
        return []
    middle, x = float(street.middle(street.end)), -45.0
    z = street.cross[1] + rng.uniform(3, 7)
    row = []
    while x < 45:
        stop = x + rng.uniform(8, 18)
        corners = np.array([[middle + stop, z], [middle + x, z], [middle + x, z + 10], [middle + stop, z + 10]])
        ridge = rng.uniform(1.8, 3.6) if rng.random() < 0.5 else 0.0
        style, seed = Style.sample(rng, "city"), int(rng.integers(2**31))
        row.append(Building(corners, rng.uniform(7, 15), ridge, style, (True, False, True, False), seed))
        x = stop + (rng.uniform(1, 8) if rng.random() < 0.3 else 0)
    return row
