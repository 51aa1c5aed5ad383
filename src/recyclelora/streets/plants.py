"""Trees and bushes: a trunk with branches and crowns put together from leafy or bare sprites."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from jaxtyping import Float

from recyclelora.streets.camera import raised
from recyclelora.streets.canvas import Canvas, Patch
from recyclelora.streets.classes import IDS
from recyclelora.streets.ground import Shadow
from recyclelora.streets.light import Light
from recyclelora.streets.people import RING
from recyclelora.streets.textures import leaves, twigs

VEGETATION = IDS["vegetation"]
CROWNS = 10
"""Number of leafy crowns; there are half as many bare ones."""

LEVEL = np.arange(256)[:, None] / 128
WARMTH = 1 + 0.08 * (LEVEL - 1) * np.array([1.2, 1, -1])
"""Brightness of leaves (1 in the middle), and the tone that goes with it: yellow in the light."""


@dataclass(frozen=True)
class Tree:
    """A tree, or a bush if the `trunk` has no height, at a place (x, z); lengths in metres.

    `crown` rows are (right, up, width, height, index of the sprite, mirrored).
    """

    place: Float[np.ndarray, "2"]
    trunk: float
    girth: float
    crown: Float[np.ndarray, "n 6"]
    colour: Float[np.ndarray, "3"]
    bare: bool

    @classmethod
    def sample(cls, rng: np.random.Generator, place: Float[np.ndarray, "2"], bare: bool, *, bush: bool = False) -> Tree:
        """A tree of its own shape."""
        tall = rng.uniform(0.8, 2.2) if bush else rng.uniform(4.5, 13)
        trunk = 0.0 if bush else rng.uniform(0.16, 0.38) * tall
        wide = tall * (rng.uniform(1.0, 2.2) if bush else rng.uniform(0.42, 0.85))
        slender = not bush and rng.random() < 0.12
        middle, crown = (trunk + tall) / 2, []
        bare = bare and not bush and rng.random() < 0.8
        main = (0.0, middle - 0.05 * tall, wide * (0.5 if slender else 1), (tall - trunk) * 1.15)
        crown.append((*main, rng.integers(CROWNS), rng.random() < 0.5))
        for _ in range(0 if bare or slender else int(rng.integers(1, 4))):
            shift = rng.normal(0, 0.22, 2) * (wide, tall - trunk)
            size = rng.uniform(0.45, 0.75)
            crown.append(
                (
                    shift[0],
                    middle + shift[1],
                    wide * size,
                    (tall - trunk) * size,
                    rng.integers(CROWNS),
                    rng.random() < 0.5,
                )
            )
        green = np.array([92, 118, 50]) * rng.uniform(0.65, 1.3) + rng.normal(0, 10, 3)
        if rng.random() < 0.12:
            green = np.array([150, 116, 48]) * rng.uniform(0.7, 1.1)
        colour = np.array([98, 84, 72]) * rng.uniform(0.6, 1.1) if bare else green
        return cls(place, trunk, rng.uniform(0.014, 0.024) * tall, np.array(crown, float), colour, bare)

    @cached_property
    def distance(self) -> float:
        """Metres from the camera."""
        return float(np.hypot(*self.place))

    def shadows(self) -> list[Shadow]:
        """The outlines that cast shadows."""
        casts = [(self.place + RING * self.girth, 0.0, self.trunk * 1.5)]
        for x, y, wide, high, _, _ in self.crown if not self.bare else ():
            casts.append(
                (self.place + np.array([x, 0]) + RING * wide * 0.36, max(0.1, y - high * 0.25), y + high * 0.25)
            )
        return casts

    def draw(self, canvas: Canvas, light: Light) -> None:
        """Draw the trunk, then the crowns over it."""
        foot = np.array([self.place[0], 0.0, self.place[1]])
        if self.trunk:
            self._trunk(canvas, light, foot)
        shade = (light.ambient * 0.9 + light.direct * 0.75) * self.colour
        table = np.empty((1, 256, 4), np.uint8)
        table[..., :3] = (LEVEL * shade * WARMTH).clip(0, 255)
        table[..., 3] = np.arange(256)
        right = canvas.camera.rotation[0] * [1, 0, 1]
        for x, y, wide, high, index, mirrored in self.crown[: 1 if self.distance > 55 else None]:
            kind, number = (twigs, int(index) % (CROWNS // 2)) if self.bare else (leaves, int(index))
            sprite = partial(kind, number, bool(mirrored))
            canvas.sprite(foot + right * x + raised(y), (wide, high), sprite, table, VEGETATION)

    def _trunk(self, canvas: Canvas, light: Light, foot: Float[np.ndarray, "3"]) -> None:
        top = foot + raised(self.trunk * (1.5 if not self.bare else 1.02))
        pixels, depth = canvas.camera.project(np.array([foot, top]))
        if min(depth.tolist()) < 1:
            return
        width = self.girth * canvas.camera.focal / depth[0]
        window = canvas.window(pixels, width + 2)
        if window is None:
            return
        patch = Patch(canvas, window)
        bark = np.array([86, 74, 62]) * light.shade(np.array([0.0, 0.0, -1.0]))
        patch.limb(pixels[0], pixels[1], (width, width * 0.6), bark, VEGETATION)
        shift = np.array([width * 0.3, 0])
        patch.limb(pixels[0] + shift, pixels[1] + shift * 0.6, (width * 0.5, width * 0.3), bark * 0.72, VEGETATION)
        patch.commit(float(1 / depth[0]))
