"""Many trainings, each scored on the same targets: one JSON file a training, and what is there is not done again.

OUT/cells/VARIANT--SEED.json    scores, parameters, seconds a step, memory; small, so that it can be kept and shared
    runs/VARIANT--SEED/         the run; its checkpoint is removed once it is scored
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import resource
import statistics
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from recyclelora.errors import DivergedError, UserError
from recyclelora.evaluation.bootstrap import DRAWS
from recyclelora.evaluation.evaluate import score_domain
from recyclelora.methods import scale_of
from recyclelora.recipe import Recipe
from recyclelora.results import open_targets, predict_as, protocol_name
from recyclelora.run import Run, load, remove_run, versions, write_json
from recyclelora.training.fit import decisive, train

PLACES: Any = {"sources": True, "targets": True, "backbone": {"weights"}}
"""Settings that say where files lie, which is no part of a result."""
POLL = 2.0
"""Seconds between two looks at how far the trainings are."""


@dataclass(frozen=True)
class Cell:
    """One training and its targets; `limit` takes so many images of each, evenly spaced."""

    variant: str
    recipe: Recipe
    targets: tuple[str, ...]
    split: str | None = None
    limit: int | None = None

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{re.sub(r'[^A-Za-z0-9_.=-]', '_', self.variant)}--{self.recipe.seed}"

    def key(self) -> str:
        """SHA-256 of what the result depends on: settings and targets, not where files lie."""
        targets = [re.sub(r"=.*", "", text) for text in self.targets]
        facts = [decisive(self.recipe), self.recipe.evaluation.model_dump(), targets, self.split, self.limit, DRAWS]
        return hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()


def read_cell(cell: Cell, out: Path) -> dict[str, Any] | None:
    """The result of a cell that was done before; None if it was not.

    Raises:
        UserError: the file is damaged, or of other settings.
    """
    file = out / "cells" / f"{cell.name}.json"
    if not file.is_file():
        return None
    try:
        result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        key = result["key"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{file}: damaged ({error}); remove it to have it made again") from error
    if key != cell.key():
        raise UserError(
            f"{file}: made with another recipe, other targets or another number of images than asked for now; choose "
            "another --out, or remove it to have it made again"
        )
    return result


def run_grid(cells: Sequence[Cell], out: Path, jobs: int = 1, keep_runs: bool = True) -> list[dict[str, Any]]:
    """Results of all cells, in their order; those not there yet are made, `jobs` at a time, each in its own process.

    A progress bar on a terminal counts the steps of all trainings. A training that diverges is a result, with its
    `error` in place of scores. With `jobs` 0 all is done in this process, whose peak memory is then that of all.

    Raises:
        UserError: as `read_cell`, `recyclelora.training.fit.train` and `recyclelora.results.open_targets`. Cells that
            were done before the error stay done.
    """
    results = {cell.name: read_cell(cell, out) for cell in cells}
    todo = [cell for cell in cells if results[cell.name] is None]
    total = sum(cell.recipe.steps for cell in cells)
    with tqdm(desc=f"steps of {len(cells)} trainings", total=total, disable=None) as bar:
        bar.update(total - sum(cell.recipe.steps for cell in todo))
        for cell, result in _made_here(todo, out, keep_runs) if jobs == 0 else _made(todo, out, jobs, keep_runs, bar):
            results[cell.name] = result
            bar.update(sum(c.recipe.steps for c in cells if results[c.name]) - bar.n)
    return [made for cell in cells if (made := results[cell.name]) is not None]


def _made_here(cells: Sequence[Cell], out: Path, keep_runs: bool) -> Iterator[tuple[Cell, dict[str, Any]]]:
    for cell in cells:
        yield cell, _make_cell(cell, out, torch.get_num_threads(), keep_runs)


def _made(
    cells: Sequence[Cell], out: Path, jobs: int, keep_runs: bool, bar: tqdm[Any]
) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Cells as they are finished; the bar moves with the steps of those under way."""
    threads = max(1, torch.get_num_threads() // jobs)
    with _processes(jobs, threads) as pool:
        waiting = {pool.submit(_make_cell, cell, out, threads, keep_runs): cell for cell in cells}
        finished = bar.n
        try:
            while waiting:
                for future in wait(waiting, timeout=POLL, return_when=FIRST_COMPLETED).done:
                    cell = waiting.pop(future)
                    finished += cell.recipe.steps
                    yield cell, future.result()
                bar.update(finished + sum(_steps_done(out / "runs" / cell.name) for cell in waiting.values()) - bar.n)
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _processes(jobs: int, threads: int) -> Iterator[ProcessPoolExecutor]:
    """Fresh processes with so many threads each, which show no progress bars of their own."""
    wanted = {"OMP_NUM_THREADS": str(threads), "TQDM_DISABLE": "1"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
            yield pool
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _steps_done(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.is_file() else 0


def _make_cell(cell: Cell, out: Path, threads: int, keep_runs: bool) -> dict[str, Any]:
    """Train, score, and write the cell's file; in a process of its own."""
    torch.set_num_threads(threads)
    folder = out / "runs" / cell.name
    facts: dict[str, Any] = {
        "variant": cell.variant,
        "seed": cell.recipe.seed,
        "key": cell.key(),
        "recipe": cell.recipe.model_dump(mode="json", exclude=PLACES),
        "sources": [re.sub(r"=.*", "", source.data) for source in cell.recipe.sources],
        "scale": scale_of(cell.recipe),
        "threads": threads,
        "versions": versions(),
    }
    try:
        run = train(cell.recipe, folder, resume=True)
        facts |= _cost(run) | _scores(run, cell)
    except DivergedError as error:
        facts["error"] = str(error).split(": ", 1)[1]
    write_json(out / "cells" / f"{cell.name}.json", facts)
    Run(folder, cell.recipe, {}).checkpoint.unlink(missing_ok=True)
    if not keep_runs:
        remove_run(folder)
    return facts


def _cost(run: Run) -> dict[str, Any]:
    """Trainable parameters, median seconds of a step, peak memory of the process (of the GPU, where there is one)."""
    seconds = [json.loads(line)["seconds"] for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    steps = [after - before for before, after in itertools.pairwise(seconds)]
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _peak_bytes()
    return {
        "parameters": run.info["parameters"],
        "weights_sha256": run.info["weights_sha256"],
        "data": run.info["sources"],
        "step_seconds": round(statistics.median(steps), 4) if steps else None,
        "peak_gib": round(peak / 2**30, 3),
        "final_loss": json.loads(run.metrics.read_text(encoding="utf-8").splitlines()[-1])["loss"],
    }


def _peak_bytes() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _scores(run: Run, cell: Cell) -> dict[str, Any]:
    model = load(run.path, cell.recipe.backbone.weights)
    targets = open_targets(cell.targets, cell.split, cell.limit)
    scored = []
    for target in targets:
        score = score_domain(predict_as(model, target.domain), model.space, target.domain, DRAWS).to_json()
        scored.append({key: value for key, value in score.items() if key != "confusion"} | {"split": target.split})
    return {"protocol": protocol_name(model, targets), "targets": scored}
