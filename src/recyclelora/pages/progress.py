"""How far long work is: a bar on a terminal and in a notebook; elsewhere lines, one at least every 30 seconds.

Lines are logged by `LOGGER` at the level INFO. The command line prints them to standard error.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from types import TracebackType
from typing import Any, TypeVar

from tqdm.auto import tqdm

from recyclelora.errors import printable

LOGGER = "recyclelora.progress"
PAUSE = 25.0
"""Seconds between two lines."""
FIRST_PARTS, FIRST_SECONDS, SHORT = 3, 3.0, 10.0
"""The first line comes after this many parts and seconds, if the rest takes longer than the last number of seconds."""

Item = TypeVar("Item")
_log = logging.getLogger(LOGGER)
_at_work: list[Progress] = []
"""The work that waits for other work, and last what is being done."""


class Progress:
    """Shows how far work is that has `total` parts, in a `with` block.

    Args:
        name: what is being done, as in "evaluating fog".
        units: what the parts are, as in "images".
        done: the parts that were done earlier.
        shown: False shows nothing.
    """

    def __init__(self, name: str, total: int, units: str, done: int = 0, shown: bool = True) -> None:
        self.name, self.total, self.units, self.done, self.shown = printable(name), total, units, done, shown
        self.facts: dict[str, str] = {}
        self.bar: tqdm[Any] | None = None
        self.first = done
        self.begun = time.monotonic()
        self.since: float | None = None
        self._said = False
        self._ended = threading.Event()

    def __enter__(self) -> Progress:
        self.begun = time.monotonic()
        _at_work.append(self)
        if self.shown and bars_fit():
            self.bar = tqdm(desc=self.name, total=self.total, initial=self.done, leave=len(_at_work) == 1)
        elif self.shown and _log.isEnabledFor(logging.INFO):
            threading.Thread(target=self._talk, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, place: TracebackType | None
    ) -> None:
        self._ended.set()
        _at_work.remove(self)
        if self.bar is not None:
            self.bar.close()
        elif self._said and kind is None:
            taken = duration(time.monotonic() - self.begun)
            _log.info("%s: %d of %d %s in %s", self.name, self.done, self.total, self.units, taken)

    def advance(self, count: int = 1, **facts: str) -> None:
        """Count parts as done; `facts` are shown, as in `loss="0.53"`."""
        self.done += count
        self.facts = facts
        if self.since is None and count:
            self.first, self.since = self.done, time.monotonic()  # the first part is slower than the others
        if self.bar is not None:
            self.bar.set_postfix(facts, refresh=False)
            self.bar.update(count)
        elif self.shown and not self._said and self._is_long():
            self._say()

    def line(self) -> str:
        """How far the work is, in words."""
        facts = "".join(f", {key} {value}" for key, value in self.facts.items())
        share = f"{100 * self.done // max(1, self.total)} %"
        left = self.seconds_left()
        time_left = "" if left is None else f", about {duration(left)} left"
        return f"{self.name}: {self.done} of {self.total} {self.units} ({share}){facts}{time_left}"

    def seconds_left(self) -> float | None:
        """How long the rest will take, at the pace so far; None before two parts are done."""
        counted = self.done - self.first
        if self.since is None or counted < 1:
            return None
        return (time.monotonic() - self.since) / counted * max(0, self.total - self.done)

    def _is_long(self) -> bool:
        """Whether it is known by now that the rest takes longer than a user wants to wait without a word."""
        begun = self.done >= self.first + FIRST_PARTS - 1 and time.monotonic() - self.begun >= FIRST_SECONDS
        return begun and (self.seconds_left() or 0) > SHORT

    def _talk(self) -> None:
        """Say how far the innermost work is, if this is the outermost: a short one would end before its first line."""
        while not self._ended.wait(PAUSE):
            talking = [work for work in _at_work if work.shown]
            if talking and talking[0] is self:
                talking[-1]._say()

    def _say(self) -> None:
        self._said = True
        _log.info("%s", self.line())


def shown(items: Iterable[Item], name: str, units: str, total: int | None = None) -> Iterator[Item]:
    """The items, one after the other, while it is shown how far they are; `total` if they do not know their number."""
    with Progress(name, len(items) if isinstance(items, Sized) else total or 0, units) as progress:
        for item in items:
            yield item
            progress.advance()


def bars_fit() -> bool:
    """Whether standard error is a terminal, or the output of a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def duration(seconds: float) -> str:
    """A time in words, as in `45 s`, `12 min`, `3 h 20 min`, `2 d 4 h`."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"
