"""MiLoRA: a LoRA that starts from minor singular vectors times the square roots of their singular values."""

from __future__ import annotations

from recyclelora.adapter import RecycleLoraConfig
from recyclelora.methods.lora import LoraSettings
from recyclelora.methods.recyclelora import Directions
from recyclelora.models.backbone import Backbone


class MinorSingular(Directions[LoraSettings]):
    """Uses RecycleLoRA's layer with directions of an SVD and one adapter, scaled by alpha / rank."""

    settings = LoraSettings

    def config(self, backbone: Backbone, settings: LoraSettings) -> RecycleLoraConfig:
        return RecycleLoraConfig(
            r_main=settings.rank,
            r_sub=0,
            alpha=settings.alpha,
            decomposition="weighted-svd",
            target_modules=settings.target_modules,
            layers_to_transform=settings.layers_to_transform,
        )

    def scale(self, settings: LoraSettings) -> float:
        return settings.alpha / settings.rank


METHOD = MinorSingular("milora", "Wang et al., NAACL 2025, arXiv 2406.09044")
