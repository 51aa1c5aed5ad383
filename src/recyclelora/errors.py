"""The error that a user can fix: one line that names the file, what was found, what was expected, and the fix."""

from __future__ import annotations

import difflib
import errno
import os
import re
from collections.abc import Iterable


class UserError(ValueError):
    """Something outside the program is wrong; the command line prints its message without a traceback."""


class DivergedError(UserError):
    """A training diverged: its loss or a weight is NaN or infinite."""


class MissingExtraError(UserError, ImportError):
    """A part of the project needs packages that are not installed."""

    def __init__(self, what: str, module: str, extra: str = "segment") -> None:
        self.missing = what, module, extra
        package = module.partition(".")[0]
        super().__init__(
            f'{what} needs the package {package}, which is not installed; run: pip install "recyclelora[{extra}]"'
        )

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str, str]]:
        return MissingExtraError, self.missing


FIXES = {
    errno.ENOSPC: "free disk space, or choose another place",
    errno.EFBIG: "allow larger files (`ulimit -f`), or choose another place",
    errno.EDQUOT: "free disk space, or choose another place",
    errno.EROFS: "choose a place that can be written to",
    errno.EACCES: "allow it, or choose another place",
    errno.EPERM: "allow it, or choose another place",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ENOTDIR: "a part of the path is a file: choose another path",
    errno.EISDIR: "a folder is where a file should be: remove it, or choose another path",
    errno.EEXIST: "something else is where a folder should be: remove it, or choose another path",
    errno.ENOENT: "put it there, or correct the path",
    errno.ELOOP: "its links lead to each other: replace them by files",
    errno.EMFILE: "allow more open files (`ulimit -n`)",
    errno.ENOMEM: "take a smaller crop, batch or window, or close other programs",
}
"""What a user can do about an error of the operating system."""

NO_MEMORY = re.compile(
    "can't allocate memory|out of memory|[Ss]torage size calculation overflowed|[Ii]nsufficient memory"
    "|[Ff]ailed to allocate"
)
"""What torch and OpenCV say if memory is lacking; they have no common kind of error for it."""

PROCESS_DIED = re.compile(r"DataLoader worker \(.*(exited unexpectedly|killed by signal)|process pool was terminated")
"""What torch and Python say if another process of theirs was killed."""
OF_WORKER = re.compile(r"\[Errno (\d+)\] [^:]*: '(.*)'$")
"""The end of an error of the operating system that arrives as text from another process."""


def explained(error: Exception) -> str | None:
    """One line for an error that is not a fault of the program; None if it may be one.

    Errors of the operating system name the path, the reason and the fix. A lack of memory is one whichever library
    reports it.
    """
    text = " ".join(str(error).split())
    if isinstance(error, UserError):
        return text
    if isinstance(error, OSError) and error.errno is None and (found := OF_WORKER.search(text)):
        error = OSError(int(found[1]), os.strerror(int(found[1])), found[2])
    if isinstance(error, OSError) and error.errno is not None:
        reason = error.strerror or os.strerror(error.errno)
        place = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes | os.PathLike) else ""
        fix = FIXES.get(error.errno, "check the disk and the path")
        return f"{place}: {reason}; {fix}" if place else f"{reason}; {fix}"
    if isinstance(error, MemoryError) or NO_MEMORY.search(text):
        reason = f" ({shortened(text)})" if text else ""
        return (
            f"not enough memory{reason}; take a smaller crop, batch_size or evaluation.window in the recipe, smaller "
            "images or sizes of the model, or fewer --jobs"
        )
    if PROCESS_DIED.search(text):
        return "a process that loads images was killed, most likely for want of memory; take fewer workers"
    if isinstance(error, RecursionError):
        return "a file or a value is nested too deeply to be read; write it with fewer levels"
    return None


def printable(text: str) -> str:
    r"""The text with everything written out that would steer a terminal: `\x1b` instead of an escape character.

    File names and labels may hold such characters; a terminal would obey them.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shortened(text: str, most: int = 200) -> str:
    """A text for an error message, which a value of any length would fill."""
    return text if len(text) <= most else f"{text[:most]}..."


def did_you_mean(word: str, known: Iterable[str], count: int = 3) -> str:
    """The known names nearest to `word`, as the end of an error message."""
    known = sorted(set(known))
    near = difflib.get_close_matches(word, known, n=count, cutoff=0.5)
    return f"did you mean {' or '.join(repr(n) for n in near)}?" if near else f"known: {', '.join(known[:30])}"
