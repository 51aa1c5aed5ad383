"""Methods side by side: means over seeds, paired differences with intervals, costs; from the cells of a grid."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from recyclelora import plots
from recyclelora.data.benchmarks import open_domain, parse_spec
from recyclelora.data.domain import Domain
from recyclelora.errors import UserError, did_you_mean
from recyclelora.evaluation.bootstrap import difference_interval
from recyclelora.evaluation.evaluate import check_classes
from recyclelora.grid import Cell, run_grid, trained_model
from recyclelora.methods import METHODS
from recyclelora.pages import write_page
from recyclelora.recipe import Recipe, changed, make_recipe, read_value
from recyclelora.report import PICTURE_FILTERS, Example, take_examples
from recyclelora.results import open_targets, predict_as, same_domain
from recyclelora.run import base_hash, write_json

UNSEEN = "unseen"
"""The mean over targets of domains that were not trained on."""
SHARED = ("seed", "sources", "targets")
"""Settings that no variant has for itself."""


@dataclass(frozen=True)
class Variant:
    """One row of a comparison: a name, and how its recipe differs from the common one."""

    name: str
    changes: Mapping[str, Any]

    def recipe(self, common: Recipe, seed: int) -> Recipe:
        """The common recipe with the variant's changes; its method brings its own adapter's defaults.

        Raises:
            UserError: an unknown setting, a value of a wrong kind, or one that all variants share.
        """
        for key in self.changes:
            if key.partition(".")[0] in SHARED:
                raise UserError(
                    f"variant {self.name}: {key} is the same for all that are compared; set it in the recipe, or give "
                    "seeds and targets to the comparison"
                )
        return make_recipe(changed(common.model_dump(), {**self.changes, "seed": seed}), f"variant {self.name}")


def variants_of(methods: Sequence[str], changes: Sequence[str] = ()) -> list[Variant]:
    """A variant a method; `changes` are `KEY=VALUE` for all of them, or `METHOD:KEY=VALUE` for one.

    Raises:
        UserError: an unknown method, one named twice, or a change of another form.
    """
    for method in methods:
        if method not in METHODS:
            raise UserError(f"--methods: unknown method {method!r}; {did_you_mean(method, METHODS)}")
    if len(set(methods)) < len(methods):
        raise UserError(f"--methods {','.join(methods)}: a method is named twice")
    settings: dict[str, dict[str, Any]] = {method: {"method": method} for method in methods}
    for text in changes:
        key, equals, value = text.partition("=")
        owner, colon, inner = key.partition(":")
        if (inner if colon else key) == "method":
            raise UserError(f"--set {text}: methods are those of --methods")
        if not equals or (colon and owner not in settings):
            raise UserError(
                f"--set {text}: expected KEY=VALUE or METHOD:KEY=VALUE with one of the methods {', '.join(methods)}"
            )
        for method in [owner] if colon else methods:
            settings[method][inner if colon else key] = read_value(key, value)
    return [Variant(method, values) for method, values in settings.items()]


def compare(
    recipe: Recipe,
    variants: Sequence[Variant],
    seeds: Sequence[int],
    out: Path,
    targets: Sequence[str] = (),
    baseline: str | None = None,
    limit: int | None = None,
    jobs: int = 1,
    pictures: int = 1,
) -> dict[str, Any]:
    """Train and score every variant with every seed into `out`, and write results.json and report.html there.

    Args:
        targets: as in `recyclelora evaluate`; the recipe's if not given.
        baseline: the variant that the others are compared to; the first if not given.
        limit: take so many images of each target, evenly spaced.
        jobs: trainings at a time.
        pictures: example pictures a target on the page, of the first seed's models.

    Raises:
        UserError: no targets, an unknown baseline, files of something else in `out`, results of other base weights or
            images than those there now, and as `recyclelora.grid.run_grid`.
    """
    names = [variant.name for variant in variants]
    baseline = baseline or names[0]
    if baseline not in names:
        raise UserError(f"--baseline {baseline}: none of {', '.join(names)}; {did_you_mean(baseline, names)}")
    targets = list(targets) or recipe.targets
    if not targets:
        raise UserError("no targets: give one with --target, as in --target streets:fog, or in the recipe")
    if UNSEEN in [parse_spec(text).label for text in targets]:
        raise UserError(f"target {UNSEEN}: the mean over targets is called so; give it another label, LABEL:NAME")
    for file in (out / "results.json", out / "report.html"):
        if file.exists() and not (out / "cells").is_dir():
            raise UserError(f"{file} is there, and not of a comparison; choose another --out")
    opened = open_targets(targets, None, limit)
    cells = [
        Cell(variant.name, variant.recipe(recipe, seed), tuple(targets), None, limit)
        for variant in variants
        for seed in seeds
    ]
    first = cells[0].recipe  # the images and base of all, changes for all methods included
    sources = [open_domain(source.data, "train", first.limit) for source in first.sources]
    for target in opened:  # an error now is better than one after hours
        check_classes(sources[0].train_space, target.domain)
    present = {f"images of target {target.domain.label}": target.domain.fingerprint() for target in opened}
    for source, domain in zip(first.sources, sources, strict=True):
        if not source.images:
            present[f"images of {domain.label}"] = domain.fingerprint()
    if first.backbone.weights != "random" and any((out / "cells").glob("*.json")):
        present["base weights"] = base_hash(first)
    summary = summarise(run_grid(cells, out, jobs, present=present), baseline, seen_labels(recipe, targets))
    write_json(out / "results.json", summary)
    examples = _examples(cells, out, [target.domain for target in opened], pictures)
    write_comparison(out / "report.html", f"{len(variants)} methods side by side", summary, examples)
    return summary


def seen_labels(recipe: Recipe, targets: Sequence[str]) -> list[str]:
    """Labels of the targets whose domain is a source."""
    sources = [parse_spec(source.data) for source in recipe.sources]
    specs = [parse_spec(text) for text in targets]
    return [spec.label for spec in specs if any(same_domain(spec, source) for source in sources)]


def summarise(cells: Sequence[Mapping[str, Any]], baseline: str, seen: Sequence[str]) -> dict[str, Any]:
    """Means and deviations over seeds, and differences to the baseline with 95 % intervals, of what a grid returned.

    A variant with a training that diverged has no scores, and says so.
    """
    by_variant: dict[str, list[Mapping[str, Any]]] = {}
    for cell in cells:
        by_variant.setdefault(cell["variant"], []).append(cell)
    first = next((cell for cell in cells if "targets" in cell), None)
    labels = [target["label"] for target in first["targets"]] if first else []
    unseen = [label for label in labels if label not in seen]
    columns = {label: [label] for label in labels} | ({UNSEEN: unseen} if unseen else {})
    rows = {}
    for name, own in by_variant.items():
        row: dict[str, Any] = {"seeds": [cell["seed"] for cell in own], "scale": own[0]["scale"]}
        settings = own[0]["settings"]
        row["lr"] = (settings["method"] == "frozen" and settings.get("optim.head_lr")) or settings["optim.lr"]
        errors = [cell["error"] for cell in own if "error" in cell]
        if errors:
            rows[name] = row | {"error": errors[0]}
            continue
        row |= {key: _cost(own, key) for key in ("step_seconds", "peak_gib")}
        row["parameters"] = own[0]["parameters"]
        row["scores"] = {column: _spread(own, group) for column, group in columns.items()}
        if name != baseline:
            row["difference"] = {
                column: _difference(own, by_variant.get(baseline, ()), group) for column, group in columns.items()
            }
        rows[name] = row
    return {
        "baseline": baseline, "seen": list(seen), "columns": list(columns), "variants": rows,
        "images": {target["label"]: target["images"] for target in first["targets"]} if first else {},
        "protocol": first["protocol"] if first else "",
    }  # fmt: skip


def _cost(cells: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [cell[key] for cell in cells if cell[key] is not None]
    return statistics.median(values) if values else None


def _miou(cell: Mapping[str, Any], labels: Sequence[str]) -> float:
    values = [target["miou"] for target in cell["targets"] if target["label"] in labels]
    if None in values:
        raise UserError(f"target {', '.join(labels)}: no pixel has a class that is scored; leave it out")
    return statistics.fmean(values)


def _resampled(cell: Mapping[str, Any], labels: Sequence[str]) -> list[list[float | None]]:
    return [target["resampled"] for target in cell["targets"] if target["label"] in labels]


def _spread(cells: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> dict[str, Any]:
    values = [_miou(cell, labels) for cell in cells]
    return {
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "values": values,
    }


def _difference(
    ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]], labels: Sequence[str]
) -> dict[str, float | int] | None:
    """Mean over the seeds that both have, their number, and the mean's interval."""
    pairs = [
        (own, other)
        for own in ours
        for other in theirs
        if own["seed"] == other["seed"] and "error" not in own and "error" not in other
    ]
    if not pairs:
        return None
    mean = statistics.fmean(_miou(own, labels) - _miou(other, labels) for own, other in pairs)
    low, high = difference_interval(
        mean, [_resampled(own, labels) for own, _ in pairs], [_resampled(other, labels) for _, other in pairs]
    )
    return {"mean": mean, "low": low, "high": high, "seeds": len(pairs)}


def _examples(cells: Sequence[Cell], out: Path, domains: Sequence[Domain], count: int) -> dict[str, list[Example]]:
    """Pictures of each target with the first seed's models, where their runs are there."""
    examples: dict[str, list[Example]] = {}
    for cell in cells:
        run = out / "runs" / cell.name
        if not count or cell.recipe.seed != cells[0].recipe.seed or not (run / "head.safetensors").is_file():
            continue
        model = trained_model(cell, run)
        for domain in domains:
            own = take_examples({cell.variant: predict_as(model, domain)}, domain, count)
            others = examples.get(domain.label, own)
            examples[domain.label] = [
                replace(one, predictions={**one.predictions, **other.predictions})
                for one, other in zip(others, own, strict=True)
            ]
    return examples


def draw_comparison(summary: Mapping[str, Any]) -> tuple[str, str]:
    """Scores, a dot a seed, and differences to the baseline on what is unseen, else on the first target; as SVG."""
    scored = {name: row for name, row in summary["variants"].items() if "scores" in row}
    column = UNSEEN if UNSEEN in summary["columns"] else (summary["columns"] or [""])[0]
    differences = {name: row.get("difference", {}).get(column) for name, row in scored.items()}
    return (
        plots.spread_dots({name: row["scores"] for name, row in scored.items()}, summary["columns"]),
        plots.difference_forest({name: d for name, d in differences.items() if d}, column, summary["baseline"]),
    )


def write_comparison(
    path: Path,
    title: str,
    summary: Mapping[str, Any],
    examples: Mapping[str, Sequence[Example]] | None = None,
) -> Path:
    """The page of a comparison; an existing file is replaced."""
    scored = {name: row for name, row in summary["variants"].items() if "scores" in row}
    differences = {name: row["difference"] for name, row in scored.items() if row.get("difference")}
    dots, forest = draw_comparison(summary)
    return write_page(
        path,
        "compare.html.j2",
        PICTURE_FILTERS,
        title=title,
        summary=summary,
        scored=scored,
        diverged={name: row["error"] for name, row in summary["variants"].items() if "error" in row},
        best={
            column: max((row["scores"][column]["mean"] for row in scored.values()), default=None)
            for column in summary["columns"]
        },
        differences=differences,
        dots=dots,
        forest=forest,
        examples=examples or {},
    )
