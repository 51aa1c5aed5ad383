"""Reads the folder of a method's trained weights: from local files only, and only if they are what the run expects.

adapter_config.json        must say what the recipe says     adapter_model.safetensors  PEFT's adapter
trained.safetensors        the other trained tensors of the backbone

Every tensor has to be there, and finite; no other may be.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from recyclelora.adapter.layer import PREFIX
from recyclelora.files import parse_json
from recyclelora.models.weights import nonfinite

CONFIG, ADAPTER, TRAINED = "adapter_config.json", "adapter_model.safetensors", "trained.safetensors"
PICKLE = "adapter_model.bin"


def load_adapter(model: nn.Module, folder: Path, expected: Mapping[str, Any]) -> PeftModel:
    """The model with the adapter that PEFT saved in a folder.

    Args:
        expected: what the configuration file has to say, by its keys; a key that it lacks has its default.

    Raises:
        ValueError: a file is missing, the configuration says something else, or the file of tensors does not have
            exactly those of the model, all finite.
    """
    for name in (CONFIG, ADAPTER):  # PEFT would look for a missing one on the model hub
        if not (folder / name).is_file():
            pickled = f"; {PICKLE} is a pickle, which is never read" if (folder / PICKLE).exists() else ""
            raise ValueError(f"{name} is missing{pickled}")
    _check_settings(folder, expected)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found missing adapter keys")  # they are refused below
            adapted = PeftModel.from_pretrained(model, str(folder))
    except ValueError as error:
        raise ValueError(f"{ADAPTER}: {error}") from error
    loaded = get_peft_model_state_dict(adapted)
    with safe_open(folder / ADAPTER, "pt") as file:
        strange = set(file.keys()) ^ loaded.keys()
    own = f".{PREFIX}"  # these names have older forms, and `recyclelora.adapter.stored` has checked them
    check_names(ADAPTER, {name for name in strange if own not in name})
    check_finite(ADAPTER, loaded)
    return adapted


def _check_settings(folder: Path, expected: Mapping[str, Any]) -> None:
    try:
        found = parse_json((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{CONFIG} is damaged, it is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{CONFIG} holds a {type(found).__name__}, expected the settings of an adapter")
    for key, value in expected.items():
        if key in found and found[key] != value:
            raise ValueError(f"{CONFIG} says {key} {found[key]!r}, but the recipe of this run gives {value!r}")


def load_trained(model: nn.Module, file: Path, needed: set[str], names: Mapping[str, str] | None = None) -> None:
    """Load the tensors that were trained in addition to PEFT's adapters.

    Args:
        names: what the model calls the tensors of the file, where it has other names for them.

    Raises:
        ValueError: a needed tensor is missing or not finite, or the model does not have one of the file's tensors.
        OSError: the file is missing.
    """
    state = load_file(file) if needed or file.is_file() else {}
    check_finite(file.name, state)
    renamed = {(names or {}).get(name, name): value for name, value in state.items()}
    unexpected = model.load_state_dict(renamed, strict=False).unexpected_keys
    check_names(file.name, (needed - state.keys()) | set(unexpected))


def check_names(file: str, strange: set[str]) -> None:
    """Refuse a file if tensors are missing in it or superfluous.

    Raises:
        ValueError: there are such tensors; the message names the first of them.
    """
    if strange:
        raise ValueError(f"{file} and the model do not have the same weights: {', '.join(sorted(strange)[:3])}")


def check_finite(file: str, state: Mapping[str, Tensor]) -> None:
    """Refuse tensors that hold NaN or infinity.

    Raises:
        ValueError: there is such a tensor; the message names it.
    """
    if name := nonfinite(state):
        raise ValueError(f"{file} holds NaN or infinity in {name}")
