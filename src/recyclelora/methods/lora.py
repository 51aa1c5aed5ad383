"""PEFT's LoRA: A starts from Kaiming's distribution, B from zero."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jaxtyping import Float
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from pydantic import Field
from torch import Tensor, nn

from recyclelora.adapter.base import weight_matrix
from recyclelora.adapter.targets import target_names
from recyclelora.methods.base import MethodSettings, PeftMethod
from recyclelora.methods.update import Update
from recyclelora.models.backbone import Backbone


class LoraSettings(MethodSettings):
    """One adapter, scaled by alpha / rank. The defaults are RecycleLoRA's published total rank and a scale of 1."""

    rank: int = Field(36, gt=0)
    alpha: float = Field(36.0, gt=0)
    target_modules: list[str] | str | None = None
    layers_to_transform: list[int] | None = None


class Lora(PeftMethod[LoraSettings]):
    """PEFT's LoRA with some of its options, on the layers that RecycleLoRA adapts."""

    settings = LoraSettings

    def __init__(self, name: str, paper: str, **options: Any) -> None:
        super().__init__(name, paper)
        self.options = options

    def _attach(self, backbone: Backbone, settings: LoraSettings, draw: bool, cache_factors: bool) -> None:
        names = target_names(backbone.model, settings.target_modules, settings.layers_to_transform)
        sizes: dict[str, Any] = {"r": settings.rank, "lora_alpha": settings.alpha}
        backbone.model = get_peft_model(backbone.model, LoraConfig(target_modules=names, **sizes, **self.options))

    def _stored_settings(self, backbone: Backbone, settings: LoraSettings) -> dict[str, Any]:
        own: dict[str, Any] = {"peft_type": "LORA", "r": settings.rank, "lora_alpha": settings.alpha}
        own |= {"init_lora_weights": True, "use_dora": False, "use_rslora": False, "bias": "none"}
        return own | {"rank_pattern": {}, "alpha_pattern": {}, "modules_to_save": None} | self.options

    def is_drawn(self, name: str) -> bool:
        return ".lora_" in name

    def scale(self, settings: LoraSettings) -> float:
        return settings.alpha / settings.rank

    def _layer_updates(self, name: str, module: nn.Module) -> Iterator[Update]:
        if isinstance(module, LoraLayer):
            layer: Any = module
            base = weight_matrix(layer.get_base_layer()).detach().clone()
            A, B = self._factors(layer)
            yield Update(name, self.name, base, self._delta(layer, base), B, A)

    def _factors(self, layer: Any) -> tuple[Float[Tensor, "r in"], Float[Tensor, "out r"]]:
        A, B = (factors["default"].weight.detach().flatten(1) for factors in (layer.lora_A, layer.lora_B))
        return A, B

    def _delta(self, layer: Any, base: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        delta: Tensor = layer.get_delta_weight("default").detach().flatten(1)
        return delta


METHOD = Lora("lora", "Hu et al., ICLR 2022, arXiv 2106.09685")
