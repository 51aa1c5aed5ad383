"""The page of a run, `index.html`: how its training goes or went. It is written again at every validation."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from recyclelora.evaluation.report import Example, run_facts
from recyclelora.pages import plots
from recyclelora.pages.page import write_page
from recyclelora.pages.pictures import PICTURE_FILTERS, percent, small_labels, small_photo
from recyclelora.pages.progress import duration
from recyclelora.runs.facts import best_validation, read_metrics, read_validations
from recyclelora.runs.run import Run
from recyclelora.runs.state import State
from recyclelora.training.held_out import HeldOut

PICTURES = 3
"""How many images of the first source have pictures."""
COLUMNS = 4
"""At most so many steps are shown of each picture, and so many rows of scores: the first, the last, some between."""


def write_run_page(run: Run, held: Sequence[HeldOut], state: State, seconds_left: float | None = None) -> Path:
    """Write the page; an existing one is replaced. It needs no other file.

    Args:
        held: the images that the training is validated on.
        seconds_left: until the end of the training, if that is known.
    """
    metrics, validations = read_metrics(run.metrics), read_validations(run.validations)
    best = best_validation(validations)
    curves = ([line["step"] for line in metrics], [line["loss"] for line in metrics])
    facts = run_facts(run)
    shown = spread(validations, COLUMNS)
    return write_page(
        run.page,
        "run.html.j2",
        PICTURE_FILTERS,
        title=run.path.resolve().name,
        state=state,
        lead=f"{run.recipe.method} on {run.recipe.backbone.model} with head {run.recipe.head}, trained on "
        f"{facts['sources']}.",
        progress=_progress(run, metrics, validations, seconds_left),
        advice="Go on with `recyclelora train --resume`." if state == "stopped" else "",
        curves=plots.training_curves(curves, _score_curves(validations), run.recipe.steps),
        scores=_score_rows(shown, best),
        no_scores=_no_scores(run),
        best=best and best["step"],
        examples=_examples(run, held, [line["step"] for line in shown]),
        space=held[0].domain.score_space if held else None,
        facts=facts,
        recipe=run.recipe.to_yaml(),
    )


def picture_file(run: Run, step: int, number: int) -> Path:
    """The predicted classes for a picture at a step, as a PNG of ids in the size of pages."""
    return run.pictures / f"{step:06d}_{number}.png"


def pictured_images(count: int) -> list[int]:
    """The images that have pictures, evenly spaced."""
    taken = min(PICTURES, count)
    return [(2 * i + 1) * count // (2 * taken) for i in range(taken)]


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """At most `count` items: the first, the last, and evenly spaced ones between."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def _progress(
    run: Run, metrics: Sequence[Mapping[str, Any]], validations: Sequence[Mapping[str, Any]], seconds_left: float | None
) -> dict[str, str]:
    """How far the training is, in words."""
    last, best = metrics[-1] if metrics else None, best_validation(validations)
    step = last["step"] if last else 0
    shown = {"step": f"{step:,} of {run.recipe.steps:,}"}
    if seconds_left is not None:
        shown["time left"] = f"about {duration(seconds_left)}"
    if last:
        recent = [line["loss"] for line in metrics[-20:]]
        shown["loss"] = f"{sum(recent) / len(recent):.3f}"
        shown["time so far"] = duration(last["seconds"])
    paces = [after["seconds"] - before["seconds"] for before, after in pairwise(metrics[-101:])]
    if paces and median(paces) > 0:
        shown["pace"] = f"{run.recipe.batch_size / median(paces):.3g} images/s"
    if validations:
        shown["mIoU, last validation"] = f"{percent(validations[-1]['miou'])} % (step {validations[-1]['step']:,})"
    if best:
        shown["mIoU, best validation"] = f"{percent(best['miou'])} % (step {best['step']:,})"
    shown["written"] = time.strftime("%Y-%m-%d %H:%M:%S")
    return shown


def _score_curves(validations: Sequence[Mapping[str, Any]]) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and mIoU by source; also of the mean, if there are several sources."""
    found: dict[str, tuple[list[int], list[float]]] = {}
    for line in validations:
        scores = {label: scored["miou"] for label, scored in line["sources"].items()}
        for name, miou in (scores if len(scores) == 1 else scores | {"mean of sources": line["miou"]}).items():
            if miou is not None:
                steps, values = found.setdefault(name, ([], []))
                steps.append(line["step"])
                values.append(miou)
    return found


def _score_rows(
    validations: Sequence[Mapping[str, Any]], best: Mapping[str, Any] | None
) -> dict[str, list[dict[str, Any]]]:
    """The scores of each source at these validations and at the best one."""
    lines = {line["step"]: line for line in (*validations, *([best] if best else []))}
    rows: dict[str, list[dict[str, Any]]] = {}
    for step in sorted(lines):
        for label, scored in lines[step]["sources"].items():
            rows.setdefault(label, []).append({"step": step, "miou": scored["miou"], "iou": scored["iou"]})
    return rows


def _no_scores(run: Run) -> str:
    if run.recipe.validation is None:
        return (
            "No scores: this recipe sets no validation. With `validation: {every: 500, images: 100}` images of the "
            "source that are not trained on are scored."
        )
    return f"No scores yet: the first validation comes after step {min(run.recipe.validation.every, run.recipe.steps)}."


def _examples(run: Run, held: Sequence[HeldOut], steps: Sequence[int]) -> list[Example]:
    """The pictured images with what was predicted at these steps."""
    examples = []
    domain = held[0].domain if held else None
    for number, index in enumerate(pictured_images(len(domain)) if domain else ()):
        files = {step: picture_file(run, step, number) for step in steps}
        predictions = {f"{step}": labels for step, file in files.items() if (labels := _read(file)) is not None}
        assert domain is not None
        if predictions:
            image, truth = domain.read_scored(index)
            small = small_photo(image), small_labels(truth)
            examples.append(Example(domain.name(index), domain.score_space, *small, predictions))
    return examples


def _read(file: Path) -> UInt8[np.ndarray, "h w"] | None:
    """The ids in a picture; None if it is missing or damaged, which is no reason to stop a training."""
    stored = np.frombuffer(file.read_bytes(), np.uint8) if file.is_file() else np.empty(0, np.uint8)
    picture = cv2.imdecode(stored, cv2.IMREAD_UNCHANGED) if stored.size else None
    return None if picture is None or picture.ndim != 2 else np.asarray(picture, np.uint8)
