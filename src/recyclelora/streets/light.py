"""The light of a scene: sun and sky."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from recyclelora.streets.camera import Vector

UP = np.array([0.0, 1.0, 0.0])


@dataclass(frozen=True)
class Light:
    """Direction to the sun, colours of sun and sky light (1 is full white), and the kind of sky."""

    sun: Vector
    direct: Vector
    ambient: Vector
    sky: str

    @classmethod
    def sample(cls, rng: np.random.Generator, domain: str) -> Light:
        """A sunny or overcast light; only the clear domain has sunshine."""
        azimuth, elevation = rng.uniform(-np.pi, np.pi), np.radians(rng.uniform(18, 62))
        sun = np.array([np.sin(azimuth) * np.cos(elevation), np.sin(elevation), np.cos(azimuth) * np.cos(elevation)])
        warm = rng.uniform(0, 1) * (1.1 - elevation)
        sky = ("blue", "clouds", "white", "overcast")[rng.choice(4, p=(0.25, 0.25, 0.25, 0.25))]
        power = rng.uniform(0.55, 0.95)
        base = rng.uniform(0.42, 0.6)
        if domain != "clear":
            sky = {"fog": "white", "snow": "overcast", "rain": "overcast", "night": "clouds"}[domain]
        if sky == "overcast" or domain != "clear":
            return cls(sun, np.full(3, 0.1), np.full(3, base + 0.32), sky)
        if sky == "white":
            power *= 0.6
            base += 0.12
        tint = np.array([1.04, 0.98, 0.9]) - warm * np.array([-0.06, 0.06, 0.22])
        return cls(sun, power * tint, base * np.array([0.95, 1.0, 1.1]), sky)

    @property
    def sunny(self) -> bool:
        """Whether the sun casts shadows."""
        return bool(self.direct[0] > 0.2)

    def shade(self, normal: Vector) -> Vector:
        """The shares of red, green and blue that a matt surface with this unit normal reflects."""
        facing = max(0.0, float(normal @ self.sun))
        return np.asarray(self.ambient * (0.8 + 0.2 * normal[1]) + self.direct * facing)

    @property
    def in_shadow(self) -> float:
        """Brightness of level ground in a shadow, as a share of its brightness in the light."""
        return float((self.ambient / self.shade(UP)).mean())

    def cast(self, height: float) -> Float[np.ndarray, "2"]:
        """Vector along the ground (x, z) from the foot of something to the shadow of its top."""
        return np.asarray(-self.sun[[0, 2]] / self.sun[1] * height)
