"""The model of a recipe, untrained.

recipe --> backbone with its base weights --> the method's adapters on it --> head --> Segmenter
"""

from __future__ import annotations

import torch

from recyclelora.data.opening import parse_spec
from recyclelora.errors import UserError
from recyclelora.methods import get_method
from recyclelora.models.backbone import Backbone, pyramid_indices
from recyclelora.models.heads import get_head
from recyclelora.models.plan import multiples_near
from recyclelora.models.segmenter import Segmenter
from recyclelora.recipe import Recipe
from recyclelora.runs.run import Run


def build(recipe: Recipe, classes: int, draw: bool = True, cache_factors: bool = False) -> Segmenter:
    """The model of a recipe, with its method's adapters at their start; the same for the same seed.

    Args:
        draw: False skips the factorisation, because a checkpoint is loaded afterwards.
        cache_factors: as in `recyclelora.methods.base.Method.attach`.

    Raises:
        UserError: as `recyclelora.models.backbone.Backbone` and `Method.attach`; a crop that is not a multiple of the
            patch, or a window that does not fit the recipe's targets.
    """
    segmenter = bare(recipe, classes)
    _check_sizes(recipe, segmenter.backbone)
    method = get_method(recipe.method)
    method.attach(segmenter.backbone, recipe.adapter, draw, cache_factors)
    method.link_head(segmenter.backbone, segmenter.head)
    if recipe.backbone.grad_checkpointing:
        segmenter.backbone.set_grad_checkpointing()
    if recipe.compile:
        segmenter.backbone.compile()
        segmenter.head.compile()
    return segmenter


def kept_names(segmenter: Segmenter, method: str) -> set[str]:
    """What a checkpoint holds: the head, the trained weights, and the factors that the adapters started from."""
    trained = {name for name, parameter in segmenter.named_parameters() if parameter.requires_grad}
    is_drawn = get_method(method).is_drawn
    return {name for name in segmenter.state_dict() if name in trained or name.startswith("head.") or is_drawn(name)}


def _check_sizes(recipe: Recipe, backbone: Backbone) -> None:
    if recipe.crop % backbone.patch_size:
        raise UserError(
            f"recipe: crop {recipe.crop} is not a multiple of the patch {backbone.patch_size} of "
            f"{backbone.model_name}; nearest: {multiples_near(recipe.crop, backbone.patch_size)}"
        )
    for dataset in {parse_spec(target).name for target in recipe.targets} or {""}:
        recipe.evaluation.plan(dataset, recipe.crop, backbone.patch_size)


def bare(recipe: Recipe, classes: int, weights: str | None = None) -> Segmenter:
    """Backbone and head without adapters; random weights depend only on the recipe's seed.

    Args:
        weights: base weights to use instead of the recipe's.
    """
    torch.manual_seed(recipe.seed)
    backbone = _backbone(recipe, weights)
    torch.manual_seed(recipe.seed)
    try:
        head = get_head(recipe.head)(backbone.channels, classes, **recipe.head_args)
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"recipe: head {recipe.head} does not take head_args {recipe.head_args}: {reason}") from error
    return Segmenter(backbone, head)


def _backbone(recipe: Recipe, weights: str | None = None) -> Backbone:
    settings, head = recipe.backbone, get_head(recipe.head)
    return Backbone(
        settings.model,
        weights or settings.weights,
        indices=pyramid_indices if head.PYRAMID else None,
        norm=head.FINAL_NORM if settings.norm is None else settings.norm,
        model_args=settings.model_args,
        resample=settings.resample,
    )


def base_hash(recipe: Recipe) -> str:
    """SHA-256 of the base weights that a training of this recipe starts from.

    Raises:
        UserError: as `recyclelora.models.backbone.Backbone`.
    """
    return _backbone(recipe).weights_sha256


def base_of(run: Run, weights: str | None = None) -> Segmenter:
    """The model of a run before its training, on the CPU, with the head as it was initialised.

    Args:
        weights: where the base weights are now, if not where the recipe says.

    Raises:
        UserError: the base weights are missing, or are not those that the run was trained on.
    """
    segmenter = bare(run.recipe, len(run.space), weights)
    check_base(segmenter.backbone, run, weights or run.recipe.backbone.weights)
    return segmenter.eval().requires_grad_(False)


def check_base(backbone: Backbone, run: Run, weights: str) -> None:
    """Refuse base weights other than those of the run: an adapter only fits its own base."""
    found, expected = backbone.weights_sha256, run.info["weights_sha256"]
    if found != expected:
        raise UserError(
            f"{run.path}: trained on base weights {expected[:12]}…, but weights {weights!r} are {found[:12]}…; "
            "give the original weights"
        )
