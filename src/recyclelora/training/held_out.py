"""The images that a training is validated on: of its sources, but not trained on, and never those of a target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recyclelora.data.domain import Domain
from recyclelora.data.opening import Spec, evaluated_split, open_domain, parse_spec, splits_of
from recyclelora.errors import UserError
from recyclelora.evaluation.targets import same_domain
from recyclelora.recipe import Recipe
from recyclelora.recipe.settings import ValidationSettings


@dataclass(frozen=True)
class HeldOut:
    """Images of one source, and the split that they are from; in the split `train` they are left out of training."""

    domain: Domain
    split: str


def hold_out(recipe: Recipe, domains: Sequence[Domain]) -> tuple[list[Domain], list[HeldOut]]:
    """The images to train on, and those to validate on; all are trained on if the recipe has no validation.

    Args:
        domains: the images of each source's split `train`.

    Raises:
        UserError: a source has too few images, or its split `val` cannot be opened.
    """
    settings = recipe.validation
    if settings is None:
        return list(domains), []
    held = []
    for source, domain in zip(recipe.sources, domains, strict=True):
        spec = parse_spec(source.data)
        if _has_own(spec, recipe.targets):
            held.append(HeldOut(open_domain(spec, "val", settings.images), "val"))
        else:
            held.append(HeldOut(_share(domain, settings, recipe.seed), "train"))
    left_out = {each.domain.place(index) for each in held for index in range(len(each.domain))}
    return [_without(domain, left_out) for domain in domains], held  # one source may hold images of another


def _has_own(spec: Spec, targets: Sequence[str]) -> bool:
    """Whether a source has a split `val` that no target is scored on."""
    scored = [target for target in map(parse_spec, targets) if same_domain(target, spec)]
    return "val" in splits_of(spec) and all(evaluated_split(target) != "val" for target in scored)


def _share(domain: Domain, settings: ValidationSettings, seed: int) -> Domain:
    """Some images of a domain, drawn at random, in their order."""
    count = min(settings.images, max(1, int(settings.share * len(domain))))
    order = np.random.default_rng((seed, len(domain))).permutation(len(domain)).tolist()
    return domain.only(sorted(order[:count]))


def _without(domain: Domain, left_out: set[str]) -> Domain:
    kept = [index for index in range(len(domain)) if domain.place(index) not in left_out]
    if not kept:
        raise UserError(
            f"{domain.label}: all of its images ({len(domain)}) would be left out of training for the validation; add "
            "images, or leave out `validation`"
        )
    return domain if len(kept) == len(domain) else domain.only(kept)
