"""Many trainings, scored on the same targets: one JSON file per training. What has its file is not repeated.

OUT/cells/VARIANT--SEED.json    scores, parameters, seconds per step, memory; small, so that it can be kept and shared
    runs/VARIANT--SEED/         the run; its checkpoint is removed once it is scored
"""

from __future__ import annotations

import io
import itertools
import os
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from recyclelora.errors import DivergedError, UserError
from recyclelora.evaluation.bootstrap import DRAWS
from recyclelora.evaluation.result import predict_as, protocol_name
from recyclelora.evaluation.scores import score_domain
from recyclelora.evaluation.targets import open_targets
from recyclelora.files import locked, write_json
from recyclelora.methods import get_method
from recyclelora.pages.progress import Progress
from recyclelora.recipe import Recipe
from recyclelora.runs.facts import read_metrics
from recyclelora.runs.predictor import Predictor, load
from recyclelora.runs.processes import peak_bytes
from recyclelora.runs.run import Run, open_run, remove_run, versions
from recyclelora.stopping import end_with_parent, stop_helpers
from recyclelora.study.cell import Cell, CellResult, read_cell
from recyclelora.training.train import decisive, train

POLL = 2.0
"""Seconds between two checks of the progress."""


@dataclass(frozen=True)
class Places:
    """Where the runs and the results of cells lie, and whether runs are kept once they are scored."""

    runs: Path
    records: Path
    keep_runs: bool


def run_grid(
    cells: Sequence[Cell],
    out: Path,
    jobs: int = 1,
    keep_runs: bool = True,
    records: Path | None = None,
    present: Mapping[str, str] | None = None,
) -> list[CellResult]:
    """The results of all cells, in order. Missing results are computed, `jobs` at a time, each in its own process.

    The progress that is shown counts the steps of all trainings. A training that diverges is a result, with its
    `error` in place of scores. With `jobs` 0 everything runs in this process, so the peak memory is that of all cells.
    Results are kept in `records`, by default OUT/cells. Runs are removed after scoring unless `keep_runs` is set.

    Args:
        present: hashes of the current data, by name: "images of target fog", "images of town" (a source), "base
            weights". Results with other hashes are refused. A source of which each seed takes a subset is not compared.

    Raises:
        UserError: two cells have one name, another process works in `out`, results differ in base weights or images
            from each other or from `present`, a process was killed; and as `read_cell`,
            `recyclelora.training.train.train` and `recyclelora.evaluation.targets.open_targets`. Cells that were done
            before the error stay done.
    """
    names = [cell.name for cell in cells]
    doubled = {name for name in names if names.count(name) > 1}
    if doubled:
        raise UserError(f"{doubled.pop()}: two trainings of this name; give every seed once, and variants other names")
    records = records or out / "cells"
    places = Places(out / "runs", records, keep_runs)
    with locked(out):
        results = {cell.name: read_cell(cell, records) for cell in cells}
        _check_alike(results, records, present)
        todo = [cell for cell in cells if results[cell.name] is None]
        total = sum(cell.recipe.steps for cell in cells)
        done = total - sum(cell.recipe.steps for cell in todo)
        with Progress("all trainings", total, "steps", done) as bar:
            for cell, result in _made_here(todo, places) if jobs == 0 else _made(todo, places, jobs, bar):
                results[cell.name] = result
                bar.advance(sum(c.recipe.steps for c in cells if results[c.name]) - bar.done)
                _check_alike(results, records)
    return [made for cell in cells if (made := results[cell.name]) is not None]


def _check_alike(
    results: Mapping[str, CellResult | None], records: Path, present: Mapping[str, str] | None = None
) -> None:
    """Refuse results of different base weights or images; a random subset may differ between seeds."""
    first = {what: ("what is there now", found) for what, found in (present or {}).items()}
    for name, result in results.items():
        for what, found in _hashes(result).items() if result and result.error is None else ():
            other, expected = first.setdefault(what, (f"{name}.json", found))
            if found != expected:
                raise UserError(
                    f"{records}: {what} are not the same in {other} ({expected[:12]}) and {name}.json ({found[:12]}); "
                    "remove the files of those that are not to be compared, or choose another --out"
                )


def _hashes(result: CellResult) -> dict[str, str]:
    """The hashes of base weights and images that comparable results share, by the name of what they identify."""
    of_seed = f" of seed {result.seed}"
    random = result.settings.get("backbone.weights") == "random"
    parted = "validation.every" in result.settings  # each seed leaves out other images
    drawn = {label for label, _, _, images, *_ in result.settings.get("sources", ()) if images or parted}
    return {
        "base weights" + of_seed * random: result.weights_sha256,
        **{f"images of {s['label']}" + of_seed * (s["label"] in drawn): s["fingerprint"] for s in result.data},
        **{f"images of target {score.label}": score.fingerprint for score in result.targets},
    }


def _made_here(cells: Sequence[Cell], places: Places) -> Iterator[tuple[Cell, CellResult]]:
    for cell in cells:
        yield cell, _make_cell(cell, places, torch.get_num_threads())


def _made(cells: Sequence[Cell], places: Places, jobs: int, bar: Progress) -> Iterator[tuple[Cell, CellResult]]:
    """Yield each cell when it is finished; the bar also counts the steps of unfinished cells."""
    threads = max(1, torch.get_num_threads() // jobs)
    waiting: dict[Future[CellResult], Cell] = {}
    todo, finished = list(cells), bar.done
    with _processes(jobs, threads) as pool:
        while todo or waiting:
            begun = [*waiting.values()]
            try:
                while todo and len(waiting) < jobs:  # what is handed over early cannot be taken back after an error
                    waiting[pool.submit(_make_cell, todo[0], places, threads)] = todo[0]
                    begun.append(todo.pop(0))
                done = wait(waiting, timeout=POLL, return_when=FIRST_COMPLETED).done
                made = [(waiting.pop(future), future.result()) for future in done]
            except BrokenProcessPool:
                raise UserError(
                    f"{', '.join(cell.name for cell in begun)}: a process was killed, most likely for want of memory; "
                    "take fewer --jobs or a smaller batch_size, and call again to go on"
                ) from None
            for cell, result in made:
                finished += cell.recipe.steps
                yield cell, result
            bar.advance(finished + sum(_steps_done(places.runs / cell.name) for cell in waiting.values()) - bar.done)


@contextmanager
def _processes(jobs: int, threads: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of new processes with this many threads each; they show no progress bars."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    try:
        with ProcessPoolExecutor(
            jobs, mp_context=get_context("spawn"), max_tasks_per_child=1, initializer=_start_helper
        ) as pool:
            try:
                yield pool
            except KeyboardInterrupt:
                stop_helpers()
                raise
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _start_helper() -> None:
    """Hide the terminal, so that progress bars of this process do not overwrite the bar of the grid."""
    end_with_parent()
    sys.stderr = _Plain(sys.stderr.buffer, encoding=sys.stderr.encoding, line_buffering=True)


class _Plain(io.TextIOWrapper):
    def isatty(self) -> bool:
        return False


def _steps_done(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.is_file() else 0


def _make_cell(cell: Cell, places: Places, threads: int) -> CellResult:
    """Train, score, and write the cell's file."""
    started = time.perf_counter()
    torch.set_num_threads(threads)
    folder = places.runs / cell.name
    _clear_other(folder, cell.recipe)
    trained_before = Run(folder, cell.recipe, {}).finished
    scale = get_method(cell.recipe.method).scale(cell.recipe.adapter)
    result = CellResult(cell.variant, cell.recipe.seed, cell.settings(), scale, threads, versions())
    try:
        run = train(cell.recipe, folder, resume=True)
        result = replace(result, **_cost(run, trained_before), **_scores(run, cell))
    except DivergedError as error:
        result = replace(result, error=str(error).rpartition(": ")[2])  # without the run's folder
    result = replace(result, wall_seconds=round(time.perf_counter() - started, 1))
    write_json(places.records / f"{cell.name}.json", result.to_json())
    Run(folder, cell.recipe, {}).remove_checkpoints()
    if not places.keep_runs:
        remove_run(folder)
    return result


def _clear_other(folder: Path, recipe: Recipe) -> None:
    """Remove an unfinished run that has other settings, and a folder that is not a valid run."""
    if folder.is_dir():
        try:
            same = decisive(open_run(folder).recipe) == decisive(recipe)
        except UserError:
            same = False
        if not same:
            remove_run(folder)


def _cost(run: Run, trained_before: bool) -> dict[str, Any]:
    """Trained parameters, median seconds per step, peak memory of the process (or of the GPU, if there is one).

    The peak is None if another process did the training.
    """
    metrics = read_metrics(run.metrics)
    seconds = [step["seconds"] for step in metrics]
    steps = [after - before for before, after in itertools.pairwise(seconds)]
    return {
        "parameters": run.info["parameters"],
        "weights_sha256": run.info["weights_sha256"],
        "data": run.info["sources"],
        "step_seconds": round(statistics.median(steps), 4) if steps else None,
        "peak_gib": None if trained_before else round(peak_bytes() / 2**30, 3),
        "final_loss": metrics[-1]["loss"] if metrics else None,
    }


def trained_model(cell: Cell, run: Path) -> Predictor:
    """The model of a cell's run, with the weights' path and the evaluation settings of the cell, not of the old run."""
    model = load(run, cell.recipe.backbone.weights)
    model.evaluation = cell.recipe.evaluation
    return model


def _scores(run: Run, cell: Cell) -> dict[str, Any]:
    model = trained_model(cell, run.path)
    targets = open_targets(cell.targets, cell.split, cell.limit)
    scored = [
        score_domain(predict_as(model, each.domain), model.space, each.domain, DRAWS, each.split) for each in targets
    ]
    small = tuple(replace(score, confusion=[]) for score in scored)
    return {"protocol": protocol_name(model, targets), "targets": small}
