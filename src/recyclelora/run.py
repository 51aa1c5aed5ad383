"""A run: the folder of one training, and the model that comes out of it.

RUN/recipe.yaml                     all settings, resolved
    run.json                        classes, the base weights' hash, data, versions, parameter counts
    manifests/                      the images of each source, a text file a source
    metrics.jsonl                   one line a step: loss, learning rate, seconds
    checkpoints/last.safetensors    to go on from: adapter, its buffers, head, optimiser
    adapter/                        the trained adapter, as PEFT writes and reads it, and other trained weights
    backbone.safetensors            the whole backbone, merged, in place of an adapter, where the run was imported
    head.safetensors                the trained head; written last, so it is there when the run is finished
"""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from jaxtyping import UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from recyclelora.backbone import Backbone, pyramid_indices
from recyclelora.data.labels import LabelSpace
from recyclelora.errors import UserError
from recyclelora.evaluation.protocols import Plan, make_plan
from recyclelora.heads import HEADS
from recyclelora.methods import TRAINED, attach, link_head, merge_saved, save_trained
from recyclelora.recipe import Recipe, make_recipe
from recyclelora.segmenter import Segmenter
from recyclelora.weights import weights_hash

PACKAGES = (
    "recyclelora",
    "torch",
    "timm",
    "peft",
    "lightning",
    "transformers",
    "numpy",
    "scipy",
    "opencv-python-headless",
)


@dataclass(frozen=True)
class Run:
    """The paths of a run's folder, its recipe, and what `run.json` says."""

    path: Path
    recipe: Recipe
    info: dict[str, Any]

    @property
    def checkpoint(self) -> Path:
        """What `--resume` goes on from."""
        return self.path / "checkpoints" / "last.safetensors"

    @property
    def manifests(self) -> Path:
        """The names of the images that were trained on, a file a source."""
        return self.path / "manifests"

    @property
    def metrics(self) -> Path:
        """One JSON line a step."""
        return self.path / "metrics.jsonl"

    @property
    def backbone(self) -> Path:
        """The merged backbone of an imported model."""
        return self.path / "backbone.safetensors"

    @property
    def method(self) -> str:
        """What made the model, in a word or two."""
        imported = self.info.get("imported")
        return f"{imported['kind']} (imported)" if imported else self.recipe.method

    @property
    def step(self) -> int | None:
        """The step that the finished model is of; None where an imported file does not tell."""
        imported = self.info.get("imported")
        step: int | None = imported["step"] if imported else self.recipe.steps
        return step

    @property
    def finished(self) -> bool:
        """Whether the training reached its last step."""
        return (self.path / "head.safetensors").is_file()

    @property
    def space(self) -> LabelSpace:
        """The classes that the model predicts."""
        classes = self.info["classes"]
        return LabelSpace(tuple(classes["names"]), tuple(tuple(colour) for colour in classes["colours"]))

    def write(self) -> None:
        """Write `recipe.yaml` and `run.json`."""
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "recipe.yaml").write_text(self.recipe.to_yaml(), encoding="utf-8")
        write_json(self.path / "run.json", self.info)

    def save_result(self, segmenter: Segmenter) -> None:
        """Write the trained adapter and head."""
        save_trained(segmenter.backbone, self.path / "adapter")
        self.save_head(segmenter.head)

    def save_head(self, head: nn.Module) -> None:
        """Write the head, whose file says that the run is finished."""
        state = {name: value.detach().cpu().contiguous() for name, value in head.state_dict().items()}
        unfinished = self.path / "head.safetensors.part"
        save_file(state, unfinished)
        os.replace(unfinished, self.path / "head.safetensors")


def open_run(path: str | Path) -> Run:
    """Read the recipe and facts of a run.

    Raises:
        UserError: no folder, or a folder that is no run.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such run folder; train one with `recyclelora train --out {path}`")
    try:
        recipe = make_recipe(
            yaml.safe_load((path / "recipe.yaml").read_text(encoding="utf-8")), str(path / "recipe.yaml")
        )
        info = json.loads((path / "run.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: no run, {Path(error.filename).name} is missing; give the --out folder of a `recyclelora train`"
        ) from error
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: recipe.yaml or run.json is damaged: {' '.join(str(error).split())}") from error
    return Run(path, recipe, info)


def remove_run(path: Path) -> None:
    """Remove the files that a training writes into a folder, and nothing else that lies there."""
    adapter, checkpoints, manifests = path / "adapter", path / "checkpoints", path / "manifests"
    files = [
        path / name for name in ("recipe.yaml", "run.json", "metrics.jsonl", "backbone.safetensors", "head.safetensors")
    ]
    files += [adapter / name for name in ("adapter_config.json", "adapter_model.safetensors", TRAINED)]
    files += [checkpoints / "last.safetensors"]
    for file in (*files, *manifests.glob("[0-9]*_*.txt")):
        file.unlink(missing_ok=True)
    for folder in (adapter, checkpoints, manifests):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def build(recipe: Recipe, classes: int, draw: bool = True, cache_factors: bool = False) -> Segmenter:
    """The model of a recipe, with its method's adapters at their start; the same for the same seed.

    Args:
        draw: False leaves out the factorisation, for a checkpoint to be loaded afterwards.
        cache_factors: as `recyclelora.methods.attach`.

    Raises:
        UserError: as `recyclelora.backbone.Backbone` and `recyclelora.methods.attach`; a crop that does not fit.
    """
    segmenter = _bare(recipe, classes)
    for what, pixels in (("crop", recipe.crop), ("evaluation.window", recipe.window)):
        patch = segmenter.backbone.patch_size
        if pixels % patch:
            near = sorted({max(1, pixels // patch) * patch, -(-pixels // patch) * patch})
            raise UserError(
                f"recipe: {what} {pixels} is no multiple of the patch {patch} of {recipe.backbone.model}; "
                f"nearest: {' or '.join(map(str, near))}"
            )
    attach(segmenter.backbone, recipe, draw, cache_factors)
    link_head(segmenter.backbone, segmenter.head, recipe)
    if recipe.backbone.grad_checkpointing:
        segmenter.backbone.set_grad_checkpointing()
    if recipe.compile:
        segmenter.backbone.compile()
        segmenter.head.compile()
    return segmenter


def _bare(recipe: Recipe, classes: int) -> Segmenter:
    """Backbone and head without adapters; random parts are drawn from the recipe's seed."""
    torch.manual_seed(recipe.seed)
    backbone = _backbone(recipe)
    torch.manual_seed(recipe.seed)
    try:
        head = HEADS[recipe.head](backbone.channels, classes, **recipe.head_args)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"recipe: head {recipe.head} does not take head_args {recipe.head_args}: {error}") from error
    return Segmenter(backbone, head)


def _backbone(recipe: Recipe) -> Backbone:
    settings, make_head = recipe.backbone, HEADS[recipe.head]
    return Backbone(
        settings.model,
        settings.weights,
        indices=pyramid_indices if make_head.PYRAMID else None,
        norm=make_head.FINAL_NORM if settings.norm is None else settings.norm,
        model_args=settings.model_args,
        resample=settings.resample,
    )


def base_hash(recipe: Recipe) -> str:
    """SHA-256 of the base weights that a training of this recipe starts from.

    Raises:
        UserError: as `recyclelora.backbone.Backbone`.
    """
    return _backbone(recipe).weights_sha256


class Predictor:
    """A trained model for use: adapters merged into the weights, no gradient, evaluated as its recipe says."""

    def __init__(self, segmenter: Segmenter, run: Run) -> None:
        self.segmenter = segmenter.eval().requires_grad_(False)
        self.run = run
        self.space = run.space
        self.evaluation = run.recipe.evaluation

    def with_evaluation(self, **changes: Any) -> Predictor:
        """The same model under other settings of evaluation; those that are None stay as they are.

        Raises:
            UserError: an unknown setting, or a value of a wrong kind.
        """
        made = {name: value for name, value in changes.items() if value is not None}
        values = {**self.run.recipe.model_dump(), "evaluation": {**self.evaluation.model_dump(), **made}}
        other = Predictor(self.segmenter, self.run)
        other.evaluation = make_recipe(values, "settings").evaluation
        return other

    def plan(self, dataset: str = "") -> Plan:
        """How the images of a data set, a row of `BENCHMARKS`, are scored.

        Raises:
            UserError: a window that is no multiple of the patch, or a stride that leaves gaps.
        """
        settings = self.evaluation.model_dump()
        plan = make_plan(settings.pop("protocol"), dataset, self.run.recipe.crop, **settings)
        self.segmenter.check(plan)
        return plan

    def predict(self, image: UInt8[np.ndarray, "h w 3"], dataset: str = "") -> UInt8[np.ndarray, "h w"]:
        """Train ids of an RGB image of any size, at its own size; `dataset` as in `plan`.

        Raises:
            ValueError: the image is not uint8 of shape (height, width, 3).
            UserError: as `plan`.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ValueError(f"expected a uint8 RGB image (height, width, 3), got {image.dtype} {image.shape}")
        return self.segmenter.predict(image, self.plan(dataset))

    def trained_sha256(self) -> str:
        """SHA-256 of what was trained, head and adapter, whatever files they lie in."""
        files = {"head": self.run.path / "head.safetensors"}
        files["adapter"] = self.run.path / "adapter" / "adapter_model.safetensors"
        files["backbone"] = self.run.path / "adapter" / TRAINED
        states = {part: load_file(file) for part, file in files.items() if file.is_file()}
        named = {f"{part}.{name}": value for part, state in states.items() for name, value in state.items()}
        return weights_hash(named)


def base_of(run: Run, weights: str | None = None) -> Segmenter:
    """The model of a run before its training, on the CPU, with the head as it was drawn.

    Args:
        weights: where the base weights lie now, if not where the recipe says.

    Raises:
        UserError: base weights other than those that the run was trained on, or none there.
    """
    recipe = run.recipe
    if weights is not None:
        recipe = recipe.model_copy(update={"backbone": recipe.backbone.model_copy(update={"weights": weights})})
    segmenter = _bare(recipe, len(run.space))
    check_base(segmenter.backbone, run, recipe.backbone.weights)
    return segmenter.eval().requires_grad_(False)


def load(run: str | Path, weights: str | None = None, device: str | torch.device | None = None) -> Predictor:
    """The trained model of a run, with its adapters merged.

    Args:
        run: folder of a finished training.
        weights: where the base weights lie now, if not where the recipe says.
        device: where to compute; a GPU if there is one.

    Raises:
        UserError: no finished run, or base weights other than those it was trained on.
    """
    opened = open_run(run)
    if not opened.finished:
        raise UserError(f"{opened.path}: the training is not finished; go on with `recyclelora train --resume`")
    recipe = opened.recipe
    segmenter = base_of(opened, str(opened.backbone) if recipe.method == "imported" else weights)
    merge_saved(segmenter.backbone, recipe, opened.path / "adapter")
    link_head(segmenter.backbone, segmenter.head, recipe)
    head = opened.path / "head.safetensors"
    try:
        segmenter.head.load_state_dict(load_file(head))
    except (RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{head}: no {recipe.head} head of this run ({reason}); restore it or train again") from error
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return Predictor(segmenter.to(device), opened)


def check_base(backbone: Backbone, run: Run, weights: str) -> None:
    """Refuse base weights other than those of the run: an adapter is only right on its own base."""
    found, expected = backbone.weights_sha256, run.info["weights_sha256"]
    if found != expected:
        raise UserError(
            f"{run.path}: trained on base weights {expected[:12]}…, but weights {weights!r} are {found[:12]}…; "
            "name the original file or source as weights"
        )


def versions() -> dict[str, str]:
    """Of Python and of the packages that results depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(unfinished, path)
