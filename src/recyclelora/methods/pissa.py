"""PiSSA: a LoRA that starts from the major singular vectors; the start is subtracted from the frozen weight."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from typing import Any

from jaxtyping import Float
from torch import Tensor

from recyclelora.methods.lora import Lora, LoraSettings
from recyclelora.models.backbone import Backbone


class ResidualLora(Lora):
    """A LoRA whose start B0 A0 is subtracted from the base weight; it is saved as its difference to that start.

    PEFT then writes [A; A0] and [B, -B0], of twice the rank, for use with the unchanged base.
    """

    def _attach(self, backbone: Backbone, settings: LoraSettings, draw: bool, cache_factors: bool) -> None:
        super()._attach(backbone, settings, draw, cache_factors)
        start: Any = tempfile.mkdtemp(prefix="recyclelora-")
        backbone.model.save_pretrained(start)
        backbone.adapter_start = start
        weakref.finalize(backbone, shutil.rmtree, start, ignore_errors=True)

    def _peft_options(self, backbone: Backbone) -> dict[str, Any]:
        return {"path_initial_model_for_weight_conversion": backbone.adapter_start}

    def _stored_settings(self, backbone: Backbone, settings: LoraSettings) -> dict[str, Any]:
        own = {"r": 2 * settings.rank, "lora_alpha": 2 * settings.alpha, "init_lora_weights": True}
        return super()._stored_settings(backbone, settings) | own

    def _factors(self, layer: Any) -> tuple[Float[Tensor, "r in"], Float[Tensor, "out r"]]:
        A, B = super()._factors(layer)
        half = A.shape[0] // 2
        return A[:half], B[:, :half]


METHOD = ResidualLora("pissa", "Meng et al., NeurIPS 2024, arXiv 2404.02948", init_lora_weights="pissa")
