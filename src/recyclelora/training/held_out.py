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
    trained, held = [], []
    for source, domain in zip(recipe.sources, domains, strict=True):
        spec = parse_spec(source.data)
        if _has_own(spec, recipe.targets):
            trained.append(domain)
            held.append(HeldOut(open_domain(spec, "val", settings.images), "val"))
        else:
            kept, left = _split(domain, settings, recipe.seed)
            trained.append(kept)
            held.append(HeldOut(left, "train"))
    return trained, held


def _has_own(spec: Spec, targets: Sequence[str]) -> bool:
    """Whether a source has a split `val` that no target is scored on."""
    scored = [target for target in map(parse_spec, targets) if same_domain(target, spec)]
    return "val" in splits_of(spec) and all(evaluated_split(target) != "val" for target in scored)


def _split(domain: Domain, settings: ValidationSettings, seed: int) -> tuple[Domain, Domain]:
    """The images of a domain without some that are drawn at random, and these, each in their order."""
    count = min(settings.images, max(1, int(settings.share * len(domain))))
    if count >= len(domain):
        raise UserError(
            f"{domain.label}: it has only {len(domain)} image, so none can be left out of training for the validation; "
            "add images, or leave out `validation`"
        )
    order = np.random.default_rng((seed, len(domain))).permutation(len(domain)).tolist()
    return domain.only(sorted(order[count:])), domain.only(sorted(order[:count]))
