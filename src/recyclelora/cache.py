"""Initial factors kept on disk, so that the weights of a model are factorised once and not at every run.

    CACHE/factors/<key>.safetensors     key: SHA-256 of the weight's values, shape and type, ranks and decomposition

Off unless asked for. An entry carries its key and the hash of its tensors: one that is damaged, or lies under another's
name, is computed anew and replaced.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import platformdirs
import torch
from jaxtyping import Shaped
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from recyclelora.errors import UserError
from recyclelora.factors import Decomposition, Factors

FORMAT = "recyclelora factors 1"
SWITCH = "RECYCLELORA_CACHE_FACTORS"


def cache_dir() -> Path:
    """The folder of what can be made again: the environment variable RECYCLELORA_CACHE, or the user's cache folder."""
    return Path(os.environ.get("RECYCLELORA_CACHE") or platformdirs.user_cache_path("recyclelora"))


def factors_folder(asked: bool) -> Path | None:
    """Where factors are kept if that is asked for, here or by RECYCLELORA_CACHE_FACTORS=1; else None."""
    return cache_dir() / "factors" if asked or os.environ.get(SWITCH, "0") not in ("", "0") else None


def through_cache(
    folder: Path,
    weights: list[Tensor],
    settings: tuple[int, int, Decomposition],
    make: Callable[[list[Tensor]], list[Factors]],
) -> list[Factors]:
    """Factors of weights (out, in): those that the folder holds are read, the others made together and kept there.

    Args:
        settings: r_main, r_sub and decomposition, which the factors depend on beside the weight.

    Raises:
        UserError: the folder cannot be made or written to.
    """
    entries = [entry_of(folder, weight, settings) for weight in weights]
    found = [load_factors(entry) for entry in entries]
    missing = [i for i, factors in enumerate(found) if factors is None]
    made = make([weights[i] for i in missing]) if missing else []
    for i, factors in zip(missing, made, strict=True):
        save_factors(entries[i], factors)
        found[i] = factors
    return [factors for factors in found if factors is not None]


def entry_of(folder: Path, weight: Shaped[Tensor, "out in"], settings: tuple[int, int, Decomposition]) -> Path:
    """The file of a weight's factors, there or not."""
    facts = f"{FORMAT} {settings} {weight.dtype} {tuple(weight.shape)}\n"
    return folder / f"{_sha256(facts, weight)}.safetensors"


def load_factors(entry: Path) -> Factors | None:
    """The factors of an entry; None, with a warning where it is damaged, if they have to be computed.

    Warns:
        UserWarning: the entry is truncated, changed, or was written for another weight or by another program.
    """
    if not entry.is_file():
        return None
    try:
        with safe_open(entry, "pt") as file:
            told = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
        if told.get("key") != entry.stem:
            raise ValueError("it is not the entry of its name")
        if told.get("sha256") != _sha256("", *(tensors[name] for name in sorted(tensors))):
            raise ValueError("its contents have changed since it was written")
        return Factors(basis=tensors["basis"], index=tensors.get("index"), rows=tensors.get("rows"))
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        warnings.warn(f"{entry}: {error}; the factors are computed anew and the file is replaced", stacklevel=2)
        return None


def save_factors(entry: Path, factors: Factors) -> None:
    """Write an entry whole or not at all; several processes may write the same one.

    Raises:
        UserError: the folder cannot be made or written to.
    """
    named = {"basis": factors.basis, "index": factors.index, "rows": factors.rows}
    tensors = {name: value.contiguous() for name, value in named.items() if value is not None}
    facts = {"key": entry.stem, "sha256": _sha256("", *(tensors[name] for name in sorted(tensors)))}
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=entry.parent, prefix=".part-") as part:
            save_file(tensors, Path(part) / entry.name, metadata=facts)
            os.replace(Path(part) / entry.name, entry)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{entry.parent}: factors cannot be kept there ({error}); set RECYCLELORA_CACHE to a folder of yours, or "
            "do not cache them"
        ) from error


def _sha256(facts: str, *tensors: Tensor) -> str:
    digest = hashlib.sha256(facts.encode())
    for tensor in tensors:
        values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(values.numpy().data)
    return digest.hexdigest()
