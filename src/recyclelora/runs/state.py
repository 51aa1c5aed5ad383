"""What a run is doing: its training goes on, was stopped, has finished, or has diverged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal

from recyclelora.errors import DivergedError, UserError
from recyclelora.files import is_locked, write_text
from recyclelora.runs.run import Run

State = Literal["training", "stopped", "finished", "diverged"]


def state_of(run: Run) -> State:
    """What a run is doing now.

    "training": a process is at work in its folder. "stopped": none is, and `--resume` goes on. "diverged": the loss or
    a weight became NaN or infinite; `RUN/diverged.txt` says which. "finished": it has its last step, and can be used.

    Raises:
        OSError: the run's folder or its lock cannot be read.
    """
    if run.finished:
        return "finished"
    if run.diverged.is_file():
        return "diverged"
    return "training" if is_locked(run.path) else "stopped"


@contextmanager
def divergence_marked(run: Run, leads: bool) -> Iterator[None]:
    """Write the message of a training that diverges into its folder, in the first of several processes (`leads`)."""
    try:
        yield
    except DivergedError as error:
        if leads:
            with suppress(UserError):  # where nothing can be written, the divergence still is what went wrong
                write_text(run.diverged, f"{' '.join(str(error).split())}\n")
        raise
