"""What leaves the project: an adapter as a plain PEFT LoRA for the original base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn

from recyclelora.errors import UserError
from recyclelora.tuner import RecycleLoraLayer
from recyclelora.tuner.layer import PREFIX


def to_lora(model: nn.Module, path: str | Path, adapter_name: str = "default", overwrite: bool = False) -> Path:
    """Write an adapter as a plain LoRA folder that PEFT loads onto the original base without this package.

    The difference form is a LoRA of rank 2 (r_main + r_sub) already: lora_A = [A - A0; A0], lora_B = [B, B - B0], with
    lora_alpha / rank = alpha / (r_main + r_sub). PEFT then computes the same, up to rounding.

    Args:
        model: a model with RecycleLoRA adapters, from `get_peft_model` or `inject_adapter_in_model`.
        path: folder to write `adapter_config.json` and `adapter_model.safetensors` into.

    Raises:
        ValueError: the model has no RecycleLoRA adapter of that name, or has one on a convolution that PEFT's LoRA does
            not know.
        UserError: `path` holds files already and `overwrite` is not set.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    layers = {
        name: module
        for name, module in base.named_modules()
        if isinstance(module, RecycleLoraLayer) and adapter_name in module.scaling
    }
    if not layers:
        raise ValueError(f"no RecycleLoRA adapter {adapter_name!r} in {type(model).__name__}")
    path = Path(path)
    if path.exists() and not overwrite and (path.is_file() or any(path.iterdir())):
        raise UserError(f"{path} exists and is not empty; choose another folder or pass overwrite=True")

    tensors = {}
    for name, layer in layers.items():
        _check_convolution(name, layer.get_base_layer())
        down, up = layer.lora_weights(adapter_name)
        tensors[f"base_model.model.{name}.lora_A.weight"] = down.detach().cpu().contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = up.detach().cpu().contiguous()
    # Modules trained as a whole go along as they are.
    for name, value in get_peft_model_state_dict(model, adapter_name=adapter_name).items():
        if f".{PREFIX}" not in name:
            tensors["base_model.model." + name.removeprefix("base_model.model.")] = value.detach().cpu().contiguous()
    configs: Any = model.peft_config
    rank = down.shape[0]
    path.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path / "adapter_model.safetensors", metadata={"format": "pt"})
    LoraConfig(
        r=rank,
        lora_alpha=layer.scaling[adapter_name] * rank,  # type: ignore[arg-type]
        lora_dropout=0.0,
        target_modules=sorted(layers),
        modules_to_save=configs[adapter_name].modules_to_save,
        inference_mode=True,
    ).save_pretrained(str(path))
    return path


def _check_convolution(name: str, base: nn.Module) -> None:
    if isinstance(base, nn.Conv2d) and (set(base.dilation) != {1} or base.padding_mode != "zeros"):
        raise ValueError(
            f"layer {name!r}: PEFT's LoRA of a convolution knows no dilation, found {base.dilation}, and no padding "
            f"but zeros, found {base.padding_mode!r}: merge the adapter, or save it as a RecycleLoRA one"
        )
