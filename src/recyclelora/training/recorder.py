"""What a training writes and shows at every step: a line of metrics, and how far it is."""

from __future__ import annotations

import json
import logging
import time
import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol

from lightning.fabric.loggers.logger import Logger
from torch import nn

from recyclelora.files import append_line, write_text
from recyclelora.pages.progress import LOGGER, Progress
from recyclelora.runs.facts import best_validation, read_metrics, read_validations
from recyclelora.runs.run import Run
from recyclelora.training.divergence import LossWatch, check_step
from recyclelora.training.held_out import HeldOut
from recyclelora.training.loggers import finish, log, make_logger, of_step, of_validation
from recyclelora.training.page import write_run_page

STEPS = 20
"""Over how many steps the loss and the pace that are shown are averaged."""
_log = logging.getLogger(LOGGER)


class Recorder(Protocol):
    """What the loop of a training reports to, in a `with` block."""

    def __enter__(self) -> Recorder: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, place: TracebackType | None
    ) -> None: ...

    def record(self, step: int, loss: float, lr: float, model: nn.Module) -> None:
        """Called after each step, counted from 1, once its weights are changed."""

    def validated(self, line: Mapping[str, Any] | None) -> None:
        """Called after each validation with its scores; None if it was not finished."""

    def saved(self) -> None:
        """Called once a checkpoint is written."""


class RunRecorder:
    """Records the steps of a training; only the first of several processes (`leads`) writes and shows anything.

    A training that diverges ends at that step. A resumed training drops what was recorded after its checkpoint, because
    it computes these steps again.

    Args:
        held: the images that the training is validated on, for the pictures on the page.
        start: the steps that are done already.
    """

    def __init__(self, run: Run, held: Sequence[HeldOut], start: int, leads: bool = True) -> None:
        self.run, self.held, self.leads = run, held, leads
        kept = _keep(run, start, leads)
        self.before: float = kept[-1]["seconds"] if kept else 0.0
        self.watch = LossWatch(kept[0]["loss"] if kept else None)
        self.loggers: list[Logger] = []
        self.losses: deque[float] = deque((line["loss"] for line in kept[-STEPS:]), STEPS)
        self.paces: deque[float] = deque(maxlen=STEPS)
        self.progress = Progress(f"training {run.path.name}", run.recipe.steps, "steps", start, leads)
        self.started = self.last = time.perf_counter()

    def __enter__(self) -> RunRecorder:
        if self.leads:
            _log.info("%s", start_line(self.run, self.progress.done))
            self.loggers = make_logger(self.run.recipe, self.run.path, self.progress.done)
            self.write_page()
        self.progress.__enter__()
        self.started = self.last = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, place: TracebackType | None
    ) -> None:
        self.progress.__exit__(kind, error, place)
        finish(self.loggers, "success" if error is None else "failed")

    def record(self, step: int, loss: float, lr: float, model: nn.Module) -> None:
        """Write down a step, counted from 1, after its weights were changed.

        Raises:
            DivergedError: the loss or a trained weight is NaN or infinite.
        """
        check_step(self.run.path, step, loss, model)
        now = time.perf_counter()
        seconds = self.before + now - self.started
        line = {"step": step, "loss": round(loss, 6), "lr": lr, "seconds": round(seconds, 3)}
        warning = self.watch.see(loss)
        if self.leads:
            append_line(self.run.metrics, json.dumps(line))
            log(self.loggers, of_step(line), step)
            if warning:
                warnings.warn(f"{self.run.path}: {warning}", stacklevel=2)
        self.losses.append(loss)
        self.paces.append(now - self.last)
        self.last = now
        pace = self.run.recipe.batch_size * len(self.paces) / sum(self.paces)
        mean = sum(self.losses) / len(self.losses)
        self.progress.advance(1, loss=f"{mean:.3f}", **{"images/s": f"{pace:.3g}"})

    def validated(self, line: Mapping[str, Any] | None) -> None:
        """Show the scores of a validation, None if it was not finished; its time is left out of the pace of steps."""
        self.last = time.perf_counter()
        if line is not None and self.leads:
            miou = "–" if line["miou"] is None else f"{100 * line['miou']:.2f}"
            log(self.loggers, of_validation(line), line["step"])
            _log.info("step %d: mIoU %s %% on held-out images of the source", line["step"], miou)
            self.write_page()

    def saved(self) -> None:
        """Remove what the new checkpoint does not need any more, and renew the page."""
        best = best_validation(read_validations(self.run.validations))
        self.run.remove_checkpoints(best["step"] if best else None, resumable=True)
        self.write_page()

    def write_page(self) -> None:
        """Show how the training goes in the page of the run."""
        write_run_page(self.run, self.held, "training", self.progress.seconds_left())


def start_line(run: Run, done: int) -> str:
    """What is trained, on what, and where it goes."""
    recipe, info = run.recipe, run.info
    parameters = info["parameters"]
    sources = ", ".join(f"{source['label']} ({source['images']:,} images)" for source in info["sources"])
    held = sum(each["images"] for each in info.get("validation", ()))
    validation = ""
    if recipe.validation is not None:
        validation = f"; validated on {held:,} image{'s' * (held != 1)} every {recipe.validation.every:,} steps"
    return (
        f"training {recipe.method} on {recipe.backbone.model} with head {recipe.head} "
        f"({parameters['adapters']:,} + {parameters['head']:,} parameters), sources: {sources}; "
        f"{recipe.steps:,} steps of {recipe.batch_size} images{f', from step {done:,} on' if done else ''}"
        f"{validation}; into {run.path}"
    )


def _keep(run: Run, start: int, leads: bool) -> list[dict[str, float]]:
    """The metrics up to a step; what was recorded after it, of the validations too, is removed."""
    kept: list[list[dict[str, float]]] = []
    for file, read in ((run.metrics, read_metrics), (run.validations, read_validations)):
        lines = read(file)
        kept.append([line for line in lines if line["step"] <= start])
        if leads and len(kept[-1]) < len(lines):
            write_text(file, "".join(json.dumps(line) + "\n" for line in kept[-1]))
    return kept[0]
