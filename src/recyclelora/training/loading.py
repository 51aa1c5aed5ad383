"""The batches of a training, read and augmented by helping processes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2
from torch.utils.data import DataLoader

from recyclelora.data.dataset import TrainingDataset, TrainingSample
from recyclelora.errors import UserError
from recyclelora.recipe import Recipe
from recyclelora.stopping import leave_signals_to_parent
from recyclelora.training.rare_classes import RareClasses
from recyclelora.training.sampler import StepBatchSampler

LONGEST_SOCKET = 103
"""Bytes in the path of a Unix socket: macOS allows this many, Linux four more."""


@contextmanager
def loading(
    recipe: Recipe,
    dataset: TrainingDataset,
    rare: list[RareClasses | None],
    start: int = 0,
    rank: int = 0,
    world: int = 1,
) -> Iterator[Iterator[TrainingSample]]:
    """The batches of one of several processes, from a step on.

    Raises:
        UserError: the folder for temporary files has too long a path for helping processes.
    """
    if recipe.workers:
        _check_temporary_folder()
    sampler = StepBatchSampler(
        [len(domain) for domain in dataset.domains],
        recipe.batch_size // world,
        recipe.steps,
        recipe.seed,
        start,
        weights=[source.weight for source in recipe.sources if source.weight] or None,
        rank=rank,
        world=world,
        rare=rare,
    )
    cv2.setNumThreads(0)  # OpenCV's thread pool does not survive the fork of the loader's processes
    loader = DataLoader(dataset, batch_sampler=sampler, num_workers=recipe.workers, worker_init_fn=_start_worker)
    batches: Any = iter(loader)
    try:
        yield _named(batches)
    finally:
        if recipe.workers:  # they ignore the signal by which Python ends the processes of an iterator that is left over
            batches._shutdown_workers()


def _check_temporary_folder() -> None:
    """Refuse a path so long that the sockets by which batches are handed over cannot be made; they would be lost."""
    folder = tempfile.gettempdir()
    if len(os.fsencode(folder)) + len("/pymp-12345678/listener-12345678") > LONGEST_SOCKET:
        raise UserError(
            f"{folder}: too long a path for the sockets of helping processes; set TMPDIR to a shorter one, such as "
            "/tmp, or set workers to 0"
        )


def _start_worker(number: int) -> None:
    leave_signals_to_parent()


def _named(batches: Iterator[TrainingSample]) -> Iterator[TrainingSample]:
    """The batches; an error of a loader's process arrives after that process's traceback, which is left out."""
    try:
        yield from batches
    except UserError as error:
        raise UserError(str(error).splitlines()[-1].removeprefix("recyclelora.errors.UserError: ")) from error
