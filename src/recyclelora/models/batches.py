"""Logits of windows, a batch at once. The last windows of an image share their batch with the images behind it.

    image 0    0 0 0 0 | 0          with 4 windows at once; | is the end of a batch
    image 1              1 1 1 | 1
    image 2                      2 2 2 |

A batch has windows of one shape. Where no image follows, the last windows of each view have a batch of their own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from recyclelora.models.windows import Place, Seen, View

Forward = Callable[[UInt8[Tensor, "b 3 h w"]], Float[Tensor, "b classes h w"]]


class Ahead:
    """Images in their order, of which some are made ahead of their turn. An error is raised when it is its turn."""

    def __init__(self, images: Iterable[Seen]) -> None:
        self._coming = iter(images)
        self._made: deque[Seen | Exception] = deque()

    def __next__(self) -> Seen:
        if not self._made:
            self.further()
        made = self._made.popleft()
        if isinstance(made, Exception):
            raise made
        return made

    def further(self) -> Seen | None:
        """Make one more image ahead; None if there is none, or an error."""
        try:
            image = next(self._coming, None)
        except Exception as error:
            self._coming = iter(())  # nothing is made behind an error, which ends the work
            self._made.append(error)
            return None
        if image is not None:
            self._made.append(image)
        return image


class _Work:
    """What is done of a view: places of which no logits are computed yet, and logits that wait for their turn."""

    def __init__(self, view: View) -> None:
        self.places = deque(view.places)
        self.logits: deque[Tensor] = deque()


class Batches:
    """Computes the logits of views, whose windows fill batches together with those of images ahead.

    Images are made ahead until a batch is full, and as long as fewer than `batch_size` views wait. A batch of logits is
    held until the turn of its last window has come.

    Args:
        forward: windows -> logits at their size.
        batch_size: the most windows at once.
        ahead: the images to come.
    """

    def __init__(self, forward: Forward, batch_size: int, ahead: Ahead | None = None) -> None:
        self.forward, self.batch_size, self.ahead = forward, batch_size, ahead
        self._waiting: dict[View, _Work] = {}

    def parts(self, view: View) -> Iterator[tuple[Place, Float[Tensor, "classes _ _"]]]:
        """The place (top, left) and the logits of each window of a view, row by row."""
        work = self._waiting.pop(view, None) or _Work(view)
        for place in view.places:
            if not work.logits:
                self._compute(view, work)
            yield place, work.logits.popleft()

    def _compute(self, view: View, work: _Work) -> None:
        """Compute the next windows of a view, and others of their shape where the batch has room for them."""
        batch = [(work, _taken(view, work, self.batch_size))]
        room = self.batch_size - len(batch[0][1])
        for other, waiting in self._others():
            if room and waiting.places and other.window == view.window:
                batch.append((waiting, _taken(other, waiting, room)))
                room -= len(batch[-1][1])
            if not room:
                break
        windows = [each for _, each in batch]
        logits = iter(self.forward(windows[0] if len(windows) == 1 else torch.cat(windows)).float())
        for owner, own in batch:
            owner.logits.extend(next(logits) for _ in own)

    def _others(self) -> Iterator[tuple[View, _Work]]:
        """The views that wait, and then those of images that are made ahead."""
        yield from list(self._waiting.items())
        while self.ahead and len(self._waiting) < self.batch_size and (image := self.ahead.further()):
            new = {view: _Work(view) for view in image.views}
            self._waiting |= new
            yield from new.items()


def _taken(view: View, work: _Work, most: int) -> UInt8[Tensor, "b 3 height width"]:
    return view.windows([work.places.popleft() for _ in range(min(most, len(work.places)))])
