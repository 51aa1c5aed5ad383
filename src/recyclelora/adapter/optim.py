"""Parameter groups of the published recipe (RecycleLoRA, arXiv 2603.28142).

AdamW trains the main adapter at the full learning rate and the sub adapter at half of it. There is no weight decay on
adapters, norms and the learned queries of a mask head.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torch import nn

UNDECAYED_MODULES = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._BatchNorm)
UNDECAYED_NAMES = re.compile(r"(^|\.)(query_embed|queries_embedder|transformer_module\.level_embed)(\.|$)")
"""The published `query_embed` and `level_embed`, which transformers calls `queries_embedder` and
`transformer_module.level_embed`. The published rule names neither the queries' contents (`query_feat`) nor the levels
of the pixel decoder (`level_encoding`), so both are decayed."""


def role_of(name: str) -> str:
    """The role of a parameter by its name: `main`, `sub`, `adapter` (of another method), `backbone` or `other`.

    `backbone` means inside a module of that name; a trained bias of an adapted layer counts as `adapter`.
    """
    for role in ("main", "sub"):
        if f".recycle_delta_A_{role}." in name or f".recycle_delta_B_{role}." in name:
            return role
    if ".lora_" in name or ".base_layer.bias" in name:
        return "adapter"
    return "backbone" if re.search(r"(^|\.)backbone\.", name) else "other"


def param_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    sub_lr_ratio: float = 0.5,
    head_lr: float | None = None,
    role_of: Callable[[str], str] = role_of,
) -> list[dict[str, Any]]:
    """AdamW groups of all trained parameters of `model`; a group without parameters is left out.

    A group has a `name`: `main` (lr), `sub` (lr * sub_lr_ratio), `adapter` (lr: adapters of other methods),
    `backbone` (lr, weight_decay: a backbone that is trained itself), `other` (head_lr, weight_decay), and `backbone
    undecayed` and `undecayed` (the norms and learned queries of the two before). Parameters without gradient are in
    no group.

    Args:
        head_lr: the rate of `other`; `lr` if it is not given.
        role_of: the role of a parameter by its name: `main`, `sub`, `adapter`, `backbone` or `other`.

    Raises:
        ValueError: nothing in the model is trained.
    """
    norms = {
        f"{name}.{own}" if name else own
        for name, module in model.named_modules()
        if isinstance(module, UNDECAYED_MODULES)
        for own, _ in module.named_parameters(recurse=False)
    }
    head_lr = lr if head_lr is None else head_lr
    groups: dict[str, dict[str, Any]] = {
        "main": {"lr": lr, "weight_decay": 0.0},
        "sub": {"lr": lr * sub_lr_ratio, "weight_decay": 0.0},
        "adapter": {"lr": lr, "weight_decay": 0.0},
        "backbone": {"lr": lr, "weight_decay": weight_decay},
        "backbone undecayed": {"lr": lr, "weight_decay": 0.0},
        "other": {"lr": head_lr, "weight_decay": weight_decay},
        "undecayed": {"lr": head_lr, "weight_decay": 0.0},
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            role = role_of(name)
            if role in ("backbone", "other") and (name in norms or UNDECAYED_NAMES.search(name)):
                role = "backbone undecayed" if role == "backbone" else "undecayed"
            groups[role].setdefault("params", []).append(parameter)
    used = [{"name": name, **group} for name, group in groups.items() if "params" in group]
    if not used:
        raise ValueError("no parameter of the model requires a gradient: attach an adapter or a head first")
    return used
