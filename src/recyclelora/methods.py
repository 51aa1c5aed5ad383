"""What of a model is trained: the one owner of `requires_grad`, of adapters on a backbone, and of their files.

A row of `METHODS` a method. A trained method leaves in its folder what PEFT writes for its adapter, and in
`trained.safetensors` what else of the backbone was trained (all of it, biases, tokens).
"""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from recyclelora.backbone import Backbone
from recyclelora.errors import UserError
from recyclelora.recipe import AdapterSettings, Recipe
from recyclelora.rein import attach_rein, link_queries
from recyclelora.tuner import RecycleLoraConfig, RecycleLoraLayer
from recyclelora.tuner.model import target_names

TRAINED = "trained.safetensors"


Attach = Callable[[Backbone, AdapterSettings, bool, bool], None]
"""Makes a backbone learn in a method's way, with its settings; draws directions or not, from a cache or not."""


def attach(backbone: Backbone, recipe: Recipe, draw: bool = True, cache_factors: bool = False) -> None:
    """Freeze the backbone but for what the recipe's method trains, and put its adapters on it.

    Args:
        draw: factorise the weights; False where a checkpoint is loaded afterwards, which holds the directions.
        cache_factors: keep the factors of the weights in the cache folder, and take those that lie there.

    Raises:
        UserError: ranks larger than a layer, or targets that the model does not have.
    """
    backbone.requires_grad_(False)
    if recipe.method == "imported":
        return
    try:
        METHODS[recipe.method](backbone, recipe.adapter, draw, cache_factors)
    except (ValueError, TypeError) as error:
        raise UserError(f"{recipe.method} on {backbone.model_name}: {error}") from error


def link_head(backbone: Backbone, head: nn.Module, recipe: Recipe) -> None:
    """Make of the head what the recipe's method makes of it, once its adapters are on the backbone.

    Raises:
        UserError: as `recyclelora.rein.link_queries`.
    """
    if recipe.method == "rein" and recipe.head == "mask2former":
        link_queries(backbone.model, head)


def _attach_nothing(backbone: Backbone, settings: AdapterSettings, draw: bool, cache: bool) -> None:
    pass


def _attach_all(backbone: Backbone, settings: AdapterSettings, draw: bool, cache: bool) -> None:
    backbone.model.requires_grad_(True)


def _attach_recyclelora(backbone: Backbone, settings: AdapterSettings, draw: bool, cache: bool) -> None:
    given = settings.model_dump(
        include={"r_main", "r_sub", "alpha", "scaling", "decomposition", "target_modules", "layers_to_transform"}
    )
    backbone.model = get_peft_model(backbone.model, RecycleLoraConfig(**given, init_weights=draw, cache_factors=cache))


def _attach_minor_singular(backbone: Backbone, settings: AdapterSettings, draw: bool, cache: bool) -> None:
    minor = {"r_main": settings.rank, "r_sub": 0, "rank": None, "decomposition": "weighted-svd", "scaling": "rank"}
    _attach_recyclelora(backbone, settings.model_copy(update=minor), draw, cache)


def _attach_soma(backbone: Backbone, settings: AdapterSettings, draw: bool, cache: bool) -> None:
    """The minor singular directions of the last two thirds of the blocks, and the biases beside them."""
    blocks = settings.layers_to_transform or list(range(backbone.depth // 3, backbone.depth))
    _attach_minor_singular(backbone, settings.model_copy(update={"layers_to_transform": blocks}), draw, cache)
    for module in backbone.model.modules():
        if isinstance(module, RecycleLoraLayer) and getattr(module.base_layer, "bias", None) is not None:
            module.base_layer.bias.requires_grad_(True)


def _attach_rein(backbone: Backbone, settings: AdapterSettings, draw: bool, cache: bool) -> None:
    assert settings.tokens is not None
    assert settings.rank is not None
    attach_rein(backbone.model, settings.tokens, settings.rank)


def _lora(**options: Any) -> Attach:
    """PEFT's LoRA with some of its options."""

    def attach_lora(backbone: Backbone, settings: AdapterSettings, draw: bool, cache: bool) -> None:
        names = target_names(backbone.model, settings.target_modules, settings.layers_to_transform)
        sizes: dict[str, Any] = {"r": settings.rank, "lora_alpha": settings.alpha}
        backbone.model = get_peft_model(backbone.model, LoraConfig(target_modules=names, **sizes, **options))
        if options.get("init_lora_weights") in MUTATING:
            start: Any = tempfile.mkdtemp(prefix="recyclelora-")
            backbone.model.save_pretrained(start)
            backbone.adapter_start = start
            weakref.finalize(backbone, shutil.rmtree, start, ignore_errors=True)

    return attach_lora


MUTATING = ("pissa", "olora")
"""PEFT's initialisations that change the base weight; their adapters are saved as the difference to their start."""

METHODS: dict[str, Attach] = {
    "recyclelora": _attach_recyclelora,
    "recyclelora-main": _attach_recyclelora,
    "recyclelora-sub": _attach_recyclelora,
    "frozen": _attach_nothing,
    "full": _attach_all,
    "lora": _lora(),
    "dora": _lora(use_dora=True),
    "pissa": _lora(init_lora_weights="pissa"),
    "olora": _lora(init_lora_weights="olora"),
    "mica": _lora(init_lora_weights="mica"),
    "milora": _attach_minor_singular,
    "soma": _attach_soma,
    "rein": _attach_rein,
}


def scale_of(recipe: Recipe) -> float | None:
    """What the method's update is multiplied by; None where it has no such factor."""
    settings = recipe.adapter
    if settings.alpha is None or recipe.method in ("frozen", "full", "imported"):
        return None
    if settings.rank is not None:
        return settings.alpha / settings.rank
    return RecycleLoraConfig(**settings.model_dump(include={"r_main", "r_sub", "alpha", "scaling"})).scale


def save_trained(backbone: Backbone, folder: Path) -> None:
    """Write the adapter as a PEFT folder, and what else of the backbone was trained; nothing where nothing was."""
    extra = {_plain_name(name): value for name, value in backbone.model.named_parameters() if _is_extra(name, value)}
    if isinstance(backbone.model, PeftModel):
        start: Any = getattr(backbone, "adapter_start", None)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*changes the base weights of the model")  # it is converted
            backbone.model.save_pretrained(str(folder), path_initial_model_for_weight_conversion=start)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty form of a model card
    if extra:
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f"{TRAINED}.part"
        save_file({name: value.detach().cpu().contiguous() for name, value in extra.items()}, unfinished)
        os.replace(unfinished, folder / TRAINED)


def _is_extra(name: str, parameter: Tensor) -> bool:
    """Trained, and not among what PEFT saves."""
    return parameter.requires_grad and "recycle_" not in name and ".lora_" not in name


def _plain_name(name: str) -> str:
    """The name of a parameter of the base model, which PEFT puts inside others."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def merge_saved(backbone: Backbone, recipe: Recipe, folder: Path) -> None:
    """Put what `save_trained` wrote back, adapters merged into the weights; nothing where the method trains none.

    Raises:
        UserError: a file is missing or damaged, or was made for another model.
    """
    if recipe.method in ("frozen", "imported"):
        return
    if not folder.is_dir():
        raise UserError(f"{folder}: the adapter of this {recipe.method} run is missing; restore it or train again")
    try:
        if recipe.method == "rein":
            METHODS["rein"](backbone, recipe.adapter, False, False)
        elif recipe.method != "full":
            backbone.model = PeftModel.from_pretrained(backbone.model, str(folder)).merge_and_unload()
        _load_extra(backbone.model, folder / TRAINED, recipe.method)
    except (RuntimeError, ValueError, KeyError, TypeError, OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{folder}: no adapter for {backbone.model_name} ({reason}); restore it or train again"
        ) from error


def _load_extra(model: nn.Module, file: Path, method: str) -> None:
    state = load_file(file) if file.is_file() or method in ("full", "rein", "soma") else {}
    needed = {name for name, _ in model.named_parameters() if method == "full" or "rein_" in name}
    strange = sorted((needed - state.keys()) | set(model.load_state_dict(state, strict=False).unexpected_keys))
    if strange:
        raise ValueError(f"{file.name} and the model do not have the same weights: {', '.join(strange[:3])}")
