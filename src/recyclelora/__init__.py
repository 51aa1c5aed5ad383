"""Segmentation models that hold up on domains nobody labelled: RecycleLoRA adapters for vision foundation models.

Each public name is loaded when it is first used, so that `import recyclelora` and the command line start fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from recyclelora import on_import

if TYPE_CHECKING:
    from recyclelora.adapter import RecycleLoraConfig, certificate, directions, param_groups, to_lora
    from recyclelora.data.opening import open_domain
    from recyclelora.errors import UserError
    from recyclelora.evaluation.evaluate import evaluate
    from recyclelora.exporting.export import export
    from recyclelora.published.importing import import_checkpoint
    from recyclelora.recipe import Recipe, make_recipe, read_recipe
    from recyclelora.runs.build import build
    from recyclelora.runs.predict import predict
    from recyclelora.runs.predictor import load
    from recyclelora.runs.segmentation import Segmentation
    from recyclelora.runs.summary import list_runs
    from recyclelora.study.analyze import analyze
    from recyclelora.study.compare import compare
    from recyclelora.training.estimate import estimate
    from recyclelora.training.train import train

__version__ = "0.1.0"

__all__ = [
    "Recipe", "RecycleLoraConfig", "Segmentation", "UserError", "__version__", "analyze", "build", "certificate",
    "compare", "directions", "estimate", "evaluate", "export", "import_checkpoint", "list_runs", "load", "make_recipe",
    "open_domain", "param_groups", "predict", "read_recipe", "to_lora", "train",
]  # fmt: skip

_HOMES = {
    "recyclelora.adapter": ("RecycleLoraConfig", "certificate", "directions", "param_groups", "to_lora"),
    "recyclelora.data.opening": ("open_domain",),
    "recyclelora.errors": ("UserError",),
    "recyclelora.evaluation.evaluate": ("evaluate",),
    "recyclelora.exporting.export": ("export",),
    "recyclelora.published.importing": ("import_checkpoint",),
    "recyclelora.recipe": ("Recipe", "make_recipe", "read_recipe"),
    "recyclelora.runs.build": ("build",),
    "recyclelora.runs.predict": ("predict",),
    "recyclelora.runs.predictor": ("load",),
    "recyclelora.runs.segmentation": ("Segmentation",),
    "recyclelora.runs.summary": ("list_runs",),
    "recyclelora.study.analyze": ("analyze",),
    "recyclelora.study.compare": ("compare",),
    "recyclelora.training.estimate": ("estimate",),
    "recyclelora.training.train": ("train",),
}
"""The module of each public name."""

on_import.install()


if not TYPE_CHECKING:  # otherwise a type checker would accept every name

    def __getattr__(name: str) -> Any:
        home = next((module for module, names in _HOMES.items() if name in names), None)
        if home is None:
            raise AttributeError(f"module 'recyclelora' has no attribute {name!r}")
        try:
            value = getattr(import_module(home), name)
        except ModuleNotFoundError as error:
            from recyclelora.errors import MissingExtraError

            raise MissingExtraError(f"recyclelora.{name}", error.name or str(error)) from error
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
