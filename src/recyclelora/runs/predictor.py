"""The trained model of a run, ready for use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args, overload

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_model
from torch import nn

from recyclelora.errors import UserError, did_you_mean
from recyclelora.files import user_path
from recyclelora.methods import get_method
from recyclelora.models.plan import Plan
from recyclelora.models.segmenter import Segmenter
from recyclelora.models.weights import nonfinite, weights_hash
from recyclelora.pages.progress import shown
from recyclelora.recipe import make_recipe
from recyclelora.runs.build import bare, base_of, build, check_base, kept_names
from recyclelora.runs.checkpoint import Checkpoint, newest_whole, read_state
from recyclelora.runs.devices import checked_device, checked_dtype, usual_tensors
from recyclelora.runs.facts import best_validation, read_validations
from recyclelora.runs.inputs import Images, Input, OneOrMore, inputs_of, is_one
from recyclelora.runs.run import Run, check_empty, check_finished, open_run
from recyclelora.runs.segmentation import Segmentation

CheckpointName = Literal["last", "best-source"]


class Predictor:
    """A trained model: adapters are merged into the weights, gradients are off, and the recipe says how to evaluate.

    Several threads may predict with it at once, but not while `to` moves it.
    """

    def __init__(self, segmenter: Segmenter, run: Run, dtype: torch.dtype = torch.float32) -> None:
        self.segmenter = segmenter.eval().requires_grad_(False)
        self.dtype = dtype
        self.run = run
        self.space = run.space
        self.evaluation = run.recipe.evaluation

    def __repr__(self) -> str:
        return f"Predictor({self.name!r}, {len(self.space)} classes, {self.device}, {self.dtype})"

    @property
    def name(self) -> str:
        """The name of the run; it says so if the model is not that of the last step."""
        run, step = self.run, self.run.step
        if run.info.get("checkpoint") == "best-source":
            return f"{run.path.name} (best-source, step {step})"
        return run.path.name if run.finished else f"{run.path.name} (step {step} of {run.recipe.steps})"

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.segmenter.mean.device

    def to(self, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None) -> Predictor:
        """Move the model in place, and return it; what is None stays as it is.

        Args:
            device: "cpu", "cuda", "cuda:1", "mps", ...
            dtype: float32, or float16 or bfloat16: matrices are then multiplied in this type (torch's autocast), while
                weights, norms and sums stay in float32. It saves time on a GPU, changes results slightly, and can be
                taken back.

        Raises:
            UserError: torch cannot compute on this device here, or the type is another.
        """
        if dtype is not None:
            self.dtype = checked_dtype(dtype)
        if device is not None:
            self.segmenter.to(checked_device(device))
        return self

    def with_evaluation(self, **changes: Any) -> Predictor:
        """The same model with other evaluation settings; settings that are None stay as they are.

        Raises:
            UserError: a setting is unknown, or a value has the wrong type.
        """
        made = {name: value for name, value in changes.items() if value is not None}
        values = {**self.run.recipe.model_dump(), "evaluation": {**self.evaluation.model_dump(), **made}}
        other = Predictor(self.segmenter, self.run, self.dtype)
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
        found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        if not found.startswith("uint8 ") or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ValueError(
                f"expected a uint8 RGB image (height, width, 3), got {found}; call the model itself, as in "
                "`model(image)`, for paths and other kinds of images"
            )
        plan = self.plan(dataset)
        with self._computing():
            return self.segmenter.predict(image, plan)

    @overload
    def __call__(self, images: Image.Image) -> Segmentation: ...
    @overload
    def __call__(self, images: list[Any] | tuple[Any, ...]) -> list[Segmentation]: ...
    @overload
    def __call__(self, images: OneOrMore) -> Segmentation | list[Segmentation]: ...
    def __call__(self, images: Images) -> Segmentation | list[Segmentation]:
        """Segment images of any size, each at its own; windows of several images fill batches together.

        A progress bar shows how far several images are.

        Args:
            images: a path, a PIL image, a NumPy array (h, w), (h, w, 1), (h, w, 3) or (h, w, 4), or a torch tensor with
                the channels first; uint8, or real numbers in 0..1. Or several: a folder, a list, (n, h, w, channels) or
                (n, channels, h, w).

        Returns:
            A result for one image; a list of results, 12 bytes for each pixel in memory, for several.

        Raises:
            UserError: something is no such image, or as `predict`; the message names it.
        """
        inputs = inputs_of(images)
        found = self._segmented(inputs, self.plan())
        return next(found) if is_one(images) else list(shown(found, "predicting", "images", len(inputs)))

    def _segmented(self, inputs: Sequence[Input], plan: Plan) -> Iterator[Segmentation]:
        ahead, batches = self.segmenter.seen_ahead((each.read() for each in inputs), plan)
        for given in inputs:
            seen = next(ahead)
            with self._computing(given.name):
                found = self.segmenter.predict_seen(seen, plan, batches)
            again = partial(self._probabilities, given.name, seen.image, plan)
            yield Segmentation(given.name, seen.image, *found, self.space, again)

    def _probabilities(
        self, name: str, image: UInt8[np.ndarray, "h w 3"], plan: Plan
    ) -> Float32[np.ndarray, "classes h w"]:
        with self._computing(name):
            return self.segmenter.probabilities(image, plan)

    @contextmanager
    def _computing(self, image: str = "") -> Iterator[None]:
        """Compute in the model's own type, and name the run, and the image if it has a name, in errors."""
        half = self.dtype != torch.float32
        try:
            with torch.autocast(self.device.type, self.dtype if half else None, enabled=half):
                yield
        except UserError as error:
            raise UserError(f"{self.run.path}: {f'{image}: ' if image else ''}{error}") from error

    def save(self, folder: str | Path, overwrite: bool = False) -> Run:
        """Write the model with its merged backbone, as a run that loads without base weights.

        Raises:
            UserError: the folder holds something and `overwrite` is not set, or it is the run's own.
        """
        folder = user_path(folder)
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


def load(
    run: str | Path,
    weights: str | None = None,
    device: str | torch.device | None = None,
    checkpoint: CheckpointName | None = None,
    dtype: str | torch.dtype = torch.float32,
) -> Predictor:
    """The trained model of a run, with its adapters merged.

    Args:
        run: folder of a finished training, or of a model that `Predictor.save` or `import_checkpoint` wrote.
        weights: where the base weights are now, if not where the recipe says; not needed for a merged model.
        device: where to compute; by default a GPU if there is one.
        checkpoint: `best-source` takes the weights that were best in the training's validation, `last` those of the
            last checkpoint of a training that is not finished. In other cases the last step is taken.
        dtype: as in `Predictor.to`.

    Raises:
        UserError: the device or the type cannot be used, the run is not finished and no checkpoint is asked for, there
            is no such checkpoint, a file is not as it was written, or the base weights are not those that the run was
            trained on.
    """
    dtype = checked_dtype(dtype)
    device = checked_device(device)
    with usual_tensors(), trained_files(run, weights, checkpoint) as (opened, files):
        segmenter = merged(opened, files, weights)
    return Predictor(segmenter.to(device), opened, dtype)


@contextmanager
def trained_files(
    run: str | Path, weights: str | None = None, checkpoint: CheckpointName | None = None
) -> Iterator[tuple[Run, Run]]:
    """A run, as it is at a checkpoint, and the run whose folder has the trained weights of that step.

    The two are one if it is the last step; else the second is a folder that is removed at the end. Arguments and errors
    are those of `load`.
    """
    if checkpoint not in (None, *get_args(CheckpointName)):
        raise UserError(
            f"checkpoint {checkpoint!r}: no such checkpoint; {did_you_mean(str(checkpoint), get_args(CheckpointName))}"
        )
    opened = open_run(run)
    if checkpoint is None or (checkpoint == "last" and opened.finished):
        check_finished(opened)
        yield opened, opened
        return
    with TemporaryDirectory() as folder:
        found = _at_checkpoint(opened, checkpoint, weights, Path(folder))
        yield replace(opened, info=opened.info | found.info | {"trained_sha256": found.trained_sha256}), found


def merged(run: Run, files: Run, weights: str | None) -> Segmenter:
    """The model of a run with the trained weights that lie in the folder of `files`, as `trained_files` gives both."""
    recipe, method = run.recipe, get_method(run.recipe.method)
    if files.is_merged:
        segmenter = bare(recipe, len(run.space), "random")
        method.keep(segmenter.backbone, recipe.adapter)
        _load(segmenter.backbone.model, files.backbone, "backbone")
        if files.hashes is None:
            _check_merged(segmenter.backbone.model, files)
    else:
        segmenter = base_of(run, weights)
        method.merge(segmenter.backbone, recipe.adapter, files.adapter)
    method.link_head(segmenter.backbone, segmenter.head)
    load_head(segmenter, files)
    return segmenter


def load_head(segmenter: Segmenter, files: Run) -> None:
    """Load the trained head that lies in the folder of a run.

    Raises:
        UserError: the file is missing, damaged, or of another head.
    """
    _load(segmenter.head, files.head, f"{files.recipe.head} head")


def _at_checkpoint(run: Run, name: CheckpointName, weights: str | None, folder: Path) -> Run:
    """What the run would be if its training had ended at a checkpoint, written into a folder."""
    state = _best(run) if name == "best-source" else newest_whole(run.checkpoint, run.older_checkpoint)
    if state is None:
        raise UserError(f"{run.path}: there is no checkpoint yet; wait for one, or train with a lower checkpoint_every")
    recipe = run.recipe.model_copy(
        update={
            "compile": False,
            "backbone": run.recipe.backbone.model_copy(update={"weights": weights or run.recipe.backbone.weights}),
        }
    )
    segmenter = build(recipe, len(run.space), draw=False)
    check_base(segmenter.backbone, run, recipe.backbone.weights)
    try:
        if strange := kept_names(segmenter, recipe.method) ^ state.result.keys():
            raise KeyError(min(strange))
        segmenter.load_state_dict(state.result, strict=False)
    except (KeyError, RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{state.path}: a checkpoint of another model or version ({reason})") from error
    facts = {"step": state.step, "checkpoint": name}
    ended = Run(folder, recipe, run.info | facts)
    ended.save_result(segmenter)
    return ended


def _best(run: Run) -> Checkpoint:
    """The checkpoint with the best score in the validation."""
    best = best_validation(read_validations(run.validations))
    if best is None:
        raise UserError(
            f"{run.path}: no validation has been scored, so there is no best checkpoint; train with `validation` in "
            "the recipe, as in `--set validation.every=500`"
        )
    file = run.best_checkpoint(best["step"])
    try:
        return Checkpoint(file, read_state(file))
    except UserError:
        if file.is_file():
            raise
        if best_validation(read_validations(run.validations)) != best:  # a training that goes on has replaced it
            return _best(run)
        raise UserError(f"{file}: missing; it held the weights that were best in the validation") from None


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
