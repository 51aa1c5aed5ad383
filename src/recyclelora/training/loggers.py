"""Shows a training in another program: a CSV file, TensorBoard or Weights & Biases, by the loggers of Lightning Fabric.

metrics.jsonl stays the record. A training that goes on after a checkpoint repeats the steps after it, so that what a
logger holds of these steps is dropped: every step is shown once, with its value in metrics.jsonl.

csv          the file is written anew from metrics.jsonl and validation.jsonl, up to the checkpoint
tensorboard  a new file says that everything from the step after the checkpoint on is void (`purge_step`)
wandb        the run keeps its id. Online, the service keeps the first value of a step. Offline, a new folder gets all
             steps up to the checkpoint again, and replaces the older ones
"""

from __future__ import annotations

import heapq
import importlib
import importlib.util
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from lightning.fabric.loggers.csv_logs import CSVLogger
from lightning.fabric.loggers.logger import Logger
from lightning.fabric.loggers.tensorboard import TensorBoardLogger

from recyclelora.errors import MissingExtraError, UserError
from recyclelora.files import read_lines, write_text
from recyclelora.recipe import Recipe
from recyclelora.runs.facts import VALIDATION, read_metrics
from recyclelora.runs.logs import csv_file, event_files, wandb_folders, wandb_id_file

if TYPE_CHECKING:
    import wandb

PROJECT = "recyclelora"
"""The project of all runs at Weights & Biases."""
FLUSH_SECONDS = 2.0
"""How long wandb may hold a step back before it is on the disk."""


def check_logger(recipe: Recipe) -> None:
    """Refuse a logger whose package is not installed.

    Raises:
        MissingExtraError: it is not.
    """
    if recipe.logger in ("tensorboard", "wandb"):
        found = importlib.util.find_spec(recipe.logger)
        if found is None or found.origin is None:  # the latter: a folder of this name, as wandb makes it
            raise MissingExtraError(f"logger: {recipe.logger}", recipe.logger, "logging")


def make_logger(recipe: Recipe, run_path: Path, done: int) -> list[Logger]:
    """The recipe's logger, in a list, or an empty list; what was logged of steps after `done` is dropped.

    Raises:
        UserError: Weights & Biases cannot be reached, or does not know the user.
    """
    if recipe.logger == "csv":
        return [_csv(run_path, done)]
    if recipe.logger == "tensorboard":
        return [_tensorboard(recipe, run_path, done)]
    if recipe.logger == "wandb":
        return [_wandb(recipe, run_path, done)]
    return []


def log(loggers: Sequence[Logger], values: Mapping[str, float], step: int) -> None:
    """Log named numbers after a training step, counted from 1; no step may be lower than one before."""
    for logger in loggers:
        logger.log_metrics(dict(values), step)
        logger.save()


def finish(loggers: Sequence[Logger], status: Literal["success", "failed"]) -> None:
    """End the logging of a training, which was successful or not."""
    for logger in loggers:
        logger.finalize(status)


def of_step(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of metrics.jsonl, by the names under which they are logged."""
    return {"train/loss": line["loss"], "train/lr": line["lr"]}


def of_validation(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of validation.jsonl, by the names under which they are logged.

    `val/miou` is the line's; `val/iou/CLASS` is the mean over the sources which hold the class. What is null is left
    out.
    """
    scores: dict[str, list[float]] = {}
    for source in line["sources"].values():
        for name, iou in source["iou"].items():
            if iou is not None:
                scores.setdefault(name, []).append(iou)
    own = {} if line["miou"] is None else {"val/miou": line["miou"]}
    return own | {f"val/iou/{name}": fmean(values) for name, values in scores.items()}


def _history(run: Path, done: int) -> Iterator[tuple[int, dict[str, float]]]:
    """What was logged up to a step, in its order."""
    file = run / VALIDATION
    steps = ((line["step"], of_step(line)) for line in read_metrics(run / "metrics.jsonl"))
    scores = ((line["step"], of_validation(line)) for line in (read_lines(file) if file.is_file() else ()))
    merged = heapq.merge(steps, scores, key=lambda pair: pair[0])
    return ((step, values) for step, values in merged if step <= done)


def _csv(run: Path, done: int) -> Logger:
    file = csv_file(run)
    file.unlink(missing_ok=True)
    logger = CSVLogger(file.parents[1], name="", version=file.parent.name, flush_logs_every_n_steps=1)
    writer = logger.experiment
    for step, values in _history(run, done):
        writer.log_metrics(values, step)
    logger.save()
    return logger


def _tensorboard(recipe: Recipe, run: Path, done: int) -> Logger:
    older = event_files(run)
    if older and older[-1].name.split(".")[3] >= f"{int(time.time()):010d}":
        for file in older:  # the second in the names is their order, and the new file would come before one of these
            file.unlink()
        older = []
    logger = TensorBoardLogger(run / "logs", name="tensorboard", version="", purge_step=done + 1 if older else None)
    if not older:
        from torch.utils.tensorboard.summary import hparams

        settings = {key: value if isinstance(value, int | float) else str(value) for key, value in _flat(recipe)}
        for summary in hparams(settings, {"train/loss": 0.0, "val/miou": 0.0}):  # the values are not written
            logger.experiment.file_writer.add_summary(summary)
        for step, values in _history(run, done):
            logger.log_metrics(values, step)
    logger.save()
    return logger


def _flat(recipe: Recipe) -> Iterator[tuple[str, Any]]:
    """The settings of a recipe by their keys as in `--set`."""
    for key, value in recipe.model_dump(mode="json").items():
        if isinstance(value, dict):
            yield from ((f"{key}.{name}", inner) for name, inner in value.items())
        else:
            yield key, value


class WandbLogger(Logger):
    """Logs to a run of Weights & Biases; a step is written once the next one begins.

    Lightning's own logger numbers the rows itself, so that a resumed training would add its repeated steps again.
    """

    def __init__(self, run: wandb.Run) -> None:
        super().__init__()
        self.run = run

    @property
    def name(self) -> str | None:
        """The name of the run."""
        return self.run.name

    @property
    def version(self) -> str:
        """The id of the run."""
        return self.run.id

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add numbers to the row of a step."""
        self.run.log(dict(metrics), step=step)

    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        """Set the configuration of the run."""
        self.run.config.update(dict(params), allow_val_change=True)

    def finalize(self, status: str) -> None:
        """End the run."""
        self.run.finish(exit_code=0 if status == "success" else 1)


def _wandb(recipe: Recipe, run: Path, done: int) -> Logger:
    wandb = importlib.import_module("wandb")
    file = wandb_id_file(run)
    older = wandb_folders(run, offline=True)
    if not file.is_file():
        write_text(file, f"{secrets.token_hex(8)}\n")
    settings = wandb.Settings(silent=True, console="off", x_transaction_log_flush_interval=FLUSH_SECONDS)
    try:
        begun = wandb.init(
            dir=file.parents[1], project=PROJECT, name=run.resolve().name, id=file.read_text().strip(), resume="allow",
            settings=settings,
        )  # fmt: skip
    except wandb.errors.Error as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"logger: wandb: {reason}; run `wandb login`, check the connection, or set WANDB_MODE=offline"
        ) from error
    logger = WandbLogger(begun)
    logger.log_hyperparams(recipe.model_dump(mode="json"))
    for step, values in _history(run, done):
        logger.log_metrics(values, step)
    if begun.offline and not begun.disabled:
        for folder in older:
            shutil.rmtree(folder)
    return logger
