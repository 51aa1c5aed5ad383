"""Segmentation models that hold up on domains nobody labelled: RecycleLoRA adapters for vision foundation models."""

from recyclelora._torchvision import ensure_torchvision

ensure_torchvision()  # before anything imports timm

from recyclelora.errors import UserError  # noqa: E402
from recyclelora.export import to_lora  # noqa: E402
from recyclelora.run import Predictor, load  # noqa: E402
from recyclelora.training.optim import param_groups  # noqa: E402
from recyclelora.tuner import RecycleLoraConfig, RecycleLoraModel  # noqa: E402

__all__ = ["Predictor", "RecycleLoraConfig", "RecycleLoraModel", "UserError", "load", "param_groups", "to_lora"]
