"""RecycleLoRA as a method of the PEFT library."""

from recyclelora.tuner.config import RecycleLoraConfig
from recyclelora.tuner.layer import RecycleLoraConv2d, RecycleLoraLayer, RecycleLoraLinear
from recyclelora.tuner.model import RecycleLoraModel, register

register()

__all__ = ["RecycleLoraConfig", "RecycleLoraConv2d", "RecycleLoraLayer", "RecycleLoraLinear", "RecycleLoraModel"]
