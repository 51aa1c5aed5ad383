"""Where and in which type a model computes, as a user names them."""

from __future__ import annotations

import torch

from recyclelora.errors import UserError

DTYPES = ("float32", "float16", "bfloat16")


def checked_device(device: str | torch.device | None) -> torch.device:
    """The device; if none is given, a GPU if there is one.

    Raises:
        UserError: torch cannot compute there.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        here = ["cpu", "mps"][: 1 + torch.backends.mps.is_available()]
        here += [f"cuda:{number}" for number in range(torch.cuda.device_count())]
        raise UserError(f"device {device}: torch cannot use it here; take {' or '.join(here)}") from error
    return found


def checked_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """The type of this name.

    Raises:
        UserError: it is none of `DTYPES`.
    """
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise UserError(f"dtype {name}: expected {', '.join(DTYPES[:-1])} or {DTYPES[-1]}")
    found: torch.dtype = getattr(torch, name)
    return found
