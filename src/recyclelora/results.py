"""A trained model scored on labelled data sets, and the file of its scores with all that they depend on.

The model is that of the last step: none is chosen on the data it is scored on.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recyclelora.data.benchmarks import BENCHMARKS, Spec, open_domain, parse_spec
from recyclelora.data.domain import Domain
from recyclelora.errors import UserError
from recyclelora.evaluation.evaluate import Predict, TargetScore, check_classes, mean_miou, score_domain
from recyclelora.report import Model, run_facts, take_examples, write_report
from recyclelora.run import Predictor, versions, write_json


@dataclass(frozen=True)
class Target:
    """Labelled images to score a model on: where they come from, which split, and the images."""

    spec: Spec
    split: str
    domain: Domain


def open_targets(texts: Sequence[str], split: str | None = None, limit: int | None = None) -> list[Target]:
    """The targets of these specifications.

    Args:
        split: of all of them; the one that each data set is usually scored on if not given.
        limit: take this many images of each, evenly spaced.

    Raises:
        UserError: data that are not there, or two targets of one label.
    """
    specs = [parse_spec(text) for text in texts]
    labels = [spec.label for spec in specs]
    doubled = {label for label in labels if labels.count(label) > 1}
    if doubled:
        raise UserError(f"two targets are called {doubled.pop()!r}; give one a label, as in --target LABEL:NAME=ROOT")
    splits = [split or BENCHMARKS[spec.name].evaluated for spec in specs]
    return [Target(spec, s, open_domain(spec, s, limit)) for spec, s in zip(specs, splits, strict=True)]


def score_targets(model: Predictor, targets: Sequence[Target], file: Path, limit: int | None = None) -> dict[str, Any]:
    """Score a model on each target, and write the results file after each; what it holds in the end is returned.

    Raises:
        UserError: before anything is scored, for classes other than the model's or a window that does not fit; then
            for images that cannot be read: the scores of the targets before stay in the file.
    """
    for target in targets:
        check_classes(model.space, target.domain)
        model.plan(target.domain.dataset)
    scores: list[TargetScore] = []
    for target in targets:
        scores.append(score_domain(predict_as(model, target.domain), model.space, target.domain))
        file.with_suffix(".html").unlink(missing_ok=True)  # the page of an earlier result
        write_json(file, describe(model, targets, scores, limit))
    return describe(model, targets, scores, limit)


def predict_as(model: Predictor, domain: Domain) -> Predict:
    """The model's prediction by the plan for the data set of a domain."""
    return functools.partial(model.predict, dataset=domain.dataset)


def protocol_name(model: Predictor, targets: Sequence[Target]) -> str:
    """The protocol with what departs from it; where that differs between targets, each way once."""
    return " / ".join(dict.fromkeys(model.plan(target.domain.dataset).name for target in targets))


def describe(
    model: Predictor, targets: Sequence[Target], scores: Sequence[TargetScore], limit: int | None
) -> dict[str, Any]:
    """What a results file holds: scores, and all that they depend on. There is no mean before all are scored."""
    recipe = model.run.recipe
    complete = len(scores) == len(targets)
    return {
        "run": model.run.path.name,
        "method": model.run.method,
        "complete": complete,
        "protocol": {
            "name": protocol_name(model, targets),
            "flip": model.evaluation.flip,
            "scales": model.evaluation.scales,
            "limit": limit,
            "targets": {target.spec.label: _protocol(model, target) for target in targets},
        },
        "step": model.run.step,
        "checkpoint": "last",
        "weights_sha256": model.run.info["weights_sha256"],
        "trained_sha256": model.trained_sha256(),
        "mean_miou": mean_miou(scores) if complete else None,
        "targets": [score.to_json() for score in scores],
        "recipe": recipe.model_dump(mode="json"),
        "versions": versions(),
    }


def _protocol(model: Predictor, target: Target) -> dict[str, Any]:
    plan = model.plan(target.domain.dataset)
    return {
        "data": target.spec.name,
        "split": target.split,
        "name": plan.name,
        "size": plan.box,
        "window": plan.window,
        "stride": plan.stride,
    }


def write_page(
    model: Predictor, targets: Sequence[Target], result: Mapping[str, Any], page: Path, pictures: int
) -> None:
    """The page of a results file, with so many pictures of each target."""
    run, name = model.run, model.run.path.name
    sources = [parse_spec(source.data) for source in run.recipe.sources]
    seen = [each.spec.label for each in targets if any(same_domain(each.spec, source) for source in sources)]
    examples = {
        each.spec.label: take_examples({name: predict_as(model, each.domain)}, each.domain, pictures)
        for each in targets
    }
    scores = [TargetScore(**score) for score in result["targets"]]
    one = Model(name, scores, run_facts(run), run.metrics if run.metrics.is_file() else None)
    trained = ", ".join(source["label"] for source in run.info["sources"])
    scored = ", ".join(f"{each.spec.label} ({each.split})" for each in targets)
    made = f"trained on {trained}" if trained else f"from the file {run.info['imported']['file']}"
    lead = f"{result['method']} {made}, scored on {scored}."
    write_report(page, f"Evaluation of {name}", lead, result["protocol"]["name"], [one], examples, seen)


def same_domain(one: Spec, other: Spec) -> bool:
    """Whether two specifications speak of the same domain, whatever its label, split or place on the disk.

    Of the user's own folders only the place tells.
    """
    rows = [BENCHMARKS[spec.name].folder or spec.name for spec in (one, other)]
    if rows == ["folder", "folder"]:
        places = [spec.root and spec.root.resolve() for spec in (one, other)]
        return places[0] == places[1]
    return rows[0] == rows[1] and (None in (one.domain, other.domain) or one.domain == other.domain)
