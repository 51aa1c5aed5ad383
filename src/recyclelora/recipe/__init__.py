"""A recipe: everything that defines a training, as a short YAML file over typed defaults."""

from recyclelora.recipe.reading import changed, make_recipe, put, read_recipe, read_value
from recyclelora.recipe.settings import (
    AugmentSettings,
    BackboneSettings,
    EvaluationSettings,
    OptimSettings,
    RareClassSettings,
    Recipe,
    SourceSettings,
)

__all__ = [
    "AugmentSettings",
    "BackboneSettings",
    "EvaluationSettings",
    "OptimSettings",
    "RareClassSettings",
    "Recipe",
    "SourceSettings",
    "changed",
    "make_recipe",
    "put",
    "read_recipe",
    "read_value",
]
