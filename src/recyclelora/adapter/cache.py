"""Initial factors kept on disk, so that the weights of a model are factorised only once.

    CACHE/factors/<key>.safetensors     key: SHA-256 of the weight's values, shape and type, ranks and decomposition

The cache is off by default. An entry holds its key and the hash of its tensors; an entry that is damaged or has the
wrong name is computed again and replaced.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from recyclelora.adapter.factors import Decomposition, Factors
from recyclelora.errors import UserError
from recyclelora.files import cache_folder, save_tensors

if TYPE_CHECKING:
    from jaxtyping import Shaped

FORMAT = "recyclelora factors 1"
SWITCH = "RECYCLELORA_CACHE_FACTORS"


def factors_folder(asked: bool) -> Path | None:
    """The folder of the cache if it is on, by `asked` or by RECYCLELORA_CACHE_FACTORS=1; else None."""
    return cache_folder() / "factors" if asked or os.environ.get(SWITCH, "0") not in ("", "0") else None


def through_cache(
    folder: Path,
    weights: list[Tensor],
    settings: tuple[int, int, Decomposition],
    make: Callable[[list[Tensor]], list[Factors]],
) -> list[Factors]:
    """Factors of weights (out, in): those in the folder are read, the others are computed together and kept there.

    Args:
        settings: r_main, r_sub and decomposition, on which the factors also depend.

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
    """The path for a weight's factors, whether the file exists or not."""
    facts = f"{FORMAT} {settings} {weight.dtype} {tuple(weight.shape)}\n"
    return folder / f"{_sha256(facts, weight)}.safetensors"


def load_factors(entry: Path) -> Factors | None:
    """The factors of an entry; None if it is missing, or, with a warning, if it is damaged.

    Warns:
        UserWarning: the entry is truncated, changed, or was written for another weight or by another program.
    """
    if not entry.is_file():
        return None
    try:
        with safe_open(entry, "pt") as file:
            told = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
        if told.get("key") != entry.stem:
            raise ValueError("its key is not its name")
        if told.get("sha256") != _sha256("", *(tensors[name] for name in sorted(tensors))):
            raise ValueError("its contents have changed since it was written")
        return Factors(basis=tensors["basis"], index=tensors.get("index"), rows=tensors.get("rows"))
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        warnings.warn(f"{entry}: {error}; the factors are computed again and the file is replaced", stacklevel=2)
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
        save_tensors(entry, tensors, facts)
    except (UserError, SafetensorError) as error:
        raise UserError(
            f"{entry.parent}: factors cannot be written there ({error}); set RECYCLELORA_CACHE to a folder that you "
            "can write to, or switch the cache off"
        ) from error


def _sha256(facts: str, *tensors: Tensor) -> str:
    digest = hashlib.sha256(facts.encode())
    for tensor in tensors:
        values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(values.numpy().data)
    return digest.hexdigest()
