"""Full fine-tuning: every weight of the backbone is trained, at the adapters' rate and with weight decay."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from safetensors.torch import load_file

from recyclelora.adapter.base import weight_matrix
from recyclelora.adapter.targets import target_names
from recyclelora.methods.base import Method, MethodSettings
from recyclelora.methods.reading import TRAINED, check_finite
from recyclelora.methods.update import Update
from recyclelora.models.backbone import Backbone


class Full(Method[MethodSettings]):
    """The whole backbone is trained and saved."""

    settings = MethodSettings

    def _attach(self, backbone: Backbone, settings: MethodSettings, draw: bool, cache_factors: bool) -> None:
        backbone.model.requires_grad_(True)

    def _needed(self, backbone: Backbone, settings: MethodSettings) -> set[str]:
        return {name for name, _ in backbone.model.named_parameters()}

    def updates(self, backbone: Backbone, settings: MethodSettings, folder: Path) -> Iterator[Update]:
        with self._reading(backbone, folder):
            trained = load_file(folder / TRAINED)
            check_finite(TRAINED, trained)
            for name in target_names(backbone.model):
                base = weight_matrix(backbone.model.get_submodule(name)).detach()
                yield Update(name, self.name, base, trained[f"{name}.weight"].flatten(1) - base)


METHOD = Full("full")
