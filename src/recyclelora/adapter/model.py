"""The PEFT tuner: it finds the layers, factorises their weights, and replaces them with adapted layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn

from peft import mapping
from peft.tuners.tuners_utils import BaseTuner, _maybe_include_all_linear_layers
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from recyclelora.adapter.base import base_of, weight_matrix
from recyclelora.adapter.config import PeftType, RecycleLoraConfig
from recyclelora.adapter.draw import draw_factors
from recyclelora.adapter.factors import Factors
from recyclelora.adapter.layer import BASE, PREFIX, RecycleLoraConv2d, RecycleLoraLayer, RecycleLoraLinear
from recyclelora.adapter.stored import checked, in_differences
from recyclelora.adapter.targets import (
    default_targets,
    is_in_blocks,
    matches,
    outside_adapters,
    warn_of_transposed,
    without_effect,
)  # fmt: skip


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
        if str(peft_config.target_modules).lower() == "all-linear":
            _maybe_include_all_linear_layers(peft_config, model)
            peft_config.target_modules = [key for key in peft_config.target_modules if is_in_blocks(peft_config, key)]
        self._without_effect: set[str] = set()
        wanted = [key for key in outside_adapters(model) if self._check_target_module_exists(peft_config, key)]
        self._without_effect = without_effect(model, wanted)
        bases = {key: base_of(key, model.get_submodule(key)) for key in wanted if key not in self._without_effect}
        warn_of_transposed(peft_config, bases)
        self._drawn: dict[str, Factors] = {}
        if peft_config.init_weights:
            weights = {key: weight_matrix(base) for key, base in bases.items()}
            self._drawn = draw_factors(weights, peft_config)

    def _check_target_module_exists(self, peft_config: RecycleLoraConfig, key: str) -> Any:
        return False if key in self._without_effect else matches(peft_config, key)

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
        base = base_of(current_key, target)
        factors = self._drawn.pop(current_key, None)
        if factors is None and peft_config.init_weights:  # a layer that only a state dict names
            factors = draw_factors({current_key: weight_matrix(base)}, peft_config)[current_key]
        settings = peft_config.of_layer(current_key)
        if isinstance(target, RecycleLoraLayer):
            target.update_layer(adapter_name, peft_config, settings, factors)
            return
        kind = RecycleLoraConv2d if isinstance(base, nn.Conv2d) else RecycleLoraLinear
        layer = kind(target, adapter_name, peft_config, settings, factors)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        if isinstance(parent, nn.TransformerEncoderLayer):
            # Its fast path for inference reads the weights itself, unless one of its modules has a hook.
            layer.register_forward_pre_hook(_do_nothing)
        self._replace_module(parent, target_name, layer, target)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        if not autocast_adapter_dtype:
            for module in self.model.modules():
                if isinstance(module, RecycleLoraLayer):
                    module.to_type_of_base(adapter_name)

    @contextmanager
    def _enable_peft_forward_hooks(self, *_: Any, **kwargs: Any) -> Iterator[None]:
        """Hand `adapter_names`, one name for each row of the batch, to the layers during one forward pass."""
        names: Sequence[str] | None = kwargs.get("adapter_names")
        if names is None:
            yield
            return
        if self.training:
            raise ValueError("`adapter_names` cannot be used in training mode: call `model.eval()` first")
        layers = [m for m in self.modules() if isinstance(m, RecycleLoraLayer | AuxiliaryTrainingWrapper)]
        known = {name for layer in layers if isinstance(layer, RecycleLoraLayer) for name in layer.settings} | {BASE}
        if unknown := sorted(set(names) - known):
            raise ValueError(f"`adapter_names` has {', '.join(unknown)}; known: {', '.join(sorted(known))}")
        if kwargs.get("num_beams", 1) not in (None, 1):
            raise ValueError("`adapter_names` does not work with beam search, which repeats the rows of a batch")
        hooks = [
            layer.register_forward_pre_hook(partial(_with_adapter_names, names), with_kwargs=True) for layer in layers
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def add_weighted_adapter(self, *_: Any, **__: Any) -> NoReturn:
        """Not offered, because the sum of two RecycleLoRA adapters is none; that of two plain LoRAs is one."""
        raise NotImplementedError(
            "RecycleLoRA adapters cannot be combined: save each with `recyclelora.to_lora`, load them with PEFT, and "
            "call `add_weighted_adapter` on these plain LoRAs"
        )

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: RecycleLoraConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Names of a file as those of the model.

        Raises:
            ValueError: the file is not one of this adapter: it lacks a tensor, has too many, or has another scale.
        """
        converted = in_differences(state_dict)
        mapped: dict[str, Tensor] = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, converted)
        return checked(model, adapter_name, mapped, older=converted.keys() != state_dict.keys())


def _do_nothing(module: nn.Module, inputs: tuple[Any, ...]) -> None:
    """A hook that only has to exist."""


def _with_adapter_names(
    names: Sequence[str], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, {**kwargs, "adapter_names": names}


def register() -> None:
    """Register the method in PEFT, whose own registration accepts only the names of its enum."""
    registries: list[tuple[dict[Any, Any], object]] = [
        (mapping.PEFT_TYPE_TO_CONFIG_MAPPING, RecycleLoraConfig),
        (mapping.PEFT_TYPE_TO_TUNER_MAPPING, RecycleLoraModel),
        (mapping.PEFT_TYPE_TO_PREFIX_MAPPING, PREFIX),
    ]
    for registry, entry in registries:
        registry[PeftType.RECYCLELORA] = entry
