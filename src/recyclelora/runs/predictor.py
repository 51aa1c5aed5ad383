"""The trained model of a run, ready for use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from safetensors import SafetensorError
from safetensors.torch import load_model
from torch import nn

from recyclelora.errors import UserError
from recyclelora.methods import get_method
from recyclelora.models.plan import Plan
from recyclelora.models.segmenter import Segmenter
from recyclelora.models.weights import nonfinite, weights_hash
from recyclelora.recipe import make_recipe
from recyclelora.runs.build import bare, base_of
from recyclelora.runs.run import Run, check_empty, open_finished


class Predictor:
    """A trained model: adapters are merged into the weights, gradients are off, and the recipe says how to evaluate."""

    def __init__(self, segmenter: Segmenter, run: Run) -> None:
        self.segmenter = segmenter.eval().requires_grad_(False)
        self.run = run
        self.space = run.space
        self.evaluation = run.recipe.evaluation

    def with_evaluation(self, **changes: Any) -> Predictor:
        """The same model with other evaluation settings; settings that are None stay as they are.

        Raises:
            UserError: a setting is unknown, or a value has the wrong type.
        """
        made = {name: value for name, value in changes.items() if value is not None}
        values = {**self.run.recipe.model_dump(), "evaluation": {**self.evaluation.model_dump(), **made}}
        other = Predictor(self.segmenter, self.run)
        other.evaluation = make_recipe(values, "settings").evaluation
        return other

    def plan(self, dataset: str = "") -> Plan:
        """Window, stride and size for the images of a data set, a row of `BENCHMARKS`.

        Raises:
            UserError: the window is not a multiple of the patch, or the stride leaves gaps.
        """
        return self.evaluation.plan(dataset, self.run.recipe.crop, self.segmenter.backbone.patch_size)

    def predict(self, image: UInt8[np.ndarray, "h w 3"], dataset: str = "") -> UInt8[np.ndarray, "h w"]:
        """Train ids of an RGB image of any size, at its own size; `dataset` as in `plan`.

        Raises:
            ValueError: the image is not uint8 of shape (height, width, 3).
            UserError: as `plan`, or the model gives NaN or infinity for the image.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ValueError(f"expected a uint8 RGB image (height, width, 3), got {image.dtype} {image.shape}")
        plan = self.plan(dataset)
        try:
            return self.segmenter.predict(image, plan)
        except UserError as error:
            raise UserError(f"{self.run.path}: {error}") from error

    def save(self, folder: str | Path, overwrite: bool = False) -> Run:
        """Write the model with its merged backbone, as a run that loads without base weights.

        Raises:
            UserError: the folder holds something and `overwrite` is not set, or it is the run's own.
        """
        folder = Path(folder)
        if folder.resolve() == self.run.path.resolve():
            raise UserError(f"{folder}: this is the run itself; choose another folder for the merged model")
        check_empty(folder, overwrite)
        state = self.segmenter.backbone.model.state_dict()
        facts = {
            "step": self.run.step,
            "trained_sha256": self.run.trained_sha256,
            "backbone_sha256": weights_hash(state),
        }
        recipe = self.run.recipe.model_copy(update={"evaluation": self.evaluation})
        saved = Run(folder, recipe, self.run.info | facts)
        saved.save_merged(self.segmenter)
        return saved


def load(run: str | Path, weights: str | None = None, device: str | torch.device | None = None) -> Predictor:
    """The trained model of a run, with its adapters merged.

    Args:
        run: folder of a finished training, or of a model that `Predictor.save` or `import_checkpoint` wrote.
        weights: where the base weights are now, if not where the recipe says; not needed for a merged model.
        device: where to compute; by default a GPU if there is one.

    Raises:
        UserError: the run is not finished, one of its files is not as it was written, or the base weights are not
            those it was trained on.
    """
    opened = open_finished(run)
    recipe, method = opened.recipe, get_method(opened.recipe.method)
    if opened.is_merged:
        segmenter = bare(recipe, len(opened.space), "random")
        method.keep(segmenter.backbone, recipe.adapter)
        _load(segmenter.backbone.model, opened.backbone, "backbone")
        if opened.hashes is None:
            _check_merged(segmenter.backbone.model, opened)
    else:
        segmenter = base_of(opened, weights)
        method.merge(segmenter.backbone, recipe.adapter, opened.adapter)
    method.link_head(segmenter.backbone, segmenter.head)
    _load(segmenter.head, opened.head, f"{recipe.head} head")
    return Predictor(segmenter.to(device or ("cuda" if torch.cuda.is_available() else "cpu")), opened)


def _load(module: nn.Module, file: Path, what: str) -> None:
    try:
        load_model(module, file)
    except (RuntimeError, OSError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{file}: not the {what} of this run ({reason}); restore the file or make it again") from error
    if name := nonfinite(module.state_dict()):
        raise UserError(f"{file}: it holds NaN or infinity in {name}; restore the file, or train again")


def _check_merged(model: nn.Module, run: Run) -> None:
    found, expected = weights_hash(model.state_dict()), run.info["backbone_sha256"]
    if found != expected:
        raise UserError(
            f"{run.backbone}: its weights are {found[:12]}…, but this model was saved with {expected[:12]}…; restore "
            "the file"
        )
