"""What a training writes and shows at every step: a line of metrics, and a progress bar on a terminal."""

from __future__ import annotations

import json
import time
import warnings
from types import TracebackType
from typing import Any

from torch import nn
from tqdm import tqdm

from recyclelora.errors import printable
from recyclelora.files import append_line, write_text
from recyclelora.runs.facts import read_metrics
from recyclelora.runs.run import Run
from recyclelora.training.divergence import LossWatch, check_step


class Recorder:
    """Records the steps of a training; only the first of several processes (`leads`) writes and shows anything.

    A training that diverges ends at that step. A resumed training drops the lines of steps after its checkpoint,
    because it computes these steps again.

    Args:
        start: the steps that are done already.
    """

    def __init__(self, run: Run, start: int, leads: bool = True) -> None:
        self.run, self.leads = run, leads
        lines = read_metrics(run.metrics)
        kept = [line for line in lines if line["step"] <= start]
        if leads and len(kept) < len(lines):
            write_text(run.metrics, "".join(json.dumps(line) + "\n" for line in kept))
        self.before: float = kept[-1]["seconds"] if kept else 0.0
        self.watch = LossWatch(kept[0]["loss"] if kept else None)
        self.started = time.perf_counter()
        self.bar: tqdm[Any] = tqdm(
            desc=printable(f"training {run.path.name}"),
            total=run.recipe.steps,
            initial=start,
            disable=None if leads else True,
        )

    def __enter__(self) -> Recorder:
        self.started = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, place: TracebackType | None
    ) -> None:
        self.bar.close()

    def record(self, step: int, loss: float, lr: float, model: nn.Module) -> None:
        """Write down a step, counted from 1, after its weights were changed.

        Raises:
            DivergedError: the loss or a trained weight is NaN or infinite.
        """
        check_step(self.run.path, step, loss, model)
        seconds = self.before + time.perf_counter() - self.started
        line = {"step": step, "loss": round(loss, 6), "lr": lr, "seconds": round(seconds, 3)}
        warning = self.watch.see(loss)
        if self.leads:
            append_line(self.run.metrics, json.dumps(line))
            if warning:
                warnings.warn(f"{self.run.path}: {warning}", stacklevel=2)
        self.bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        self.bar.update()
