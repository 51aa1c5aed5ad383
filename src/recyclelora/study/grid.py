"""Many trainings, scored on the same targets: one JSON file per training. What has its file is not repeated.

OUT/cells/VARIANT--SEED.json    scores, parameters, seconds per step, memory; small, so that it can be kept and shared
    runs/VARIANT--SEED/         the run; its checkpoint is removed once it is scored
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from recyclelora.errors import DivergedError, UserError
from recyclelora.evaluation.bootstrap import DRAWS
from recyclelora.evaluation.result import predict_as, protocol_name
from recyclelora.evaluation.scores import score_domain
from recyclelora.evaluation.targets import open_targets
from recyclelora.files import is_locked, locked, write_json
from recyclelora.methods import get_method
from recyclelora.pages.progress import Progress
from recyclelora.recipe import Recipe
from recyclelora.runs.facts import read_metrics
from recyclelora.runs.predictor import Predictor, load
from recyclelora.runs.processes import peak_bytes
from recyclelora.runs.run import Run, open_run, remove_run, versions
from recyclelora.study.cell import Cell, CellResult, read_cell
from recyclelora.study.cluster import on_cluster
from recyclelora.study.executors import Executor, here, processes
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
    jobs: int | None = None,
    keep_runs: bool = True,
    records: Path | None = None,
    present: Mapping[str, str] | None = None,
    cluster: str | None = None,
) -> list[CellResult]:
    """The results of all cells, in order. Missing results are computed, `jobs` at a time, each in its own process.

    The progress that is shown counts the steps of all trainings. A training that diverges is a result, with its
    `error` in place of scores. With `jobs` 0 everything runs in this process, so the peak memory is that of all cells.
    Results are kept in `records`, by default OUT/cells; this process alone writes them. Runs are removed after scoring
    unless `keep_runs` is set.

    Args:
        jobs: trainings at a time; 1 if it is None, and on a cluster as many as it has GPUs, or machines.
        present: hashes of the current data, by name: "images of target fog", "images of town" (a source), "base
            weights". Results with other hashes are refused. A source of which each seed takes a subset is not compared.
        cluster: train on the machines of this Ray cluster; see `recyclelora.study.cluster.on_cluster`.

    Raises:
        UserError: two cells have one name, a recipe has several devices, another process works in `out`, results
            differ in base weights or images from each other or from `present`, a process was killed; and as
            `read_cell`, `recyclelora.study.cluster.on_cluster`, `recyclelora.training.train.train` and
            `recyclelora.evaluation.targets.open_targets`. After an error no further cell is begun; those that run are
            finished, and what is done stays done.
    """
    names = [cell.name for cell in cells]
    doubled = {name for name in names if names.count(name) > 1}
    if doubled:
        raise UserError(f"{doubled.pop()}: two trainings of this name; give every seed once, and variants other names")
    if several := [cell for cell in cells if cell.recipe.devices > 1]:
        raise UserError(
            f"{several[0].name}: devices {several[0].recipe.devices}, expected 1 in a comparison, where each "
            "training has one process; leave `devices` out of the recipe"
        )
    records = records or out / "cells"
    places = Places(out / "runs", records, keep_runs)
    with locked(out):
        results = {cell.name: read_cell(cell, records) for cell in cells}
        _check_alike(results, records, present)
        todo = [cell for cell in cells if results[cell.name] is None]
        total = sum(cell.recipe.steps for cell in cells)
        done = total - sum(cell.recipe.steps for cell in todo)

        def keep(cell: Cell, result: CellResult) -> None:
            _keep(cell, result, places)
            results[cell.name] = result
            _check_alike(results, records)

        if todo:
            with Progress("all trainings", total, "steps", done) as bar, _executor(jobs, cluster, out) as executor:
                _make(todo, places.runs, executor, bar, keep)
    return [made for cell in cells if (made := results[cell.name]) is not None]


def _executor(jobs: int | None, cluster: str | None, out: Path) -> AbstractContextManager[Executor]:
    if cluster is not None:
        if jobs == 0:
            raise UserError(f"--jobs 0 trains in this process, --cluster {cluster} in others; give one of them")
        return on_cluster(cluster, jobs, out)
    return here() if jobs == 0 else processes(jobs or 1)


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


def _make(
    cells: Sequence[Cell], runs: Path, executor: Executor, bar: Progress, keep: Callable[[Cell, CellResult], None]
) -> None:
    """Have each cell made, and `keep` its result when it is there; the bar also counts the steps of unfinished cells.

    Raises:
        Exception: the first error; what runs by then is finished, and no other cell is begun.
    """
    waiting: dict[Future[CellResult], Cell] = {}
    todo, finished, failed = list(cells), bar.done, None
    while todo or waiting:
        room = executor.room
        while todo and len(waiting) < room:
            folder = runs / todo[0].name
            future = executor.submit(todo[0].name, _make_cell, todo[0], folder, executor.threads, executor.patience)
            waiting[future] = todo.pop(0)
        done = wait(waiting, timeout=POLL, return_when=FIRST_COMPLETED).done
        for future in [future for future in waiting if future in done]:
            cell = waiting.pop(future)
            try:
                keep(cell, future.result())
                finished += cell.recipe.steps
            except Exception as error:
                failed = failed or error
                todo.clear()
        bar.advance(finished + sum(_steps_done(runs / cell.name) for cell in waiting.values()) - bar.done)
    if failed:
        raise failed


def _steps_done(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.is_file() else 0


def _make_cell(cell: Cell, folder: Path, threads: int, patience: float) -> CellResult:
    """Train into a folder, and score; `patience` are the seconds to wait for a process that is at work there."""
    started = time.perf_counter()
    torch.set_num_threads(threads)
    while is_locked(folder) and time.perf_counter() - started < patience:
        time.sleep(1.0)
    _clear_other(folder, cell.recipe)
    trained_before = Run(folder, cell.recipe, {}).finished
    scale = get_method(cell.recipe.method).scale(cell.recipe.adapter)
    result = CellResult(cell.variant, cell.recipe.seed, cell.settings(), scale, threads, versions())
    try:
        run = train(cell.recipe, folder, resume=True)
        result = replace(result, **_cost(run, trained_before), **_scores(run, cell))
    except DivergedError as error:
        result = replace(result, error=str(error).rpartition(": ")[2])  # without the run's folder
    return replace(result, wall_seconds=round(time.perf_counter() - started, 1))


def _keep(cell: Cell, result: CellResult, places: Places) -> None:
    """Write the cell's file, and then remove what is not needed any more; a stop in between loses nothing."""
    write_json(places.records / f"{cell.name}.json", result.to_json())
    folder = places.runs / cell.name
    Run(folder, cell.recipe, {}).remove_checkpoints()
    if not places.keep_runs:
        remove_run(folder)


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
