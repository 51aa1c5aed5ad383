"""Turns a published checkpoint of RecycleLoRA or SoMA into a run: merged backbone, head, and a list of unused names.

    FILE --- read_checkpoint ---> state dict --- recyclelora.published.names ---> weights under our names ---> RUN

docs/checkpoints.md says what is known about the files, and that none of them could be tried.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recyclelora.data.labels import CITYSCAPES
from recyclelora.errors import UserError, did_you_mean
from recyclelora.files import file_sha256, user_path
from recyclelora.models.backbone import Backbone, pyramid_indices
from recyclelora.models.heads.mask2former import Mask2FormerHead
from recyclelora.models.segmenter import Segmenter
from recyclelora.models.weights import weights_hash
from recyclelora.published import KINDS
from recyclelora.published.names import (
    BACKBONE_PREFIX,
    HEAD_PREFIX,
    Converted,
    depth_of,
    dinov2_of,
    head_sizes,
    head_state,
    recyclelora_backbone,
    soma_backbone,
)
from recyclelora.recipe import make_recipe
from recyclelora.runs.run import Run, check_empty, versions

PATCH, SIDE = 16, 512
"""Sides in pixels of the patches and images of the published trainings; SoMA's files do not hold them."""
PROTOCOL = "soma-2048"


class _Inert:
    """Stands in for an object whose class is not loaded: it takes any content and does nothing with it."""

    def __new__(cls, *_: object) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


_STAND_INS = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    "mmengine.logging.message_hub.MessageHub",
    # The numbers inside them; the name of the module depends on NumPy 1 or 2.
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    "numpy.ndarray",
    "numpy.dtype",
    "_codecs.encode",
    "builtins.getattr",  # a HistoryBuffer stores its methods by it; the stand-in looks nothing up
)


def import_checkpoint(
    file: str | Path, kind: str, out: str | Path, base: str | None = None, overwrite: bool = False
) -> Run:
    """Turn a published checkpoint into a run that `load`, `evaluate` and `predict` take.

    Args:
        file: checkpoint of mmengine, with `state_dict`. If the training averaged its weights, the average is there.
        out: folder of the run; `info["imported"]` holds where it came from and the names that were not used.
        base: pre-trained weights, as in a recipe. SoMA needs them. RecycleLoRA does not; with them its weights are
            checked, and weights that were merged before saving are detected.

    Raises:
        UserError: the file is not such a checkpoint, lacks names, or was not trained from `base`; or `out` holds files.
    """
    file, out = user_path(file), user_path(out)
    if kind not in KINDS:
        raise UserError(f"kind {kind!r}: no such kind of checkpoint; {did_you_mean(kind, KINDS)}")
    check_empty(out, overwrite)
    if kind == "soma" and base is None:
        raise UserError(f"{file}: SoMA's files hold only trained factors; name the pre-trained weights with --base")
    state, step = read_checkpoint(file)
    try:
        backbone, backbone_origin, settings, note = _backbone(state, kind, base)
        head, head_origin, head_args = _head(state, backbone.channels[0])
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    except (RuntimeError, ValueError, IndexError, KeyError, TypeError, ArithmeticError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{file}: its weights do not have the shapes of a {kind} model ({reason})") from error
    used = {name for names in [*backbone_origin.values(), *head_origin.values()] for name in names}
    values = {
        "method": kind,
        "backbone": {**settings, "weights": base or "hub"},
        "head": "mask2former",
        "head_args": head_args,
    }
    values |= {"crop": settings["model_args"]["img_size"], "evaluation": {"protocol": PROTOCOL}}
    imported = {
        "file": file.name,
        "file_sha256": file_sha256(file),
        "base": base,
        "note": note,
        "unused": sorted(state.keys() - used),
    }
    run = Run(out, make_recipe(values), _facts(backbone, head) | {"step": step, "imported": imported})
    run.save_merged(Segmenter(backbone, head))
    return run


def read_checkpoint(file: Path) -> tuple[dict[str, Tensor], int | None]:
    """The `state_dict` of a file of mmengine, without a `module.` before its names, and the step it was saved at.

    Only tensors, plain containers and stand-ins for mmengine's records are made from the file.

    Raises:
        UserError: the file does not exist, or holds anything else.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such file; give the path of a published checkpoint")
    settings = (OrderedDict, "mmengine.config.config.ConfigDict")  # a dictionary, and torch fills it as one
    allowed: list[Any] = [settings, *((_Inert, name) for name in _STAND_INS)]
    try:
        with torch.serialization.safe_globals(allowed):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, pickle and zipfile each raise their own kinds for damaged bytes
        reason = " ".join(str(error).split())
        if culprit := re.search(r" GLOBAL (\S+) ", reason):
            reason = f"it would make or run {culprit[1]}, which mmengine does not store"
        else:
            reason = reason.rpartition("WeightsUnpickler error: ")[2].partition(" Check the documentation")[0]
            reason = f"{type(error).__name__}: {reason[:150]}"
        raise UserError(
            f"{file}: not loaded ({reason}); expected a checkpoint of mmengine with tensors in `state_dict`: fetch it "
            "again, or save only its `state_dict` as {'state_dict': ...}"
        ) from error
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        found = (
            f"keys {', '.join(map(str, list(content)[:5]))}" if isinstance(content, dict) else type(content).__name__
        )
        raise UserError(f"{file}: found {found}, expected tensors in `state_dict`; give a checkpoint of mmengine")
    meta = content.get("meta")
    step = meta.get("iter") if isinstance(meta, dict) else None
    return {name.removeprefix("module."): value for name, value in state.items()}, step if isinstance(
        step, int
    ) else None


def _backbone(
    state: dict[str, Tensor], kind: str, base: str | None
) -> tuple[Backbone, dict[str, list[str]], dict[str, Any], str]:
    """The merged model, the checkpoint names that each of its weights comes from, its recipe settings, and a note."""
    own = {name: value for name, value in state.items() if name.startswith(BACKBONE_PREFIX[kind])}
    if not own:
        found = ", ".join(sorted(state)[:3])
        raise UserError(f"no {kind} backbone: no name starts with {BACKBONE_PREFIX[kind]}; found {found}, ...")
    settings = _settings(own, kind)

    def bare(weights: str) -> Backbone:
        return Backbone(
            settings["model"], weights, indices=pyramid_indices, norm=False, model_args=settings["model_args"],
            resample="published",
        )  # fmt: skip

    model = bare(base or "random")
    start = {name: value.clone() for name, value in model.model.state_dict().items()}
    if kind == "soma":
        converted = soma_backbone(own, start)
        note = f"merged onto the weights {base}"
    else:
        converted, merged = recyclelora_backbone(own, start if base else None)
        note = "taken as residual weights, as published; --base would check it" if base is None else "residual weights"
        if merged:
            note = f"{len(merged)} layers hold merged weights in place of residual ones, and were taken as they are"
    _put(model.model, converted, BACKBONE_PREFIX[kind])
    model.weights_sha256 = weights_hash(model.model.state_dict())
    return model, {name: converted.origin[name] for name in start}, settings, note


def _settings(own: dict[str, Tensor], kind: str) -> dict[str, Any]:
    """The recipe settings of a backbone, from the shapes in a checkpoint."""
    widths = {
        value.shape[1] for name, value in own.items() if name.endswith(("lora_A_main", "attn.proj.lora_A.weight"))
    }
    patch, side = PATCH, SIDE
    if kind == "recyclelora":
        needed = [BACKBONE_PREFIX[kind] + name for name in ("cls_token", "pos_embed", "patch_embed.proj.weight")]
        if missing := [name for name in needed if name not in own]:
            raise UserError(f"it has no {', '.join(missing)}; expected a whole model")
        token, positions, kernel = (own[name] for name in needed)
        widths, patch = {token.shape[-1]}, kernel.shape[-1]
        side = round((positions.shape[1] - 1) ** 0.5) * patch
    if not widths:
        raise UserError(f"no factors of SoMA: no name like {BACKBONE_PREFIX[kind]}blocks.8.attn.proj.lora_A.weight")
    model, sizes = dinov2_of(max(widths), depth_of(own))
    args = {"patch_size": patch, "img_size": side, **sizes}
    return {"model": model, "model_args": args, "resample": "published"}


def _head(state: dict[str, Tensor], channels: int) -> tuple[Mask2FormerHead, dict[str, list[str]], dict[str, Any]]:
    weights = head_state(state)
    origin: dict[str, list[str]] = {}
    for name in state:
        if name.startswith(HEAD_PREFIX):
            origin |= {ours: [name] for ours in head_state({name: state[name]})}
    args = head_sizes(weights)
    classes = len(weights["class_predictor.bias"]) - 1
    if classes != len(CITYSCAPES):
        raise UserError(f"a head of {classes} classes, expected the {len(CITYSCAPES)} of Cityscapes")
    head = Mask2FormerHead([channels] * 4, classes, **args)
    weights["criterion.empty_weight"] = head.criterion.empty_weight  # a constant of the loss
    _put(head, Converted(weights, origin), HEAD_PREFIX)
    return head, {name: origin[name] for name in head.state_dict() if name in origin}, args


def _put(model: nn.Module, converted: Converted, prefix: str) -> None:
    """Load the weights of the model; all must be there, with the right shapes."""
    own = model.state_dict()
    if missing := [name for name in own if name not in converted.weights]:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(f"weights are missing below {prefix}: {', '.join(missing[:3])}{more}; expected a whole model")
    for name, value in own.items():
        found = converted.weights[name]
        if found.shape != value.shape:
            raise UserError(f"{prefix}: {name} of shape {tuple(found.shape)}, expected {tuple(value.shape)}")
    model.load_state_dict({name: converted.weights[name] for name in own})


def _facts(backbone: Backbone, head: nn.Module) -> dict[str, Any]:
    parts = {"backbone": backbone, "head": head}
    sizes = {name: sum(value.numel() for value in part.parameters()) for name, part in parts.items()}
    return {
        "classes": {"names": CITYSCAPES.names, "colours": CITYSCAPES.colours},
        "weights_sha256": backbone.weights_sha256,
        "backbone_sha256": backbone.weights_sha256,
        "sources": [],
        "parameters": {**sizes, "adapters": 0},
        "versions": versions(),
    }
