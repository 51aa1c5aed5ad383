"""What a training will take, found out by its first steps: `recyclelora train --dry-run`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

import torch
from torch import nn

from recyclelora.adapter.draw import shared_among_processes
from recyclelora.data.dataset import Key, TrainingDataset
from recyclelora.data.opening import BENCHMARKS, parse_spec
from recyclelora.pages.progress import Progress, duration
from recyclelora.pages.tables import print_table
from recyclelora.recipe import Recipe
from recyclelora.runs.build import build
from recyclelora.runs.processes import launched, peak_bytes, shared_by_processes, together
from recyclelora.runs.run import Run
from recyclelora.stopping import Stopped, is_first_process
from recyclelora.training.divergence import check_step
from recyclelora.training.held_out import HeldOut
from recyclelora.training.loop import fit
from recyclelora.training.memory import Memory, Peak, memory_of
from recyclelora.training.module import SegmentationModule
from recyclelora.training.train import facts_of, open_sources

TIMED = 3
"""How many steps are timed. One before them is not, as what is set up at first use takes longer, and neither is the
next, whose memory is measured."""
UNTIMED = 2


@dataclass(frozen=True)
class Estimate:
    """What a training will take; bytes are of this process.

    `start_seconds` is the time for reading the list of images and building the model, `step_seconds` the median of
    three steps, or the time for reading a step's images if that is longer; `validation_seconds` of one validation, None
    if the recipe has none. `memory_bytes` is the peak of the process, on the GPU if there is one; `memory` says what
    tensors take, which is about the same on a CPU and a GPU. `checkpoint_bytes` is the size of one file.
    """

    parameters: Mapping[str, int]
    images: Mapping[str, int]
    held_out: Mapping[str, int]
    steps: int
    batch_size: int
    start_seconds: float
    step_seconds: float
    reading_seconds: float
    validation_seconds: float | None
    validations: int
    memory_bytes: int
    memory: Memory
    device: str
    checkpoint_bytes: int

    @property
    def seconds(self) -> float:
        """The time for the whole training."""
        return self.start_seconds + self.steps * self.step_seconds + self.validations * (self.validation_seconds or 0)


def estimate(recipe: Recipe) -> Estimate:
    """Build the model of a recipe, train it for a few steps, and forget it; nothing is kept.

    Images are not drawn for rare classes, which would need all labels to be counted.

    Raises:
        UserError: as `recyclelora.train`, but for what its folder can lead to.
        DivergedError: the loss or a weight is NaN or infinite.
    """
    recipe.check_sources()
    begun = time.perf_counter()
    recipe = _unkept(shared_by_processes(recipe))
    steps = UNTIMED + TIMED
    short = recipe.model_copy(update={"steps": steps, "checkpoint_every": steps, "validation": None})
    stopwatch, validation_seconds = Stopwatch(steps), None
    fabric = launched(recipe)
    with together(fabric), TemporaryDirectory() as folder:
        dataset, held = open_sources(recipe)
        with shared_among_processes():
            segmenter = build(recipe, len(dataset.domains[0].train_space))
        facts = facts_of(segmenter, dataset, held)
        start_seconds = time.perf_counter() - begun
        reading_seconds = _reading_seconds(recipe, dataset)
        module, run = SegmentationModule(segmenter, short), Run(Path(folder), short, facts)
        try:
            fit(fabric, run, module, dataset, [None] * len(recipe.sources), [], stopwatch)
        except Stopped as stop:
            raise Stopped(stop.number) from stop  # without the words that the steps are kept
        checkpoint_bytes = run.checkpoint.stat().st_size if run.checkpoint.is_file() else 0
        if validations := _validations(recipe):
            validation_seconds = _validation_seconds(recipe, module, held)
    return Estimate(
        parameters=facts["parameters"],
        images={source["label"]: source["images"] for source in facts["sources"]},
        held_out={source["label"]: source["images"] for source in facts.get("validation", ())},
        steps=recipe.steps,
        batch_size=recipe.batch_size,
        start_seconds=start_seconds,
        step_seconds=max(statistics.median(stopwatch.seconds[UNTIMED:]), reading_seconds),
        reading_seconds=reading_seconds,
        validation_seconds=validation_seconds,
        validations=validations,
        memory_bytes=peak_bytes(),
        memory=memory_of(module, stopwatch.peak.found),
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        checkpoint_bytes=checkpoint_bytes,
    )


def _unkept(recipe: Recipe) -> Recipe:
    """The recipe without folders in which rendered scenes would be kept."""
    specs = [parse_spec(source.data) for source in recipe.sources]
    sources = [
        source.model_copy(update={"data": source.data.partition("=")[0]})
        if not BENCHMARKS[spec.name].layouts
        else source
        for source, spec in zip(recipe.sources, specs, strict=True)
    ]
    return recipe.model_copy(update={"sources": sources})


def _reading_seconds(recipe: Recipe, dataset: TrainingDataset) -> float:
    """How long the helping processes need for the images of a step; 0 without them, as a step then has that time."""
    if not recipe.workers:
        return 0.0
    begun = time.perf_counter()
    for number in range(recipe.batch_size):
        dataset[Key(number, number % len(dataset))]
    return (time.perf_counter() - begun) / recipe.workers / recipe.devices


def _validations(recipe: Recipe) -> int:
    return 0 if recipe.validation is None else -(-recipe.steps // recipe.validation.every)


def _validation_seconds(recipe: Recipe, module: SegmentationModule, held: list[HeldOut]) -> float:
    """The time for all held-out images, from the first of each source."""
    total = 0.0
    module.eval()
    for each in held:
        plan = recipe.evaluation.plan(each.domain.dataset, recipe.crop, module.segmenter.backbone.patch_size)
        begun = time.perf_counter()
        module.segmenter.predict(each.domain.image(0), plan)
        total += (time.perf_counter() - begun) * len(each.domain) / recipe.devices
    return total


class Stopwatch:
    """Takes the time of each step, and the memory of one; of several processes only the first shows how far it is."""

    def __init__(self, steps: int) -> None:
        self.seconds: list[float] = []
        self.peak = Peak()
        self.progress = Progress("timing", steps, "steps", shown=is_first_process())
        self.last = 0.0

    def __enter__(self) -> Stopwatch:
        self.progress.__enter__()
        self.last = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, place: TracebackType | None
    ) -> None:
        self.progress.__exit__(kind, error, place)

    def record(self, step: int, loss: float, lr: float, model: nn.Module) -> None:
        """Take the time of a step.

        Raises:
            DivergedError: the loss or a trained weight is NaN or infinite.
        """
        check_step(Path("dry run"), step, loss, model)
        if step == 1:
            self.peak.start()
        elif step == 2:
            self.peak.stop()
        now = time.perf_counter()
        self.seconds.append(now - self.last)
        self.last = now
        self.progress.advance()

    def validated(self, line: Mapping[str, Any] | None) -> None:
        """Nothing is validated."""

    def saved(self) -> None:
        """Nothing depends on the checkpoint."""


def _parts(memory: Memory) -> str:
    """The memory by its parts."""
    parts = ((memory.frozen, "frozen"), (memory.trained, "trained"), (memory.step, "a step"))
    return " + ".join(f"{size / 2**30:.2f} GiB ({what})" for size, what in parts)


def print_estimate(found: Estimate) -> None:
    """Print what a training will take, one line per fact."""
    parameters = found.parameters
    rows = [
        ["images", ", ".join(f"{label}: {count:,}" for label, count in found.images.items())],
        ["parameters trained", f"{parameters['adapters']:,} (adapters) + {parameters['head']:,} (head)"],
        ["parameters of the frozen backbone", f"{parameters['backbone']:,}"],
        [f"memory ({found.device})", f"{found.memory_bytes / 2**30:.2f} GiB"],
        ["of it, tensors", _parts(found.memory)],
        ["one step", f"{found.step_seconds:.3g} s, {found.batch_size / found.step_seconds:.3g} images/s"],
        ["start", duration(found.start_seconds)],
        ["size of a checkpoint", f"{found.checkpoint_bytes / 2**20:,.1f} MiB"],
        ["all steps", f"{found.steps:,} steps: {found.steps * found.step_seconds / 3600:.2f} h"],
    ]
    if found.validation_seconds is not None:
        held = ", ".join(f"{label}: {count:,}" for label, count in found.held_out.items())
        rows.insert(1, ["images held out for validation", held])
        all_seconds = duration(found.validations * found.validation_seconds)
        rows.append(["validation", f"{found.validations:,} times {duration(found.validation_seconds)}: {all_seconds}"])
    if found.reading_seconds >= found.step_seconds:
        rows.append(["note", "reading images takes longer than computing; more `workers` may help"])
    print_table(["dry run", ""], rows, footer=["in all", f"about {duration(found.seconds)}"])
