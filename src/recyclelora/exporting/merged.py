"""`merged`: the whole model without its adapters, whose backbone is a plain timm model.

DIR/backbone.safetensors    every weight of the backbone, by timm's names
    head.safetensors        the head
    recipe.yaml, run.json   what `recyclelora.load` needs
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch

from recyclelora.exporting.trained import Scores, Trained
from recyclelora.models.backbone import Backbone
from recyclelora.runs.predictor import load


def write(trained: Trained, folder: Path) -> Scores:
    """Write the model as a run that needs no base weights; what is returned computes with the files."""
    saved = trained.model.save(folder)
    return trained.scores(load(saved.path, device="cpu").segmenter)


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
