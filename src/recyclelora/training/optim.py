"""Parameter groups and schedules of the published recipe (RecycleLoRA, arXiv 2603.28142).

AdamW; the main adapter at the full learning rate, the sub adapter at half of it; no weight decay on adapters, norms
and the learned queries of a mask head; learning rate polynomial to 0, weight decay cosine.
"""

from __future__ import annotations

import math
import re
from typing import Any

from torch import nn

UNDECAYED_MODULES = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._BatchNorm)
UNDECAYED_NAMES = re.compile(r"(^|\.)(query_embed|queries_embedder|transformer_module\.level_embed)(\.|$)")
"""The published `query_embed` and `level_embed`, which are transformers' `queries_embedder` and
`transformer_module.level_embed`. The published rule names neither the queries' contents (`query_feat`) nor the levels
of the pixel decoder (`level_encoding`), so both are decayed."""


def param_groups(
    model: nn.Module, lr: float, weight_decay: float, sub_lr_ratio: float = 0.5, head_lr: float | None = None
) -> list[dict[str, Any]]:
    """AdamW groups of everything in `model` that is trained; a group without parameters is left out.

    A group carries a `name`: `main` (lr), `sub` (lr * sub_lr_ratio), `adapter` (lr: LoRAs, tokens and biases of other
    methods), `backbone` (lr, weight_decay: of a module called `backbone`, trained itself), `other` (head_lr,
    weight_decay), and `backbone undecayed` and `undecayed` (the norms and learned queries of the two before).
    Parameters that want no gradient are in no group.

    Args:
        head_lr: of whatever is neither adapter nor backbone; `lr` if not given.

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
            groups[_group_of(name, name in norms)].setdefault("params", []).append(parameter)
    used = [{"name": name, **group} for name, group in groups.items() if "params" in group]
    if not used:
        raise ValueError("no parameter of the model wants a gradient: attach an adapter or a head first")
    return used


def _group_of(name: str, is_norm: bool) -> str:
    if ".recycle_A_main." in name or ".recycle_B_main." in name:
        return "main"
    if ".recycle_A_sub." in name or ".recycle_B_sub." in name:
        return "sub"
    if any(part in name for part in (".lora_", ".rein_A", ".rein_B", ".base_layer.bias")):
        return "adapter"
    undecayed = is_norm or UNDECAYED_NAMES.search(name) is not None
    if re.search(r"(^|\.)backbone\.", name):
        return "backbone undecayed" if undecayed else "backbone"
    return "undecayed" if undecayed else "other"


def polynomial(step: int, steps: int, power: float = 0.9) -> float:
    """Factor of the learning rate at a step: (1 - step / steps) ** power."""
    return math.pow(1 - min(step, steps) / steps, power)


def cosine(step: int, steps: int, start: float, end: float) -> float:
    """Value at a step on a half cosine from `start` (step 0) to `end` (last step)."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(step, steps) / steps))
