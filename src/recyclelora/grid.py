"""Many trainings, each scored on the same targets: one JSON file a training, and what is there is not done again.

OUT/cells/VARIANT--SEED.json    scores, parameters, seconds a step, memory; small, so that it can be kept and shared
    runs/VARIANT--SEED/         the run; its checkpoint is removed once it is scored
"""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import resource
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from recyclelora.data.benchmarks import parse_spec
from recyclelora.errors import DivergedError, UserError
from recyclelora.evaluation.bootstrap import DRAWS
from recyclelora.evaluation.evaluate import score_domain
from recyclelora.methods import scale_of
from recyclelora.recipe import Recipe, make_recipe
from recyclelora.results import open_targets, predict_as, protocol_name
from recyclelora.run import Predictor, Run, load, open_run, remove_run, versions, write_json
from recyclelora.training.fit import decisive, train
from recyclelora.weights import SOURCES

FREE = {"evaluation.batch_size"}
"""Settings that no result depends on."""
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
        weights = self.recipe.backbone.weights
        facts["backbone"]["weights"] = weights if weights in SOURCES else Path(weights).name
        facts["scored"] = {
            "targets": [_without_root(text) for text in self.targets],
            "split": self.split,
            "limit": self.limit,
            "draws": DRAWS,
        }
        return dict(_leaves(json.loads(json.dumps(facts))))

    def differences(self, settings: Mapping[str, Any]) -> list[str]:
        """Settings of a result that are not this cell's; those it does not have yet were at their defaults."""
        recipe = make_recipe({"sources": self.recipe.model_dump()["sources"], "method": self.recipe.method})
        asked, default = self.settings(), Cell("", recipe, self.targets).settings()
        scored = settings.get("scored.targets", [])
        if set(asked["scored.targets"]) <= set(scored):
            asked["scored.targets"] = scored
        return [
            f"{key} {settings.get(key, default.get(key))} in place of {asked.get(key)}"
            for key in sorted({*asked, *settings} - FREE)
            if settings.get(key, default.get(key)) != asked.get(key)
        ]


def _without_root(target: str) -> str:
    """A target as it was written, but for where it lies; a folder of one's own has its label from there."""
    left = target.partition("=")[0]
    return f"{parse_spec(target).label}:folder" if left == "folder" else left


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
    """The result of a cell that was done before, on its targets alone if it was scored on more; None if it was not.

    Raises:
        UserError: the file is damaged, or of other settings.
    """
    file = records / f"{cell.name}.json"
    if not file.is_file():
        return None
    try:
        result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        differences = cell.differences(result["settings"])
        if "error" not in result:
            labels = [parse_spec(text).label for text in cell.targets]
            result["targets"] = [target for target in result["targets"] if target["label"] in labels]
        needed = {"variant", "seed", "scale"} | (set() if "error" in result else {"weights_sha256", "data"})
        if lacking := needed - result.keys():
            raise KeyError(min(lacking))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: damaged ({error}); remove it to have it made again") from error
    if differences:
        raise UserError(
            f"{file}: made with {'; '.join(differences)}; choose another --out, or remove it to have it made again"
        )
    return result


def run_grid(
    cells: Sequence[Cell],
    out: Path,
    jobs: int = 1,
    keep_runs: bool = True,
    records: Path | None = None,
    present: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Results of all cells, in their order; those not there yet are made, `jobs` at a time, each in its own process.

    A progress bar on a terminal counts the steps of all trainings. A training that diverges is a result, with its
    `error` in place of scores. With `jobs` 0 all is done in this process, whose peak memory is then that of all.
    Results lie in `records`, in OUT/cells if not given; runs are removed once they are scored unless `keep_runs`.

    Args:
        present: hashes of what lies there now, by its name as in "images of target fog", "images of town" (a source)
            and "base weights"; results of others are refused. Those of a source that a seed draws from are not asked.

    Raises:
        UserError: two cells of one name, another process at work in `out`, results of other base weights or images than
            the others' or those present, a process that was killed; and as `read_cell`,
            `recyclelora.training.fit.train` and `recyclelora.results.open_targets`. Cells that were done before the
            error stay done.
    """
    names = [cell.name for cell in cells]
    doubled = {name for name in names if names.count(name) > 1}
    if doubled:
        raise UserError(f"{doubled.pop()}: two trainings of this name; give every seed once, and variants other names")
    records = records or out / "cells"
    places = Places(out / "runs", records, keep_runs)
    with _alone(out):
        results = {cell.name: read_cell(cell, records) for cell in cells}
        _check_alike(results, records, present)
        todo = [cell for cell in cells if results[cell.name] is None]
        total = sum(cell.recipe.steps for cell in cells)
        with tqdm(desc=f"steps of {len(cells)} trainings", total=total, disable=None) as bar:
            bar.update(total - sum(cell.recipe.steps for cell in todo))
            for cell, result in _made_here(todo, places) if jobs == 0 else _made(todo, places, jobs, bar):
                results[cell.name] = result
                bar.update(sum(c.recipe.steps for c in cells if results[c.name]) - bar.n)
                _check_alike(results, records)
    return [made for cell in cells if (made := results[cell.name]) is not None]


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Two processes in one folder would train into each other's runs."""
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / ".lock", timeout=0):
            yield
    except Timeout:
        raise UserError(f"{out}: another process is at work there; wait for it, or choose another --out") from None


def _check_alike(
    results: Mapping[str, Mapping[str, Any] | None], records: Path, present: Mapping[str, str] | None = None
) -> None:
    """Results are of one base and one copy of the data, or they cannot be compared; what a seed draws is its own."""
    first = {what: ("what is there now", found) for what, found in (present or {}).items()}
    for name, result in results.items():
        if result is None or "targets" not in result:
            continue
        of_seed = f" of seed {result['seed']}"
        random = result["settings"].get("backbone.weights") == "random"
        hashes = {"base weights" + of_seed * random: result["weights_sha256"]}
        drawn = {label for label, *_, images, _ in result["settings"]["sources"] if images}
        hashes |= {
            f"images of {source['label']}" + of_seed * (source["label"] in drawn): source["fingerprint"]
            for source in result["data"]
        }
        hashes |= {f"images of target {target['label']}": target["fingerprint"] for target in result["targets"]}
        for what, found in hashes.items():
            other, expected = first.setdefault(what, (f"{name}.json", found))
            if found != expected:
                raise UserError(
                    f"{records}: {what} are not the same in {other} ({expected[:12]}) and {name}.json ({found[:12]}); "
                    "remove the files of those that are not to be compared, or choose another --out"
                )


def _made_here(cells: Sequence[Cell], places: Places) -> Iterator[tuple[Cell, dict[str, Any]]]:
    for cell in cells:
        yield cell, _make_cell(cell, places, torch.get_num_threads())


def _made(cells: Sequence[Cell], places: Places, jobs: int, bar: tqdm[Any]) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Cells as they are finished; the bar moves with the steps of those under way."""
    threads = max(1, torch.get_num_threads() // jobs)
    waiting: dict[Future[dict[str, Any]], Cell] = {}
    todo, finished = list(cells), bar.n
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
            bar.update(finished + sum(_steps_done(places.runs / cell.name) for cell in waiting.values()) - bar.n)


@contextmanager
def _processes(jobs: int, threads: int) -> Iterator[ProcessPoolExecutor]:
    """Fresh processes with so many threads each, which show no progress bars of their own."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    try:
        with ProcessPoolExecutor(
            jobs, mp_context=get_context("spawn"), max_tasks_per_child=1, initializer=_leave_terminal
        ) as pool:
            yield pool
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _leave_terminal() -> None:
    """Bars, which are for terminals alone, would be drawn over the grid's."""
    sys.stderr = _Plain(sys.stderr.buffer, encoding=sys.stderr.encoding, line_buffering=True)


class _Plain(io.TextIOWrapper):
    def isatty(self) -> bool:
        return False


def _steps_done(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.is_file() else 0


def _make_cell(cell: Cell, places: Places, threads: int) -> dict[str, Any]:
    """Train, score, and write the cell's file."""
    started = time.perf_counter()
    torch.set_num_threads(threads)
    folder = places.runs / cell.name
    _clear_other(folder, cell.recipe)
    trained_before = (folder / "head.safetensors").is_file()
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
        facts |= _cost(run, trained_before) | _scores(run, cell)
    except DivergedError as error:
        facts["error"] = str(error).rpartition(": ")[2]  # without the run's folder
    facts["wall_seconds"] = round(time.perf_counter() - started, 1)
    write_json(places.records / f"{cell.name}.json", facts)
    Run(folder, cell.recipe, {}).checkpoint.unlink(missing_ok=True)
    if not places.keep_runs:
        remove_run(folder)
    return facts


def _clear_other(folder: Path, recipe: Recipe) -> None:
    """Remove a run of other settings that was stopped before it had a result, or that never got to be one."""
    if folder.is_dir():
        try:
            same = decisive(open_run(folder).recipe) == decisive(recipe)
        except UserError:
            same = False
        if not same:
            remove_run(folder)


def _cost(run: Run, trained_before: bool) -> dict[str, Any]:
    """Trainable parameters, median seconds of a step, peak memory of the process (of the GPU, where there is one).

    The peak is None for a run that another process trained.
    """
    seconds = [json.loads(line)["seconds"] for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    steps = [after - before for before, after in itertools.pairwise(seconds)]
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _peak_bytes()
    return {
        "parameters": run.info["parameters"],
        "weights_sha256": run.info["weights_sha256"],
        "data": run.info["sources"],
        "step_seconds": round(statistics.median(steps), 4) if steps else None,
        "peak_gib": None if trained_before else round(peak / 2**30, 3),
        "final_loss": json.loads(run.metrics.read_text(encoding="utf-8").splitlines()[-1])["loss"],
    }


def _peak_bytes() -> int:
    status = Path("/proc/self/status")
    if status.is_file():  # what getrusage says there is at least what the process that started this one had
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def trained_model(cell: Cell, run: Path) -> Predictor:
    """The model of a cell's run, with the places of weights and the evaluation asked for now, not those of then."""
    model = load(run, cell.recipe.backbone.weights)
    model.evaluation = cell.recipe.evaluation
    return model


def _scores(run: Run, cell: Cell) -> dict[str, Any]:
    model = trained_model(cell, run.path)
    targets = open_targets(cell.targets, cell.split, cell.limit)
    scored = []
    for target in targets:
        score = score_domain(predict_as(model, target.domain), model.space, target.domain, DRAWS).to_json()
        scored.append({key: value for key, value in score.items() if key != "confusion"} | {"split": target.split})
    return {"protocol": protocol_name(model, targets), "targets": scored}
