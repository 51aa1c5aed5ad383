"""The page of an evaluation: tables, plots, and pictures with the predictions of the models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from recyclelora.data.domain import Domain
from recyclelora.data.labels import LabelSpace
from recyclelora.evaluation.result import Evaluation, predict_as
from recyclelora.evaluation.scores import Predict, Scores, mean_miou, scored_prediction
from recyclelora.pages import plots
from recyclelora.pages.page import write_page
from recyclelora.pages.pictures import PICTURE_FILTERS, small_labels, small_photo
from recyclelora.pages.tables import print_table, say
from recyclelora.recipe import Recipe
from recyclelora.runs.facts import read_last_steps, read_metrics
from recyclelora.runs.run import Run


@dataclass(frozen=True)
class Model:
    """One model on the page: its name, its scores, how it was trained, and the metrics of its training."""

    name: str
    scores: Sequence[Scores]
    facts: Mapping[str, str] = field(default_factory=dict)
    metrics: Path | None = None

    @classmethod
    def of(cls, name: str, run: Run, scores: Sequence[Scores]) -> Model:
        """The model of a run."""
        return cls(name, scores, run_facts(run), run.metrics if run.metrics.is_file() else None)


@dataclass(frozen=True)
class Example:
    """One image with its ground truth and the prediction of each model, all in the classes of `space`."""

    name: str
    space: LabelSpace
    image: UInt8[np.ndarray, "h w 3"]
    truth: UInt8[np.ndarray, "h w"]
    predictions: Mapping[str, UInt8[np.ndarray, "h w"]]


def take_examples(models: Mapping[str, Predict], domain: Domain, count: int) -> list[Example]:
    """`count` images of a domain, evenly spaced, with the predictions of each model, at the width of pages."""
    examples = []
    for i in range(min(count, len(domain))):
        index = (2 * i + 1) * len(domain) // (2 * min(count, len(domain)))
        image, truth = domain.read_scored(index)
        predictions = {
            name: small_labels(scored_prediction(predict, domain, image)) for name, predict in models.items()
        }
        small = small_photo(image), small_labels(truth)
        examples.append(Example(domain.name(index), domain.score_space, *small, predictions))
    return examples


def run_facts(run: Run) -> dict[str, str]:
    """How a run was trained, for a table."""
    recipe, info = run.recipe, run.info
    last = read_last_steps(run.metrics, 1)
    if imported := info.get("imported"):
        return {
            "method": recipe.method,
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
        + (f", sub × {recipe.optim.sub_lr_ratio:g}" if getattr(recipe.adapter, "r_sub", 0) else "")
        + (f", head {recipe.optim.head_lr:g}" if recipe.optim.head_lr else ""),
        "seed": str(recipe.seed),
        "training time": f"{last[-1]['seconds']:.0f} s" if last else "–",
    }


def _adapter_facts(recipe: Recipe) -> str:
    settings = {key: value for key, value in recipe.adapter.model_dump().items() if value is not None}
    facts = (f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in settings.items())
    return ", ".join(facts) or "–"


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
        protocol: the name of the protocol of all scores.
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
    steps = read_metrics(metrics)
    return [step["step"] for step in steps], [step["loss"] for step in steps]


def _legend(examples: Mapping[str, Sequence[Example]]) -> dict[str, LabelSpace]:
    """The classes and their colours, by the labels of the targets that share them."""
    spaces: dict[LabelSpace, list[str]] = {}
    for label, pictures in examples.items():
        if pictures:
            spaces.setdefault(pictures[0].space, []).append(label)
    return {", ".join(labels): space for space, labels in spaces.items()}


def write_evaluation(page: Path, result: Evaluation, seen: Sequence[str], pictures: int) -> None:
    """Write the page of an evaluation with this many pictures of each target; `seen` as in `write_report`."""
    run = result.model.run
    predictors = {each.model.name: each.model for each in result.all}
    examples = {
        each.spec.label: take_examples(
            {name: predict_as(model, each.domain) for name, model in predictors.items()}, each.domain, pictures
        )
        for each in result.targets
    }
    trained = ", ".join(source["label"] for source in run.info["sources"])
    scored = ", ".join(f"{each.spec.label} ({each.split})" for each in result.targets)
    made = f"trained on {trained}" if trained else f"from the file {run.info['imported']['file']}"
    lead = f"{run.recipe.method} {made}, scored on {scored}."
    models = [Model.of(each.model.name, each.model.run, each.scores) for each in result.all]
    notes = [] if run.finished else [f"The training is not finished: step {run.step} of {run.recipe.steps} is scored."]
    if result.beside is not None:
        notes.append(
            "The result is the model of the last step. The one named best-source is that of the step with the best "
            "mIoU on held-out images of the source, which is no target."
        )
    write_report(page, f"Evaluation of {run.path.name}", lead, result.protocol, models, examples, seen, notes)


def print_scores(models: Mapping[str, Sequence[Scores]], protocol: str) -> None:
    """Print mIoU in percent, one row per model, one column per target."""
    say(f"mIoU (%), protocol {protocol}")
    labels = [score.label for score in next(iter(models.values()))]
    values = {name: [*(score.miou for score in row), mean_miou(row)] for name, row in models.items()}
    rows = [[name, *("–" if v is None else f"{100 * v:.2f}" for v in row)] for name, row in values.items()]
    print_table(["model", *labels, "mean of all"], rows)
