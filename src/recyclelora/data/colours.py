"""Colours that the eye tells apart: how different two are, and new ones that differ from those in use.

The difference is CIEDE2000 (CIE 142-2001): 1 is just visible, 20 is another colour at first sight. The formulas are
those of G. Sharma, W. Wu and E. N. Dalal, "The CIEDE2000 color-difference formula", Color Research and Application 30
(2005), 21-30. Colours are sRGB (IEC 61966-2-1) under the illuminant D65.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from jaxtyping import Float64, Num

Colour = tuple[int, int, int]

BLACK = (0, 0, 0)
"""The colour of ignored pixels in pictures."""

STEP = 17
"""New colours have the values 0, 17, ..., 255 in each channel."""

_TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)


def distinct_colours(taken: Collection[Colour], count: int) -> list[Colour]:
    """`count` colours, each as different as possible from those taken, from black, and from those before it.

    If none are taken, 26 colours differ by at least 20, 50 by at least 14, and 254 by at least 7.
    """
    values = np.arange(0, 256, STEP)
    candidates = np.stack(np.meshgrid(values, values, values, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = to_lab(candidates)
    nearest = np.min([ciede2000(lab, to_lab(np.array(colour))) for colour in {BLACK, *taken}], axis=0)
    chosen: list[Colour] = []
    for _ in range(count):
        index = int(nearest.round(6).argmax())  # rounded, so that the last bits of a platform's cosine decide nothing
        red, green, blue = candidates[index].tolist()
        chosen.append((red, green, blue))
        nearest = np.minimum(nearest, ciede2000(lab, lab[index]))
    return chosen


def to_lab(rgb: Num[np.ndarray, "*colours 3"]) -> Float64[np.ndarray, "*colours 3"]:
    """CIELAB of sRGB colours of 0 to 255: L* of 0 to 100, a* and b*."""
    value = np.asarray(rgb, np.float64) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _TO_XYZ.T / _TO_XYZ.sum(axis=1)  # relative to white
    root = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = np.moveaxis(root, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def ciede2000(
    one: Float64[np.ndarray, "*#colours 3"], other: Float64[np.ndarray, "*#colours 3"]
) -> Float64[np.ndarray, "*colours"]:
    """The difference of CIELAB colours, without unit."""
    (light1, a1, b1), (light2, a2, b2) = np.moveaxis(one, -1, 0), np.moveaxis(other, -1, 0)
    stretch = 1 + 0.5 * (1 - _fade((np.hypot(a1, b1) + np.hypot(a2, b2)) / 2))
    chroma1, chroma2 = np.hypot(stretch * a1, b1), np.hypot(stretch * a2, b2)
    hue1, hue2 = (np.degrees(np.arctan2(b, stretch * a)) % 360 for a, b in ((a1, b1), (a2, b2)))
    grey = chroma1 * chroma2 == 0
    far = np.abs(hue2 - hue1) > 180
    turn = np.where(grey, 0, hue2 - hue1 - 360 * far * np.sign(hue2 - hue1))
    hue = np.where(grey, hue1 + hue2, (hue1 + hue2 + 360 * far) / 2)
    light, chroma = (light1 + light2) / 2, (chroma1 + chroma2) / 2

    def wave(multiple: int, shift: int) -> Float64[np.ndarray, "*colours"]:
        return np.asarray(np.cos(np.radians(multiple * hue + shift)))

    t = 1 - 0.17 * wave(1, -30) + 0.24 * wave(2, 0) + 0.32 * wave(3, 6) - 0.20 * wave(4, -63)
    by_light = (light2 - light1) / (1 + 0.015 * (light - 50) ** 2 / np.sqrt(20 + (light - 50) ** 2))
    by_chroma = (chroma2 - chroma1) / (1 + 0.045 * chroma)
    by_hue = 2 * np.sqrt(chroma1 * chroma2) * np.sin(np.radians(turn / 2)) / (1 + 0.015 * chroma * t)
    bend = np.sin(np.radians(60 * np.exp(-(((hue - 275) / 25) ** 2))))
    squares = by_light**2 + by_chroma**2 + by_hue**2 - 2 * _fade(chroma) * bend * by_chroma * by_hue
    return np.asarray(np.sqrt(np.maximum(squares, 0)))


def _fade(chroma: Float64[np.ndarray, "*colours"]) -> Float64[np.ndarray, "*colours"]:
    """0 for greys, towards 1 for saturated colours: the factor of the formula's corrections."""
    return np.asarray(np.sqrt(chroma**7 / (chroma**7 + 25.0**7)))
