"""The labelled images that a model is scored on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from recyclelora.data.domain import Domain
from recyclelora.data.opening import BENCHMARKS, Spec, evaluated_split, open_domain, parse_spec
from recyclelora.errors import UserError
from recyclelora.recipe import Recipe

Limit = int | Mapping[str, int] | None
"""How many images of each target are taken, evenly spaced: one number, or numbers by label; None takes all."""


@dataclass(frozen=True)
class Target:
    """Labelled images to score a model on: where they come from, which split, and the images."""

    spec: Spec
    split: str
    domain: Domain


def open_targets(texts: Sequence[str], split: str | None = None, limit: Limit = None) -> list[Target]:
    """The targets of these specifications.

    Args:
        split: of all of them; the one that each data set is usually scored on if it is not given.

    Raises:
        UserError: data that are not there, or two targets of one label.
    """
    specs = [parse_spec(text) for text in texts]
    labels = [spec.label for spec in specs]
    doubled = {label for label in labels if labels.count(label) > 1}
    if doubled:
        raise UserError(f"two targets are called {doubled.pop()!r}; give one a label, as in --target LABEL:NAME=ROOT")
    limits = limit if isinstance(limit, Mapping) else dict.fromkeys(labels, limit)
    splits = [split or evaluated_split(spec) for spec in specs]
    return [
        Target(spec, s, open_domain(spec, s, limits.get(spec.label))) for spec, s in zip(specs, splits, strict=True)
    ]


def seen_labels(recipe: Recipe, targets: Sequence[str]) -> list[str]:
    """Labels of the targets whose domain is a source of the recipe."""
    sources = [parse_spec(source.data) for source in recipe.sources]
    specs = [parse_spec(text) for text in targets]
    return [spec.label for spec in specs if any(same_domain(spec, source) for source in sources)]


def same_domain(one: Spec, other: Spec) -> bool:
    """Whether two specifications name the same domain; label, split and path do not matter.

    Folders of the user's own are compared by their path.
    """
    rows = [BENCHMARKS[spec.name].folder or spec.name for spec in (one, other)]
    if rows == ["folder", "folder"]:
        places = [spec.root and spec.root.resolve() for spec in (one, other)]
        return places[0] == places[1]
    return rows[0] == rows[1] and (None in (one.domain, other.domain) or one.domain == other.domain)
