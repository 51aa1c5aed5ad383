"""The tensors of an adapter's file: those that a layer needs, and those of the files of version 0.1.

    LAYER.recycle_delta_{A,B}_{main,sub}    what was trained
    LAYER.recycle_B0, recycle_index         the start; recycle_A0 in place of recycle_index if A0 is not one-hot
    LAYER.recycle_scale                     the factor s of the change

The start is never computed again on loading: on another machine, the pivots of a weight can differ if its columns have
no clear order.
"""

from __future__ import annotations

from torch import Tensor, nn

from recyclelora.adapter.factors import one_hot
from recyclelora.adapter.layer import PREFIX, RecycleLoraLayer

TOLERANCE = 0.01
"""Relative; a scale in bfloat16 is off by up to 0.4 %."""


def checked(model: nn.Module, name: str, tensors: dict[str, Tensor], older: bool = False) -> dict[str, Tensor]:
    """The tensors of a file, under the model's names, if they are all that an adapter's layers need.

    Args:
        older: whether the file has no scales; those of the model are then added.

    Raises:
        ValueError: a tensor is missing or superfluous, or the scale is another.
    """
    layers = {
        key: layer
        for key, layer in model.named_modules()
        if isinstance(layer, RecycleLoraLayer) and name in layer.settings
    }
    if older:
        tensors = {f"{key}.{PREFIX}scale.{name}": layer.recycle_scale[name] for key, layer in layers.items()} | tensors
    needed = {
        f"{key}.{attribute}.{name}"
        for key, layer in layers.items()
        for attribute in layer.adapter_layer_names + layer.other_param_names
        if name in getattr(layer, attribute) and isinstance(getattr(layer, attribute)[name], Tensor)
    }
    if missing := sorted(needed - tensors.keys()):
        raise ValueError(
            f"the file of adapter {name!r} lacks {len(missing)} of {len(needed)} tensors, first {missing[0]}: it is "
            "not one of these layers, ranks and decomposition, or only its trained tensors were saved. Save with "
            "`save_pretrained` or `get_peft_model_state_dict`, and load it under a name that is not in use"
        )
    own = (f".{PREFIX}", ".lora_")
    strange = sorted(
        key for key in tensors.keys() - needed if any(part in key for part in own) and key not in model.state_dict()
    )
    if strange:
        raise ValueError(
            f"the file of adapter {name!r} has {len(strange)} tensors for which the model has no place, first "
            f"{strange[0]}: it is an adapter of other layers, or of another kind"
        )
    for key, layer in layers.items():
        scale, expected = float(tensors[f"{key}.{PREFIX}scale.{name}"]), layer.settings[name].scale
        if abs(scale / expected - 1) > TOLERANCE:
            raise ValueError(
                f"the file of adapter {name!r} has the scale {scale:g} at {key}, but the adapter in the model has "
                f"{expected:g}: load it under a name that is not in use, so that its settings are read"
            )
    return tensors


def in_differences(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a file; those of one that holds A and B themselves become their differences from the start."""
    result = dict(tensors)
    for key in tensors:
        layer, _, attribute = key.rpartition(".")
        if attribute != f"{PREFIX}B0" or not any(f"{layer}.{PREFIX}A_{role}" in tensors for role in ("main", "sub")):
            continue
        B0, index = tensors[key], tensors.get(f"{layer}.{PREFIX}index")
        first = 0
        for role in ("main", "sub"):
            A, B = (result.pop(f"{layer}.{PREFIX}{factor}_{role}", None) for factor in "AB")
            if A is None or B is None:
                continue
            part = slice(first, first + len(A))
            A0 = tensors[f"{layer}.{PREFIX}A0"][part] if index is None else one_hot(index[part], A.shape[1], A.dtype)
            result[f"{layer}.{PREFIX}delta_A_{role}"] = A - A0
            result[f"{layer}.{PREFIX}delta_B_{role}"] = B - B0[:, part]
            first = part.stop
    return result
