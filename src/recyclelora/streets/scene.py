"""Render a seed as a picture, its labels and its depth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt8

from recyclelora.streets.buildings import Building
from recyclelora.streets.camera import Camera
from recyclelora.streets.canvas import Canvas
from recyclelora.streets.ground import paint_ground, paint_shadows
from recyclelora.streets.layout import Street
from recyclelora.streets.light import Light
from recyclelora.streets.markings import paint_road
from recyclelora.streets.sensor import draw_bonnet, expose, soften
from recyclelora.streets.sky import paint_sky, paint_skyline
from recyclelora.streets.traffic import populate
from recyclelora.streets.vehicles import Vehicle
from recyclelora.streets.weather import WEATHER

DOMAINS = ("clear", "fog", "night", "rain", "snow")
SMALLEST = 64
"""Smallest height and width of a picture in pixels."""


@dataclass(frozen=True)
class Scene:
    """A rendered street: RGB, train ids of Cityscapes (255 is void), and depth in metres (the sky is at infinity)."""

    image: UInt8[np.ndarray, "h w 3"]
    labels: UInt8[np.ndarray, "h w"]
    depth: Float32[np.ndarray, "h w"]


def render(seed: int, domain: str = "clear", size: tuple[int, int] = (256, 512)) -> Scene:
    """Render the street of a seed, `size` = (height, width) pixels.

    The same arguments give the same bytes; the same seed gives the same street and labels in every domain.

    Raises:
        ValueError: the domain is unknown, the seed is negative, or the size is too small.
    """
    if domain not in DOMAINS:
        raise ValueError(f"unknown domain {domain!r}, known domains: {', '.join(DOMAINS)}")
    if min(size) < SMALLEST:
        raise ValueError(f"size {size[0]}x{size[1]} is too small, the smallest is {SMALLEST}x{SMALLEST} pixels")
    if seed < 0:
        raise ValueError(f"the seed must not be negative, got {seed}")
    plan, paint, skies, air = (np.random.default_rng([seed, 0, stream]) for stream in range(4))
    street = Street.sample(plan)
    canvas = Canvas(Camera.sample(plan, size, street.own))
    light = Light.sample(skies, domain)
    _draw(canvas, street, light, paint, seed)
    draw_bonnet(canvas, plan)
    image = soften(canvas.image.astype(np.float32) / 255, canvas)
    image = WEATHER[domain](image, canvas, air)
    with np.errstate(divide="ignore"):
        depth = np.asarray(1 / canvas.nearness)
    return Scene(expose(image, domain, air), canvas.tags[..., 0].copy(), depth)


def _draw(canvas: Canvas, street: Street, light: Light, rng: np.random.Generator, seed: int) -> None:
    """Draw sky, ground and shadows, then everything else from far to near."""
    paint_sky(canvas, light, rng)
    paint_ground(canvas, street, light, rng)
    paint_road(canvas, street, light, rng)
    paint_skyline(canvas, light, np.random.default_rng([seed, 2]))
    things = [thing for thing in populate(street, seed) if thing.distance < 140]
    shadows = (shadow for thing in things if thing.distance < 65 for shadow in thing.shadows())
    contact = [(thing.outline(), 0.0, 0.0) for thing in things if isinstance(thing, Vehicle)]
    paint_shadows(canvas, street, light, shadows, contact)
    houses = [thing for thing in things if isinstance(thing, Building)]
    # Houses are opaque, so those in front are drawn first, and hidden ones need no work.
    for house in sorted(houses, key=lambda house: house.distance):
        house.draw(canvas, light)
    for thing in sorted(things, key=lambda thing: -thing.distance):
        if not isinstance(thing, Building):
            thing.draw(canvas, light)
