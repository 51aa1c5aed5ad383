"""The layers that can be adapted, seen as matrices (out, in)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, Conv1D  # type: ignore[attr-defined]  # of transformers
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn

if TYPE_CHECKING:
    from jaxtyping import Float

ADAPTED = (
    "torch.nn.Linear, its 4-bit form in bitsandbytes, transformers' Conv1D (GPT-2), and torch.nn.Conv2d without groups"
)


def base_of(key: str, module: nn.Module) -> nn.Module:
    """The layer of this name, without adapters that it may have already.

    Raises:
        TypeError: this layer cannot be adapted; the message says which layers can.
    """
    base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    if isinstance(base, nn.Conv2d) and base.groups == 1:
        return base
    if isinstance(base, nn.Linear | Conv1D):
        return base
    kind = f"{type(base).__name__} of {base.groups} groups" if isinstance(base, nn.Conv2d) else type(base).__name__
    raise TypeError(f"target module {key!r} is a {kind}, but RecycleLoRA adapts {ADAPTED}: narrow `target_modules`")


def is_quantised(base: nn.Module) -> bool:
    """Whether the weight is stored in fewer bits by bitsandbytes."""
    return hasattr(base.weight, "quant_state")


def is_transposed(base: nn.Module) -> bool:
    """Whether the weight is stored as (in, out)."""
    return isinstance(base, Conv1D)


def weight_matrix(base: nn.Module) -> Float[Tensor, "out in"]:
    """The weight as a matrix: a kernel with its height and width flattened into `in`, a quantised one unpacked."""
    if is_quantised(base):
        weight: Any = base.weight
        if getattr(weight.quant_state, "packing_format_for_cpu", False):
            base.state_dict()  # makes bitsandbytes undo its packed order, which is not supported below
        return dequantize_module_weight(base).detach()
    matrix = cast(Tensor, base.weight).flatten(1)
    return matrix.T if is_transposed(base) else matrix


def fetched(holder: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """A tensor of a module; if accelerate keeps its values elsewhere until the module is called, these values."""
    hook: Any = getattr(holder, "_hf_hook", None)
    if tensor.device.type != "meta" or getattr(hook, "weights_map", None) is None:
        return tensor
    return cast(Tensor, hook.weights_map[name]).to(hook.execution_device)


def as_weight(base: nn.Module, matrix: Float[Tensor, "out in"]) -> Float[Tensor, "..."]:
    """A matrix (out, in) in the order and shape of the base's weight, the inverse of `weight_matrix`."""
    if is_transposed(base):
        return matrix.T
    if isinstance(base, nn.Conv2d):
        return matrix.view(-1, base.in_channels, *base.kernel_size)
    return matrix


def matrix_shape(base: nn.Module) -> tuple[int, int]:
    """(out, in) of `weight_matrix`, without unpacking it."""
    if isinstance(base, nn.Conv2d):
        height, width = base.kernel_size
        return base.out_channels, base.in_channels * height * width
    if is_transposed(base):
        inputs, outputs = cast(Tensor, base.weight).shape
        return outputs, inputs
    assert isinstance(base, nn.Linear)
    return base.out_features, base.in_features


def device_of(base: nn.Module) -> torch.device:
    """Where the base computes. For a weight that accelerate fetches for each call, this is not where it is kept."""
    device = cast(Tensor, base.weight).device
    execution = getattr(getattr(base, "_hf_hook", None), "execution_device", None)
    return torch.device(execution) if device.type == "meta" and execution is not None else device
