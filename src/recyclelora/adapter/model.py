"""The PEFT tuner: it finds the layers, factorises their weights, and replaces them with adapted layers."""

from __future__ import annotations

from typing import Any

from peft import mapping
from peft.tuners.tuners_utils import BaseTuner, _maybe_include_all_linear_layers
from torch import nn

from recyclelora.adapter.base import base_of, weight_matrix
from recyclelora.adapter.config import PEFT_TYPE, RecycleLoraConfig
from recyclelora.adapter.draw import draw_factors
from recyclelora.adapter.factors import Factors
from recyclelora.adapter.layer import PREFIX, RecycleLoraConv2d, RecycleLoraLayer, RecycleLoraLinear
from recyclelora.adapter.targets import default_targets, matches


class RecycleLoraModel(BaseTuner):
    """Adds RecycleLoRA adapters to a model; made by `peft.get_peft_model` from a `RecycleLoraConfig`.

    Raises:
        ValueError: a rank is too large for a layer, a weight has NaN or Inf, or no layer is found; the model
            is then unchanged.
        TypeError: one of the layers to adapt is of a kind that cannot be adapted.
    """

    prefix: str = PREFIX
    tuner_layer_cls = RecycleLoraLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012  declared so by the base class

    def _prepare_adapter_config(self, peft_config: RecycleLoraConfig, model_config: Any) -> RecycleLoraConfig:
        return peft_config

    def _prepare_model(self, peft_config: RecycleLoraConfig, model: nn.Module) -> None:
        """Find the layers to adapt and compute all directions before the model is changed."""
        if peft_config.target_modules is None:
            peft_config.target_modules = default_targets(model)
        _maybe_include_all_linear_layers(peft_config, model)
        self._drawn: dict[str, Factors] = {}
        if not peft_config.init_weights:
            return
        weights = {}
        for key, module in model.named_modules():
            inside = ".base_layer" in key or f".{PREFIX}" in key
            if not inside and self._check_target_module_exists(peft_config, key):
                weights[key] = weight_matrix(base_of(key, module))
        self._drawn = draw_factors(weights, peft_config)

    @staticmethod
    def _check_target_module_exists(config: RecycleLoraConfig, key: str) -> Any:
        return matches(config, key)

    def _create_and_replace(
        self,
        peft_config: RecycleLoraConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **_: Any,
    ) -> None:
        factors = self._drawn.pop(current_key, None)
        if isinstance(target, RecycleLoraLayer):
            target.update_layer(adapter_name, peft_config, factors)
            return
        kind = RecycleLoraConv2d if isinstance(base_of(current_key, target), nn.Conv2d) else RecycleLoraLinear
        layer = kind(target, adapter_name, peft_config, factors)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)


def register() -> None:
    """Register the method in PEFT, whose own registration accepts only the names of its enum."""
    registries: list[tuple[dict[Any, Any], object]] = [
        (mapping.PEFT_TYPE_TO_CONFIG_MAPPING, RecycleLoraConfig),
        (mapping.PEFT_TYPE_TO_TUNER_MAPPING, RecycleLoraModel),
        (mapping.PEFT_TYPE_TO_PREFIX_MAPPING, PREFIX),
    ]
    for registry, entry in registries:
        registry[PEFT_TYPE] = entry
