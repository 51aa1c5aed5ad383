"""The backbone stays as it is; only the head is trained."""

from __future__ import annotations

from pathlib import Path

from recyclelora.methods.base import Method, MethodSettings
from recyclelora.models.backbone import Backbone


class Frozen(Method[MethodSettings]):
    """There is nothing to attach, save or merge."""

    settings = MethodSettings

    def _attach(self, backbone: Backbone, settings: MethodSettings, draw: bool, cache_factors: bool) -> None:
        pass

    def merge(self, backbone: Backbone, settings: MethodSettings, folder: Path) -> None:
        pass


METHOD = Frozen("frozen")
