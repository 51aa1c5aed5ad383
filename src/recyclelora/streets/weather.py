"""The effects of weather and night on a finished picture: fog, darkness with lamps, rain, snow. Labels never change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32

from recyclelora.streets.canvas import Canvas, put
from recyclelora.streets.classes import IDS
from recyclelora.streets.textures import noise, sample

SKY = IDS["sky"]
Picture = Float32[np.ndarray, "h w 3"]


def fog(image: Picture, depth: Float32[np.ndarray, "h w"], beta: float, airlight: Float[np.ndarray, "3"]) -> Picture:
    """Scattering by Koschmieder's law, I = J t + A (1 - t) with t = exp(-beta depth).

    `image` and `airlight` from 0 to 1, `depth` in metres (the sky is at infinity), `beta` in 1 / m.
    """
    air = _everywhere(airlight, image)
    hazy = image - air
    hazy *= cv2.merge([np.exp(-np.float32(beta) * depth)] * 3)
    hazy += air
    return np.asarray(hazy)


def _everywhere(colour: Float[np.ndarray, "3"], image: Picture) -> Float32[np.ndarray, "w 3"]:
    """A colour for each pixel of a row: NumPy is several times slower if it repeats a colour itself."""
    return np.tile(colour.astype(np.float32), (image.shape[1], 1))


def _depth(canvas: Canvas) -> Float32[np.ndarray, "h w"]:
    with np.errstate(divide="ignore"):
        return np.asarray(1 / canvas.nearness)


def clear(image: Picture, canvas: Canvas, rng: np.random.Generator) -> Picture:
    """Add a little haze in the distance."""
    air = np.array([0.80, 0.85, 0.91]) * rng.uniform(0.8, 1.05)
    hazy = fog(image, _depth(canvas), 1 / rng.uniform(350, 2500), air)
    put(image, _sky(canvas), hazy)
    return hazy


def foggy(image: Picture, canvas: Canvas, rng: np.random.Generator) -> Picture:
    """Visibility of some 40 to 200 metres."""
    air = rng.uniform(0.66, 0.88) * (np.array([0.98, 1.0, 1.01]) + rng.normal(0, 0.01, 3))
    return fog(image * np.float32(0.92), _depth(canvas), 3 / rng.uniform(45, 200), air)


def night(image: Picture, canvas: Canvas, rng: np.random.Generator) -> Picture:
    """Darkness, except for headlights, street lights, lit windows and signals."""
    sky = _sky(canvas)
    dusk = rng.uniform(0.03, 0.12) * np.array([0.8, 0.9, 1.25]) + 0.01
    dark = image * (_street_light(canvas, rng) + _everywhere(dusk, image))
    glow = cv2.extractChannel(canvas.tags, 1).astype(np.float32) / 255
    warm = np.array([1.0, 0.8, 0.5], np.float32) * np.float32(rng.uniform(0.5, 1.0))
    dark += cv2.merge([glow] * 3) * (image * 0.5 + 0.5) * _everywhere(warm, image)
    glimmer = np.linspace(0.02, 0.075, sky.shape[0], dtype=np.float32)[:, None, None]
    cast = np.array([1.1, 0.95, 0.85]) if rng.random() < 0.5 else np.array([0.8, 0.9, 1.3])
    put(image * glimmer * _everywhere(cast, image) * 1.6, sky, dark)
    return np.asarray(1 - np.exp(-np.float32(rng.uniform(1.3, 1.8)) * (dark + _bloom(canvas))))


def _street_light(canvas: Canvas, rng: np.random.Generator) -> Picture:
    """How much light falls on each pixel from the lamps overhead and the camera's own headlights."""
    camera = canvas.camera
    half = (camera.size[1] // 2, camera.size[0] // 2)
    rays = cv2.resize(np.ascontiguousarray(canvas.rays), half, interpolation=cv2.INTER_NEAREST)
    depth = 1 / np.maximum(cv2.resize(canvas.nearness, half, interpolation=cv2.INTER_NEAREST), np.float32(1e-3))
    place = rays * cv2.merge([depth] * 3)
    light = np.zeros_like(rays)
    lamps = sorted((lamp for lamp in canvas.lamps if lamp[1] > 1), key=lambda lamp: float(np.abs(lamp[0][2])))
    power = np.float32(rng.uniform(8, 26))
    for where, _, colour in lamps[:8]:
        away = place - _everywhere(where - camera.position, place)
        fallen = power / (np.einsum("hwc,hwc->hw", away, away) + 8)
        light += cv2.merge([fallen * np.float32(channel) / 255 for channel in colour])
    aside = rays[..., 0] - np.float32(camera.rotation[2][0])
    beam = np.exp(-((aside / np.float32(0.45)) ** 2)) * np.clip(0.6 - rays[..., 1] * 5, 0.12, 1)
    ahead = np.float32(rng.uniform(0.6, 1.3)) * beam / (1 + (depth / 16) ** 2)
    light += cv2.merge([ahead * np.float32(channel) for channel in (1, 0.95, 0.82)])
    return np.asarray(cv2.resize(light, camera.size[::-1], interpolation=cv2.INTER_LINEAR))


def _bloom(canvas: Canvas) -> Picture:
    """Draw the lamps that nothing hides, with a halo."""
    camera = canvas.camera
    buffer = np.zeros((*camera.size, 3), np.float32)
    for where, reach, colour in canvas.lamps:
        (pixel,), (depth,) = camera.project(where[None])
        x, y = np.round(pixel).astype(int).tolist() if depth > 1 else (-1, -1)
        if not (0 <= x < camera.size[1] and 0 <= y < camera.size[0]) or canvas.nearness[y, x] > 1.2 / depth + 0.01:
            continue
        radius = max(1, round(0.16 * reach * camera.focal / float(depth)))
        cv2.circle(buffer, (x, y), radius, tuple(float(c) / 255 * 1.6 for c in colour), -1)
    quarter = cv2.resize(buffer, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    halo = cv2.GaussianBlur(quarter, (0, 0), 1.6) * 1.1 + cv2.GaussianBlur(quarter, (0, 0), 6) * 0.9
    return np.asarray(buffer + cv2.resize(halo, camera.size[::-1], interpolation=cv2.INTER_LINEAR))


def rain(image: Picture, canvas: Canvas, rng: np.random.Generator) -> Picture:
    """A wet road that mirrors, mist, streaks, and drops on the windscreen."""
    wet = _mirror(image * np.float32(rng.uniform(0.72, 0.98)), canvas, rng)
    air = rng.uniform(0.5, 0.68) * np.array([0.97, 1.0, 1.03])
    wet = fog(wet, np.minimum(_depth(canvas), 400), 1 / rng.uniform(90, 260), air)
    height, width = canvas.camera.size
    streaks = np.roll(_streaks(int(rng.integers(-3, 4))), rng.integers(0, 512, 2), (0, 1))
    streaks = cv2.resize(streaks[: min(height, 512), : min(width, 512)], (width, height))
    wet += cv2.merge([streaks * np.float32(rng.uniform(0.05, 0.16))] * 3)
    return _drops(wet, rng)


def _mirror(image: Picture, canvas: Canvas, rng: np.random.Generator) -> Picture:
    """Blend the objects above each pixel of the ground into it, mirrored at their foot in the same column."""
    rows = np.arange(image.shape[0], dtype=np.int32)[:, None]
    foot = np.maximum.accumulate(np.where(canvas.ground, 0, rows), axis=0)
    source = np.abs(2 * foot - rows).astype(np.float32)
    columns = np.broadcast_to(np.arange(image.shape[1], dtype=np.float32), source.shape)
    mirrored = cv2.remap(image, columns, source, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
    mirrored = cv2.blur(mirrored, (3, 9))
    across, ahead = (canvas.rays[..., axis][canvas.ground] for axis in (0, 2))
    depth = 1 / canvas.nearness[canvas.ground]
    puddles = sample(noise(1.3, 2), across * depth, ahead * depth, 9.0)
    strength = np.clip(rng.uniform(0.2, 0.5) + 0.22 * puddles, 0.03, 0.8) * (0.5 + 0.5 * np.clip(depth / 18, 0, 1))
    road = np.where(canvas.tags[..., 0][canvas.ground] < 2, 1, 0.15)
    weight = np.zeros(image.shape[:2], np.float32)
    weight[canvas.ground] = strength * road
    dark = np.where(weight > 0, np.float32(0.7), np.float32(1))
    kept = image * cv2.merge([dark] * 3) * cv2.merge([1 - weight] * 3)
    return np.asarray(kept + mirrored * cv2.merge([weight] * 3))


@cache
def _streaks(lean: int) -> Float32[np.ndarray, "512 512"]:
    """Falling drops blurred by their motion."""
    drops = (noise(0.1, 12) > 2.5).astype(np.float32)
    kernel = np.zeros((17, 17), np.float32)
    cv2.line(kernel, (8 - lean, 0), (8 + lean, 16), 1 / 6, 1)
    return np.asarray(cv2.filter2D(drops, -1, kernel, borderType=cv2.BORDER_REFLECT))


def _drops(image: Picture, rng: np.random.Generator) -> Picture:
    """Drops on the glass show the scene small, upside down and out of focus."""
    height, width = image.shape[:2]
    mask = np.zeros((height, width), np.float32)
    for _ in range(int(rng.integers(4, 40))):
        centre = (int(rng.integers(width)), int(rng.integers(height)))
        radius = max(1, int(rng.gamma(2, 0.006) * height))
        cv2.ellipse(mask, centre, (radius, int(radius * rng.uniform(1, 1.5))), 0, 0, 360, 1, -1)
    opacity = cv2.merge([cv2.GaussianBlur(mask, (0, 0), 1.0) * np.float32(0.75)] * 3)
    small = cv2.resize(image[::-1], (max(1, width // 8), max(1, height // 8)), interpolation=cv2.INTER_AREA)
    lens = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(image + (lens * 0.9 + 0.06 - image) * opacity)


def snow(image: Picture, canvas: Canvas, rng: np.random.Generator) -> Picture:
    """Snow on the ground, roofs and branches, a whitish haze, flakes in the air."""
    rays, depth = canvas.rays, _depth(canvas)
    near = np.minimum(depth, 300)
    drift = sample(noise(1.0, 6), rays[..., 0] * near, rays[..., 2] * near, 9.0)
    drift = np.where(canvas.ground, drift, noise_field(canvas, 0.7))
    catch = canvas.tags[..., 2].astype(np.float32) / 255
    lain = np.clip((catch * np.float32(rng.uniform(1.1, 2.4)) + 0.22 * drift - 0.55) * 2.2, 0, 1)
    lain = np.where(catch > 0, lain, 0) * np.float32(0.92)
    red, green, blue = cv2.split(image)
    bright = (red + (green + blue)) / 3
    grey = 0.66 + 0.3 * bright + 0.02 * drift
    white = cv2.merge([grey * np.float32(channel) for channel in (0.97, 0.99, 1.03)])
    covered = image + (white - image) * cv2.merge([lain] * 3)
    air = rng.uniform(0.76, 0.9) * np.array([0.98, 1.0, 1.02])
    hazy = fog(covered, depth, 1 / rng.uniform(60, 260), air)
    return _flakes(hazy, rng)


def noise_field(canvas: Canvas, slope: float) -> Float32[np.ndarray, "h w"]:
    """Noise over the picture."""
    rows, columns = np.indices(canvas.camera.size, dtype=np.float32)
    return sample(noise(slope, 13), columns, rows, 1.0)


def _flakes(image: Picture, rng: np.random.Generator) -> Picture:
    height, width = image.shape[:2]
    mask = np.zeros((height, width), np.uint8)
    count = int(rng.uniform(150, 700) * height * width / 131072)
    places = rng.uniform(0, 1, (count, 2)) * (width, height) * 16
    sizes = (rng.gamma(1.6, 0.0024, count) * height * 16).clip(5, 0.02 * height * 16)
    bright = rng.uniform(90, 235, count)
    for (x, y), radius, value in zip(
        places.astype(int).tolist(), sizes.astype(int).tolist(), bright.tolist(), strict=True
    ):
        cv2.circle(mask, (x, y), radius, value, -1, cv2.LINE_AA, 4)
    soft = cv2.merge([cv2.blur(mask, (1, 3)).astype(np.float32) / 255] * 3)
    return np.asarray(image + (np.float32(0.95) - image) * soft)


def _sky(canvas: Canvas) -> Bool[np.ndarray, "h w"]:
    return np.asarray(cv2.extractChannel(canvas.tags, 0) == SKY)


WEATHER: Mapping[str, Callable[[Picture, Canvas, np.random.Generator], Picture]] = {
    "clear": clear, "fog": foggy, "night": night, "rain": rain, "snow": snow,
}  # fmt: skip
