"""Outlines of cars, vans, trucks, buses and trams, and their colours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from recyclelora.streets.classes import IDS

CAR, TRUCK, BUS, TRAIN = (IDS[name] for name in ("car", "truck", "bus", "train"))
PAINTS = (
    (196, 198, 200), (150, 153, 157), (92, 95, 99), (30, 31, 34), (24, 26, 30), (232, 232, 230), (222, 222, 222),
    (30, 48, 96), (52, 84, 140), (140, 24, 26), (104, 20, 28), (38, 70, 52), (176, 160, 128), (118, 98, 78),
    (206, 120, 36), (214, 184, 52),
)  # fmt: skip
"""Colours of vehicles, from the most to the least common."""


@dataclass(frozen=True)
class Shape:
    """Outline of a kind of vehicle in metres.

    `profile` rows are (distance along, height, half width as a share) from the front bumper over the roof to the rear;
    `glass` lists which of its strips are panes; `panes` are side windows as (from, to, low, high).
    """

    label: int
    length: float
    width: float
    height: float
    profile: Float[np.ndarray, "n 3"]
    glass: tuple[int, ...]
    belt: float
    panes: tuple[tuple[float, float, float, float], ...]
    axles: tuple[float, ...]
    wheel: float


def car_shape(rng: np.random.Generator) -> Shape:
    """A hatchback, saloon, estate, off-roader or van."""
    kind = ("hatch", "saloon", "estate", "rover", "van")[rng.choice(5, p=(0.34, 0.22, 0.16, 0.18, 0.1))]
    length = {"hatch": 3.9, "saloon": 4.6, "estate": 4.6, "rover": 4.5, "van": 5.0}[kind] * rng.uniform(0.94, 1.06)
    height = {"hatch": 1.47, "saloon": 1.43, "estate": 1.48, "rover": 1.72, "van": 2.05}[kind] * rng.uniform(0.97, 1.05)
    half, belt = length / 2, height * (0.63 if kind != "van" else 0.55)
    hood, cowl = {"van": (half * 0.72, half * 0.62)}.get(kind, (half * 0.9, half * rng.uniform(0.34, 0.46)))
    top_front = cowl - rng.uniform(0.55, 0.85)
    top_rear, tail = {
        "hatch": (-half * 0.78, -half * 0.97), "saloon": (-half * 0.34, -half * 0.66),
        "van": (-half * 0.97, -half * 0.99),
    }.get(kind, (-half * 0.86, -half * 0.98))  # fmt: skip
    roof = 0.78 if kind != "van" else 0.9
    profile = np.array([
        [half * 0.97, 0.24, 0.92], [half, 0.5, 0.97], [half * 0.97, belt * 0.74, 0.97], [hood, belt * 0.84, 0.98],
        [cowl, belt, 0.96], [top_front, height * 0.985, roof], [(top_front + top_rear) / 2, height, roof],
        [top_rear, height * 0.975, roof], [tail, belt * 1.02, 0.95], [-half * 0.985, belt * 0.95, 0.97],
        [-half, 0.5, 0.97], [-half * 0.97, 0.26, 0.92],
    ])  # fmt: skip
    wheel = rng.uniform(0.3, 0.35)
    return Shape(
        CAR,
        length,
        1.76 * rng.uniform(0.95, 1.08),
        height,
        profile,
        (4, 7),
        belt,
        (),
        (half * 0.62, -half * 0.6),
        wheel,
    )


def box_shape(kind: str, rng: np.random.Generator) -> Shape:
    """A "bus", "truck" or "tram"."""
    label, length, width, height = {
        "bus": (BUS, rng.uniform(9, 12), 2.5, rng.choice((3.0, 3.1, 4.2))),
        "tram": (TRAIN, rng.uniform(16, 26), 2.5, 3.3),
        "truck": (TRUCK, rng.uniform(6, 9), 2.3, rng.uniform(2.7, 3.6)),
    }[kind]  # fmt: skip
    half, low = length / 2, 0.35
    if kind == "truck":
        cab = half - 1.8
        rows = [[half, low, 1], [half, 1.2, 1], [half - 0.25, 2.2, 0.92], [cab, 2.3, 0.92], [cab - 0.05, height, 1]]
        rows += [[-half, height, 1], [-half, 1.15, 1], [-half, low + 0.25, 1]]
        panes: tuple[tuple[float, float, float, float], ...] = ((cab + 0.35, half - 0.35, 1.25, 2.1),)
        glass: tuple[int, ...] = (1,)
    else:
        rows = [[half, low, 1], [half, 1.05, 1], [half - 0.12, 2.5, 0.99], [half - 0.2, height, 0.97]]
        rows += [[-half + 0.1, height, 0.97], [-half, 2.4, 1], [-half, 1.3, 1], [-half, low, 1]]
        step, edges = 1.55, np.arange(-half + 0.4, half - 1.4, 1.55)
        decks = (1.15, 2.9) if height > 4 else (1.15,)
        panes = tuple((s, s + step - 0.16, deck, deck + 1.0) for s in edges for deck in decks)
        glass = (1, 5)
    axles = (half - 2.0, -half + 2.2) if kind != "truck" else (half - 1.0, -half + 1.3)
    return Shape(
        label, length, width, height, np.array(rows), glass, 1.2, panes, axles, 0.48 if kind != "tram" else 0.3
    )
