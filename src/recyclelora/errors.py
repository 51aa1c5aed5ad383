"""The error that a user can fix: one line that names the file, what was found, what was expected, and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something outside the program is wrong; the command line prints its message without a traceback."""


class DivergedError(UserError):
    """A training diverged: its loss or a weight is NaN or infinite."""


class MissingExtraError(UserError, ImportError):
    """A part of the project needs packages that are not installed."""

    def __init__(self, what: str, package: str) -> None:
        super().__init__(
            f'{what} needs the package {package}, which is not installed; run: pip install "recyclelora[segment]"'
        )


def printable(text: str) -> str:
    r"""The text with everything written out that would steer a terminal: `\x1b` instead of an escape character.

    File names and labels may hold such characters; a terminal would obey them.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def did_you_mean(word: str, known: Iterable[str], count: int = 3) -> str:
    """The known names nearest to `word`, as the end of an error message."""
    known = sorted(set(known))
    near = difflib.get_close_matches(word, known, n=count, cutoff=0.5)
    return f"did you mean {' or '.join(repr(n) for n in near)}?" if near else f"known: {', '.join(known[:30])}"
