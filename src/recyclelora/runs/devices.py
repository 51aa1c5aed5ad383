"""Where and in which type a model computes, as a user names them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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
        torch.zeros(1, device=found).item()  # of the device meta there are no values
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        here = ["cpu", "mps"][: 1 + torch.backends.mps.is_available()]
        here += [f"cuda:{number}" for number in range(torch.cuda.device_count())]
        type_is = f", and the type as dtype={name!r}" if (name := _name(device)) in DTYPES else ""
        raise UserError(f"device {device}: torch cannot use it here; take {' or '.join(here)}{type_is}") from error
    return found


def checked_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """The type of this name.

    Raises:
        UserError: it is none of `DTYPES`.
    """
    name = _name(dtype)
    if name not in DTYPES:
        raise UserError(f"dtype {name}: expected {', '.join(DTYPES[:-1])} or {DTYPES[-1]}")
    found: torch.dtype = getattr(torch, name)
    return found


def _name(thing: object) -> str:
    return str(thing).removeprefix("torch.")


@contextmanager
def usual_tensors() -> Iterator[None]:
    """New tensors are float32 on the CPU, and computed there in their own type, whatever the program around has set.

    The random numbers of that program are not drawn from.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"), torch.autocast("cpu", enabled=False), torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_default_dtype(before)
