"""The PEFT tuner: finds the layers, factorises them in parallel, and puts `RecycleLoraLinear` in their place."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor, as_completed
from types import SimpleNamespace
from typing import Any

from peft import mapping
from peft.tuners.tuners_utils import (
    BaseTuner,
    BaseTunerLayer,
    _maybe_include_all_linear_layers,
    check_target_module_exists,
)
from torch import Tensor, nn
from tqdm import tqdm

from recyclelora.factors import Factors, initial_factors
from recyclelora.rrqr import check_ranks, one_blas_thread
from recyclelora.tuner.config import PEFT_TYPE, RecycleLoraConfig
from recyclelora.tuner.layer import PREFIX, RecycleLoraLinear

VIT_LINEAR_LAYERS = (
    # timm: fused or split attention, MLP, SwiGLU
    "attn.qkv", "attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.proj",
    "mlp.fc1", "mlp.fc1_g", "mlp.fc1_x", "mlp.fc2",
    # transformers: ViT and DINOv2; DINOv3; CLIP and SigLIP
    "attention.attention.query", "attention.attention.key", "attention.attention.value", "attention.output.dense",
    "intermediate.dense", "output.dense", "mlp.weights_in", "mlp.weights_out",
    "attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj",
)  # fmt: skip
"""Attention and MLP layers of timm's and transformers' vision transformers: endings of names inside numbered blocks."""


class RecycleLoraModel(BaseTuner):
    """Adds RecycleLoRA adapters to a model; made by `peft.get_peft_model` from a `RecycleLoraConfig`.

    Raises:
        ValueError: ranks larger than a layer, NaN or Inf in a weight, no layer found; the model is then untouched.
        TypeError: a target is no plain linear layer.
    """

    prefix: str = PREFIX
    tuner_layer_cls = RecycleLoraLinear
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012  declared so by the base class

    def _prepare_adapter_config(self, peft_config: RecycleLoraConfig, model_config: Any) -> RecycleLoraConfig:
        return peft_config

    def _prepare_model(self, peft_config: RecycleLoraConfig, model: nn.Module) -> None:
        """Resolve the targets and draw all directions before the model is changed."""
        if peft_config.target_modules is None:
            peft_config.target_modules = _default_targets(model)
        _maybe_include_all_linear_layers(peft_config, model)
        self._drawn: dict[str, Factors] = {}
        if not peft_config.init_weights:
            return
        weights = {}
        for key, module in model.named_modules():
            inside = ".base_layer" in key or f".{PREFIX}" in key
            if not inside and self._check_target_module_exists(peft_config, key):
                weights[key] = _linear(key, module).weight
        for key, weight in weights.items():
            _check_layer_ranks(key, weight, peft_config)
        self._drawn = draw_factors(weights, peft_config)

    @staticmethod
    def _check_target_module_exists(config: RecycleLoraConfig, key: str) -> Any:
        """PEFT's matching by names, but for block numbers: those of a bare timm model (`blocks.3.…`) count as well."""
        blocks = config.layers_to_transform
        if blocks is not None:
            blocks = [blocks] if isinstance(blocks, int) else blocks
            numbers = [int(part) for part in key.split(".") if part.isdigit()]
            if not numbers or numbers[-1] not in blocks:  # the last: a model may stand in a numbered list itself
                return False
        names = SimpleNamespace(
            target_modules=config.target_modules,
            exclude_modules=config.exclude_modules,
            modules_to_save=config.modules_to_save,
        )
        return check_target_module_exists(names, key)

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
        if isinstance(target, RecycleLoraLinear):
            target.update_layer(adapter_name, peft_config, factors)
            return
        _linear(current_key, target)
        layer = RecycleLoraLinear(target, adapter_name, peft_config, factors)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)


def draw_factors(weights: dict[str, Tensor], config: RecycleLoraConfig) -> dict[str, Factors]:
    """Factorise named weights in a thread pool, one BLAS thread each, with a progress bar on a terminal.

    Raises:
        ValueError: as `recyclelora.factors.initial_factors`, with the layer's name in front.
    """
    drawn: dict[str, Factors] = {}
    threads = min(len(weights), os.cpu_count() or 1) or 1
    with one_blas_thread(), ThreadPoolExecutor(threads) as pool:
        jobs = {
            pool.submit(initial_factors, weight, config.r_main, config.r_sub, config.decomposition): key
            for key, weight in weights.items()
        }
        try:
            for job in tqdm(
                as_completed(jobs), f"{config.decomposition.upper()} of the weights", len(jobs), disable=None
            ):
                try:
                    drawn[jobs[job]] = job.result()
                except ValueError as error:
                    raise ValueError(f"layer {jobs[job]!r}: {error}") from error
        finally:
            pool.shutdown(cancel_futures=True)
    return drawn


def _check_layer_ranks(key: str, weight: Tensor, config: RecycleLoraConfig) -> None:
    try:
        check_ranks(tuple(weight.shape), config.r_main, config.r_sub)
    except ValueError as error:
        raise ValueError(f"layer {key!r}: {error}") from error


def _linear(key: str, module: nn.Module) -> nn.Linear:
    base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    if not isinstance(base, nn.Linear) or isinstance(base, nn.modules.linear.NonDynamicallyQuantizableLinear):
        raise TypeError(
            f"target module {key!r} is a {type(base).__name__}, but RecycleLoRA adapts torch.nn.Linear: "
            "narrow `target_modules`"
        )
    return base


def _default_targets(model: nn.Module) -> str:
    """A regex for the known layers inside numbered blocks (a pooling head's carry the same names outside)."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    inside = r"(?:.*\.)?\d+\.(?:.*\.)?"
    found = [ending for ending in VIT_LINEAR_LAYERS if any(re.fullmatch(inside + re.escape(ending), n) for n in linear)]
    if not found:
        raise ValueError(
            f"no attention or MLP layer of a known ViT in {type(model).__name__} (its linear layers: "
            f"{', '.join(linear[:5]) or 'none'}, ...): give `target_modules`"
        )
    return f"{inside}(?:{'|'.join(re.escape(ending) for ending in found)})"


def register() -> None:
    """Make the method known to PEFT, whose own registration takes only the names of its enum."""
    registries: list[tuple[dict[Any, Any], object]] = [
        (mapping.PEFT_TYPE_TO_CONFIG_MAPPING, RecycleLoraConfig),
        (mapping.PEFT_TYPE_TO_TUNER_MAPPING, RecycleLoraModel),
        (mapping.PEFT_TYPE_TO_PREFIX_MAPPING, PREFIX),
    ]
    for registry, entry in registries:
        registry[PEFT_TYPE] = entry
