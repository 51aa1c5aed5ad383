"""Several processes that work together: how they start, agree, and end."""

from __future__ import annotations

import gc
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.strategies.ddp import DDPStrategy
from lightning.fabric.strategies.strategy import Strategy
from torch import Tensor

from recyclelora.errors import UserError
from recyclelora.recipe import Recipe, make_recipe
from recyclelora.stopping import Request, end_with_parent, is_first_process

GRACE = 5.0
"""Seconds in which the first process is expected to end the others."""


@dataclass(frozen=True)
class Launch:
    """How many processes another program has started for a training, on each machine and in all."""

    world: int
    on_this_machine: int


def launch_by_others() -> Launch | None:
    """The processes that torchrun or SLURM's srun has started; None if the training starts its own.

    Raises:
        UserError: SLURM gives the machines different numbers of processes.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return Launch(int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"]))
    world, machines = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)), int(os.environ.get("SLURM_STEP_NUM_NODES", 1))
    if world == 1:
        return None
    if world % machines:
        raise UserError(f"srun: {world} tasks on {machines} nodes; give each node the same number (--ntasks-per-node)")
    return Launch(world, world // machines)


def shared_by_processes(recipe: Recipe) -> Recipe:
    """The recipe with as many devices as another program has started processes; as it is if none did.

    Raises:
        UserError: it says another number, or they cannot share its batch.
    """
    others = launch_by_others()
    if others is None:
        return recipe
    if recipe.devices not in (1, others.world):
        raise UserError(
            f"recipe: devices {recipe.devices}, but {others.world} processes were started; leave `devices` out, or "
            "start the training once"
        )
    return make_recipe({**recipe.model_dump(), "devices": others.world}, "recipe")


def launched(recipe: Recipe) -> Fabric:
    """The processes and the precision of a recipe; its devices are the number of processes, whoever starts them.

    Raises:
        UserError: there is only one for the strategy `fsdp`; or as `started`.
    """
    if recipe.strategy == "fsdp" and recipe.devices == 1:
        raise UserError("recipe: strategy fsdp spreads the model over several devices; set devices, or strategy to ddp")
    strategy = DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True)
    return started(recipe.devices, strategy, precision=recipe.precision)


def started(devices: int, strategy: Strategy, **settings: Any) -> Fabric:
    """`devices` processes of this program, or as many as another program has started; `settings` are those of Fabric.

    Raises:
        UserError: this machine has fewer GPUs, though it has some, or a notebook is to start processes.
    """
    for name in ("lightning.fabric", "lightning.pytorch"):  # either says what Fabric does
        logging.getLogger(name).setLevel(logging.WARNING)
    others = launch_by_others()
    launch = others or Launch(devices, devices)
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else launch.on_this_machine
    if launch.on_this_machine > gpus:
        raise UserError(
            f"devices {launch.on_this_machine}: this machine has {gpus} GPU{'s' * (gpus != 1)}; give at most as many, "
            "or compute on the CPU with CUDA_VISIBLE_DEVICES= in the environment"
        )
    if launch.world > 1 and not others and hasattr(sys, "ps1"):
        raise UserError(f"devices {devices}: a notebook starts no other processes; call it in a script or a terminal")
    if others or not is_first_process():  # what started this process would leave it behind if it were killed
        end_with_parent()
    fabric = Fabric(
        devices=launch.on_this_machine,
        num_nodes=launch.world // launch.on_this_machine,
        strategy=strategy if launch.world > 1 else "auto",
        plugins=None if others else [LightningEnvironment()],  # a batch job of SLURM looks like tasks of srun
        **settings,
    )
    fabric.launch()
    return fabric


@contextmanager
def together(fabric: Fabric) -> Iterator[None]:
    """End the other processes if this one fails, and let go of them at the end.

    What is wrong with a recipe or its data is found by all at about the same time. The first process says it, and ends
    the others, or torchrun does; they wait for that, as each of them would say the same.

    What DistributedDataParallel made has to be gone by then. If it were the last to use the group of processes, it
    would wait for gloo's thread while it holds Python's global lock, which that thread may be waiting for.
    """
    try:
        yield
        fabric.barrier()
        gc.collect()
    except BaseException as error:
        if isinstance(error, UserError) and not fabric.is_global_zero:
            time.sleep(GRACE)
        for process in getattr(fabric.strategy.launcher, "procs", ()):
            process.kill()
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def mean(fabric: Fabric, loss: Tensor) -> float:
    """The mean loss over the processes."""
    found = fabric.all_reduce(loss, reduce_op="mean")
    assert isinstance(found, Tensor)
    return found.item()


def agreed(fabric: Fabric, request: Request) -> int:
    """The signal that asked one of the processes to stop; 0 if there is none. The answer is the same in all."""
    return highest(request.number or 0, fabric.world_size, fabric.device)


def highest(number: int, world: int, device: torch.device | str = "cpu") -> int:
    """The highest of the numbers of `world` processes, which exchange them on a device."""
    if world == 1:
        return number
    found = torch.tensor(int(number), device=device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


def peak_bytes() -> int:
    """The largest memory that this process has had so far: of the GPU, if there is one, or else of the machine."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")
    if status.is_file():  # what getrusage says there is at least what the process that started this one had
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) * 1024
    import resource  # which Windows does not have

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
