"""A run: the folder of one training, or of a model that was saved with its merged backbone.

RUN/recipe.yaml                     all settings, resolved
    run.json                        classes, the base weights' hash, data, versions, parameter counts, and the hashes of
                                    the files that the model depends on (see `recyclelora.runs.seal`)
    manifests/                      the images of each source, one text file per source
    metrics.jsonl                   one line per step: loss, learning rate, seconds
    validation.jsonl                one line per validation on images of the sources that are not trained on
    validation/                     pictures of some of these images
    index.html                      how the training went: curves, pictures, settings
    checkpoints/last.safetensors    for `--resume`: adapter, its buffers, head, optimiser
                previous.safetensors  the one before it, which is taken if the last one is damaged
                best-STEP.safetensors  the weights that were best in the validation
    adapter/                        the trained part of the backbone, as the method saves it
    backbone.safetensors            the merged backbone instead of an adapter; the run then needs no base weights
    logs/                           what the recipe's `logger` writes (see `recyclelora.runs.logs`)
    diverged.txt                    why the training diverged, until it goes on or begins again
    head.safetensors                the trained head; written last, so it marks a finished run
    .starting                       there while a training begins: if it stops then, it begins again
    .lock                           held by the training
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save
from torch import Tensor, nn

from recyclelora.data.labels import LabelSpace
from recyclelora.errors import UserError
from recyclelora.files import (
    LOCK,
    file_sha256,
    holds_nothing,
    read_json,
    save_tensors,
    sweep,
    user_path,
    write_bytes,
    write_json,
    write_text,
    writing,
)
from recyclelora.methods import get_method
from recyclelora.methods.base import FILES
from recyclelora.methods.reading import ADAPTER, TRAINED
from recyclelora.models.segmenter import Segmenter
from recyclelora.models.weights import weights_hash
from recyclelora.recipe import Recipe, make_recipe
from recyclelora.recipe.strict_yaml import read_text_file, read_yaml
from recyclelora.runs.facts import check_facts
from recyclelora.runs.logs import remove_logs
from recyclelora.runs.seal import check_file, check_files, open_sealed, sealed

PACKAGES = (
    "recyclelora", "torch", "timm", "peft", "lightning", "transformers", "numpy", "scipy", "opencv-python-headless",
)  # fmt: skip
RECIPE = "recipe.yaml"
STARTING = ".starting"
EXPORT = "export.json"
"""What `recyclelora export` writes beside the files of a format."""
RESULTS = (RECIPE, *(f"adapter/{name}" for name in FILES), "backbone.safetensors", "head.safetensors")
"""The files that a finished model depends on, below the run's folder; not every run has all of them."""


@dataclass(frozen=True)
class Run:
    """The paths of a run's folder, its recipe, and what `run.json` says."""

    path: Path
    recipe: Recipe
    info: dict[str, Any]
    hashes: dict[str, str] | None = field(default=None, compare=False)
    """The SHA-256 of its files; None for a run of version 0.1, and before it is opened."""

    @property
    def checkpoint(self) -> Path:
        """The checkpoint that `--resume` continues from."""
        return self.path / "checkpoints" / "last.safetensors"

    @property
    def older_checkpoint(self) -> Path:
        """The checkpoint before it, for a last one that is damaged."""
        return self.path / "checkpoints" / "previous.safetensors"

    @property
    def manifests(self) -> Path:
        """The folder with the names of the images that were trained on, one file per source."""
        return self.path / "manifests"

    @property
    def metrics(self) -> Path:
        """One JSON line per step."""
        return self.path / "metrics.jsonl"

    @property
    def validations(self) -> Path:
        """One JSON line per validation."""
        return self.path / "validation.jsonl"

    @property
    def pictures(self) -> Path:
        """The folder with pictures of the validations."""
        return self.path / "validation"

    @property
    def page(self) -> Path:
        """The page that shows how the training went."""
        return self.path / "index.html"

    def best_checkpoint(self, step: int) -> Path:
        """The weights that were best in the validation after a step."""
        return self.checkpoint.with_name(f"best-{step}.safetensors")

    def remove_checkpoints(self, best: int | None = None, resumable: bool = False) -> None:
        """Remove checkpoints; the best one, of this step, and those to resume from are kept if asked for."""
        kept = {self.checkpoint, self.older_checkpoint} if resumable else set()
        kept |= set() if best is None else {self.best_checkpoint(best)}
        own = [self.checkpoint, self.older_checkpoint, *self.checkpoint.parent.glob("best-*.safetensors")]
        for file in own:
            if file not in kept:
                file.unlink(missing_ok=True)

    @property
    def diverged(self) -> Path:
        """The message of a training that diverged."""
        return self.path / "diverged.txt"

    @property
    def adapter(self) -> Path:
        """The folder with the trained part of the backbone."""
        return self.path / "adapter"

    @property
    def backbone(self) -> Path:
        """The merged backbone of a model that needs no base weights."""
        return self.path / "backbone.safetensors"

    @property
    def is_merged(self) -> bool:
        """Whether the folder holds a merged backbone instead of an adapter."""
        return "backbone_sha256" in self.info

    @property
    def head(self) -> Path:
        """The trained head."""
        return self.path / "head.safetensors"

    @property
    def step(self) -> int | None:
        """The finished model's training step; None if an imported file does not say."""
        step: int | None = self.info.get("step", self.recipe.steps)
        return step

    @property
    def finished(self) -> bool:
        """Whether the training reached its last step."""
        return self.head.is_file()

    @property
    def space(self) -> LabelSpace:
        """The classes that the model predicts."""
        classes = self.info["classes"]
        return LabelSpace(tuple(classes["names"]), tuple(tuple(colour) for colour in classes["colours"]))

    @cached_property
    def trained_sha256(self) -> str:
        """SHA-256 of the trained weights, head and adapter, whichever files hold them."""
        if "trained_sha256" in self.info:
            return str(self.info["trained_sha256"])
        files = {"head": self.head, "adapter": self.adapter / ADAPTER, "backbone": self.adapter / TRAINED}
        states = {part: load_file(file) for part, file in files.items() if file.is_file()}
        return weights_hash(
            {f"{part}.{name}": value for part, state in states.items() for name, value in state.items()}
        )

    def start(self, manifests: Mapping[str, str]) -> None:
        """Write what a run begins with, in place of what a run left in the folder.

        Args:
            manifests: the names of the images of each source, by the name of the file.
        """
        write_text(self.path / STARTING, "")
        _remove_files(self.path)
        for name, text in manifests.items():
            write_text(self.manifests / name, text)
        self.write()
        (self.path / STARTING).unlink()

    def write(self) -> None:
        """Write `recipe.yaml` and `run.json`; the training goes on, so that it is no longer one that diverged."""
        self.diverged.unlink(missing_ok=True)
        write_json(self.path / "run.json", self.info)  # without hashes, so that a stop between the two does no harm
        write_text(self.path / RECIPE, self.recipe.to_yaml())
        self._seal({RECIPE: file_sha256(self.path / RECIPE)})

    def _seal(self, hashes: Mapping[str, str]) -> None:
        write_json(self.path / "run.json", sealed(self.info, hashes))

    def save_result(self, segmenter: Segmenter) -> None:
        """Write the trained part of the backbone, and the head."""
        with writing(self.adapter):
            get_method(self.recipe.method).save(segmenter.backbone, self.adapter)
        self.save_head(segmenter.head)

    def save_merged(self, segmenter: Segmenter) -> None:
        """Write a run with the merged backbone of a model; a run that is already there is replaced."""
        self.start({})
        save_tensors(self.backbone, _each_once(segmenter.backbone.model))
        self.save_head(segmenter.head)

    def save_head(self, head: nn.Module) -> None:
        """Write the hashes of all files, then the head; its file marks the run as finished."""
        content = save({name: value.detach().cpu().contiguous() for name, value in head.state_dict().items()})
        names = [name for name in RESULTS if name != self.head.name and (self.path / name).is_file()]
        hashes = {name: file_sha256(self.path / name) for name in names}
        self._seal({**hashes, self.head.name: hashlib.sha256(content).hexdigest()})
        write_bytes(self.head, content)


def _each_once(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model; a tensor with several names has only the first, and `safetensors` loads it for all."""
    state = model.state_dict(keep_vars=True)
    first = {id(value): name for name, value in reversed(state.items())}
    return {name: value for name, value in state.items() if first[id(value)] == name}


def open_run(path: str | Path) -> Run:
    """Read the recipe and facts of a run.

    Raises:
        UserError: the folder does not exist or is not a run, or one of the two files is not as it was written.
    """
    path = user_path(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such run folder; train one with `recyclelora train --out {path}`")
    if (path / STARTING).exists():
        raise UserError(
            f"{path}: a training is beginning there, or was stopped while it began; go on with "
            "`recyclelora train --resume`"
        )
    recipe, facts = path / RECIPE, path / "run.json"
    try:
        text, info = read_text_file(recipe), read_json(facts)
    except FileNotFoundError as error:
        if (path / EXPORT).is_file():
            raise UserError(
                f"{path}: an export that is not a run; give the run, or export it with --format merged"
            ) from error
        raise UserError(
            f"{path}: not a run, {Path(error.filename).name} is missing; give the --out folder of a `recyclelora train`"
        ) from error
    check_facts(facts, info)
    info, hashes = open_sealed(facts, info)
    check_file(path, RECIPE, hashes)
    try:
        values = read_yaml(text)
    except ValueError as error:
        raise UserError(f"{recipe}: damaged: {error}; restore the file") from error
    if not isinstance(values, dict):
        raise UserError(f"{recipe}: damaged: found {type(values).__name__}, expected settings; restore the file")
    return Run(path, make_recipe(values, str(recipe)), info, hashes)


def open_finished(path: str | Path) -> Run:
    """Like `open_run`, for a run whose training is finished.

    Raises:
        UserError: as `open_run`, the training is not finished, or a file is not as the training wrote it.
    """
    run = open_run(path)
    check_finished(run)
    return run


def check_finished(run: Run) -> None:
    """Refuse a run whose training is not finished, or one of whose files has changed.

    Raises:
        UserError: as `open_finished`.
    """
    if not run.finished:
        raise UserError(f"{run.path}: the training is not finished; go on with `recyclelora train --resume`")
    check_files(run.path, RESULTS, run.hashes)


def is_run(path: Path) -> bool:
    """Whether a folder is that of a run, whole or not."""
    return any((path / name).is_file() for name in ("run.json", STARTING))


def is_torn(path: Path) -> bool:
    """Whether a training was stopped there while it began, so that there is nothing to go on from."""
    run = Run(path, Recipe(), {})
    kept = any(file.is_file() for file in (path / RECIPE, run.checkpoint, run.older_checkpoint, run.head))
    return (path / STARTING).is_file() or (is_run(path) and not kept)  # the latter: of version 0.1


def remove_run(path: Path) -> None:
    """Remove the files that a training writes into a folder, and nothing else."""
    _remove_files(path)
    for name in (STARTING, LOCK):
        (path / name).unlink(missing_ok=True)


def _remove_files(path: Path) -> None:
    run = Run(path, Recipe(), {})
    run.remove_checkpoints()
    files = [path / RECIPE, path / "run.json", run.metrics, run.validations, run.page, run.diverged]
    files += [run.backbone, run.head]
    files += [run.adapter / name for name in FILES]
    for file in (*files, *run.manifests.glob("[0-9]*_*.txt"), *run.pictures.glob("[0-9]*_[0-9].png")):
        file.unlink(missing_ok=True)
    remove_logs(path)
    for folder in (run.adapter, run.checkpoint.parent, run.manifests, run.pictures):
        if folder.is_dir():
            sweep(folder)
            if not any(folder.iterdir()):
                folder.rmdir()


def check_empty(out: Path, overwrite: bool, option: str = "--out") -> None:
    """Refuse a folder for a new run, or for another result, if something in it would be lost.

    Args:
        option: what the command line calls the folder.

    Raises:
        UserError: `out` is a file, or holds something and `overwrite` is not set.
    """
    if out.is_file():
        raise UserError(f"{out} is a file, expected a folder; choose another {option}")
    if not holds_nothing(out) and not overwrite:
        raise UserError(f"{out} exists; replace it with --overwrite, or choose another {option}")


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that results depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
