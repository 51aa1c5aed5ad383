"""The effects of the camera: bonnet, soft edges, exposure, colour, vignette, noise, compression."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Float, Float32, UInt8

from recyclelora.streets.canvas import Canvas, put
from recyclelora.streets.classes import VOID

BONNET_DEPTH = 1.5
"""Metres from the camera to the bonnet of its own car."""


RANGE = 1.3
"""The brightest light that the sensor can measure, where 1 is a sunlit white."""

_STEPS = np.linspace(0, RANGE, 256)
SHOULDER = (255 * np.where(_STEPS > 0.8, 0.8 + 0.2 * np.tanh((_STEPS - 0.8) / 0.2), _STEPS)).astype(np.uint8)
"""The response curve of the sensor: bright light is compressed before it clips."""


def draw_bonnet(canvas: Canvas, rng: np.random.Generator) -> None:
    """Draw the bonnet of the camera's car along the lower edge of some pictures; it belongs to no class."""
    shown, height, bulge, tone = rng.random() < 0.3, rng.uniform(0.03, 0.13), rng.uniform(0.3, 1), rng.uniform(18, 110)
    if not shown:
        return
    rows, columns = canvas.camera.size
    across = np.linspace(-1, 1, columns)
    edge = rows * (1 - height * (1 - bulge * 0.8 * across**4))
    part = slice(int(edge.min()), None)
    down = np.arange(rows)[part, None] - edge
    mask = down >= 0
    sheen = tone + 70 * np.exp(-down / (0.02 * rows)) + 0.25 * canvas.image[::-1][part].mean(axis=-1)
    canvas.image[part][mask] = sheen[mask][:, None].clip(0, 255)
    canvas.mark((part, slice(None)), mask, (VOID, 0, 0), 1 / BONNET_DEPTH)


def soften(image: Float32[np.ndarray, "h w 3"], canvas: Canvas) -> Float32[np.ndarray, "h w 3"]:
    """Blend neighbours along outlines, which are drawn hard so that labels are exact."""
    near = np.log(canvas.nearness + np.float32(1e-3))
    edge = np.abs(cv2.Laplacian(near, cv2.CV_32F, ksize=1)) > 0.12
    blurred = cv2.GaussianBlur(image, (3, 3), 0.8)
    put(image, ~edge, blurred)
    return np.asarray(blurred)


def _colours(
    gain: Float[np.ndarray, "3"], saturation: float, contrast: float, black: float
) -> Float32[np.ndarray, "3 4"]:  # fmt: skip
    """Gain of each channel, saturation, contrast about a mid grey and lifted black as one affine map."""
    grey = np.tile(np.array([0.3, 0.59, 0.11]), (3, 1))
    matrix = (grey + saturation * (np.eye(3) - grey)) * gain * contrast * (1 - black)
    shift = (0.42 * (1 - contrast)) * (1 - black) + black
    return np.asarray(np.append(matrix, np.full((3, 1), shift), axis=1), np.float32)


def expose(image: Float32[np.ndarray, "h w 3"], domain: str, rng: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
    """Take the picture: `image` from 0 to 1, display-referred."""
    height, width = image.shape[:2]
    dim = domain == "night"
    stops = rng.normal(0, 0.15 if dim else 0.32) - (0.9 if not dim and rng.random() < 0.12 else 0)
    warmth, green = rng.normal(0, 0.035), rng.normal(0, 0.015)
    gain = 2.0**stops * np.array([1 + warmth, 1 + green, 1 - warmth])
    rows, columns = np.linspace(-1, 1, height)[:, None] ** 2, np.linspace(-1, 1, width)[None] ** 2
    vignette = (1 - rng.uniform(0, 0.22) * (rows + columns) / 2).astype(np.float32)
    colour = _colours(gain, rng.uniform(0.65, 1.15), 1.0 if dim else rng.uniform(0.85, 1.25), rng.uniform(0, 0.03))
    image = cv2.transform(image * cv2.merge([vignette] * 3), colour)
    blur = rng.uniform(0, 0.75)
    if blur > 0.3:
        image = cv2.GaussianBlur(image, (0, 0), blur * max(1.0, height / 256))
    grain = rng.gamma(2, 0.004) + (rng.uniform(0.01, 0.035) if dim else 0)
    fine = rng.standard_normal((height, width), dtype=np.float32) * np.float32(grain)
    coarse = rng.standard_normal((height // 2, width // 2, 3), dtype=np.float32) * np.float32(grain * 0.8)
    noisy = image + cv2.merge([fine] * 3)
    noisy += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    positive = np.maximum(noisy, 0, out=noisy)
    taken = np.asarray(cv2.LUT(cv2.convertScaleAbs(positive, alpha=255 / RANGE), SHOULDER), np.uint8)
    quality, squeeze = int(rng.integers(45, 96)), rng.random() < 0.5
    if squeeze:
        _, code = cv2.imencode(".jpg", taken, [cv2.IMWRITE_JPEG_QUALITY, quality])
        taken = np.asarray(cv2.imdecode(code, cv2.IMREAD_COLOR), np.uint8)
    return taken
