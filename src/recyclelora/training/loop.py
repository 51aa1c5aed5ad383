"""The loop of a training: forward, backward, step, schedule, record, validate, checkpoint.

Several processes share each batch; they take the same steps, so that each of them knows the loss and when to stop.
"""

from __future__ import annotations

import signal
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from lightning.fabric import Fabric

from recyclelora.data.dataset import TrainingDataset, parts
from recyclelora.runs.checkpoint import Checkpoint
from recyclelora.runs.processes import agreed, mean
from recyclelora.runs.run import Run
from recyclelora.stopping import Stopped, stopping_later
from recyclelora.training.checkpoint import put_back, save_checkpoint
from recyclelora.training.held_out import HeldOut
from recyclelora.training.loading import loading
from recyclelora.training.module import SegmentationModule
from recyclelora.training.rare_classes import RareClasses
from recyclelora.training.recorder import Recorder
from recyclelora.training.sharding import shard_base
from recyclelora.training.validation import Validation


def fit(
    fabric: Fabric,
    run: Run,
    module: SegmentationModule,
    dataset: TrainingDataset,
    rare: list[RareClasses | None],
    held: Sequence[HeldOut],
    recorder: Recorder,
    checkpoint: Checkpoint | None = None,
) -> None:
    """Train a module to the last step of the run's recipe, from a checkpoint if there is one.

    Raises:
        UserError: an image or a label cannot be read, or the run's folder cannot be written to.
        DivergedError: the loss or a weight is NaN or infinite.
        Stopped: a signal asked for it; the checkpoint of the last step was written.
    """
    recipe = run.recipe
    leads = fabric.is_global_zero
    module = module.train()
    if recipe.strategy == "fsdp":
        shard_base(fabric, module, module.segmenter.backbone)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")  # torch 2.8 has no other name for it
        trained = fabric.setup_module(module)
    plain = module.optimizer()
    first = [{key: group[key] for key in ("lr", "weight_decay")} for group in plain.param_groups]
    done, stop = 0 if checkpoint is None else put_back(checkpoint, module, plain), 0
    optimizer: Any = fabric.setup_optimizers(plain)
    batches = loading(recipe, dataset, rare, done, fabric.global_rank, fabric.world_size)
    validation = Validation(run, held, done, fabric, module)
    with batches as batch_of_step, recorder, warnings.catch_warnings(), stopping_later() as request:
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor")  # torch's compiler reads it everywhere
        if validation.due(done):  # a signal came before its end
            recorder.validated(validation.score(done, request))
        while done < recipe.steps and not stop:
            batch = fabric.to_device(next(batch_of_step))
            torch.manual_seed(recipe.seed + done * fabric.world_size + fabric.global_rank)
            module.schedule(done, plain.param_groups, first)
            amounts, losses = module.amounts(batch["labels"]), []
            for number, part in enumerate(parts(batch, recipe.accumulate), 1):
                with fabric.no_backward_sync(trained, enabled=number < recipe.accumulate):
                    loss = trained(part, amounts)
                    fabric.backward(loss)
                losses.append(loss.detach())
            optimizer.step()
            optimizer.zero_grad()
            module.average(done)
            done += 1
            recorder.record(done, mean(fabric, torch.stack(losses).sum()), plain.param_groups[0]["lr"], module)
            if validation.due(done):
                recorder.validated(validation.score(done, request))
            stop = agreed(fabric, request)
            if stop or done % recipe.checkpoint_every == 0 or done == recipe.steps:
                if leads:
                    save_checkpoint(run.checkpoint, done, module, plain, older=run.older_checkpoint)
                    recorder.saved()
                fabric.barrier()
    if stop:
        if not leads:
            raise SystemExit(0)  # the first process says why
        name = signal.Signals(stop).name
        raise Stopped(stop, f"{run.path}: stopped by {name} after step {done} of {recipe.steps}, which is kept")
