"""Training checkpoints without pickle: one safetensors file whose header carries the rest as JSON.

    {"step": 40, "state_dict": {...}, "optimizer": {...}, "averages": {...}}
       -> numbered tensors + a JSON skeleton that refers to them

A checkpoint is whole or absent (see `recyclelora.files`), and its header has the SHA-256 of its content.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from recyclelora.errors import DivergedError, UserError
from recyclelora.files import save_tensors
from recyclelora.models.weights import nonfinite, weights_hash


@dataclass(frozen=True)
class Checkpoint:
    """What a file held."""

    path: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """The steps that were done when it was written."""
        return int(self.state["step"])

    @property
    def result(self) -> dict[str, Tensor]:
        """The weights of a segmenter that would be the result if the training ended there: averages, if it has any."""
        weights = {**self.state["state_dict"], **self.state.get("averages", {})}
        return {name.removeprefix("segmenter."): value for name, value in weights.items()}


def write_state(path: Path, state: dict[str, Any], older: Path | None = None) -> None:
    """Write nested dicts, lists, tuples, numbers, text and finite tensors; anything else is refused.

    Raises:
        DivergedError: a tensor is NaN or infinite.
        TypeError: there is something else.
        UserError: the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    skeleton = json.dumps(_pack(state, "", tensors))
    if place := nonfinite(dict(_tensors(state, ""))):
        raise DivergedError(f"{path}: not written: NaN or infinity at {place}; lower optim.lr")
    save_tensors(path, tensors, {"skeleton": skeleton, "sha256": _sha256(skeleton, tensors)}, older)


def read_state(path: Path) -> dict[str, Any]:
    """What `write_state` wrote.

    Raises:
        UserError: the file is damaged, or holds something else.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
        stated = metadata["sha256"]
        if stated != (found := _sha256(metadata["skeleton"], tensors)):
            raise ValueError(f"damaged: its content has the SHA-256 {found[:12]}…, but it states {stated[:12]}…")
        state: dict[str, Any] = _unpack(json.loads(metadata["skeleton"]), tensors)
        if place := nonfinite(dict(_tensors(state, ""))):
            raise ValueError(f"NaN or infinity at {place}")
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: not a checkpoint of this program ({error}); start again with --overwrite") from error
    return state


def newest_whole(*paths: Path) -> Checkpoint | None:
    """The first checkpoint that can be read; None if there is no file.

    Raises:
        UserError: there are files, but none can be read.

    Warns:
        UserWarning: one was damaged, and the one after it in the list is taken.
    """
    damaged: UserError | None = None
    for path in paths:
        if not path.is_file():
            continue
        try:
            checkpoint = Checkpoint(path, read_state(path))
        except UserError as error:
            damaged = damaged or error
            continue
        if damaged:
            found = str(damaged).rpartition(";")[0]
            warnings.warn(f"{found}; the training goes on from the checkpoint before it, {path}", stacklevel=2)
        return checkpoint
    if damaged:
        raise damaged
    return None


def _tensors(value: Any, place: str) -> Iterator[tuple[str, Tensor]]:
    """All tensors in nested values, with their places."""
    if isinstance(value, Tensor):
        yield place, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _tensors(item, f"{place}/{key}")
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _tensors(item, f"{place}/{number}")


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
