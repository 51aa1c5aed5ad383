"""RecycleLoRA: main starts from minor directions, sub from major ones (explained in `recyclelora.adapter`)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

from peft import get_peft_model
from pydantic import Field, model_validator
from torch import nn

from recyclelora.adapter import RecycleLoraConfig, RecycleLoraLayer
from recyclelora.adapter.base import weight_matrix
from recyclelora.adapter.config import PeftType, Scaling
from recyclelora.adapter.factors import Decomposition, one_hot
from recyclelora.adapter.layer import PREFIX
from recyclelora.methods.base import MethodSettings, PeftMethod, S
from recyclelora.methods.update import Update
from recyclelora.models.backbone import Backbone

STORED = (
    "r_main", "r_sub", "alpha", "scaling", "rank_pattern", "alpha_pattern", "bias", "decomposition",
    "exclude_modules", "modules_to_save",
)  # fmt: skip
"""The fields of the adapter's configuration that a trained model depends on."""
PAPER = "Cho et al., CVPR 2026 Findings, arXiv 2603.28142"


class RecycleLoraSettings(MethodSettings):
    """The fields of `recyclelora.RecycleLoraConfig`; the published ranks are 32 and 4, with the scale 1 / 36."""

    r_main: int = Field(32, ge=0)
    r_sub: int = Field(4, ge=0)
    alpha: float = Field(1.0, gt=0)
    scaling: Scaling = "rank"
    decomposition: Decomposition = "rrqr"
    target_modules: list[str] | str | None = None
    layers_to_transform: list[int] | None = None

    @model_validator(mode="after")
    def _check(self) -> RecycleLoraSettings:
        if not (self.r_main or self.r_sub):
            raise ValueError("r_main and r_sub must not both be 0")
        return self


class Directions(PeftMethod[S]):
    """The base of all methods that use RecycleLoRA's layers, whatever directions they start from."""

    @abstractmethod
    def config(self, backbone: Backbone, settings: S) -> RecycleLoraConfig:
        """The settings of the adapter."""

    def _attach(self, backbone: Backbone, settings: S, draw: bool, cache_factors: bool) -> None:
        config = self.config(backbone, settings)
        config.init_weights, config.cache_factors = draw, cache_factors
        backbone.model = get_peft_model(backbone.model, config)

    def _stored_settings(self, backbone: Backbone, settings: S) -> dict[str, Any]:
        config = self.config(backbone, settings)
        return {key: getattr(config, key) for key in STORED} | {
            "peft_type": PeftType.RECYCLELORA.value,
            "init_weights": False,
        }

    def is_drawn(self, name: str) -> bool:
        return f".{PREFIX}" in name

    def _layer_updates(self, name: str, module: nn.Module) -> Iterator[Update]:
        if not isinstance(module, RecycleLoraLayer):
            return
        base = weight_matrix(module.get_base_layer()).detach()
        for role, factors in module.factors_of("default").items():
            D_A, D_B, A0, B0 = (factor.detach() for factor in factors)
            index = None
            if not A0.is_floating_point():
                index, A0 = A0, one_hot(A0, D_A.shape[1], D_A.dtype)
            A, B = A0 + D_A, B0 + D_B
            delta = module.scaling["default"] * (B @ D_A + D_B @ A0)
            yield Update(name, self._role_name(role), base, delta, B, A, index)

    def _role_name(self, role: str) -> str:
        """The name of an adapter in analyses."""
        return self.name


class RecycleLora(Directions[RecycleLoraSettings]):
    """RecycleLoRA with both adapters, or only with the one whose rank is not 0."""

    settings = RecycleLoraSettings

    def config(self, backbone: Backbone, settings: RecycleLoraSettings) -> RecycleLoraConfig:
        return RecycleLoraConfig(**settings.model_dump())

    def scale(self, settings: RecycleLoraSettings) -> float:
        return RecycleLoraConfig(**settings.model_dump()).scale

    def _role_name(self, role: str) -> str:
        return role


METHOD = RecycleLora("recyclelora", PAPER)
