"""What every line for the terminal has in common, whoever writes it."""

from __future__ import annotations

import io
import sys
import warnings

from recyclelora.errors import printable


def prepare_terminal() -> None:
    """Make every name printable, also in an encoding that lacks its characters, and warnings one plain line each."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    warnings.filterwarnings("ignore", ".*treespec, LeafSpec.*is deprecated")
    warnings.showwarning = _show_warning


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"warning: {printable(' '.join(str(message).split()))}", file=sys.stderr)
