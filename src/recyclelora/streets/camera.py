"""A pinhole camera over a flat world: x to the right, y up, z along the road, in metres; pixels with y down."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float

NEAR = 0.5
"""Metres in front of the camera at which polygons are cut off."""

Vector = Float[np.ndarray, "3"]


@dataclass(frozen=True)
class Camera:
    """Where the camera stands and how it looks; `rotation` has the rows right, down and forward of the camera."""

    size: tuple[int, int]
    focal: float
    position: Vector
    rotation: Float[np.ndarray, "3 3"]

    @classmethod
    def sample(cls, rng: np.random.Generator, size: tuple[int, int], lateral: float) -> Camera:
        """A camera behind a windscreen, `lateral` metres right of the middle of the road."""
        height, width = size
        focal = width / (2 * np.tan(np.radians(rng.uniform(44, 74)) / 2))
        raised = rng.uniform(1.15, 1.7) if rng.random() < 0.85 else rng.uniform(1.7, 2.6)
        yaw = np.radians(rng.normal(0, 3.0) if rng.random() < 0.85 else rng.uniform(-22, 22))
        pitch = np.arctan((0.5 - np.clip(rng.normal(0.44, 0.05), 0.3, 0.58)) * height / focal)
        roll = np.radians(rng.normal(0, 0.8))
        forward = np.array([np.sin(yaw) * np.cos(pitch), -np.sin(pitch), np.cos(yaw) * np.cos(pitch)])
        level = np.array([np.cos(yaw), 0.0, -np.sin(yaw)])
        down = cross(level, forward)
        right = np.cos(roll) * level + np.sin(roll) * down
        rotation = np.stack([right, cross(right, forward), forward])
        return cls(size, float(focal), np.array([lateral, raised, 0.0]), rotation)

    @cached_property
    def centre(self) -> Float[np.ndarray, "2"]:
        """The pixel in the middle of the picture."""
        return np.array([(self.size[1] - 1) / 2, (self.size[0] - 1) / 2])

    def local(self, points: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
        """Points of the world seen from the camera: right, down, forward."""
        return np.asarray((points - self.position) @ self.rotation.T)

    def project(self, points: Float[np.ndarray, "*n 3"]) -> tuple[Float[np.ndarray, "*n 2"], Float[np.ndarray, "*n"]]:
        """Pixels and depths in metres; the pixels mean something only where the depth is positive."""
        seen = self.local(points)
        depth = seen[..., 2]
        return seen[..., :2] * (self.focal / np.maximum(depth, 1e-6))[..., None] + self.centre, depth

    def polygon(self, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "m 2"] | None:
        """Pixels of a flat polygon, cut where it comes nearer than `NEAR`; None if nothing is left."""
        seen = self.local(points)
        depth = seen[:, 2].tolist()
        if max(depth) < NEAR:
            return None
        if min(depth) < NEAR:
            seen = _cut(seen)
        return np.asarray(seen[:, :2] * (self.focal / seen[:, 2:]) + self.centre)

    def rays(self) -> Float[np.ndarray, "h w 3"]:
        """For each pixel, the vector in the world for one metre of depth."""
        x = (np.arange(self.size[1]) - self.centre[0]) / self.focal
        y = (np.arange(self.size[0]) - self.centre[1]) / self.focal
        across = (self.rotation[0][:, None] * x).astype(np.float32)
        down = (self.rotation[1][:, None] * y + self.rotation[2][:, None]).astype(np.float32)
        # Each channel is contiguous in memory, because channels are used one by one.
        return np.moveaxis(down[:, :, None] + across[:, None, :], 0, 2)

    def plane(self, point: Vector, normal: Vector) -> Vector:
        """(a, b, c) such that 1 / depth of a plane is a x + b y + c at pixel (x, y): it is affine there."""
        turned = self.rotation @ normal
        away = float(turned @ self.local(point))
        away = math.copysign(max(abs(away), 1e-9), away)
        (right, down, forward), (x, y) = (turned / away).tolist(), self.centre.tolist()
        a, b = right / self.focal, down / self.focal
        return np.array([a, b, forward - a * x - b * y])


def raised(metres: float) -> Vector:
    """The upward vector of this length."""
    return np.array([0.0, metres, 0.0])


def grounded(plan: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 3"]:
    """World points of places (x, z) on the ground."""
    points = np.zeros((len(plan), 3))
    points[:, ::2] = plan
    return points


def norm(vector: Vector) -> float:
    """Length of a vector; much faster than `np.linalg.norm`, with bit-identical results."""
    return math.sqrt(vector @ vector)


def cross(one: Vector, two: Vector) -> Vector:
    """Cross product of two vectors; much faster than `np.cross`, with bit-identical results."""
    (a, b, c), (d, e, f) = one.tolist(), two.tolist()
    return np.array([b * f - c * e, c * d - a * f, a * e - b * d])


def _cut(seen: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "m 3"]:
    """Clip a polygon at the near plane by the Sutherland-Hodgman algorithm."""
    kept = []
    for one, two in zip(seen, np.roll(seen, -1, axis=0), strict=True):
        if one[2] >= NEAR:
            kept.append(one)
        if (one[2] >= NEAR) != (two[2] >= NEAR):
            kept.append(one + (two - one) * ((NEAR - one[2]) / (two[2] - one[2])))
    return np.stack(kept)
