"""The PEFT tuner: finds the layers, factorises them in parallel, and puts adapted ones in their place."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from peft import mapping
from peft.tuners.tuners_utils import (
    BaseTuner,
    _maybe_include_all_linear_layers,
    check_target_module_exists,
)
from torch import Tensor, nn
from tqdm import tqdm

from recyclelora.cache import factors_folder, through_cache
from recyclelora.factors import Factors, initial_factors, initial_factors_of_stack
from recyclelora.rrqr import check_ranks
from recyclelora.rrqr.lapack import one_blas_thread
from recyclelora.tuner.base import base_of, weight_matrix
from recyclelora.tuner.config import PEFT_TYPE, RecycleLoraConfig
from recyclelora.tuner.layer import PREFIX, RecycleLoraConv2d, RecycleLoraLayer, RecycleLoraLinear

LINEAR_LAYERS = (
    # timm: fused or split attention, MLP, SwiGLU
    "attn.qkv", "attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.proj",
    "mlp.fc1_g", "mlp.fc1_x", "mlp.fc1", "mlp.fc2",
    # transformers: ViT and DINOv2; DINOv3; CLIP and SigLIP
    "attention.attention.query", "attention.attention.key", "attention.attention.value", "attention.output.dense",
    "intermediate.dense", "output.dense", "mlp.weights_in", "mlp.weights_out",
    "attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "self_attn.o_proj",
    # transformers: SAM; OPT; BERT; Phi
    "mlp.lin1", "mlp.lin2", "fc1", "fc2",
    "attention.self.query", "attention.self.key", "attention.self.value",
    "self_attn.qkv_proj", "self_attn.dense", "mlp.gate_up_proj",
)  # fmt: skip
"""Attention and MLP layers of timm's and transformers' models: endings of names inside numbered blocks."""


class RecycleLoraModel(BaseTuner):
    """Adds RecycleLoRA adapters to a model; made by `peft.get_peft_model` from a `RecycleLoraConfig`.

    Raises:
        ValueError: ranks larger than a layer, NaN or Inf in a weight, no layer found; the model is then untouched.
        TypeError: a target that cannot be adapted.
    """

    prefix: str = PREFIX
    tuner_layer_cls = RecycleLoraLayer
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
                weights[key] = weight_matrix(base_of(key, module))
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
        if isinstance(target, RecycleLoraLayer):
            target.update_layer(adapter_name, peft_config, factors)
            return
        kind = RecycleLoraConv2d if isinstance(base_of(current_key, target), nn.Conv2d) else RecycleLoraLinear
        layer = kind(target, adapter_name, peft_config, factors)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)


def target_names(
    model: nn.Module, target_modules: list[str] | str | None = None, layers: list[int] | int | None = None
) -> list[str]:
    """Names of the layers that a `RecycleLoraConfig` of these settings adapts.

    Raises:
        ValueError: there are none.
    """
    config = RecycleLoraConfig(target_modules=target_modules or _default_targets(model), layers_to_transform=layers)
    names = [key for key, _ in model.named_modules() if RecycleLoraModel._check_target_module_exists(config, key)]
    if not names:
        raise ValueError(f"no layer of {type(model).__name__} matches {target_modules} in blocks {layers}")
    return names


def draw_factors(weights: dict[str, Tensor], config: RecycleLoraConfig) -> dict[str, Factors]:
    """Factors of named weights, with a progress bar on a terminal.

    Weights on the CPU are factorised in a thread pool with one BLAS thread each, the longest first; those on a GPU
    there, all of one shape together. With a cache, what it holds is read instead.

    Raises:
        ValueError: as `recyclelora.factors.initial_factors`, with the layer's name in front.
    """
    drawn: dict[str, Factors] = {}
    together = {key for key, weight in weights.items() if config.decomposition == "rrqr" and _is_on_gpu(weight)}
    alone = sorted(weights.keys() - together, key=lambda key: (-_work(weights[key]), key))
    with (
        tqdm(desc=f"{config.decomposition.upper()} of the weights", total=len(weights), disable=None) as bar,
        one_blas_thread(),
        ThreadPoolExecutor(min(len(alone), _cores()) or 1) as pool,
    ):
        jobs = {pool.submit(_factors, [weights[key]], config): key for key in alone}
        try:
            for keys in _stacks({key: weights[key] for key in weights if key in together}):
                with _naming(keys):
                    drawn |= zip(keys, _factors([weights[key] for key in keys], config), strict=True)
                bar.update(len(keys))
            for job in as_completed(jobs):
                with _naming([jobs[job]]):
                    (drawn[jobs[job]],) = job.result()
                bar.update()
        finally:
            pool.shutdown(cancel_futures=True)
    return drawn


@contextmanager
def _naming(keys: list[str]) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"layer {' or '.join(map(repr, keys))}: {error}") from error


def _factors(weights: list[Tensor], config: RecycleLoraConfig) -> list[Factors]:
    """Of one weight, or of several of one shape on one GPU; from the cache where they lie there."""
    settings = (config.r_main, config.r_sub, config.decomposition)

    def make(missing: list[Tensor]) -> list[Factors]:
        if config.decomposition == "rrqr" and _is_on_gpu(missing[0]):
            return initial_factors_of_stack(missing, config.r_main, config.r_sub)
        return [initial_factors(weight, *settings) for weight in missing]

    folder = factors_folder(config.cache_factors)
    return through_cache(folder, weights, settings, make) if folder else make(weights)


def _is_on_gpu(weight: Tensor) -> bool:
    return weight.is_cuda


def _stacks(weights: dict[str, Tensor]) -> list[list[str]]:
    """Names of weights of one shape on one device, as many as fit into its memory at once."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for key, weight in weights.items():
        groups.setdefault((tuple(weight.shape), weight.device), []).append(key)
    stacks = []
    for (shape, device), keys in groups.items():
        m, n = shape
        bytes_each = 8 * (4 * m * n + 2 * n * n + 3 * min(m, n) * n)
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 2**30
        size = max(1, int(0.7 * free) // bytes_each)
        stacks += [keys[start : start + size] for start in range(0, len(keys), size)]
    return stacks


def _work(weight: Tensor) -> int:
    return weight.numel() * min(weight.shape)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_layer_ranks(key: str, weight: Tensor, config: RecycleLoraConfig) -> None:
    with _naming([key]):
        check_ranks(tuple(weight.shape), config.r_main, config.r_sub)


def _default_targets(model: nn.Module) -> str:
    """A regex for the known layers inside numbered blocks (a pooling head's carry the same names outside).

    Other linear layers of the blocks are named in a warning.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    inside = r"(?:.*\.)?\d+\.(?:.*\.)?"
    found = [ending for ending in LINEAR_LAYERS if any(re.fullmatch(inside + re.escape(ending), n) for n in linear)]
    if not found:
        raise ValueError(
            f"no attention or MLP layer of a known kind in {type(model).__name__} (its linear layers: "
            f"{', '.join(linear[:5]) or 'none'}, ...): give `target_modules`"
        )
    targets = f"{inside}(?:{'|'.join(re.escape(ending) for ending in found)})"
    others = [n for n in linear if re.fullmatch(rf"{inside}.+", n) and not re.fullmatch(targets, n)]
    if others:
        kinds = sorted({re.split(r"\d+\.", name)[-1] for name in others})
        warnings.warn(
            f"{type(model).__name__}: linear layers of its blocks that are of no known kind are not adapted "
            f"({', '.join(kinds)}); name all that should be in `target_modules`",
            stacklevel=2,
        )
    return targets


def register() -> None:
    """Make the method known to PEFT, whose own registration takes only the names of its enum."""
    registries: list[tuple[dict[Any, Any], object]] = [
        (mapping.PEFT_TYPE_TO_CONFIG_MAPPING, RecycleLoraConfig),
        (mapping.PEFT_TYPE_TO_TUNER_MAPPING, RecycleLoraModel),
        (mapping.PEFT_TYPE_TO_PREFIX_MAPPING, PREFIX),
    ]
    for registry, entry in registries:
        registry[PEFT_TYPE] = entry
