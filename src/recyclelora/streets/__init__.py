"""Procedural street scenes: a source domain with exact labels, and four kinds of weather that training never sees."""

from recyclelora.streets.scene import DOMAINS, Scene, render
from recyclelora.streets.weather import fog

VERSION = 1
"""The version goes up when the renderer's pixels change; stored scenes and fingerprints of data contain it.

It stays if a change of words, speed or a library leaves the pixels as they are; `tests/streets/test_golden.py` detects
any change of pixels.
"""

__all__ = ["DOMAINS", "VERSION", "Scene", "fog", "render"]
