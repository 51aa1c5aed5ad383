"""Many trainings, each scored on the same targets: one JSON file a training, and what is there is not done again.

OUT/cells/VARIANT--SEED.json    scores, parameters, seconds a step, memory; small, so that it can be kept and shared
    runs/VARIANT--SEED/         the run; its checkpoint is removed once it is scored
"""

from __future__ import annotations

import itertools
import json
import os
import re
import resource
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
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
from recyclelora.recipe import Recipe, make_recipe
from recyclelora.results import open_targets, predict_as, protocol_name
from recyclelora.run import Run, load, remove_run, versions, write_json
from recyclelora.training.fit import decisive, train

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

    def settings(self) -> dict[str, Any]:
        """What the result depends on, one level deep as in `optim.lr`, without where files lie."""
        facts = {**decisive(self.recipe), "evaluation": self.recipe.evaluation.model_dump()}
        facts["scored"] = {
            "targets": [re.sub(r"=.*", "", text) for text in self.targets],
            "split": self.split,
            "limit": self.limit,
            "draws": DRAWS,
        }
        return dict(_leaves(json.loads(json.dumps(facts))))

    def differences(self, settings: Mapping[str, Any]) -> list[str]:
        """Settings of a result that are not this cell's; those it does not have yet were at their defaults."""
        recipe = make_recipe({"sources": self.recipe.model_dump()["sources"], "method": self.recipe.method})
        asked, default = self.settings(), Cell("", recipe, self.targets).settings()
        return [
            f"{key} {settings.get(key, default.get(key))} in place of {asked.get(key)}"
            for key in sorted({*asked, *settings})
            if settings.get(key, default.get(key)) != asked.get(key)
        ]


def _leaves(facts: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in facts.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


@dataclass(frozen=True)
class Places:
    """Where the runs and the results of cells lie, and whether runs are kept once they are scored."""

    runs: Path
    records: Path
    keep_runs: bool


def read_cell(cell: Cell, records: Path) -> dict[str, Any] | None:
    """The result of a cell that was done before; None if it was not.

    Raises:
        UserError: the file is damaged, or of other settings.
    """
    file = records / f"{cell.name}.json"
    if not file.is_file():
        return None
    try:
        result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        differences = cell.differences(result["settings"])
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: damaged ({error}); remove it to have it made again") from error
    if differences:
        raise UserError(
            f"{file}: made with {'; '.join(differences)}; choose another --out, or remove it to have it made again"
        )
    return result


def run_grid(
    cells: Sequence[Cell], out: Path, jobs: int = 1, keep_runs: bool = True, records: Path | None = None
) -> list[dict[str, Any]]:
    """Results of all cells, in their order; those not there yet are made, `jobs` at a time, each in its own process.

    A progress bar on a terminal counts the steps of all trainings. A training that diverges is a result, with its
    `error` in place of scores. With `jobs` 0 all is done in this process, whose peak memory is then that of all.
    Results lie in `records`, in OUT/cells if not given; runs are removed once they are scored unless `keep_runs`.

    Raises:
        UserError: as `read_cell`, `recyclelora.training.fit.train` and `recyclelora.results.open_targets`. Cells that
            were done before the error stay done.
    """
    records = records or out / "cells"
    places = Places(out / "runs", records, keep_runs)
    results = {cell.name: read_cell(cell, records) for cell in cells}
    todo = [cell for cell in cells if results[cell.name] is None]
    total = sum(cell.recipe.steps for cell in cells)
    with tqdm(desc=f"steps of {len(cells)} trainings", total=total, disable=None) as bar:
        bar.update(total - sum(cell.recipe.steps for cell in todo))
        for cell, result in _made_here(todo, places) if jobs == 0 else _made(todo, places, jobs, bar):
            results[cell.name] = result
            bar.update(sum(c.recipe.steps for c in cells if results[c.name]) - bar.n)
    return [made for cell in cells if (made := results[cell.name]) is not None]


def _made_here(cells: Sequence[Cell], places: Places) -> Iterator[tuple[Cell, dict[str, Any]]]:
    for cell in cells:
        yield cell, _make_cell(cell, places, torch.get_num_threads())


def _made(cells: Sequence[Cell], places: Places, jobs: int, bar: tqdm[Any]) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Cells as they are finished; the bar moves with the steps of those under way."""
    threads = max(1, torch.get_num_threads() // jobs)
    with _processes(jobs, threads) as pool:
        waiting = {pool.submit(_make_cell, cell, places, threads): cell for cell in cells}
        finished = bar.n
        try:
            while waiting:
                for future in wait(waiting, timeout=POLL, return_when=FIRST_COMPLETED).done:
                    cell = waiting.pop(future)
                    finished += cell.recipe.steps
                    yield cell, future.result()
                bar.update(finished + sum(_steps_done(places.runs / cell.name) for cell in waiting.values()) - bar.n)
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


def _make_cell(cell: Cell, places: Places, threads: int) -> dict[str, Any]:
    """Train, score, and write the cell's file."""
    started = time.perf_counter()
    torch.set_num_threads(threads)
    folder = places.runs / cell.name
    facts: dict[str, Any] = {
        "variant": cell.variant,
        "seed": cell.recipe.seed,
        "settings": cell.settings(),
        "scale": scale_of(cell.recipe),
        "threads": threads,
        "versions": versions(),
    }
    try:
        run = train(cell.recipe, folder, resume=True)
        facts |= _cost(run) | _scores(run, cell)
    except DivergedError as error:
        facts["error"] = str(error).split(": ", 1)[1]
    facts["wall_seconds"] = round(time.perf_counter() - started, 1)
    write_json(places.records / f"{cell.name}.json", facts)
    Run(folder, cell.recipe, {}).checkpoint.unlink(missing_ok=True)
    if not places.keep_runs:
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
