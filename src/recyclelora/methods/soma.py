"""SoMA: a LoRA from minor singular directions in the last two thirds of the blocks; biases are trained too."""

from __future__ import annotations

from pydantic import Field
from torch import nn

from recyclelora.adapter import RecycleLoraConfig, RecycleLoraLayer
from recyclelora.adapter.targets import target_names
from recyclelora.methods.lora import LoraSettings
from recyclelora.methods.milora import MinorSingular
from recyclelora.models.backbone import Backbone


class SomaSettings(LoraSettings):
    """Rank 16 and a scale of 1, as published; by default the last two thirds of the blocks are adapted."""

    rank: int = Field(16, gt=0)
    alpha: float = Field(16.0, gt=0)


class Soma(MinorSingular):
    """MiLoRA on some of the blocks; the biases of the adapted layers are trained too."""

    settings = SomaSettings

    def config(self, backbone: Backbone, settings: LoraSettings) -> RecycleLoraConfig:
        return super().config(
            backbone, settings.model_copy(update={"layers_to_transform": _blocks(backbone, settings)})
        )

    def _attach(self, backbone: Backbone, settings: LoraSettings, draw: bool, cache_factors: bool) -> None:
        super()._attach(backbone, settings, draw, cache_factors)
        for module in backbone.model.modules():
            if isinstance(module, RecycleLoraLayer) and isinstance(module.base_layer.bias, nn.Parameter):
                module.base_layer.bias.requires_grad_(True)

    def _needed(self, backbone: Backbone, settings: LoraSettings) -> set[str]:
        layers = target_names(backbone.model, settings.target_modules, _blocks(backbone, settings))
        return {f"{name}.bias" for name in layers if backbone.model.get_submodule(name).bias is not None}


def _blocks(backbone: Backbone, settings: LoraSettings) -> list[int]:
    return settings.layers_to_transform or list(range(backbone.depth // 3, backbone.depth))


METHOD = Soma("soma", "Yun et al., CVPR 2025, arXiv 2412.04077")
