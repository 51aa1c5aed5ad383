"""The ground: road, kerb, pavement, verge and what lies behind, with markings, wear and shadows."""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np
from jaxtyping import Float, Float32, Shaped, UInt8

from recyclelora.streets.camera import grounded
from recyclelora.streets.canvas import Canvas, fixed, plain, put
from recyclelora.streets.classes import IDS
from recyclelora.streets.layout import KERB, Street
from recyclelora.streets.light import UP, Light
from recyclelora.streets.textures import noise, sample

ROAD, PAVEMENT, TERRAIN = (IDS[name] for name in ("road", "sidewalk", "terrain"))
CORNER = 4.0
"""Radius of the kerb at a crossing in metres."""

TAGS = np.array([[ROAD, 0, 60], [PAVEMENT, 0, 150], [PAVEMENT, 0, 150], [TERRAIN, 0, 235], [TERRAIN, 0, 235]], np.uint8)
"""Tags of asphalt, kerb, pavement, grass and earth."""

Shadow = tuple[Float[np.ndarray, "n 2"], float, float]
"""Outline of an object seen from above (x, z), and the heights where it begins and ends."""


def _beyond_kerb(
    street: Street, u: Float32[np.ndarray, "h w"], z: Float32[np.ndarray, "h w"]
) -> Float32[np.ndarray, "h w"]:
    """Metres from the kerb, negative on the road; round at the corners of a crossing."""
    away = np.abs(u) - np.float32(street.half)
    if street.end is not None:
        away = np.maximum(away, z - np.float32(street.end))
    if street.cross is None:
        return np.asarray(away)
    across = np.maximum(np.float32(street.cross[0]) - z, z - np.float32(street.cross[1]))
    one, two = np.maximum(CORNER - away, 0), np.maximum(CORNER - across, 0)
    return np.asarray(np.where((one > 0) & (two > 0), CORNER - np.hypot(one, two), np.minimum(away, across)))


def _palette(rng: np.random.Generator) -> tuple[Float32[np.ndarray, "5 3"], bool]:
    """Colours of asphalt, kerb, pavement, grass and earth, and whether the pavement is laid in slabs."""
    grey = rng.uniform(72, 128) + rng.normal(0, 2.5, 3)
    stone = rng.uniform(120, 175) + rng.normal(0, 4, 3)
    paving = grey + rng.uniform(-12, 24)
    slabs = bool(rng.random() < 0.65)
    if slabs:
        paving = rng.uniform(105, 165) + np.array([5, 0, -7]) * rng.uniform(-0.5, 2.2)
    if rng.random() < 0.12:
        paving = np.array([142, 104, 88]) + rng.normal(0, 8, 3)
    grass = np.array([84, 104, 46]) * rng.uniform(0.75, 1.2) + rng.normal(0, 9, 3)
    earth = np.array([124, 106, 82]) * rng.uniform(0.8, 1.15)
    return np.stack([grey, stone, paving, grass, earth]).astype(np.float32), slabs


def paint_ground(canvas: Canvas, street: Street, light: Light, rng: np.random.Generator) -> None:
    """Write colour, label and depth of every pixel below the horizon."""
    camera = canvas.camera
    horizon = np.float32(-1e-4)
    below = canvas.rays[..., 1] < horizon
    # Whole rows: it is faster to paint some pixels in vain than to pick them. Only ground is copied to the canvas.
    part = slice(int(np.argmax(below.any(axis=1))), None)
    right, up, ahead = (canvas.rays[part, :, axis] for axis in range(3))
    depth = np.minimum(np.float32(camera.position[1]) / -np.minimum(up, horizon), np.float32(3000))
    x, z = np.float32(camera.position[0]) + depth * right, depth * ahead
    u = x - street.middle(z).astype(np.float32)
    kerb = _beyond_kerb(street, u, z)
    hand = u > 0
    bounds = np.array([[side.verge, side.verge + side.pavement] for side in street.sides], np.float32) + KERB
    kinds = np.array([[0, 1, 3, 2, {"paved": 2, "grass": 3, "lot": 0}[side.front]] for side in street.sides])
    zone = 5 * hand.view(np.uint8) + (kerb >= 0) + (kerb > KERB)
    for bound in bounds.T:
        zone += kerb > np.where(hand, bound[1], bound[0])
    kind = _look_up(kinds.astype(np.uint8).ravel(), zone)
    bald = sample(noise(1.3, 2), x, z, 14.0) + np.float32(rng.normal(-1.2, 0.7)) > 0.6
    colours, slabs = _palette(rng)
    ground = np.where((kind == 3) & bald, np.uint8(4), kind)
    fade = np.clip(np.float32(camera.focal / 60) / depth, 0, 1)
    fine, coarse = sample(noise(0.2, 1), x, z, 45.0), sample(noise(1.3, 2), x, z, 9.0)
    grain = np.array([0.09, 0.06, 0.06, 0.22, 0.12], np.float32) * np.float32(rng.uniform(0.6, 1.4))
    blotches = np.array([0.06, 0.05, 0.05, 0.14, 0.1], np.float32)
    gain = 1 + _look_up(grain, ground) * fine * fade + _look_up(blotches, ground) * coarse
    gain *= _seams(street, u, z, kerb, kind, depth / np.float32(camera.focal), slabs)
    colours *= light.shade(UP).astype(np.float32)
    painted = [np.minimum(_look_up(channel, ground) * gain, 255).astype(np.uint8) for channel in colours.T]
    put(cv2.merge(painted), below[part], canvas.image[part])
    put(cv2.merge([_look_up(channel, ground) for channel in TAGS.T]), below[part], canvas.tags[part])
    np.copyto(canvas.nearness[part], 1 / depth, where=below[part])
    canvas.ground[:] = below


def _look_up(table: Shaped[np.ndarray, "k"], index: UInt8[np.ndarray, "h w"]) -> Shaped[np.ndarray, "h w"]:
    """`table[index]`; OpenCV is many times faster, but needs 256 entries."""
    return np.asarray(cv2.LUT(index, np.resize(table, 256)))


def _seams(
    street: Street, u: Float32[np.ndarray, "h w"], z: Float32[np.ndarray, "h w"], kerb: Float32[np.ndarray, "h w"],
    kind: UInt8[np.ndarray, "h w"], pixel: Float32[np.ndarray, "h w"], slabs: bool,
) -> Float32[np.ndarray, "h w"]:  # fmt: skip
    """Darkening by joints of slabs, wheel tracks and the gutter; `pixel` is the size of a pixel in metres."""
    gain = np.ones_like(u)
    lane = np.float32(2 * street.half / street.lanes)
    tracks = np.cos(u * np.float32(4 * np.pi / lane))
    gain -= np.where(kind == 0, 0.035 * tracks, 0).astype(np.float32)
    gain -= 0.3 * np.clip(1 - np.abs(kerb + 0.05) / np.maximum(0.12, pixel), 0, 1) * np.clip(0.12 / pixel, 0, 1)
    if slabs:
        for place, size in ((kerb, 0.6), (z, 0.9)):
            joint = np.abs(np.mod(place, np.float32(size)) - np.float32(size / 2)) * 2 / np.float32(size)
            dark = np.clip((joint - 0.93) * 20, 0, 1) * np.clip(np.float32(0.012) / pixel - 0.3, 0, 1)
            gain -= np.where(kind == 2, 0.28 * dark, 0).astype(np.float32)
    return gain


class Paint:
    """Markings and shadows: polygons on the ground gathered in a mask, then blended in at once."""

    def __init__(self, canvas: Canvas, street: Street) -> None:
        self.canvas, self.street = canvas, street
        self.mask: UInt8[np.ndarray, "h w"] = np.zeros(canvas.camera.size, np.uint8)

    def polygon(self, plan: Float[np.ndarray, "n 2"], strength: int = 255, *, bent: bool = True) -> None:
        """Add an outline of (u, z), or of world (x, z) if not `bent`."""
        points = grounded(plan)
        if bent:
            points[:, 0] += self.street.middle(plan[:, 1])
        pixels = self.canvas.camera.polygon(points)
        if pixels is not None and self.canvas.window(pixels) is not None:
            cv2.fillPoly(self.mask, [fixed(pixels)], (strength,), cv2.LINE_AA, 4)

    def strip(self, u: float, width: float, start: float, stop: float) -> None:
        """A line along the road."""
        z = np.linspace(start, stop, max(2, int((stop - start) / 6)))
        side = np.full_like(z, width / 2)
        self.polygon(np.concatenate([np.stack([u - side, z], 1), np.stack([u + side, z], 1)[::-1]]))

    def box(self, u: float, z: float, width: float, length: float, strength: int = 255) -> None:
        """A rectangle across the road."""
        across = np.array([-0.5, 0.5, 0.5, -0.5]) * width + u
        self.polygon(np.array([across, z + np.array([-0.5, -0.5, 0.5, 0.5]) * length]).T, strength)

    def blend(self, colour: Float[np.ndarray, "3"], opacity: float, wear: float) -> None:
        """Lay the paint on the picture; `wear` is the share that has rubbed off."""
        top, tile = self.rows(), noise(0.9, 4)
        weight = self.mask[top:].astype(np.float32) * np.float32(opacity / 255)
        worn = np.resize(tile, (weight.shape[0], tile.shape[1]))
        worn = np.tile(worn, (1, weight.shape[1] // tile.shape[1] + 1))[:, : weight.shape[1]]
        weight *= np.clip(1.2 - np.float32(wear) * (1 + 0.6 * worn), 0.05, 1)
        part = self.canvas.image[top:]
        flat = plain(weight.shape, colour.clip(0, 255).astype(np.uint8).tolist())
        part[:] = cv2.blendLinear(flat, part.copy(), weight, 1 - weight)

    def rows(self) -> int:
        """The first row that has ground."""
        return int(np.argmax((self.canvas.nearness > 0).any(axis=1)))

    def darken(self, factor: float, softness: float) -> None:
        """Multiply the ground by `factor` (at most 1) where the mask is full; `softness` in pixels."""
        top = self.rows()
        mask = cv2.GaussianBlur(self.mask[top:], (0, 0), softness).astype(np.float32) / 255
        weight = 1 - (1 - np.float32(factor)) * mask
        weight[~self.canvas.ground[top:]] = 1
        part = self.canvas.image[top:]
        part[:] = cv2.blendLinear(part.copy(), np.zeros_like(part), weight, 1 - weight)


def paint_shadows(
    canvas: Canvas, street: Street, light: Light, shadows: Iterable[Shadow], contact: Iterable[Shadow]
) -> None:
    """Draw the shadows of the sun, and the dark areas under objects on the ground."""
    under = Paint(canvas, street)
    for plan, _, _ in contact:
        under.polygon(plan, 255, bent=False)
    under.darken(0.45, 1.5 * canvas.camera.size[0] / 256)
    if not light.sunny:
        return
    cast = Paint(canvas, street)
    for plan, bottom, top in shadows:
        both = np.concatenate([plan + light.cast(bottom), plan + light.cast(top)]).astype(np.float32)
        cast.polygon(cv2.convexHull(both)[:, 0].astype(np.float64), bent=False)
    cast.darken(light.in_shadow, 0.7 * canvas.camera.size[0] / 256)
