"""What every line for the terminal has in common, whoever writes it."""

from __future__ import annotations

import io
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from recyclelora.errors import printable
from recyclelora.stopping import is_first_process


def prepare_terminal() -> None:
    """Make every name printable, also in an encoding that lacks its characters, and warnings one plain line each."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    warnings.filterwarnings("ignore", ".*treespec, LeafSpec.*is deprecated")
    warnings.showwarning = _show_warning


@contextmanager
def heard(name: str, handler: logging.Handler) -> Iterator[None]:
    """While it lasts, a handler gets what a logger of this name reports at the level INFO, and nothing else does."""
    logger = logging.getLogger(name)
    before, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        logger.propagate = propagate


class ToStandardError(logging.Handler):
    """Prints what is logged to standard error as plain lines, at once; of several processes only the first prints."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one line, above the bars that a terminal may show."""
        from tqdm import tqdm

        if is_first_process():
            tqdm.write(printable(record.getMessage()), file=sys.stderr)
            sys.stderr.flush()


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"warning: {printable(' '.join(str(message).split()))}", file=sys.stderr)
