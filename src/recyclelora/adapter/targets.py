"""Which layers of a model are adapted: the defaults for known models, and the matching of names."""

from __future__ import annotations

import re
import warnings
from types import SimpleNamespace
from typing import Any

from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn

from recyclelora.adapter.config import RecycleLoraConfig

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


def matches(config: RecycleLoraConfig, key: str) -> Any:
    """Whether a configuration adapts the layer of this name; names are matched as in PEFT.

    Block numbers of a bare timm model (`blocks.3.…`) count as well.
    """
    blocks = config.layers_to_transform
    if blocks is not None:
        blocks = [blocks] if isinstance(blocks, int) else blocks
        numbers = [int(part) for part in key.split(".") if part.isdigit()]
        if not numbers or numbers[-1] not in blocks:  # the last: the model itself may be in a numbered list
            return False
    names = SimpleNamespace(
        target_modules=config.target_modules,
        exclude_modules=config.exclude_modules,
        modules_to_save=config.modules_to_save,
    )
    return check_target_module_exists(names, key)


def target_names(
    model: nn.Module, target_modules: list[str] | str | None = None, layers: list[int] | int | None = None
) -> list[str]:
    """Names of the layers that a `RecycleLoraConfig` of these settings adapts.

    Raises:
        ValueError: no layer matches.
    """
    config = RecycleLoraConfig(target_modules=target_modules or default_targets(model), layers_to_transform=layers)
    names = [key for key, _ in model.named_modules() if matches(config, key)]
    if not names:
        raise ValueError(f"no layer of {type(model).__name__} matches {target_modules} in blocks {layers}")
    return names


def default_targets(model: nn.Module) -> str:
    """A regex for the known layers inside numbered blocks (a pooling head has the same names outside).

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
            f"{type(model).__name__}: linear layers of an unknown kind in its blocks are not adapted "
            f"({', '.join(kinds)}); to adapt them, name all layers to adapt in `target_modules`",
            stacklevel=2,
        )
    return targets
