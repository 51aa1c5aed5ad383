"""What makes a loss the same however a step's images are spread over processes."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of a count over all training processes; `value` itself where there is one process.

    As gradients are averaged over processes, a sum divided by the mean count equals what one process computes.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()
