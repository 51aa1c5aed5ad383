"""The sky, and the far skyline under it."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Float32

from recyclelora.streets.canvas import Canvas
from recyclelora.streets.classes import IDS
from recyclelora.streets.light import Light
from recyclelora.streets.textures import noise, sample

SKY, VEGETATION, BUILDING = (IDS[name] for name in ("sky", "vegetation", "building"))
ZENITH = {"blue": (70, 124, 204), "clouds": (84, 132, 204), "white": (226, 232, 240), "overcast": (176, 182, 190)}
HORIZON = {"blue": (190, 214, 238), "clouds": (206, 222, 238), "white": (246, 247, 248), "overcast": (214, 217, 221)}


def paint_sky(canvas: Canvas, light: Light, rng: np.random.Generator) -> None:
    """Fill the picture with sky: a gradient, brighter towards the sun, and clouds on a plane overhead."""
    rays = np.ascontiguousarray(canvas.rays[::2, ::2])
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    rise = np.maximum(rays[..., 1], 0.02)
    share = cv2.merge([np.clip(rise * np.float32(rng.uniform(1.6, 3.2)), 0, 1) ** np.float32(0.7)] * 3)
    low, high = (np.array(table[light.sky], np.float32) * rng.normal(1, 0.05) for table in (HORIZON, ZENITH))
    colour = low + (high - low) * share
    towards = np.clip(rays @ light.sun.astype(np.float32), 0, 1)
    colour += (90 * towards**8)[..., None] if light.sunny else 0
    density = {"blue": 0.0, "clouds": rng.uniform(0.2, 1), "white": 0.15, "overcast": 0.9}[light.sky]
    if density:
        colour = _clouds(colour, rays, rise, light, density, rng)
    canvas.image[:] = cv2.resize(colour.clip(0, 255).astype(np.uint8), canvas.camera.size[::-1])
    canvas.tags[..., 0] = SKY
    canvas.nearness[:] = 0


def _clouds(
    colour: Float32[np.ndarray, "h w 3"], rays: Float32[np.ndarray, "h w 3"], rise: Float32[np.ndarray, "h w"],
    light: Light, density: float, rng: np.random.Generator,
) -> Float32[np.ndarray, "h w 3"]:  # fmt: skip
    flat = (rays[..., [0, 2]] / (rise + np.float32(0.12))[..., None]).astype(np.float32)
    flat += rng.uniform(8, 20, 2).astype(np.float32)
    tile = cv2.GaussianBlur(noise(1.7, 8), (0, 0), 1.5) + 0.12 * noise(1.0, 9)
    bulk = sample(tile, flat[..., 0], flat[..., 1], 60 * rng.uniform(0.6, 1.6))
    cover = np.clip((bulk + np.float32(density * 2 - 1.0)) * np.float32(1.1), 0, 1)[..., None]
    bright = 248 if light.sunny else 222
    shade = bright - np.clip(bulk + 0.2, 0, 2.5)[..., None] * np.float32(16 if light.sunny else 26)
    return np.asarray(colour + (shade * np.array([0.985, 0.995, 1.01], np.float32) - colour) * cover * 0.92)


def paint_skyline(canvas: Canvas, light: Light, rng: np.random.Generator) -> None:
    """Woods and houses some hundred metres away, so that the ground does not end at the bare horizon."""
    camera = canvas.camera
    height, width = camera.size
    columns = np.arange(width)
    sideways, down, ahead = camera.rotation[:, 1].tolist()
    horizon = camera.centre[1] - (ahead * camera.focal + sideways * (columns - camera.centre[0])) / down
    away = float(rng.uniform(160, 320))
    scale = camera.focal / away
    azimuth = np.arctan((columns - camera.centre[0]) / camera.focal) + rng.uniform(2, 8)
    hills = noise(1.1, 10)[int(rng.integers(512))]
    woods = (rng.uniform(4, 11) + 2.5 * np.interp(azimuth * 90 % 511, np.arange(512), hills)) * scale
    block = (azimuth * rng.uniform(14, 30)).astype(int)
    tall = np.random.default_rng(int(rng.integers(2**31))).uniform(-8, 26, int(block.max()) + 1)[block] * scale
    low, high = (
        int(np.clip(horizon.min() - max(tall.max(), woods.max()), 0, height)),
        int(np.clip(horizon.max() + 2, 0, height)),
    )
    if high <= low:
        return
    rows, window = np.arange(low, high)[:, None], (slice(low, high), slice(None))
    haze = np.array([186, 198, 212]) * light.shade(np.array([0.0, 1.0, 0.0])).clip(0, 1)
    grain = cv2.resize(noise(0.9, 11)[:256], (width, high - low))
    for reach, label, colour in ((tall, BUILDING, (150, 140, 132)), (woods, VEGETATION, (70, 86, 54))):
        mask = (rows <= horizon + 1) & (rows > horizon - reach) & (canvas.nearness[window] < 1 / away)
        tone = (np.array(colour) * light.ambient * 0.62 + haze * 0.38) * (1 + 0.07 * grain[mask][:, None])
        canvas.image[window][mask] = tone.clip(0, 255)
        canvas.mark(window, mask, (label, 0, 60), 1 / away)
