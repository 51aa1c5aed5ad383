"""Saves an adapter as a plain LoRA of PEFT, for the original base and for programs without this package."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from torch import nn

from recyclelora.adapter.base import is_transposed
from recyclelora.adapter.layer import PREFIX, RecycleLoraLayer
from recyclelora.errors import UserError
from recyclelora.files import save_tensors


def to_lora(model: nn.Module, path: str | Path, adapter_name: str = "default", overwrite: bool = False) -> Path:
    """Write an adapter as a plain LoRA folder that PEFT loads onto the original base without this package.

    The difference form is already a LoRA of rank 2 (r_main + r_sub): lora_A = [A - A0; A0], lora_B = [B, B - B0], with
    lora_alpha / rank = alpha / (r_main + r_sub). PEFT then computes the same, up to rounding.

    Args:
        model: a model with RecycleLoRA adapters, from `get_peft_model` or `inject_adapter_in_model`.
        path: folder to write `adapter_config.json` and `adapter_model.safetensors` into.

    Raises:
        ValueError: the model has no RecycleLoRA adapter of that name, or has one on a convolution that PEFT's LoRA does
            not support.
        UserError: `path` exists, is not empty, and `overwrite` is not set.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    layers = {
        name: module
        for name, module in base.named_modules()
        if isinstance(module, RecycleLoraLayer) and adapter_name in module.settings
    }
    if not layers:
        raise ValueError(f"no RecycleLoRA adapter {adapter_name!r} in {type(model).__name__}")
    path = Path(path)
    if path.exists() and not overwrite and (path.is_file() or any(path.iterdir())):
        raise UserError(f"{path} exists and is not empty; choose another folder or pass overwrite=True")

    tensors, ranks, alphas = {}, {}, {}
    for name, layer in layers.items():
        _check_convolution(name, layer.get_base_layer())
        down, up = layer.lora_weights(adapter_name)
        tensors[f"base_model.model.{name}.lora_A.weight"] = down
        tensors[f"base_model.model.{name}.lora_B.weight"] = up
        ranks[name] = down.shape[0]
        alphas[name] = layer.settings[adapter_name].scale * down.shape[0]
    # Biases and modules that are trained as a whole are saved as they are.
    for name, value in get_peft_model_state_dict(model, adapter_name=adapter_name).items():
        layer_name, _, attribute = name.removeprefix("base_model.model.").rpartition(".")
        if not (layer_name in layers and attribute.startswith(PREFIX)):
            tensors["base_model.model." + name.removeprefix("base_model.model.")] = value
    configs: Any = model.peft_config
    config = configs[adapter_name]
    r, alpha = Counter(ranks.values()).most_common(1)[0][0], Counter(alphas.values()).most_common(1)[0][0]
    save_tensors(path / "adapter_model.safetensors", tensors, {"format": "pt"})
    LoraConfig(
        r=r,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=0.0,
        rank_pattern={_pattern(name): rank for name, rank in ranks.items() if rank != r},
        alpha_pattern={_pattern(name): value for name, value in alphas.items() if value != alpha},
        target_modules=sorted(layers),
        modules_to_save=config.modules_to_save,
        bias="lora_only" if config.bias == "recycle_only" else config.bias,
        fan_in_fan_out=any(is_transposed(layer.get_base_layer()) for layer in layers.values()),
        inference_mode=True,
    ).save_pretrained(str(path))
    return path


def _pattern(name: str) -> str:
    """A pattern of PEFT that only this layer matches: it matches endings of names."""
    return "^" + re.escape(name)


def _check_convolution(name: str, base: nn.Module) -> None:
    if isinstance(base, nn.Conv2d) and (set(base.dilation) != {1} or base.padding_mode != "zeros"):
        raise ValueError(
            f"layer {name!r}: PEFT's LoRA of a convolution supports neither dilation, found {base.dilation}, nor "
            f"padding other than zeros, found {base.padding_mode!r}: merge the adapter, or save it as a RecycleLoRA one"
        )
