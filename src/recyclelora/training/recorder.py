"""What a training writes and shows: metrics, checkpoints, and a progress bar."""

from __future__ import annotations

import json
import time
import warnings
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from tqdm import tqdm

from recyclelora.errors import DivergedError
from recyclelora.files import set_aside, write_text
from recyclelora.runs.run import Run
from recyclelora.training.divergence import LossWatch, check_step


class Recorder(Callback):
    """Writes the metrics together with a checkpoint, every `checkpoint_every` steps and at the end.

    A training that diverges ends at that step. The checkpoint before the last one is kept. A resumed training drops the
    lines of steps after its checkpoint, because it computes these steps again.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.pending: list[tuple[int, float, float, float]] = []
        self.watch = LossWatch()
        self.started = self.before = self.lr = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        kept = []
        if self.run.metrics.is_file():
            lines = self.run.metrics.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if json.loads(line)["step"] <= trainer.global_step]
        self.before = json.loads(kept[-1])["seconds"] if kept else 0.0
        self.watch = LossWatch(json.loads(kept[0])["loss"] if kept else None)
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            write_text(self.run.metrics, "".join(line + "\n" for line in kept))
        self.started = time.perf_counter()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.lr = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        seconds = self.before + time.perf_counter() - self.started
        loss = trainer.callback_metrics["loss"].item()  # the same in every process
        try:
            check_step(self.run.path, step, loss, pl_module)
        except DivergedError:
            self._write(trainer.is_global_zero)  # the steps before it
            raise
        self.pending.append((step, loss, self.lr, seconds))
        if (warning := self.watch.see(loss)) and trainer.is_global_zero:
            warnings.warn(f"{self.run.path}: {warning}", stacklevel=2)
        if step % self.run.recipe.checkpoint_every == 0 or step == self.run.recipe.steps:
            self._write(trainer.is_global_zero)
            if trainer.is_global_zero:
                set_aside(self.run.checkpoint, self.run.older_checkpoint)
            trainer.save_checkpoint(self.run.checkpoint)

    def _write(self, leads: bool) -> None:
        """Write the metrics down; only the first process does so."""
        lines = []
        for step, loss, lr, seconds in self.pending:
            line = {"step": step, "loss": round(loss, 6), "lr": lr, "seconds": round(seconds, 3)}
            lines.append(json.dumps(line) + "\n")
        if leads:
            with self.run.metrics.open("a", encoding="utf-8") as file:
                file.writelines(lines)
        self.pending.clear()


class ProgressBar(Callback):
    """Shows the steps done, the time left and the loss on a terminal."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.bar: tqdm[Any] | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.bar = tqdm(
            desc=f"training {self.run.path.name}",
            total=self.run.recipe.steps,
            initial=trainer.global_step,
            disable=None if trainer.is_global_zero else True,
        )

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        assert self.bar is not None
        self.bar.set_postfix(loss=f"{trainer.callback_metrics['loss']:.3f}", refresh=False)
        self.bar.update()

    def teardown(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        if self.bar is not None:
            self.bar.close()
