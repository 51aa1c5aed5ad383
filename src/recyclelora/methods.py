"""What of a model is trained: the one owner of `requires_grad` and of the adapters on a backbone."""

from __future__ import annotations

from pathlib import Path

from peft import PeftModel, get_peft_model
from safetensors import SafetensorError

from recyclelora.backbone import Backbone
from recyclelora.errors import UserError
from recyclelora.recipe import Recipe
from recyclelora.tuner import RecycleLoraConfig


def attach(backbone: Backbone, recipe: Recipe, draw: bool = True, cache_factors: bool = False) -> None:
    """Freeze the backbone and put the adapters of the recipe's method on it.

    Args:
        draw: factorise the weights; False where a checkpoint is loaded afterwards, which holds the directions.
        cache_factors: keep the factors of the weights in the cache folder, and take those that lie there.

    Raises:
        UserError: ranks larger than a layer, or targets that the model does not have.
    """
    backbone.requires_grad_(False)
    if recipe.method == "recyclelora":
        config = RecycleLoraConfig(**recipe.adapter.model_dump(), init_weights=draw, cache_factors=cache_factors)
        try:
            backbone.model = get_peft_model(backbone.model, config)
        except (ValueError, TypeError) as error:
            raise UserError(f"adapter of {backbone.model_name}: {error}") from error


def save_adapter(backbone: Backbone, folder: Path) -> None:
    """Write the adapter as a PEFT folder; nothing where the method has none."""
    if isinstance(backbone.model, PeftModel):
        backbone.model.save_pretrained(str(folder))
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty form of a model card


def merge_saved(backbone: Backbone, recipe: Recipe, folder: Path) -> None:
    """Merge an adapter saved by `save_adapter` into the backbone's weights; nothing where the method has none.

    Raises:
        UserError: the adapter is missing or damaged, or was made for another model.
    """
    if recipe.method != "recyclelora":
        return
    if not folder.is_dir():
        raise UserError(f"{folder}: the adapter of this {recipe.method} run is missing; restore it or train again")
    try:
        model = PeftModel.from_pretrained(backbone.model, str(folder))
    except (RuntimeError, ValueError, KeyError, TypeError, OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{folder}: no adapter for {backbone.model_name} ({reason}); restore it or train again"
        ) from error
    backbone.model = model.merge_and_unload()
