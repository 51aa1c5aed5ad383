"""All runs below a folder, one line each: what was trained, how far it came, how well it scores, and its state."""

from __future__ import annotations

import os
import statistics
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from recyclelora.errors import UserError, explained
from recyclelora.files import is_locked, user_path
from recyclelora.pages.tables import print_table
from recyclelora.recipe import Recipe
from recyclelora.runs.facts import VALIDATION, read_last_miou, read_last_steps
from recyclelora.runs.run import RECIPE, STARTING, Run, is_run, open_run
from recyclelora.runs.seal import check_present
from recyclelora.runs.state import State, state_of

RECENT = 20
"""The loss of a summary is the mean over so many last steps."""


@dataclass(frozen=True)
class RunSummary:
    """One run; what its files do not say is None. `state` is None where `error` says why the run cannot be read.

    `step` of `steps` training steps are done. `loss` is the mean of the last 20 steps, `miou` the last score on the
    sources' validation images, 0 to 1.
    """

    path: Path
    method: str | None = None
    sources: tuple[str, ...] = ()
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    miou: float | None = None
    state: State | None = None
    error: str | None = None


def list_runs(folder: str | Path) -> list[RunSummary]:
    """The runs in a folder or below it, by path; the folder may be a run itself.

    A run that is damaged is in the list, with its `error`. Links to folders are followed, and a run that several paths
    lead to is listed once.

    Raises:
        UserError: the folder does not exist, or there is no run.
    """
    folder = user_path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder that holds your runs")
    runs = [_summary(path, problem) for path, problem in _run_folders(folder)]
    if not runs:
        raise UserError(
            f"{folder}: no run there or below; give the folder that holds your runs, or train one with "
            f"`recyclelora train --out {folder / 'NAME'}`"
        )
    return sorted(runs, key=lambda run: run.path)


def print_runs(runs: Sequence[RunSummary]) -> None:
    """Print a table with a row per run; mIoU is in percent."""
    header = ["run", "method", "source", "step", "loss", "mIoU (source validation)", "state"]
    print_table(header, [_row(run) for run in runs])


def _row(run: RunSummary) -> list[str]:
    error = (run.error or "").replace(f"{run.path}{os.sep}", "").removeprefix(f"{run.path}: ")
    return [
        str(run.path),
        run.method or "–",
        ", ".join(run.sources) or "–",
        "–" if run.step is None else f"{run.step}/{run.steps}",
        "–" if run.loss is None else f"{run.loss:.4f}",
        "–" if run.miou is None else f"{100 * run.miou:.2f}",
        run.state or error,
    ]


def _run_folders(folder: Path) -> Iterator[tuple[Path, OSError | None]]:
    """The folders of runs, and those which cannot be looked into; links come last, and none is followed twice."""
    seen: set[Path] = set()
    waiting = deque([folder])
    while waiting:
        place = waiting.popleft()
        try:
            if (real := place.resolve()) in seen:
                continue
            seen.add(real)
            if _looks_like_a_run(place):
                yield place, None
                continue
            with os.scandir(place) as entries:
                for entry in entries:
                    if entry.is_symlink():
                        waiting.extend([place / entry.name] * entry.is_dir())
                    elif entry.is_dir():
                        waiting.appendleft(place / entry.name)
        except OSError as error:
            yield place, error


def _looks_like_a_run(path: Path) -> bool:
    """Whether a folder is that of a run, also if its `run.json` is lost."""
    if is_run(path) or not (path / RECIPE).is_file():
        return is_run(path)
    run = Run(path, Recipe(), {})
    return run.metrics.is_file() or run.head.is_file()


def _summary(path: Path, problem: OSError | None) -> RunSummary:
    try:
        if problem is not None:
            raise problem
        if (path / STARTING).exists() and is_locked(path):
            return RunSummary(path, state="training")
        run = open_run(path)
        check_present(path, run.hashes if run.finished else None)
        recent = read_last_steps(run.metrics, RECENT)
        steps = run.step if run.finished else run.recipe.steps
        return RunSummary(
            path,
            run.recipe.method,
            tuple(source["label"] for source in run.info["sources"]),
            recent[-1]["step"] if recent else steps if run.finished else 0,
            steps,
            statistics.fmean(each["loss"] for each in recent) if recent else None,
            read_last_miou(path / VALIDATION),
            state_of(run),
        )
    except (UserError, OSError) as error:
        return RunSummary(path, error=explained(error) or str(error))
