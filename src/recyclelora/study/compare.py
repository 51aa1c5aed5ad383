"""The verb `compare`: trains several methods with several seeds and puts their scores side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from recyclelora.data.opening import open_domain, parse_spec
from recyclelora.errors import UserError, did_you_mean
from recyclelora.evaluation.report import Example, take_examples
from recyclelora.evaluation.result import predict_as
from recyclelora.evaluation.scores import check_classes
from recyclelora.evaluation.targets import open_targets, seen_labels
from recyclelora.files import user_path, write_json
from recyclelora.methods import METHODS
from recyclelora.recipe import Recipe, changed, make_recipe, read_value
from recyclelora.runs.build import base_hash
from recyclelora.runs.run import Run
from recyclelora.study.cell import Cell, CellResult
from recyclelora.study.grid import run_grid, trained_model
from recyclelora.study.summary import UNSEEN, Comparison, summarise, write_comparison

SHARED = ("seed", "sources", "targets")
"""Settings that all variants share."""


@dataclass(frozen=True)
class Variant:
    """One row of a comparison: its name, and how its recipe differs from the common one."""

    name: str
    changes: Mapping[str, Any]

    def recipe(self, common: Recipe, seed: int) -> Recipe:
        """The common recipe with the changes of the variant; a new method brings its own defaults.

        Raises:
            UserError: a setting is unknown or shared by all variants, or a value has the wrong type.
        """
        for key in self.changes:
            if key.partition(".")[0] in SHARED:
                raise UserError(
                    f"variant {self.name}: {key} is the same for all that are compared; set it in the recipe, or give "
                    "seeds and targets to the comparison"
                )
        return make_recipe(changed(common.model_dump(), {**self.changes, "seed": seed}), f"variant {self.name}")


def variants_of(methods: Sequence[str], changes: Sequence[str] = ()) -> list[Variant]:
    """One variant per method; `changes` are `KEY=VALUE` for all of them, or `METHOD:KEY=VALUE` for one.

    Raises:
        UserError: a method is unknown or named twice, or a change has another form.
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
    variants: Variant | str | Sequence[Variant | str],
    seeds: Sequence[int],
    out: str | Path,
    targets: str | Sequence[str] = (),
    baseline: str | None = None,
    limit: int | None = None,
    jobs: int | None = None,
    pictures: int = 1,
    cluster: str | None = None,
) -> Comparison:
    """Train and score every variant with every seed into `out`, and write results.json and report.html there.

    Args:
        variants: rows of the comparison; a name stands for the method of this name with its own defaults.
        targets: as in `recyclelora.evaluate`; the recipe's if none are given.
        baseline: the variant that the others are compared to; the first if it is not given.
        limit: take this many images of each target, evenly spaced.
        jobs: trainings at a time, each in a process of its own; 0 makes them in this process. The default is 1, and on
            a cluster as many as it has GPUs, or machines if it has none.
        pictures: example pictures of each target on the page, of the first seed's models.
        cluster: train on the machines of a Ray cluster, "local", "auto" or HOST:PORT: see docs/scale.md.

    Raises:
        UserError: no variants, seeds or targets, an unknown baseline, files of something else in `out`, results of
            other base weights or images than those there now, and as `recyclelora.study.grid.run_grid`.
    """
    out = user_path(out)
    given = [variants] if isinstance(variants, Variant | str) else variants
    rows = [Variant(v, {"method": v}) if isinstance(v, str) else v for v in given]
    names = [variant.name for variant in rows]
    if not names or not seeds:
        raise UserError("nothing to compare: give one or more variants and seeds")
    baseline = baseline or names[0]
    if baseline not in names:
        raise UserError(f"--baseline {baseline}: none of {', '.join(names)}; {did_you_mean(baseline, names)}")
    targets = ([targets] if isinstance(targets, str) else list(targets)) or recipe.targets
    if not targets:
        raise UserError("no targets: give one with --target, as in --target streets:fog, or in the recipe")
    if UNSEEN in [parse_spec(text).label for text in targets]:
        raise UserError(f"target {UNSEEN}: the mean over targets is called so; give it another label, LABEL:NAME")
    for file in (out / "results.json", out / "report.html"):
        if file.exists() and not (out / "cells").is_dir():
            raise UserError(f"{file} is there, and not of a comparison; choose another --out")
    cells = [Cell(v.name, v.recipe(recipe, seed), tuple(targets), None, limit) for v in rows for seed in seeds]
    found = summarise(make_cells(cells, out, jobs, cluster), baseline, seen_labels(recipe, targets))
    write_json(out / "results.json", found.to_json())
    write_comparison(
        out / "report.html", f"{len(rows)} methods side by side", found, take_pictures(cells, out, pictures)
    )
    return found


def make_cells(
    cells: Sequence[Cell], out: Path, jobs: int | None = None, cluster: str | None = None
) -> list[CellResult]:
    """Train and score cells that share sources, base and targets; results that exist are read instead.

    Raises:
        UserError: data are missing or have other classes (before anything is trained); and as `run_grid`.
    """
    first = cells[0]
    first.recipe.check_sources()
    targets = open_targets(first.targets, first.split, first.limit)
    sources = [open_domain(source.data, "train", first.recipe.limit) for source in first.recipe.sources]
    for target in targets:  # an error now is better than one after hours
        check_classes(sources[0].train_space, target.domain)
    present = {f"images of target {target.domain.label}": target.domain.fingerprint() for target in targets}
    for source, domain in zip(first.recipe.sources, sources, strict=True):
        if not (source.images or first.recipe.validation):  # each seed has other images
            present[f"images of {domain.label}"] = domain.fingerprint()
    if first.recipe.backbone.weights != "random" and any((out / "cells").glob("*.json")):
        present["base weights"] = base_hash(first.recipe)
    return run_grid(cells, out, jobs, present=present, cluster=cluster)


def take_pictures(cells: Sequence[Cell], out: Path, count: int) -> dict[str, list[Example]]:
    """Example pictures of each target, predicted by the models of the first seed whose runs still exist."""
    examples: dict[str, list[Example]] = {}
    domains = [each.domain for each in open_targets(cells[0].targets, cells[0].split, cells[0].limit)]
    for cell in cells:
        run = out / "runs" / cell.name
        if not count or cell.recipe.seed != cells[0].recipe.seed or not Run(run, cell.recipe, {}).finished:
            continue
        model = trained_model(cell, run)
        for domain in domains:
            own = take_examples({cell.variant: predict_as(model, domain)}, domain, count)
            others = examples.get(domain.label, own)
            examples[domain.label] = [
                replace(one, predictions={**other.predictions, **one.predictions})
                for one, other in zip(own, others, strict=True)
            ]
    return examples
