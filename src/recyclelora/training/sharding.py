"""A frozen base that is spread over the processes of a training: the strategy `fsdp`, by torch's FSDP2.

    frozen weights of the backbone    a share in each process; those of a block are whole only while it computes
    adapters, their start, the head   whole in each process, their gradients averaged as with `ddp`

So a checkpoint and a result are those of one process, whatever the strategy, and a training goes on with another one.
What is trained is a few per cent of the base.
"""

from __future__ import annotations

from typing import Any

from lightning.fabric import Fabric
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from recyclelora.models.backbone import Backbone


def shard_base(fabric: Fabric, module: nn.Module, backbone: Backbone) -> None:
    """Leave each process a share of the frozen weights of the backbone; all processes have to call it.

    Every process has to take part in each pass of the backbone, forward or backward, from then on.

    Args:
        module: what is trained, with the backbone in it; `DistributedDataParallel` is to leave the shares alone.
    """
    mesh = init_device_mesh(fabric.device.type, (fabric.world_size,))
    trained = {parameter for parameter in module.parameters() if parameter.requires_grad}
    blocks: Any = backbone.model.blocks
    for each in (*blocks, backbone):  # the backbone itself has what is in no block, and orders the blocks' transfers
        fully_shard(each, mesh=mesh, reshard_after_forward=True, ignored_params=trained)
    shares = [name for name, parameter in module.named_parameters() if isinstance(parameter, DTensor)]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, shares)
