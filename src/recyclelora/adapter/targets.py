"""Which layers of a model are adapted: the defaults for known models, the matching of names, and what has an effect."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from torch import nn

from recyclelora.adapter.base import is_transposed
from recyclelora.adapter.config import RecycleLoraConfig

QKV = "query key value"
PROJ = "q_proj k_proj v_proj o_proj out_proj"
KNOWN = {
    # attention of timm; of transformers' ViTs; of its language models
    "attn": f"qkv proj {PROJ} c_attn q_attn c_proj qkv_proj Wqkv Wo",
    "attention": f"{PROJ} {QKV} proj output.dense dense query_key_value q_lin k_lin v_lin out_lin",
    "attention.attention": QKV, "attention.attn": "q k v o", "attn.attention": PROJ,
    "attention.self": f"{QKV} query_proj key_proj value_proj in_proj",
    "self_attn": f"{PROJ} qkv projection qkv_proj query_key_value dense", "encoder_attn": PROJ,
    "self_attention": "query_key_value dense",
    "crossattention.self": QKV, "crossattention.output": "dense",
    "SelfAttention": "q k v o", "LocalSelfAttention": "q k v o", "EncDecAttention": "q k v o",
    # MLP
    "mlp": "fc1_g fc1_x fc1 fc2 weights_in weights_out lin1 lin2 gate_proj up_proj down_proj gate_up_proj c_fc c_proj "
           "fc_in fc_out dense_h_to_4h dense_4h_to_h dense1 dense2 Wi Wo proj_in proj_out",
    "ffn": "lin1 lin2 up_proj down_proj", "feed_forward": "intermediate_dense output_dense",
    "DenseReluDense": "wi wi_0 wi_1 wo", "intermediate": "dense", "output": "dense",
}  # fmt: skip
LINEAR_LAYERS = (*(f"{place}.{name}" for place, names in KNOWN.items() for name in names.split()), "fc1", "fc2")
"""Attention and MLP layers of timm's and transformers' models: endings of names inside numbered blocks."""
INSIDE_BLOCK = r"(?:.*\.)?\d+\.(?:.*\.)?"


def matches(config: RecycleLoraConfig, key: str) -> Any:
    """Whether a configuration adapts the layer of this name; names are matched as in PEFT."""
    names = SimpleNamespace(
        target_modules=config.target_modules,
        exclude_modules=config.exclude_modules,
        modules_to_save=config.modules_to_save,
    )
    found = check_target_module_exists(names, key)
    if not found or (not isinstance(config.target_modules, str) and key in (config.target_modules or ())):
        return found
    return found if is_in_blocks(config, key) else False


def is_in_blocks(config: RecycleLoraConfig, key: str) -> bool:
    """Whether `layers_to_transform` has the block of a layer; PEFT's rule, which is made for names in a larger model.

    PEFT looks for the first number after a name that has a name before it, as in `model.layers.0.mlp.1.up`. A bare
    model, whose blocks are `layers.0`, is treated as if it were in such a larger model.
    """
    wanted = config.layers_to_transform
    if wanted is None or wanted == []:
        return True
    patterns = [config.layers_pattern] if isinstance(config.layers_pattern, str) else config.layers_pattern
    expressions = [rf"(?:^|.*?\.){pattern}\.(\d+)\." for pattern in patterns or []] or [r".*?\.[^.]*\.(\d+)\."]
    found = [
        match for expression in expressions if (match := re.match(expression, key if patterns else f"model.{key}"))
    ]
    return bool(found) and int(found[0][1]) in ([wanted] if isinstance(wanted, int) else wanted)


def outside_adapters(model: nn.Module) -> list[str]:
    """Names of all modules except the model itself and what lies inside an adapted layer."""
    adapted = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, BaseTunerLayer))
    return [name for name, _ in model.named_modules() if name and not name.startswith(adapted)]


def target_names(
    model: nn.Module, target_modules: list[str] | str | None = None, layers: list[int] | int | None = None
) -> list[str]:
    """Names of the layers that a `RecycleLoraConfig` of these settings adapts.

    Raises:
        ValueError: no layer matches.
    """
    config = RecycleLoraConfig(target_modules=target_modules or default_targets(model), layers_to_transform=layers)
    names = [key for key in outside_adapters(model) if matches(config, key)]
    if not names:
        raise ValueError(f"no layer of {type(model).__name__} matches {target_modules} in blocks {layers}")
    skipped = without_effect(model, names)
    return [name for name in names if name not in skipped]


def default_targets(model: nn.Module) -> str:
    """A regex for the known layers inside numbered blocks (a pooling head has the same names outside).

    Other linear layers of the blocks are named in a warning.
    """
    linear = [name for name in outside_adapters(model) if _is_linear(model.get_submodule(name))]
    found = [e for e in LINEAR_LAYERS if any(re.fullmatch(INSIDE_BLOCK + re.escape(e), name) for name in linear)]
    if not found:
        raise ValueError(
            f"no attention or MLP layer of a known kind in {type(model).__name__} (its linear layers: "
            f"{', '.join(linear[:5]) or 'none'}, ...): give `target_modules`"
        )
    targets = f"{INSIDE_BLOCK}(?:{'|'.join(re.escape(ending) for ending in found)})"
    others = [n for n in linear if re.fullmatch(rf"{INSIDE_BLOCK}.+", n) and not re.fullmatch(targets, n)]
    if others:
        kinds = sorted({re.split(r"\d+\.", name)[-1] for name in others})
        warnings.warn(
            f"{type(model).__name__}: linear layers of an unknown kind in its blocks are not adapted "
            f"({', '.join(kinds)}); to adapt them, name all layers to adapt in `target_modules`",
            stacklevel=2,
        )
    return targets


def _is_linear(module: nn.Module) -> bool:
    base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    return isinstance(base, nn.Linear) or is_transposed(base)


def without_effect(model: nn.Module, names: Iterable[str]) -> set[str]:
    """Those of the layers whose weight the model reads itself, so that an adapter around them would never be asked.

    They are named in a warning.

    Raises:
        ValueError: all of the layers are such.
    """
    names = list(names)
    found = [name for name in names if _reads_weight(model.get_submodule(name.rpartition(".")[0]), name)]
    kinds = sorted({re.sub(r"(^|\.)\d+(?=\.)", r"\1*", name) for name in found})
    if found and len(found) == len(names):
        raise ValueError(
            f"{type(model).__name__} reads the weights of {', '.join(kinds)} itself, so that adapters there would "
            "have no effect: name other layers in `target_modules`"
        )
    if found:
        warnings.warn(
            f"{type(model).__name__} reads the weights of some layers itself, so that adapters there would have no "
            f"effect; they are not adapted: {', '.join(kinds)}",
            stacklevel=2,
        )
    return set(found)


def _reads_weight(parent: nn.Module, name: str) -> bool:
    """Whether a module uses the weight of its child without calling the child.

    torch's attention does so with its `out_proj`; timm's BEiT, EVA and Swin V2 do with `qkv` where they add the biases
    of q and v themselves.
    """
    child = name.rpartition(".")[2]
    if isinstance(parent, nn.MultiheadAttention):
        return True
    return (
        child == "qkv"
        and getattr(parent, "q_bias", None) is not None
        and not getattr(parent, "qkv_bias_separate", False)
    )


def warn_of_transposed(config: RecycleLoraConfig, bases: dict[str, nn.Module]) -> None:
    """Name the layers that do not keep their weight as `fan_in_fan_out` says."""
    others = [name for name, base in bases.items() if not is_transposed(base)]
    if config.fan_in_fan_out and others:
        warnings.warn(
            f"fan_in_fan_out is True, but the weights of {len(others)} layers are (out, in), first {others[0]}; they "
            "are adapted as they are",
            stacklevel=2,
        )
