"""Small tiles of noise and material, made once per process from fixed seeds, and what is cut from them."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np
from jaxtyping import Float, Float32, UInt8

SIDE = 512
"""Width and height of a tile in pixels; a power of two, so that indices wrap with a mask."""

SPRITE = 256
"""Width and height of the sprites of crowns in pixels."""

TILE_SCALE = 16
"""Pixels per metre of the material tiles."""


@cache
def noise(slope: float, seed: int = 0) -> Float32[np.ndarray, "512 512"]:
    """A seamless tile of noise whose amplitude falls with frequency to the power -slope; mean 0, deviation 1."""
    rng = np.random.default_rng([7, seed])
    spectrum = np.fft.rfft2(rng.standard_normal((SIDE, SIDE)))
    frequency = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)[None])
    frequency[0, 0] = np.inf
    tile = np.fft.irfft2(spectrum * frequency**-slope, s=(SIDE, SIDE))
    return np.asarray(tile / tile.std(), np.float32)


def sample(
    tile: Float32[np.ndarray, "s s"], x: Float32[np.ndarray, "*n"], y: Float32[np.ndarray, "*n"], scale: float
) -> Float32[np.ndarray, "*n"]:
    """Read a seamless tile at places in metres, `scale` pixels per metre."""
    mask = tile.shape[0] - 1
    columns = (x * np.float32(scale)).astype(np.int32) & mask
    rows = (y * np.float32(scale)).astype(np.int32) & mask
    return np.asarray(np.take(tile.ravel(), rows * tile.shape[1] + columns))


def _blocks(rng: np.random.Generator, high: int, wide: int, joint: float) -> Float32[np.ndarray, "512 512"]:
    """Courses of blocks, each of its own tone, every other course shifted by half a block."""
    rows, columns = np.indices((SIDE, SIDE))
    course = rows // high
    column = (columns + (course % 2) * (wide // 2)) // wide
    tile = rng.normal(0, 1, (SIDE // high + 1, SIDE // wide + 2))[course, column]
    seams = (rows % high == 0) | ((columns + (course % 2) * (wide // 2)) % wide == 0)
    return np.asarray(tile + joint * seams, np.float32)


@cache
def material(name: str) -> Float32[np.ndarray, "512 512"]:
    """Relative brightness (mean about 1) of brick, stone, plaster, concrete, slate or glass."""
    rng = np.random.default_rng([11, len(name), ord(name[0])])
    fine, coarse = noise(0.3, 1), noise(1.3, 2)
    streaks = cv2.blur(noise(0.4, 3), (3, 61), borderType=cv2.BORDER_REFLECT)
    streaks = streaks / streaks.std()
    tile = {
        "brick": lambda: 0.10 * _blocks(rng, 2, 4, 0.6) + 0.03 * fine + 0.05 * coarse,
        "stone": lambda: 0.06 * _blocks(rng, 6, 12, -1.6) + 0.03 * fine + 0.06 * coarse,
        "plaster": lambda: 0.02 * fine + 0.04 * coarse + 0.03 * streaks,
        "concrete": lambda: 0.04 * _blocks(rng, 48, 64, -2.0) + 0.03 * fine + 0.05 * streaks,
        "slate": lambda: 0.09 * _blocks(rng, 4, 5, -0.8) + 0.03 * fine + 0.06 * coarse,
        "glass": lambda: 0.02 * coarse,
    }[name]()
    return np.asarray(1 + tile, np.float32)


def cutting(metres: tuple[float, float], rng: np.random.Generator) -> tuple[slice, slice]:
    """The rows and columns of a tile of material from which a sheet of `metres` = (width, height) is cut."""
    wide, high = (min(SIDE, max(2, int(side * TILE_SCALE))) for side in metres)
    x, y = (int(rng.integers(0, SIDE - side + 1)) for side in (wide, high))
    return slice(y, y + high), slice(x, x + wide)


def fill(
    name: str, colour: Float[np.ndarray, "3"], metres: tuple[float, float], scale: float, part: tuple[slice, slice]
) -> UInt8[np.ndarray, "h w 4"]:
    """A sheet of a `part` of a material, `scale` pixels per metre; the fourth channel is zero."""
    shape = max(2, round(metres[0] * scale)), max(2, round(metres[1] * scale))
    way = cv2.INTER_AREA if scale < TILE_SCALE else cv2.INTER_LINEAR
    tone = cv2.resize(material(name)[part], shape, interpolation=way)
    channels = [cv2.convertScaleAbs(tone, alpha=alpha) for alpha in colour.tolist()]
    return np.asarray(cv2.merge([*channels, np.zeros(tone.shape, np.uint8)]), np.uint8)


def tint(texture: UInt8[np.ndarray, "h w 4"], factors: Float[np.ndarray, "3"]) -> UInt8[np.ndarray, "h w 4"]:
    """Multiply red, green and blue."""
    table = np.minimum(np.arange(256)[None, :, None] * np.array([*factors.tolist(), 1.0]), 255).astype(np.uint8)
    return np.asarray(cv2.LUT(texture, table), np.uint8)


def _sprite(tone: UInt8[np.ndarray, "s s"], opacity: UInt8[np.ndarray, "s s"]) -> UInt8[np.ndarray, "s s 4"]:
    return np.dstack([tone, tone, tone, opacity])


def _half(sprite: UInt8[np.ndarray, "s s 4"]) -> UInt8[np.ndarray, "s/2 s/2 4"]:
    side = sprite.shape[0] // 2
    return np.asarray(cv2.resize(sprite, (side, side), interpolation=cv2.INTER_AREA), np.uint8)


@cache
def leaves(index: int, mirrored: bool = False, halvings: int = 0) -> UInt8[np.ndarray, "s s 4"]:
    """Brightness (three times) and opacity of a leafy crown: clumps of leaves lit from above, dark inside and below."""
    if halvings:
        return _half(leaves(index, mirrored, halvings - 1))
    if mirrored:
        return np.ascontiguousarray(leaves(index)[:, ::-1])
    rng = np.random.default_rng([13, index])
    tone, opacity = np.zeros((256, 256), np.uint8), np.zeros((256, 256), np.uint8)
    clumps = rng.uniform(-1, 1, (int(rng.integers(22, 44)), 2))
    clumps = clumps[np.hypot(*clumps.T) < 0.95] * (84, 80) + 128
    spread, largest = rng.uniform(14, 22), int(rng.integers(4, 7))
    for share in (0.5, 0.78, 1.0):
        for x, y in clumps[rng.permutation(len(clumps))]:
            for dx, dy in rng.normal(0, spread * (0.4 + 0.45 * share), (40, 2)):
                lit = 0.5 - 0.10 * dy / spread - 0.14 * (y - 128) / 80 + rng.normal(0, 0.10)
                shade = int(np.clip(255 * share * lit, 18, 235))
                axes = tuple(int(side) for side in rng.integers(1, largest, 2))
                middle, angle = (int(x + dx), int(y + dy)), float(rng.uniform(0, 180))
                cv2.ellipse(tone, middle, axes, angle, 0, 360, shade, -1)
                cv2.ellipse(opacity, middle, axes, angle, 0, 360, 255, -1)
    return _sprite(tone, opacity)


@cache
def twigs(index: int, mirrored: bool = False, halvings: int = 0) -> UInt8[np.ndarray, "s s 4"]:
    """Brightness (three times) and opacity of a bare crown: branches that fork until they are a haze of twigs."""
    if halvings:
        return _half(twigs(index, mirrored, halvings - 1))
    if mirrored:
        return np.ascontiguousarray(twigs(index)[:, ::-1])
    rng = np.random.default_rng([17, index])
    canvas = np.zeros((768, 768), np.uint8)
    tips = [(384.0, 760.0, -np.pi / 2, 170.0, 15.0)]
    while tips:
        x, y, angle, length, width = tips.pop()
        end = x + np.cos(angle) * length, y + np.sin(angle) * length
        cv2.line(canvas, (int(x), int(y)), (int(end[0]), int(end[1])), 255, max(1, round(width)), cv2.LINE_AA)
        if length > 16:
            for turn in rng.normal(0, 0.5, int(rng.integers(2, 4))):
                heading = angle + turn - 0.05 * np.cos(angle)
                tips.append((*end, float(heading), length * rng.uniform(0.66, 0.84), width * 0.68))
    opacity = cv2.resize(canvas, (256, 256), interpolation=cv2.INTER_AREA)
    haze = cv2.GaussianBlur(opacity, (0, 0), 5)
    return _sprite(np.full_like(opacity, 110), np.maximum(opacity, (haze * 0.9).astype(np.uint8)))


@cache
def foliage() -> UInt8[np.ndarray, "512 512"]:
    """A seamless tile of leaves for hedges, 40 pixels per metre: dark gaps between bright tufts."""
    tone = 110 + 34 * noise(0.35, 5) + 26 * noise(1.0, 6)
    return np.asarray(tone.clip(10, 250), np.uint8)
