"""The heads. Each is one file that implements the interface in `head.py`: feature maps -> logits, and a loss.

To add a head, write `models/heads/NAME.py` with a `HEAD`, and add the name here.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from recyclelora.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from recyclelora.models.heads.head import Head

HEADS = ("linear", "concat", "mask2former", "eomt")


def get_head(name: str) -> type[Head]:
    """The head of this name in `HEADS`; its file is imported when it is first used.

    Raises:
        UserError: there is no head of this name.
    """
    if name not in HEADS:
        raise UserError(f"unknown head {name!r}; {did_you_mean(name, HEADS)}")
    head: type[Head] = import_module(f"recyclelora.models.heads.{name}").HEAD
    return head
