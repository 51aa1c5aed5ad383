"""`merged`: the whole model without its adapters, whose backbone is a plain timm model.

DIR/backbone.safetensors    every weight of the backbone, by timm's names
    head.safetensors        the head
    recipe.yaml, run.json   what `recyclelora.load` needs; data and base weights without the folders that they lay in
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch

from recyclelora.data.opening import parse_spec
from recyclelora.exporting.trained import Scores, Trained
from recyclelora.models.backbone import Backbone
from recyclelora.recipe import Recipe
from recyclelora.runs.predictor import load


def write(trained: Trained, folder: Path) -> Scores:
    """Write the model as a run that needs no base weights; what is returned computes with the files."""
    model = copy.copy(trained.model)
    model.run = replace(model.run, recipe=without_places(model.run.recipe))
    saved = model.save(folder)
    return trained.scores(load(saved.path, device="cpu").segmenter)


def without_places(recipe: Recipe) -> Recipe:
    """The recipe for other people: no folders, because these name a computer and its user.

    `gtav=/data/gtav` becomes `gtav`, `town:folder=/data/town` becomes `town:folder=town`, and base weights of a
    file the file's name.
    """
    sources = [source.model_copy(update={"data": _without_root(source.data)}) for source in recipe.sources]
    weights = Path(recipe.backbone.weights).name
    backbone = recipe.backbone.model_copy(update={"weights": weights})
    targets = [_without_root(target) for target in recipe.targets]
    return recipe.model_copy(update={"sources": sources, "targets": targets, "backbone": backbone})


def _without_root(text: str) -> str:
    spec, left = parse_spec(text), text.partition("=")[0]
    return f"{left}={spec.root.resolve().name}" if spec.name == "folder" and spec.root else left


def timm_arguments(backbone: Backbone, model_args: dict[str, Any]) -> dict[str, Any] | None:
    """The arguments of `timm.create_model` for a model that has exactly the weights of the backbone.

    None if timm has no such model, because a method added modules that stay.
    """
    own = {name: value.shape for name, value in backbone.model.state_dict().items()}
    dynamic = {"dynamic_img_size": True} if getattr(backbone.model, "dynamic_img_size", False) else {}
    for pooling in ({}, {"global_pool": ""}):  # the second for a model whose pooling has weights
        arguments = {"num_classes": 0, **model_args, **dynamic, **pooling}
        with torch.device("meta"):
            plain = timm.create_model(backbone.model_name, **arguments)
        if {name: value.shape for name, value in plain.state_dict().items()} == own:
            return {"model_name": backbone.model_name, **arguments}
    return None
