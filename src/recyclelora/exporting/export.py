"""The verb `export`: a trained model for other programs, checked against the model before it takes its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from recyclelora.errors import UserError, did_you_mean
from recyclelora.exporting import adapters, merged, onnx_model, program
from recyclelora.exporting.card import card
from recyclelora.exporting.check import Parity, compared, images_for
from recyclelora.exporting.hub import check_name, push
from recyclelora.exporting.int8 import Int8, add_int8
from recyclelora.exporting.trained import Scores, Trained
from recyclelora.files import holds_nothing, locked_file, read_json, staged, user_path, write_json, write_text
from recyclelora.runs.predictor import CheckpointName, Predictor, trained_files
from recyclelora.runs.predictor import merged as merged_model
from recyclelora.runs.run import EXPORT, RECIPE, check_empty, versions

Format = Literal["merged", "peft", "lora", "onnx", "torch"]
WRITERS: Mapping[str, Callable[[Trained, Path], Scores]] = {
    "merged": merged.write,
    "peft": adapters.write_peft,
    "lora": adapters.write_lora,
    "onnx": onnx_model.write,
    "torch": program.write,
}
CARD = "README.md"
FILES: Mapping[str, Sequence[str]] = {
    "merged": ("backbone.safetensors", "head.safetensors", RECIPE, "run.json"),
    "peft": adapters.FILES,
    "lora": adapters.FILES,
    "onnx": onnx_model.FILES,
    "torch": (program.NAME,),
}
"""What a writer may write; beside it lie `export.json` and, if asked for, the card."""


@dataclass(frozen=True)
class Export:
    """What was written: the folder and its files, how far it is from the model, and what became of it on the hub.

    int8: what the int8 model costs and gains, if there is one.
    """

    path: Path
    format: Format
    files: list[str]
    parity: Parity
    hub: str | None = None
    int8: Int8 | None = None


def export(
    run: str | Path,
    to: str | Path,
    format: Format = "merged",
    *,
    int8: bool = False,
    images: str | Path | Sequence[str | Path] = (),
    to_hub: str | None = None,
    window: int | None = None,
    stride: int | None = None,
    weights: str | None = None,
    checkpoint: CheckpointName | None = None,
    overwrite: bool = False,
) -> Export:
    """Write a trained model for other programs, and check it against the model; docs/export.md describes the formats.

    Args:
        run: folder of a finished training.
        to: folder for the export; `export.json` in it says what it is, and how far it is from the model.
        format: `merged`, the whole model, whose backbone plain timm loads; `peft` or `lora`, the adapter alone, as its
            method saves it or as a plain LoRA; `onnx`, with a script that needs no torch; `torch`, a program of
            `torch.export`.
        int8: for `onnx`, also write a model with 8-bit products, and compare it with the float model in mIoU, in the
            classes of pixels, and in time.
        images: images, or folders of them, for the check; those of a source or target of the recipe if none are given.
        to_hub: OWNER/NAME of a repository on the model hub: a model card is written, and the folder is sent there if
            the hub can be reached.
        window, stride: in pixels, instead of the recipe's.
        weights: where the base weights are now, if not where the recipe says.
        checkpoint: as in `recyclelora.load`.
        overwrite: replace what an earlier call wrote there.

    Raises:
        UserError: the folder holds something, the method has nothing to write in this format, a package is missing, the
            export differs from the model (by more than 1e-3 in a probability, or in the class of more than 0.1 % of the
            pixels; for the int8 model of more than 5 %), or as `recyclelora.load`. Nothing is left behind then.
    """
    to = user_path(to)
    to = to if to.name not in ("", "..") else to.resolve()  # it gets a lock and a folder beside it
    if format not in WRITERS:
        raise UserError(f"--format {format}: no such format; {did_you_mean(format, WRITERS)}")
    if int8 and format != "onnx":
        raise UserError(f"--int8: a model of the format {format} has none; add --format onnx, or leave out --int8")
    _check_place(to, user_path(run), overwrite, (*FILES[format], *[CARD] * (to_hub is not None)))
    if to_hub is not None:
        check_name(to_hub)
    if format == "onnx":
        onnx_model.check_packages()
    with locked_file(to), trained_files(run, weights, checkpoint) as (opened, files):
        model = Predictor(merged_model(opened, files, weights), opened).with_evaluation(window=window, stride=stride)
        trained = Trained(model, files, weights)
        chosen, described = images_for(opened.recipe, trained.plan, images)
        with staged(to) as folder:
            exported = WRITERS[format](trained, folder)
            parity = compared(trained.scores(), exported, trained.probabilities, chosen, described)
            if not parity.sound:
                raise UserError(
                    f"{to}: the export is not the model, {parity}; expected at most 1e-3 of "
                    "probabilities, and at least 99.9 %; choose another --format"
                )
            facts = _facts(trained, format, parity) | adapters.facts(folder)
            quantised = add_int8(trained, folder, to, chosen, described) if int8 else None
            if quantised is not None:
                facts["int8"] = quantised.to_json() | {"text": str(quantised)}
            if to_hub is not None:
                write_text(folder / CARD, card(trained, facts, to_hub))
            names = sorted([EXPORT, *(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())])
            facts["files"] = names
            write_json(folder / EXPORT, facts)
            for name in _earlier(to):
                (to / name).unlink(missing_ok=True)
            if to.is_dir():
                write_json(to / EXPORT, facts)  # first, so that after a stop the next call knows which files are ours
    return Export(to, format, names, parity, push(to, to_hub, names) if to_hub else None, quantised)


def _check_place(to: Path, run: Path, overwrite: bool, names: Sequence[str]) -> None:
    """Refuse a folder in which something would be lost: only what an earlier export wrote is replaced.

    Args:
        names: of the files that may be written, besides `export.json`.
    """
    place = to.resolve()
    within = run.resolve() in place.parents and not (holds_nothing(to) or (to / EXPORT).is_file())
    if place == run.resolve() or within:
        raise UserError(f"{to}: this is the run itself; choose another folder for the export")
    check_empty(to, overwrite, "--to")
    earlier = _earlier(to)
    if own := [name for name in names if name not in earlier and (to / name).exists()]:
        raise UserError(f"{to / own[0]}: no export wrote this file, and it would be lost; choose another --to")


def _facts(trained: Trained, format: Format, parity: Parity) -> dict[str, Any]:
    """The content of `export.json`."""
    base = trained.model.run.recipe.backbone
    run, plan, backbone = trained.model.run, trained.plan, trained.model.segmenter.backbone
    return {
        "format": format,
        "method": run.recipe.method,
        "step": run.step,
        "checkpoint": run.info.get("checkpoint", "last"),
        "base": Path(base.weights).name + ", resampled as published" * (base.resample == "published"),
        "weights_sha256": run.info["weights_sha256"],
        "trained_sha256": run.trained_sha256,
        "names": list(run.space.names),
        "colours": [list(colour) for colour in run.space.colours],
        "window": plan.window,
        "stride": plan.stride,
        "batch_size": plan.batch_size,
        "timm": merged.timm_arguments(backbone, run.recipe.backbone.model_args),
        "check": parity.to_json() | {"text": str(parity)},
        "versions": versions(),
    }


def _earlier(to: Path) -> set[str]:
    """The names of the files in a folder that an earlier export wrote."""
    if not (to / EXPORT).is_file():
        return set()
    facts = read_json(to / EXPORT)
    known = {EXPORT, CARD, *chain.from_iterable(FILES.values())}
    listed = facts.get("files", known) if isinstance(facts, dict) else ()
    return known.intersection(name for name in listed if isinstance(name, str)) | {EXPORT}
