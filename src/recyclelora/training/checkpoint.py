"""Training checkpoints without pickle: one safetensors file whose header carries the rest as JSON.

    {"state_dict": {...}, "optimizer_states": [...], "loops": {...}, ...}
       -> numbered tensors + a JSON skeleton that refers to them

A checkpoint is whole or absent (see `recyclelora.files`), and its header has the SHA-256 of its content.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from safetensors import SafetensorError, safe_open
from torch import Tensor

from recyclelora.errors import UserError
from recyclelora.files import save_tensors
from recyclelora.models.weights import weights_hash


class SafetensorsCheckpointIO(CheckpointIO):
    """Stores Lightning checkpoints of dicts, lists, tuples, numbers, text and tensors; refuses anything else."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        tensors: dict[str, Tensor] = {}
        skeleton = json.dumps(_pack(checkpoint, "", tensors))
        save_tensors(Path(path), tensors, {"skeleton": skeleton, "sha256": _sha256(skeleton, tensors)})

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
            stated = metadata.get("sha256")  # version 0.1 wrote none
            if stated is not None and stated != (found := _sha256(metadata["skeleton"], tensors)):
                raise ValueError(f"damaged: its content has the SHA-256 {found[:12]}…, but it states {stated[:12]}…")
            checkpoint: dict[str, Any] = _unpack(json.loads(metadata["skeleton"]), tensors)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{path}: not a checkpoint of this program ({error}); start again with --overwrite"
            ) from error
        return checkpoint

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


def _sha256(skeleton: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of all that a checkpoint holds."""
    return hashlib.sha256(f"{weights_hash(tensors)}\0{skeleton}".encode()).hexdigest()


def _pack(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[_pack(k, place, tensors), _pack(v, f"{place}/{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        items = [_pack(item, f"{place}/{i}", tensors) for i, item in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.dtype | torch.device):
        return str(value)
    raise TypeError(f"a checkpoint cannot hold {type(value).__name__} (at {place or 'its top'})")


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "tuple":
        return tuple(_unpack(item, tensors) for item in content)
    return {_unpack(k, tensors): _unpack(v, tensors) for k, v in content}
