"""Signals that ask the program to stop: Ctrl-C, a closed terminal, the end of a job's time on a cluster.

    SIGINT, SIGTERM, SIGHUP, SIGUSR1 (which SLURM can send before the time is up)

A signal that is ignored already, as SIGHUP is below `nohup`, stays ignored. The exit code is 128 + the signal's number,
as shells expect it.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name))

FROM_PARENT = getattr(signal, "SIGUSR2", None)
"""What a parent sends to a helper to stop it; those above go to both, some from a terminal and some do not."""
PR_SET_PDEATHSIG = 1
"""Linux: the signal that a process gets when its parent ends; see `man 2 prctl`."""


class Stopped(KeyboardInterrupt):
    """A signal asked the program to stop; a text says what was kept.

    `begun` says whether there is something to go on from, so that starting again would lose it.
    """

    def __init__(self, number: int, text: str = "") -> None:
        super().__init__(text or f"stopped by {signal.Signals(number).name}")
        self.number = number
        self.begun = False

    def __reduce__(self) -> tuple[type[Stopped], tuple[int, str]]:
        return Stopped, (self.number, str(self))

    @property
    def code(self) -> int:
        """The exit code of the program."""
        return 128 + self.number


@dataclass
class Request:
    """Whether the program was asked to stop, and by which signal."""

    number: int | None = None


@contextmanager
def begun() -> Iterator[None]:
    """While it lasts, a stop is one of work that has begun."""
    try:
        yield
    except Stopped as stop:
        stop.begun = True
        raise


@contextmanager
def stopping_at_once() -> Iterator[None]:
    """While it lasts, these signals raise `Stopped`, so that everything on the way is closed."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    with _handled(stop):
        yield


@contextmanager
def stopping_later() -> Iterator[Request]:
    """While it lasts, the first of these signals is noted, for a place where a stop loses nothing.

    The second one raises `Stopped`, unless it is a parent's, which follows one that a terminal sent to both.
    """
    request = Request()

    def note(number: int, frame: FrameType | None) -> None:
        if request.number is None:
            request.number = number
        elif number != FROM_PARENT:
            raise Stopped(number)

    with _handled(note):
        yield request


def is_first_process() -> bool:
    """Whether this is the only process, or the first of several that work together: it alone writes and speaks.

    Their numbers come from Fabric, which starts the others of one machine, from torchrun, or from SLURM's srun.
    """
    names = ["LOCAL_RANK", "SLURM_PROCID", *(["RANK"] if "TORCHELASTIC_RUN_ID" in os.environ else [])]
    return all(os.environ.get(name) in (None, "", "0") for name in names)


def stop_helpers() -> None:
    """Ask the helping processes of `multiprocessing` to stop; a training there keeps its last step."""
    for helper in multiprocessing.active_children():
        if helper.pid is not None and FROM_PARENT is not None:
            with suppress(ProcessLookupError):
                os.kill(helper.pid, FROM_PARENT)


def end_with_parent() -> None:
    """End this process when the one that started it is killed; otherwise it would go on, and keep its locks."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def leave_signals_to_parent() -> None:
    """Ignore these signals in a helping process, to which a terminal sends them too; its parent has to end it.

    Otherwise the helper would be gone while its parent finishes a step.
    """
    end_with_parent()
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Put back at the end what handles these signals now, whatever a library has set in the meantime."""
    if threading.current_thread() is not threading.main_thread():  # where Python allows no change
        yield
        return
    before = {number: signal.getsignal(number) for number in STOPPING}
    try:
        yield
    finally:
        for number, old in before.items():
            if old is not None:  # it was not set from Python
                signal.signal(number, old)


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Have a function called on these signals; nothing happens outside the main thread, where Python allows none."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (*STOPPING, FROM_PARENT) if number}
    before = {number: old for number, old in before.items() if old not in (signal.SIG_IGN, None)}
    try:
        for number in before:
            signal.signal(number, handler)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
