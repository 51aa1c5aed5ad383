"""The layout of a street: cross-section, curve and crossing, by which ground and objects are placed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

KERB = 0.18
"""Width of the kerb stone in metres."""


@dataclass(frozen=True)
class Side:
    """One side of the street, from the kerb outwards; lengths in metres.

    `kind` is what stands there: "city", "houses", "industry" or "park". `front` is the ground between the pavement and
    the houses: "paved", "grass" or "lot" (asphalt to park on). `edge` is what stands at the outer edge of the pavement.
    """

    kind: str
    verge: float
    pavement: float
    setback: float
    front: str
    edge: str | None
    parked: float
    trees: float
    bare: bool

    @property
    def face(self) -> float:
        """Distance from the kerb to the houses."""
        return KERB + self.verge + self.pavement + self.setback


def _side(rng: np.random.Generator, bare: bool) -> Side:
    kind = ("city", "houses", "industry", "park")[rng.choice(4, p=(0.45, 0.27, 0.1, 0.18))]
    verge = rng.uniform(0.8, 2.5) if rng.random() < {"city": 0.1, "park": 0.5}.get(kind, 0.3) else 0.0
    setback = {"city": (0, 1.5), "houses": (3, 9), "industry": (4, 16), "park": (8, 25)}[kind]
    edges = {
        "city": ((None, 0.75), ("railing", 0.1), ("wall", 0.07), ("hedge", 0.08)),
        "houses": ((None, 0.15), ("wall", 0.27), ("hedge", 0.3), ("fence", 0.28)),
        "industry": ((None, 0.3), ("mesh", 0.35), ("wall", 0.25), ("hedge", 0.1)),
        "park": ((None, 0.3), ("railing", 0.25), ("wall", 0.15), ("hedge", 0.2), ("fence", 0.1)),
    }[kind]
    weights = np.array([share for _, share in edges])
    edge = edges[rng.choice(len(edges), p=weights / weights.sum())][0]
    low, high = (-0.2, 0.5) if edge is None and kind == "city" else setback
    front = {"city": "paved", "houses": "grass", "industry": "lot", "park": "grass"}[kind]
    return Side(
        kind=kind, verge=verge, pavement=rng.uniform(1.8, 6.0 if kind == "city" else 4.0),
        setback=max(0.0, rng.uniform(low, high)), front="paved" if rng.random() < 0.2 else front, edge=edge,
        parked=rng.uniform(0.3, 0.95) if rng.random() < 0.5 else 0.0,
        trees=rng.uniform(7, 16) if rng.random() < {"city": 0.35, "park": 0.95}.get(kind, 0.55) else 0.0, bare=bare,
    )  # fmt: skip


@dataclass(frozen=True)
class Street:
    """A road of `2 * half` metres whose middle bends by `bend` (1 / m); `sides` are (left, right).

    `cross` is where another road crosses, (from, to) in metres along the road; `end` is where the road ends in a
    T-junction. `drive` is +1 if traffic keeps right. `own` is the camera's place across the road.
    """

    half: float
    lanes: int
    bend: float
    cross: tuple[float, float] | None
    end: float | None
    drive: int
    own: float
    sides: tuple[Side, Side]

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Street:
        """Sample the layout of a street."""
        bare = rng.random() < 0.35
        sides = (_side(rng, bare), _side(rng, bare))
        lanes = int(rng.choice((2, 2, 2, 3, 4)))
        parking = sum(2.1 for side in sides if side.parked)
        half = (lanes * rng.uniform(2.9, 3.6) + parking) / 2
        drive = 1 if rng.random() < 0.6 else -1
        bend = rng.normal(0, 0.0018) if rng.random() < 0.6 else 0.0
        cross = end = None
        if rng.random() < 0.55:
            start = rng.uniform(5, 45)
            cross = (start, start + rng.uniform(6, 11))
        elif rng.random() < 0.25:
            end = rng.uniform(22, 70)
            cross = (end, end + rng.uniform(6, 9))
        own = drive * (half - (2.1 if sides[(drive + 1) // 2].parked else 0)) * rng.uniform(0.25, 0.62)
        return cls(half, lanes, bend, cross, end, drive, own, sides)

    def middle(self, z: Float[np.ndarray, "*n"] | float) -> Float[np.ndarray, "*n"]:
        """The x of the middle of the road, `z` metres along it."""
        along = np.clip(z, -60.0, 300.0)
        return np.asarray(self.bend / 2 * along * np.abs(along))

    def spot(self, u: float, z: float) -> Float[np.ndarray, "2"]:
        """Place (x, z) on the ground `u` metres right of the middle of the road; like `middle`, for a single number."""
        along = min(max(float(z), -60.0), 300.0)
        return np.array([u + self.bend / 2 * along * abs(along), z])

    def heading(self, z: float) -> float:
        """Direction of the road in radians to the right of z."""
        return float(np.arctan(self.bend * abs(z)))

    def free(self, start: float, stop: float, margin: float = 0.0) -> bool:
        """Whether the stretch is clear of the crossing road and of the end of the road."""
        if self.end is not None and stop > self.end - margin:
            return False
        return self.cross is None or bool(stop < self.cross[0] - margin or start > self.cross[1] + margin)

    def side(self, sign: int) -> Side:
        """The side at the left (-1) or right (+1)."""
        return self.sides[(sign + 1) // 2]
