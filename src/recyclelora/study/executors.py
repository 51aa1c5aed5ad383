"""Where the trainings of a grid run. Each way is an `Executor` in a `with` block:

here()                       in this process, one after the other
processes(jobs)              in new processes of this machine, which share its cores
cluster.on_cluster(...)      on the machines of a Ray cluster
"""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any, Protocol, TypeVar

import torch

from recyclelora.errors import UserError
from recyclelora.stopping import FROM_PARENT, Stopped, end_with_parent, stop_helpers, stopping_at_once

Value = TypeVar("Value")


class Executor(Protocol):
    """Runs functions. The end of the block waits for those that run; if the block was stopped, it stops them first."""

    @property
    def threads(self) -> int:
        """The threads that one function may use."""

    @property
    def patience(self) -> float:
        """Seconds for which a function may find its folder locked by a process that is dead or about to end."""

    @property
    def room(self) -> int:
        """How many functions it runs at a time now, at least 1; one that is submitted beyond that cannot be dropped."""

    def submit(self, name: str, function: Callable[..., Value], *arguments: Any) -> Future[Value]:
        """Run a function, which messages call by this name; arguments and result can be pickled.

        Raises:
            UserError: a process was lost. The future raises it too, and whatever the function raises.
        """


class _Here:
    threads, patience, room = 1, 0.0, 1

    def __init__(self) -> None:
        self.threads = torch.get_num_threads()

    def submit(self, name: str, function: Callable[..., Value], *arguments: Any) -> Future[Value]:
        future: Future[Value] = Future()
        future.set_result(function(*arguments))
        return future


@contextmanager
def here() -> Iterator[Executor]:
    """Run each function in this process as it is submitted; what it raises is raised there."""
    yield _Here()


class _Processes:
    patience = 0.0

    def __init__(self, pool: ProcessPoolExecutor, jobs: int, threads: int) -> None:
        self.pool, self.room, self.threads = pool, jobs, threads
        self.running: dict[Future[Any], str] = {}
        self.lost: list[str] = []

    def submit(self, name: str, function: Callable[..., Value], *arguments: Any) -> Future[Value]:
        try:
            future = self.pool.submit(_stoppable, function, *arguments)
        except BrokenProcessPool:
            raise self._killed() from None
        self.running[future] = name
        return settled(future, lambda error: self._explained(future, error))

    def _explained(self, future: Future[Any], error: BaseException | None) -> BaseException | None:
        if isinstance(error, BrokenProcessPool):  # of one after the other
            self.lost = self.lost or [*self.running.values()]
            error = self._killed()
        del self.running[future]
        return error

    def _killed(self) -> UserError:
        return UserError(
            f"{', '.join(self.lost)}: a process was killed, most likely for want of memory; take fewer --jobs or a "
            "smaller batch_size, and call again to go on"
        )


def settled(future: Future[Value], explained: Callable[[BaseException | None], BaseException | None]) -> Future[Value]:
    """A future with the same result, or with what `explained` makes of its error; it is called with None otherwise."""
    ours: Future[Value] = Future()

    def settle(theirs: Future[Value]) -> None:
        error = explained(theirs.exception())
        if error is None:
            ours.set_result(theirs.result())
        else:
            ours.set_exception(error)

    future.add_done_callback(settle)
    return ours


@contextmanager
def processes(jobs: int) -> Iterator[Executor]:
    """Run each function in a new process, `jobs` at a time, which share the cores and show no progress bars."""
    threads = max(1, torch.get_num_threads() // jobs)
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    try:
        with ProcessPoolExecutor(
            jobs, mp_context=get_context("spawn"), max_tasks_per_child=1, initializer=_start_helper
        ) as pool:
            try:
                yield _Processes(pool, jobs, threads)
            except KeyboardInterrupt:
                stop_helpers()
                raise
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


_asked = threading.Event()
"""Whether the parent has asked this helper to stop while it ran no function."""


def _stoppable(function: Callable[..., Value], *arguments: Any) -> Value:
    """Run a function in a helper that the parent can stop at once."""
    if FROM_PARENT is not None and _asked.is_set():
        raise Stopped(FROM_PARENT)
    with stopping_at_once():
        return function(*arguments)


def _start_helper() -> None:
    """Hide the terminal, so that progress bars of this process do not overwrite the bar of the grid.

    A signal to stop does not end this process between two functions: it might hold the lock of the queue of results,
    without which no other helper could end.
    """
    end_with_parent()
    if FROM_PARENT is not None:
        signal.signal(FROM_PARENT, lambda *_: _asked.set())
    sys.stderr = _Plain(sys.stderr.buffer, encoding=sys.stderr.encoding, line_buffering=True)


class _Plain(io.TextIOWrapper):
    def isatty(self) -> bool:
        return False
