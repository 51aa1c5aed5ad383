"""The layers that can be adapted, seen as matrices (out, in)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn

if TYPE_CHECKING:
    from jaxtyping import Float


def base_of(key: str, module: nn.Module) -> nn.Module:
    """The layer of this name, without adapters that it may have already.

    Raises:
        TypeError: this layer cannot be adapted; the message says which layers can.
    """
    base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    if isinstance(base, nn.Conv2d) and base.groups == 1:
        return base
    if isinstance(base, nn.Linear) and not isinstance(base, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return base
    kind = f"{type(base).__name__} of {base.groups} groups" if isinstance(base, nn.Conv2d) else type(base).__name__
    raise TypeError(
        f"target module {key!r} is a {kind}, but RecycleLoRA adapts torch.nn.Linear, its 4-bit form in "
        "bitsandbytes, and torch.nn.Conv2d without groups: narrow `target_modules`"
    )


def is_quantised(base: nn.Module) -> bool:
    """Whether the weight is stored in fewer bits by bitsandbytes."""
    return hasattr(base.weight, "quant_state")


def weight_matrix(base: nn.Module) -> Float[Tensor, "out in"]:
    """The weight as a matrix: a kernel with its height and width flattened into `in`, a quantised one unpacked."""
    if is_quantised(base):
        weight: Any = base.weight
        if getattr(weight.quant_state, "packing_format_for_cpu", False):
            base.state_dict()  # makes bitsandbytes undo its packed order, which is not supported below
        return dequantize_module_weight(base).detach()
    return cast(Tensor, base.weight).flatten(1)


def matrix_shape(base: nn.Module) -> tuple[int, int]:
    """(out, in) of `weight_matrix`, without unpacking it."""
    if isinstance(base, nn.Conv2d):
        height, width = base.kernel_size
        return base.out_channels, base.in_channels * height * width
    assert isinstance(base, nn.Linear)
    return base.out_features, base.in_features
