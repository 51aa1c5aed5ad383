"""The loop of a training: forward, backward, step, schedule, record, checkpoint.

Several processes share each batch; they take the same steps, so that each of them knows the loss and when to stop.
"""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from lightning.fabric.strategies.ddp import DDPStrategy
from torch import Tensor
from torch.utils.data import DataLoader

from recyclelora.data.dataset import TrainingDataset, TrainingSample
from recyclelora.errors import UserError
from recyclelora.recipe import Recipe
from recyclelora.runs.run import Run
from recyclelora.stopping import Request, Stopped, leave_signals_to_parent, stopping_later
from recyclelora.training.checkpoint import Checkpoint, put_back, save_checkpoint
from recyclelora.training.module import SegmentationModule
from recyclelora.training.rare_classes import RareClasses
from recyclelora.training.recorder import Recorder
from recyclelora.training.sampler import StepBatchSampler


def fit(
    run: Run,
    module: SegmentationModule,
    dataset: TrainingDataset,
    rare: list[RareClasses | None],
    checkpoint: Checkpoint | None,
) -> None:
    """Train a module to the last step of the run's recipe, from a checkpoint if there is one.

    Raises:
        UserError: an image or a label cannot be read, or the run's folder cannot be written to.
        DivergedError: the loss or a weight is NaN or infinite.
        Stopped: a signal asked for it; the checkpoint of the last step was written.
    """
    recipe = run.recipe
    fabric = _launched(recipe)
    module = module.train()
    trained = fabric.setup_module(module)
    plain = module.optimizer()
    first = [{key: group[key] for key in ("lr", "weight_decay")} for group in plain.param_groups]
    done, stop = 0 if checkpoint is None else put_back(checkpoint, module, plain), 0
    optimizer: Any = fabric.setup_optimizers(plain)
    recorder = Recorder(run, done, leads=fabric.is_global_zero)
    loading = _loading(recipe, dataset, rare, done, fabric)
    with _together(fabric), recorder, warnings.catch_warnings(), stopping_later() as request, loading as batches:
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor")  # torch's compiler reads it everywhere
        while done < recipe.steps and not stop:
            batch = fabric.to_device(_next(batches))
            torch.manual_seed(recipe.seed + done * fabric.world_size + fabric.global_rank)
            module.schedule(done, plain.param_groups, first)
            loss = trained(batch)
            fabric.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            module.average(done)
            done += 1
            recorder.record(done, _mean(fabric, loss), plain.param_groups[0]["lr"], module)
            stop = _agreed(fabric, request)
            if stop or done % recipe.checkpoint_every == 0 or done == recipe.steps:
                if fabric.is_global_zero:
                    save_checkpoint(run.checkpoint, done, module, plain, older=run.older_checkpoint)
                fabric.barrier()
    if stop:
        if not fabric.is_global_zero:
            raise SystemExit(0)  # the first process says why
        name = signal.Signals(stop).name
        raise Stopped(stop, f"{run.path}: stopped by {name} after step {done} of {recipe.steps}, which is kept")


def _launched(recipe: Recipe) -> Fabric:
    """The processes and the precision of a recipe."""
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    strategy = DDPStrategy(broadcast_buffers=False) if recipe.devices > 1 else "auto"
    fabric = Fabric(devices=recipe.devices, strategy=strategy, precision=recipe.precision)
    fabric.launch()
    return fabric


@contextmanager
def _together(fabric: Fabric) -> Iterator[None]:
    """End the other processes if this one fails, and let go of them at the end."""
    try:
        yield
        fabric.barrier()
    except BaseException:
        for process in getattr(fabric.strategy.launcher, "procs", ()):
            process.kill()
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def _loading(
    recipe: Recipe, dataset: TrainingDataset, rare: list[RareClasses | None], start: int, fabric: Fabric
) -> Iterator[Iterator[TrainingSample]]:
    """The batches of this process from a step on."""
    sampler = StepBatchSampler(
        [len(domain) for domain in dataset.domains],
        recipe.batch_size // recipe.devices,
        recipe.steps,
        recipe.seed,
        start,
        weights=[source.weight for source in recipe.sources if source.weight] or None,
        rank=fabric.global_rank,
        world=fabric.world_size,
        rare=rare,
    )
    cv2.setNumThreads(0)  # OpenCV's thread pool does not survive the fork of the loader's processes
    loader = DataLoader(dataset, batch_sampler=sampler, num_workers=recipe.workers, worker_init_fn=_start_worker)
    batches: Any = iter(loader)
    try:
        yield batches
    finally:
        if recipe.workers:  # they ignore the signal by which Python ends the processes of an iterator that is left over
            batches._shutdown_workers()


def _start_worker(number: int) -> None:
    leave_signals_to_parent()


def _next(batches: Iterator[TrainingSample]) -> TrainingSample:
    """The next batch; an error of a loader's process arrives after that process's traceback."""
    try:
        return next(batches)
    except UserError as error:
        raise UserError(str(error).splitlines()[-1].removeprefix("recyclelora.errors.UserError: ")) from error


def _mean(fabric: Fabric, loss: Tensor) -> float:
    """The mean loss over the processes."""
    mean = fabric.all_reduce(loss.detach(), reduce_op="mean")
    assert isinstance(mean, Tensor)
    return mean.item()


def _agreed(fabric: Fabric, request: Request) -> int:
    """The signal that asked one of the processes to stop; 0 if there is none. The answer is the same in all."""
    number = request.number or 0
    if fabric.world_size == 1:
        return number
    highest = torch.tensor(number, device=fabric.device)
    dist.all_reduce(highest, dist.ReduceOp.MAX)
    return int(highest)
