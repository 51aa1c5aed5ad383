"""The methods. Each is one file, which holds everything about it and implements the interface in `base.py`.

To add a method, write `methods/NAME.py` (a `-` in the name becomes a `_`) with a `METHOD`, and add the name here.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from recyclelora.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from recyclelora.methods.base import Method

METHODS = (
    "recyclelora", "recyclelora-main", "recyclelora-sub", "frozen", "full", "lora", "dora", "pissa", "olora", "mica",
    "milora", "soma", "rein", "qr-lora",
)  # fmt: skip


def get_method(name: str) -> Method[Any]:
    """The method of this name in `METHODS`; its file is imported when it is first used.

    Raises:
        UserError: there is no method of this name.
    """
    if name not in METHODS:
        raise UserError(f"unknown method {name!r}; {did_you_mean(name, METHODS)}")
    method: Method[Any] = import_module(f"recyclelora.methods.{name.replace('-', '_')}").METHOD
    return method
