"""The people and objects in the street, and their places."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from recyclelora.streets.buildings import Panel, build_end, build_row
from recyclelora.streets.canvas import Canvas
from recyclelora.streets.furniture import Bin, Post
from recyclelora.streets.ground import Shadow
from recyclelora.streets.layout import KERB, Street
from recyclelora.streets.light import Light
from recyclelora.streets.people import RIDER, Bike, Human, Look, riding, walking
from recyclelora.streets.plants import Tree
from recyclelora.streets.shapes import PAINTS, box_shape, car_shape
from recyclelora.streets.vehicles import Vehicle


@runtime_checkable
class Thing(Protocol):
    """Anything that is drawn on the ground."""

    @property
    def distance(self) -> float:
        """Metres from the camera; farther things are drawn first."""

    def shadows(self) -> list[Shadow]:
        """The outlines that cast shadows."""

    def draw(self, canvas: Canvas, light: Light) -> None:
        """Draw it."""


def populate(street: Street, seed: int) -> list[Thing]:
    """All things of a scene; each kind has its own random stream."""
    streams = iter(np.random.default_rng([seed, 1]).spawn(16))
    things: list[Thing] = [*build_end(street, next(streams))]
    things += _driving(street, next(streams)) + _cycling(street, next(streams)) + _crossing(street, next(streams))
    for sign in (-1, 1):
        things += build_row(street, sign, next(streams))
        things += _boundary(street, sign, next(streams)) + _planted(street, sign, next(streams))
        things += _parked(street, sign, next(streams)) + _walkers(street, sign, next(streams))
        things += _posts(street, sign, next(streams))
    return things


def _spot(street: Street, sign: int, beyond: float, z: float) -> Float[np.ndarray, "2"]:
    """World (x, z) some metres beyond the kerb of one side."""
    return street.spot(sign * (street.half + beyond), z)


def _steps(
    street: Street, rng: np.random.Generator, start: float, stop: float, gap: float, margin: float
) -> list[float]:
    """Places along the street, about `gap` metres apart, clear of junctions."""
    places, z = [], start + rng.uniform(0, gap)
    while z < stop:
        if street.free(z, z, margin):
            places.append(float(z))
        z += gap * rng.uniform(0.8, 1.25)
    return places


def _vehicle(
    rng: np.random.Generator, place: Float[np.ndarray, "2"], heading: float, kinds: float, *, big: bool
) -> Vehicle:
    """A car, or, with probability `kinds` if `big`, a bus, truck or tram."""
    kind = ("truck", "bus", "tram")[rng.choice(3, p=(0.45, 0.4, 0.15))]
    shape = box_shape(kind, rng) if big and rng.random() < kinds else car_shape(rng)
    paint = np.array(PAINTS[int(len(PAINTS) * rng.random() ** 1.35)], float) * rng.uniform(0.85, 1.1)
    trim = paint * 0.62 if rng.random() < 0.7 else np.array([40.0, 41, 44])
    return Vehicle(shape, place, heading, paint, bool(rng.random() < 0.4), trim)


def _driving(street: Street, rng: np.random.Generator) -> list[Thing]:
    """Traffic ahead and oncoming."""
    things: list[Thing] = []
    own = street.own
    margin = [2.1 if side.parked else 0.0 for side in street.sides]
    other = -street.drive * (street.half - margin[(1 - street.drive) // 2]) * 0.48
    for u, turn, busy in ((own, 0.0, rng.uniform(0, 1)), (other, np.pi, rng.uniform(0, 1.3))):
        z = rng.uniform(6, 16) if rng.random() < busy else rng.uniform(14, 60)
        while z < 95:
            if street.end is None or z < street.end - 4:
                place = street.spot(u + rng.normal(0, 0.2), z)
                vehicle = _vehicle(rng, place, street.heading(z) + turn, 0.15, big=True)
                if z > 5.5 + vehicle.shape.length / 2:
                    things.append(vehicle)
                z += vehicle.shape.length
            z += 3 + rng.exponential(26) / (0.3 + busy)
    return things


def _crossing(street: Street, rng: np.random.Generator) -> list[Thing]:
    """Vehicles and people across the road at a junction, and people who cross elsewhere."""
    things: list[Thing] = []
    if street.cross is not None:
        low, high = street.cross
        for lane, sign in ((0.27, 1), (0.73, -1)):
            x = rng.uniform(-30, -8)
            while x < 30 and rng.random() < 0.55:
                place = np.array([x + street.middle(low), low + (high - low) * lane])
                if place[1] > 7.5 and not (abs(x - street.own) < 4 and place[1] < 14):
                    things.append(_vehicle(rng, place, sign * np.pi / 2, 0.15, big=True))
                x += rng.uniform(9, 25)
    if rng.random() < 0.4:
        z = street.cross[0] - 3.5 if street.cross is not None and street.cross[0] > 10 else rng.uniform(7, 30)
        for _ in range(int(rng.integers(1, 6))):
            u = rng.uniform(-street.half, street.half)
            place, side = street.spot(u, z + rng.uniform(-1.2, 1.2)), rng.choice((-1, 1))
            things.append(_walker(rng, place, side * np.pi / 2 + rng.normal(0, 0.15)))
    return things


def _walker(rng: np.random.Generator, place: Float[np.ndarray, "2"], heading: float, still: bool = False) -> Human:
    stride = rng.normal(0, 0.08) if still else rng.choice((-1, 1)) * rng.uniform(0.25, 1.0)
    return Human(Look.sample(rng), walking(float(stride), float(rng.uniform(0, 0.08))), place, heading)


def _walkers(street: Street, sign: int, rng: np.random.Generator) -> list[Thing]:
    """People on the pavement, alone and in groups."""
    side, things = street.side(sign), []
    crowd = {"city": 3.2, "houses": 0.9, "industry": 0.6, "park": 1.6}[side.kind]
    for z in 3.5 + rng.gamma(1.6, 11, rng.poisson(crowd * rng.uniform(0.3, 1.9))):
        heading, still = rng.choice((0, np.pi)) + rng.normal(0, 0.25), rng.random() < 0.2
        for _ in range(int(rng.choice((1, 1, 2, 3)))):
            beyond = KERB + side.verge + rng.uniform(0.5, max(0.6, side.pavement - 0.3))
            place = _spot(street, sign, beyond, z + rng.uniform(-0.7, 0.7))
            if not street.free(z, z, 0.0):
                continue
            turn = heading if not still else rng.uniform(-np.pi, np.pi)
            things.append(_walker(rng, place, float(turn + street.heading(z)), still))
    return list(things)


def _ridden(rng: np.random.Generator, place: Float[np.ndarray, "2"], heading: float, motor: bool) -> list[Thing]:
    colour = np.array(PAINTS[rng.integers(len(PAINTS))], float) * 0.9
    pose = riding(float(rng.uniform(0, 2 * np.pi)), float(rng.uniform(-0.05, 0.18)))
    return [Bike(place, heading, colour, motor), Human(Look.sample(rng), pose, place, heading, RIDER)]


def _cycling(street: Street, rng: np.random.Generator) -> list[Thing]:
    """Riders on bicycles and motorcycles."""
    things: list[Thing] = []
    for _ in range(int(rng.choice((0, 1, 1, 2, 3)))):
        z, ahead, motor = 6 + rng.gamma(1.6, 8), rng.random() < 0.65, rng.random() < 0.28
        room = 2.1 if street.side(street.drive if ahead else -street.drive).parked else 0.0
        sign = street.drive if ahead else -street.drive
        u = sign * (street.half - room - (rng.uniform(1.2, 2) if motor else rng.uniform(0.5, 1.1)))
        turn = street.heading(z) + (0.0 if ahead else np.pi) + rng.normal(0, 0.08)
        if rng.random() < 0.15:
            turn += np.pi / 2
        if street.end is None or z < street.end - 2:
            things += _ridden(rng, street.spot(u, z), float(turn), motor)
    return things


def _parked(street: Street, sign: int, rng: np.random.Generator) -> list[Thing]:
    """Cars at the kerb and in lots; bicycles and motorcycles on the pavement."""
    side, things = street.side(sign), []
    if side.parked:
        for z in _steps(street, rng, 3.0, 62.0, 5.9, 6.0):
            if rng.random() < side.parked:
                turn = 0.0 if rng.random() < 0.85 else np.pi
                place = _spot(street, sign, -1.05 + rng.normal(0, 0.08), z)
                things.append(_vehicle(rng, place, turn + street.heading(z) + rng.normal(0, 0.02), 0.04, big=True))
    if side.front == "lot" and side.setback > 7:
        for z in _steps(street, rng, 8.0, 60.0, 2.8, 5.0):
            if rng.random() < 0.6:
                place = _spot(street, sign, side.face - 3.2, z)
                things.append(_vehicle(rng, place, sign * np.pi / 2 + rng.choice((0, np.pi)), 0.0, big=False))
    bikes = []
    for z in rng.uniform(5, 32, int(rng.choice((0, 0, 1, 1, 2)))):
        heading, count, motor = rng.uniform(-np.pi, np.pi), int(rng.integers(1, 5)), rng.random() < 0.35
        for index in range(count):
            colour = np.array(PAINTS[rng.integers(len(PAINTS))], float)
            place = _spot(
                street, sign, KERB + side.verge + rng.uniform(0.5, max(0.6, side.pavement * 0.5)), z + 0.7 * index
            )
            if street.free(z, z + 2, 0.0):
                bikes.append(Bike(place, float(heading + rng.normal(0, 0.1)), colour, motor))
    return [*things, *bikes]


def _boundary(street: Street, sign: int, rng: np.random.Generator) -> list[Thing]:
    """Walls, fences and hedges at the outer edge of the pavement; rails at the kerb."""
    side, things = street.side(sign), []
    beyond = KERB + side.verge + side.pavement
    height = {"wall": rng.uniform(0.6, 2.4), "hedge": rng.uniform(0.8, 2.2), "fence": rng.uniform(0.9, 1.8),
              "mesh": rng.uniform(1.6, 2.4), "railing": rng.uniform(0.9, 1.3)}  # fmt: skip
    z = -4.0
    while z < 90 and side.edge is not None:
        stop = z + rng.uniform(6, 15)
        kind = side.edge if rng.random() < 0.85 else ("wall", "hedge", "fence")[rng.integers(3)]
        if rng.random() < 0.9 and street.free(z, stop, 1.5):
            ends = np.stack([_spot(street, sign, beyond, z), _spot(street, sign, beyond, stop)])
            things.append(Panel(ends, height[kind] * rng.uniform(0.97, 1.03), kind, int(rng.integers(2**31))))
        z = stop + (rng.uniform(1.5, 4) if rng.random() < 0.35 else 0)
    if rng.random() < 0.16:
        start = rng.uniform(2, 30)
        for z in np.arange(start, start + rng.uniform(8, 40), 6.0):
            if street.free(z, z + 6, 1.5):
                ends = np.stack([_spot(street, sign, 0.35, z), _spot(street, sign, 0.35, z + 6)])
                things.append(Panel(ends, 1.05, "railing", int(rng.integers(2**31))))
    return list(things)


def _planted(street: Street, sign: int, rng: np.random.Generator) -> list[Thing]:
    """Trees along the kerb, in gardens and parks; bushes."""
    side, things = street.side(sign), []
    if side.trees:
        beyond = KERB + (side.verge / 2 if side.verge else 0.7)
        for z in _steps(street, rng, 4.0, 90.0, side.trees, 3.0):
            things.append(Tree.sample(rng, _spot(street, sign, beyond + rng.normal(0, 0.1), z), side.bare))
    behind = KERB + side.verge + side.pavement
    gardens = {"city": 0.0, "houses": 9.0, "industry": 4.0, "park": 26.0}[side.kind]
    for z in rng.uniform(4, 95, rng.poisson(gardens)):
        deep = side.setback if side.kind != "park" else rng.uniform(5, 30)
        if deep > 2 and street.free(float(z), float(z), 2.0):
            place = _spot(street, sign, behind + 1 + (deep - 2) * rng.random(), float(z))
            things.append(Tree.sample(rng, place, side.bare, bush=rng.random() < 0.45))
    return list(things)


def _posts(street: Street, sign: int, rng: np.random.Generator) -> list[Thing]:
    """Street lights, signs, traffic lights, bollards and bins near the kerb."""
    things: list[Thing] = []
    metal = np.array([112, 116, 116]) * rng.uniform(0.4, 1.3)
    if rng.random() < 0.7:
        tall, reach = rng.uniform(5, 9.5), -sign * rng.uniform(0.5, 2.2)
        for z in _steps(street, rng, 5.0, 110.0, rng.uniform(22, 34), 1.0):
            head = ("lamp", reach, tall + 0.2, 0.75, int(rng.integers(2**31)))
            things.append(Post(_spot(street, sign, 0.55, z), tall, rng.uniform(0.06, 0.1), metal, reach, (head,)))
    for z in _steps(street, rng, 5.0, 75.0, rng.uniform(9, 30), 0.5):
        tall, size = rng.uniform(2.3, 3.3), rng.uniform(0.5, 0.9)
        heads = [("sign", 0.0, tall - size / 2, size, int(rng.integers(2**31)))]
        if rng.random() < 0.4:
            heads.append(
                ("board" if rng.random() < 0.6 else "sign", 0.0, tall - size * 1.65, size, int(rng.integers(2**31)))
            )
        if rng.random() < 0.12:
            heads = [("board", 0.0, tall, rng.uniform(1, 2), int(rng.integers(2**31)))]
        things.append(
            Post(
                _spot(street, sign, rng.uniform(0.4, 0.9), z),
                tall,
                0.035,
                np.array([150.0, 152, 152]),
                0.0,
                tuple(heads),
            )
        )
    if street.cross is not None and rng.random() < 0.75:
        for z in (street.cross[0] - 1.2, street.cross[1] + 1.2):
            if (street.end is None or z < street.end) and z > 4:
                gantry = -sign * rng.uniform(2.5, 4.5) if rng.random() < 0.25 else 0.0
                tall, size = (5.6, 0.95) if gantry else (3.3, rng.uniform(0.8, 1.1))
                heads = [("signal", 0.0, 2.75, size, int(rng.integers(2**31)))]
                if gantry:
                    heads.append(("signal", gantry, tall - 0.1, size, int(rng.integers(2**31))))
                things.append(Post(_spot(street, sign, 0.5, z), tall, 0.07, metal * 0.8, gantry, tuple(heads)))
    if rng.random() < 0.25:
        for z in np.arange(rng.uniform(4, 15), rng.uniform(16, 40), 1.8):
            if street.free(float(z), float(z), 0.0):
                things.append(Post(_spot(street, sign, 0.4, float(z)), 0.95, 0.07, metal * 0.7, 0.0, ()))
    for z in rng.uniform(5, 35, rng.poisson(0.35)):
        bulk = (float(rng.uniform(0.45, 1.1)), float(rng.uniform(0.8, 1.5)))
        things.append(Bin(_spot(street, sign, 0.9, float(z)), bulk, rng.uniform(30, 120, 3)))
    return things
