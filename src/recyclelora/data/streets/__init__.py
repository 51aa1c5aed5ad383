"""Procedural street scenes: a source domain with exact labels, and four kinds of weather that training never sees."""

from recyclelora.data.streets.scene import DOMAINS, Scene, render
from recyclelora.data.streets.weather import fog

__all__ = ["DOMAINS", "Scene", "fog", "render"]
