"""One self-contained HTML page: scores as tables and plots, and pictures of what the models see."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from recyclelora import plots
from recyclelora.data.domain import Domain
from recyclelora.data.labels import LabelSpace
from recyclelora.evaluation.evaluate import Predict, TargetScore, mean_miou, scored_prediction
from recyclelora.pages import write_page
from recyclelora.recipe import ADAPTERS, Recipe
from recyclelora.run import Run

PICTURE_WIDTH = 480


@dataclass(frozen=True)
class Model:
    """One model of the page: what it is, how it was trained, and what it scored."""

    name: str
    scores: Sequence[TargetScore]
    facts: Mapping[str, str] = field(default_factory=dict)
    metrics: Path | None = None


@dataclass(frozen=True)
class Example:
    """One image with its ground truth and what each model says, all in the classes of `space`."""

    name: str
    space: LabelSpace
    image: UInt8[np.ndarray, "h w 3"]
    truth: UInt8[np.ndarray, "h w"]
    predictions: Mapping[str, UInt8[np.ndarray, "h w"]]


def take_examples(models: Mapping[str, Predict], domain: Domain, count: int) -> list[Example]:
    """`count` images of a domain, evenly spaced, with the predictions of each model."""
    examples = []
    for i in range(min(count, len(domain))):
        index = (2 * i + 1) * len(domain) // (2 * min(count, len(domain)))
        image, truth = domain.read_scored(index)
        predictions = {name: scored_prediction(predict, domain, image) for name, predict in models.items()}
        examples.append(Example(domain.name(index), domain.score_space, image, truth, predictions))
    return examples


def run_facts(run: Run) -> dict[str, str]:
    """How a run was trained, for a table."""
    recipe, info = run.recipe, run.info
    lines = run.metrics.read_text(encoding="utf-8").splitlines() if run.metrics.is_file() else []
    if imported := info.get("imported"):
        return {
            "method": run.method,
            "backbone": recipe.backbone.model,
            "checkpoint": f"{imported['file']} ({imported['file_sha256'][:12]}…), {imported['note']}",
            "parameters": f"{info['parameters']['backbone']:,} + {info['parameters']['head']:,} (head)",
            "sources": "not known",
        }
    return {
        "method": recipe.method,
        "backbone": recipe.backbone.model,
        "base weights": f"{recipe.backbone.weights} ({info['weights_sha256'][:12]}…)",
        "adapter": _adapter_facts(recipe),
        "trained parameters": f"{info['parameters']['adapters']:,} + {info['parameters']['head']:,} (head)",
        "sources": ", ".join(f"{source['label']} ({source['images']} images)" for source in info["sources"]),
        "steps × batch": f"{recipe.steps} × {recipe.batch_size}, crop {recipe.crop}",
        "learning rate": f"{recipe.optim.lr:g}"
        + (f", sub × {recipe.optim.sub_lr_ratio:g}" if recipe.adapter.r_sub else "")
        + (f", head {recipe.optim.head_lr:g}" if recipe.optim.head_lr else ""),
        "seed": str(recipe.seed),
        "training time": f"{json.loads(lines[-1])['seconds']:.0f} s" if lines else "–",
    }


def _adapter_facts(recipe: Recipe) -> str:
    known = ADAPTERS[recipe.method]
    settings = {key: value for key, value in recipe.adapter.model_dump().items() if key in known}
    return (
        ", ".join(
            f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in settings.items()
        )
        or "–"
    )


def write_report(
    path: str | Path,
    title: str,
    lead: str,
    protocol: str,
    models: Sequence[Model],
    examples: Mapping[str, Sequence[Example]],
    seen: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> Path:
    """Write the page; an existing file is replaced.

    Args:
        lead: what was done, in a few sentences.
        protocol: the name of the one that all scores came about under.
        models: with scores on the same targets in the same order.
        examples: pictures by target.
        seen: labels of targets from the domain that was trained on; the others count as unseen.
        notes: what a reader must know to judge the figures.
    """
    targets = [score.label for score in models[0].scores]
    curves = {m.name: _curve(m.metrics) for m in models if m.metrics is not None}
    return write_page(
        path,
        "report.html.j2",
        PICTURE_FILTERS,
        title=title,
        lead=lead,
        protocol=protocol,
        notes=notes,
        models=models,
        targets=targets,
        best=[max((m.scores[i].miou or 0) for m in models) for i in range(len(targets))],
        seen=seen,
        unseen_means={m.name: mean_miou([s for s in m.scores if s.label not in seen]) for m in models},
        bars=plots.miou_bars({m.name: {s.label: s.miou for s in m.scores} for m in models}),
        curves=plots.loss_curves(curves) if curves else "",
        examples=examples,
        legend=_legend(examples),
    )


def _curve(metrics: Path) -> tuple[list[int], list[float]]:
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    return [line["step"] for line in lines], [line["loss"] for line in lines]


def _legend(examples: Mapping[str, Sequence[Example]]) -> dict[str, LabelSpace]:
    """The class colours of each target, by the targets that share them."""
    spaces: dict[LabelSpace, list[str]] = {}
    for label, pictures in examples.items():
        if pictures:
            spaces.setdefault(pictures[0].space, []).append(label)
    return {", ".join(labels): space for space, labels in spaces.items()}


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _points(value: float) -> str:
    """A difference of scores in percentage points, with its sign."""
    return f"{100 * value:+.1f}".replace("-", "−")


def _hex(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _jpeg(image: UInt8[np.ndarray, "h w 3"]) -> str:
    """A photograph as a data URI."""
    return _uri(".jpg", _shrink(image, cv2.INTER_AREA), [cv2.IMWRITE_JPEG_QUALITY, 85])


def _png(labels: UInt8[np.ndarray, "h w"], space: LabelSpace) -> str:
    """Labels in their colours as a data URI; void is black."""
    return _uri(".png", space.colourise(_shrink(labels, cv2.INTER_NEAREST)), [])


def _shrink(array: UInt8[np.ndarray, "h w *c"], interpolation: int) -> UInt8[np.ndarray, "h2 w2 *c"]:
    h, w = array.shape[:2]
    if w <= PICTURE_WIDTH:
        return array
    return cv2.resize(array, (PICTURE_WIDTH, round(h * PICTURE_WIDTH / w)), interpolation=interpolation)


def _uri(suffix: str, image: UInt8[np.ndarray, "h w 3"], options: list[int]) -> str:
    data = cv2.imencode(suffix, image[..., ::-1], options)[1].tobytes()
    kind = "jpeg" if suffix == ".jpg" else "png"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


PICTURE_FILTERS: dict[str, Any] = {"percent": _percent, "points": _points, "jpeg": _jpeg, "png": _png, "hex": _hex}
"""How templates write scores, differences, colours and pictures."""
