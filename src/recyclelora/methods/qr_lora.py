"""QR-LoRA: the directions of a pivoted QR stay fixed, and one coefficient per direction is trained.

    W0 P = Q R,    W = W0 + sum over i of c_i q_i r_i'  =  W0 + Q_r diag(c) Q_r' W0

q_i are the first `rank` columns of Q, the major directions. r_i are the rows of R in the order of W0's columns; they
are the rows of Q' W0, because Q is orthonormal. The coefficients c start at 0, so that the model starts unchanged. The
paper chooses the number of directions by their share of R's squared diagonal; here it is a setting for all layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from peft import LoraConfig, PeftModel, get_peft_model
from pydantic import Field
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from recyclelora.adapter.base import base_of, weight_matrix
from recyclelora.adapter.config import RecycleLoraConfig
from recyclelora.adapter.draw import draw_factors
from recyclelora.adapter.targets import target_names
from recyclelora.methods.base import Method, MethodSettings
from recyclelora.methods.reading import TRAINED, check_finite, check_names
from recyclelora.methods.update import Update
from recyclelora.models.backbone import Backbone

INSIDE = "parametrizations.weight.0"
"""The place where PyTorch puts the module that computes a layer's weight."""


class QrLoraSettings(MethodSettings):
    """`rank` is the number of directions of each weight that have a coefficient."""

    rank: int = Field(128, gt=0)
    target_modules: list[str] | str | None = None
    layers_to_transform: list[int] | None = None


class Coefficients(nn.Module):
    """Computes the weight of one layer with its directions rescaled."""

    basis: Tensor

    def __init__(self, basis: Float[Tensor, "out r"]) -> None:
        super().__init__()
        self.register_buffer("basis", basis)
        self.coefficients = nn.Parameter(torch.zeros(basis.shape[1]))

    def forward(self, weight: Float[Tensor, "out ..."]) -> Float[Tensor, "out ..."]:
        return weight + change(self.basis, self.coefficients, weight.flatten(1)).view_as(weight)


def change(
    basis: Float[Tensor, "out r"], coefficients: Float[Tensor, " r"], weight: Float[Tensor, "out in"]
) -> Float[Tensor, "out in"]:
    """The update of a weight, Q_r diag(c) Q_r' W0."""
    return (basis * coefficients) @ (basis.T @ weight)


class QrLora(Method[QrLoraSettings]):
    """Coefficients of fixed directions, trained at the adapters' rate without weight decay."""

    settings = QrLoraSettings

    def _attach(self, backbone: Backbone, settings: QrLoraSettings, draw: bool, cache_factors: bool) -> None:
        model = backbone.model
        layers = {name: base_of(name, model.get_submodule(name)) for name in self._layers(backbone, settings)}
        weights = {name: weight_matrix(layer) for name, layer in layers.items()}
        bases = {name: weight.new_full((len(weight), settings.rank), torch.nan) for name, weight in weights.items()}
        if draw:
            config = RecycleLoraConfig(r_main=0, r_sub=settings.rank, cache_factors=cache_factors)
            bases = {name: factors.basis.to(weights[name]) for name, factors in draw_factors(weights, config).items()}
        for name, layer in layers.items():
            parametrize.register_parametrization(layer, "weight", Coefficients(bases[name].detach()))

    def role(self, name: str) -> str:
        return "adapter" if name.endswith(f"{INSIDE}.coefficients") else super().role(name)

    def is_drawn(self, name: str) -> bool:
        return name.endswith(f"{INSIDE}.basis")

    def _merge(self, backbone: Backbone, settings: QrLoraSettings, folder: Path) -> None:
        for update in list(self.updates(backbone, settings, folder)):
            backbone.model.get_submodule(update.layer).weight.data += update.delta.view_as(
                backbone.model.get_submodule(update.layer).weight
            )

    def adapter(self, backbone: Backbone, settings: QrLoraSettings, folder: Path) -> PeftModel:
        """The change as a plain LoRA, B = Q_r diag(c) and A = Q_r' W0: PEFT has no such method of its own."""
        changes = {update.layer: update for update in self.updates(backbone, settings, folder)}
        config = LoraConfig(
            r=settings.rank, lora_alpha=settings.rank, target_modules=sorted(changes), init_lora_weights=False
        )
        model = get_peft_model(backbone.model, config)
        for name, change in changes.items():
            layer: Any = model.get_base_model().get_submodule(name)
            layer.lora_A["default"].weight.data = change.A
            layer.lora_B["default"].weight.data = change.B
        backbone.model = model.get_base_model()
        return model

    def updates(self, backbone: Backbone, settings: QrLoraSettings, folder: Path) -> Iterator[Update]:
        with self._reading(backbone, folder):
            state = load_file(folder / TRAINED)
            layers = self._layers(backbone, settings)
            expected = {f"{name}.{INSIDE}.{part}" for name in layers for part in ("basis", "coefficients")}
            check_names(TRAINED, expected ^ state.keys())
            check_finite(TRAINED, state)
            for name in layers:
                base = weight_matrix(backbone.model.get_submodule(name)).detach()
                basis, coefficients = state[f"{name}.{INSIDE}.basis"], state[f"{name}.{INSIDE}.coefficients"]
                delta = change(basis, coefficients, base)
                yield Update(name, self.name, base, delta, basis * coefficients, basis.T @ base)

    def _layers(self, backbone: Backbone, settings: QrLoraSettings) -> list[str]:
        return target_names(backbone.model, settings.target_modules, settings.layers_to_transform)


METHOD = QrLora("qr-lora", "Liang and Bharadwaj, arXiv 2508.21810")
