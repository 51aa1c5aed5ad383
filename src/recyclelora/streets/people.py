"""People on foot, riders, bicycles and motorcycles: joints in space, limbs drawn between them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from jaxtyping import Float

from recyclelora.streets.canvas import Canvas, Patch, fixed
from recyclelora.streets.classes import IDS
from recyclelora.streets.ground import Shadow
from recyclelora.streets.light import Light

PERSON, RIDER, MOTORCYCLE, BICYCLE = (IDS[name] for name in ("person", "rider", "motorcycle", "bicycle"))
SKINS = ((232, 190, 160), (214, 166, 132), (180, 128, 92), (128, 86, 60), (88, 58, 42))
HAIRS = ((34, 26, 22), (60, 42, 28), (110, 80, 48), (176, 146, 96), (150, 148, 146))
CLOTHES = (
    (34, 36, 44), (48, 52, 66), (28, 28, 30), (70, 66, 62), (112, 96, 78), (150, 140, 124), (52, 70, 104),
    (126, 34, 40), (52, 84, 62), (196, 196, 194), (196, 150, 60), (140, 74, 110), (196, 222, 60),
)  # fmt: skip
LEGS = ((36, 42, 62), (30, 30, 34), (58, 64, 84), (92, 84, 74), (44, 40, 38), (120, 116, 110))

_TURN = np.linspace(0, 2 * np.pi, 9)[:-1]
RING = np.stack([np.cos(_TURN), np.sin(_TURN)], 1)
_TURN = np.linspace(0, 2 * np.pi, 17)[:-1]
WHEEL = np.stack([np.cos(_TURN), np.zeros(16), np.sin(_TURN)], 1)
"""Places around a disc of radius 1, and around an upright wheel."""

Joints = dict[str, tuple[float, float, float]]
"""Places of joints in metres: forward, right, up."""


@dataclass(frozen=True)
class Look:
    """Colours and build of a person."""

    skin: Float[np.ndarray, "3"]
    hair: Float[np.ndarray, "3"]
    top: Float[np.ndarray, "3"]
    legs: Float[np.ndarray, "3"]
    size: float
    coat: bool
    pack: bool
    helmet: bool

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Look:
        """Someone in the street, at times a child."""
        skin, hair, top, legs = (
            np.array(table[rng.integers(len(table))]) * rng.uniform(0.8, 1.15)
            for table in (SKINS, HAIRS, CLOTHES, LEGS)
        )
        size = rng.normal(0.98, 0.05) if rng.random() < 0.9 else rng.uniform(0.6, 0.8)
        coat, pack, helmet = (bool(rng.random() < odds) for odds in (0.3, 0.25, 0.5))
        return cls(skin, hair, top, legs, float(size), coat, pack, helmet)


def walking(stride: float, spread: float) -> Joints:
    """The pose of a step; `stride` from -1 to 1 says which leg is in front."""
    joints = {"neck": (0.03, 0.0, 1.48), "head": (0.05, 0.0, 1.63)}
    for side, sign in (("left", -1), ("right", 1)):
        step = sign * stride * 0.36
        joints[f"{side} hip"] = (0.0, sign * 0.09, 0.92)
        joints[f"{side} knee"] = (step * 0.5 + 0.06, sign * 0.1, 0.5)
        joints[f"{side} foot"] = (step - (0.08 if step < 0 else 0), sign * 0.1, 0.06 + 0.08 * max(0.0, -sign * stride))
        joints[f"{side} shoulder"] = (0.0, sign * 0.18, 1.42)
        joints[f"{side} elbow"] = (-step * 0.35 - 0.05, sign * (0.22 + spread), 1.15)
        joints[f"{side} hand"] = (-step * 0.8 + 0.08, sign * (0.21 + spread), 0.92)
    return joints


def riding(turn: float, lean: float) -> Joints:
    """The pose on a bicycle or motorcycle; `turn` is the angle of the pedals."""
    joints = {"neck": (0.05 + lean, 0.0, 1.5), "head": (0.12 + lean, 0.0, 1.66)}
    for side, sign in (("left", -1), ("right", 1)):
        pedal = (0.12 + 0.16 * sign * np.cos(turn), 0.32 + 0.16 * sign * np.sin(turn))
        joints[f"{side} hip"] = (-0.2, sign * 0.1, 0.98)
        joints[f"{side} knee"] = ((pedal[0] - 0.2) / 2 + 0.22, sign * 0.13, (pedal[1] + 0.98) / 2 + 0.1)
        joints[f"{side} foot"] = (float(pedal[0]), sign * 0.12, float(pedal[1]))
        joints[f"{side} shoulder"] = (lean, sign * 0.19, 1.42)
        joints[f"{side} elbow"] = (0.18 + lean, sign * 0.26, 1.2)
        joints[f"{side} hand"] = (0.45, sign * 0.25, 1.06)
    return joints


@dataclass(frozen=True)
class Human:
    """A person at a place (x, z), heading in radians to the right of z, in a pose."""

    look: Look
    joints: Joints
    place: Float[np.ndarray, "2"]
    heading: float
    label: int = PERSON

    @cached_property
    def distance(self) -> float:
        """Metres from the camera; a rider is drawn after the bicycle or motorcycle."""
        return float(np.hypot(*self.place)) - (0.02 if self.label == RIDER else 0.0)

    def shadows(self) -> list[Shadow]:
        """The outlines that cast shadows."""
        return [(_ring(self.place, 0.2), 0.0, 1.7 * self.look.size)]

    def draw(self, canvas: Canvas, light: Light) -> None:
        """Draw the limbs from far to near, with the trunk between them."""
        names = list(self.joints)
        pixels, depth, scale = _project(canvas, np.array(list(self.joints.values())) * self.look.size, self)
        window = canvas.window(pixels, 0.35 * scale) if min(depth.tolist()) > 1.2 else None
        if window is None:
            return
        patch, at = Patch(canvas, window), dict(zip(names, pixels, strict=True))
        far = dict(zip(names, depth, strict=True))
        shade, thick, look = light.shade(np.array([0.0, 0.0, -1.0])), scale * self.look.size, self.look
        sides = sorted(("left", "right"), key=lambda side: -far[f"{side} shoulder"])
        for order, side in enumerate(sides):
            dim = shade * (0.78 if order == 0 else 1.0)
            self._leg(patch, at, side, dim, thick)
            if order == 0:
                self._arm(patch, at, side, dim, thick)
        self._trunk(patch, at, shade, thick)
        if self.joints["left hip"][0] < -0.1:
            self._leg(patch, at, sides[1], shade, thick)
        self._arm(patch, at, sides[1], shade * 0.92, thick)
        hair = look.hair if not (look.helmet and self.label == RIDER) else look.top * 0.5 + 60
        away = np.cos(self.heading) > 0
        head = at["head"]
        patch.disc(head, 0.125 * thick, hair * shade, self.label)
        if not away or abs(np.sin(self.heading)) > 0.8:
            face = head + np.array([0.03 * np.sin(self.heading), 0.035]) * thick
            patch.disc(face, 0.09 * thick, look.skin * shade, self.label)
        patch.commit(float(1 / depth.mean()))

    def _leg(
        self,
        patch: Patch,
        at: dict[str, Float[np.ndarray, "2"]],
        side: str,
        shade: Float[np.ndarray, "3"],
        thick: float,
    ) -> None:
        colour, knee, foot = self.look.legs * shade, at[f"{side} knee"], at[f"{side} foot"]
        patch.limb(at[f"{side} hip"], knee, (0.1 * thick, 0.075 * thick), colour, self.label)
        patch.limb(knee, foot, (0.072 * thick, 0.05 * thick), colour * 0.92, self.label)
        toe = np.array([0.09 * np.sin(self.heading), 0.03]) * thick
        patch.limb(foot, foot + toe, (0.05 * thick, 0.045 * thick), np.array([30, 28, 28]) * shade, self.label)

    def _arm(
        self,
        patch: Patch,
        at: dict[str, Float[np.ndarray, "2"]],
        side: str,
        shade: Float[np.ndarray, "3"],
        thick: float,
    ) -> None:
        elbow, hand, colour = at[f"{side} elbow"], at[f"{side} hand"], self.look.top * shade * 0.88
        patch.limb(at[f"{side} shoulder"], elbow, (0.07 * thick, 0.055 * thick), colour, self.label)
        patch.limb(elbow, hand, (0.055 * thick, 0.04 * thick), colour, self.label)
        patch.disc(hand, 0.042 * thick, self.look.skin * shade, self.label)

    def _trunk(
        self, patch: Patch, at: dict[str, Float[np.ndarray, "2"]], shade: Float[np.ndarray, "3"], thick: float
    ) -> None:  # fmt: skip
        corners = np.array([at["left shoulder"], at["right shoulder"], at["left hip"], at["right hip"]])
        if self.look.coat and self.label == PERSON:
            corners[2:, 1] += 0.28 * thick
        hull = _hull(corners, np.array([0.07, 0.07, 0.11, 0.11]) * thick)
        patch.limb(at["neck"], at["head"], (0.06 * thick, 0.05 * thick), self.look.skin * shade * 0.8, self.label)
        patch.polygon(hull, self.look.top * shade, self.label)
        if self.look.pack and np.cos(self.heading) > 0.3:
            middle, drop = corners.mean(axis=0) - np.array([0, 0.1 * thick]), np.array([0, 0.13 * thick])
            patch.limb(
                middle - drop,
                middle + drop,
                (0.13 * thick, 0.14 * thick),
                self.look.legs * shade,
                self.label,
            )


@dataclass(frozen=True)
class Bike:
    """A bicycle, or a motorcycle if `motor`, at a place (x, z)."""

    place: Float[np.ndarray, "2"]
    heading: float
    colour: Float[np.ndarray, "3"]
    motor: bool

    @cached_property
    def distance(self) -> float:
        """Metres from the camera."""
        return float(np.hypot(*self.place))

    def shadows(self) -> list[Shadow]:
        """The outlines that cast shadows."""
        way = np.array([np.sin(self.heading), np.cos(self.heading)])
        return [(np.stack([self.place - 0.8 * way, self.place + 0.8 * way]), 0.0, 0.7)]

    def draw(self, canvas: Canvas, light: Light) -> None:
        """Draw wheels, frame and handlebar; the label covers the inside of the wheels, as annotators draw it."""
        joints = np.array([
            (-0.52, 0, 0.34), (0.52, 0, 0.34), (-0.1, 0, 0.3), (-0.2, 0, 0.85), (0.38, 0, 0.82), (0.4, -0.28, 1.0),
            (0.4, 0.28, 1.0), (-0.3, 0, 0.9), (-0.05, 0, 0.92), (-0.3, 0.1, 0.6), (0.3, 0.1, 0.55),
        ])  # fmt: skip
        pixels, depth, scale = _project(canvas, joints, self)
        window = canvas.window(pixels, 0.5 * scale) if min(depth.tolist()) > 1.2 else None
        if window is None:
            return
        patch, label = Patch(canvas, window), MOTORCYCLE if self.motor else BICYCLE
        shade = light.shade(np.array([0.0, 0.0, -1.0]))
        dark, paint = np.array([30.0, 30, 32]) * shade, self.colour * shade
        for hub in joints[:2]:
            circle = hub + 0.33 * WHEEL
            ring, _, _ = _project(canvas, circle, self)
            patch.polygon(ring, dark if self.motor else None, label)
            points = [fixed(ring - patch.shift)]
            stroke = max(1, round((0.1 if self.motor else 0.045) * scale))
            cv2.polylines(patch.image, points, True, tuple(dark.tolist()), stroke, cv2.LINE_AA, 4)
            cv2.polylines(patch.tags, points, True, (label, 0, 0), stroke, cv2.LINE_8, 4)
        tube = (0.13 if self.motor else 0.022) * scale
        for one, two, factor in ((0, 2, 1), (2, 3, 1), (3, 4, 1), (2, 4, 1), (1, 4, 0.6), (0, 3, 0.5), (5, 6, 0.35)):
            thin = tube * factor if self.motor else tube
            patch.limb(pixels[one], pixels[two], (thin, thin), paint if factor == 1 else dark, label)
        patch.limb(pixels[7], pixels[8], (0.05 * scale, 0.04 * scale), dark * 0.7, label)
        if self.motor:
            patch.polygon(_hull(pixels[[3, 4, 9, 10]], np.full(4, 0.13 * scale)), paint, label)
            patch.limb(pixels[7], pixels[8], (0.1 * scale, 0.1 * scale), dark, label)
        patch.commit(float(1 / depth.mean()))


def _project(
    canvas: Canvas, local: Float[np.ndarray, "n 3"], thing: Human | Bike
) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, "n"], float]:
    """Pixels, depths and pixels per metre of points given as (forward, right, up)."""
    sin, cos = np.sin(thing.heading), np.cos(thing.heading)
    s, q, y = local.T
    world = np.array([thing.place[0] + s * sin + q * cos, y, thing.place[1] + s * cos - q * sin]).T.copy()
    pixels, depth = canvas.camera.project(world)
    return pixels, depth, canvas.camera.focal / max(float(depth.mean()), 0.1)


def _hull(points: Float[np.ndarray, "n 2"], radii: Float[np.ndarray, "n"]) -> Float[np.ndarray, "m 2"]:
    """Outline around discs."""
    rim = points[:, None] + radii[:, None, None] * RING
    return np.asarray(cv2.convexHull(rim.reshape(-1, 2).astype(np.float32))[:, 0], np.float64)


def _ring(place: Float[np.ndarray, "2"], radius: float) -> Float[np.ndarray, "8 2"]:
    return np.asarray(place + radius * RING)
