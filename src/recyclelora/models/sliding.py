"""Predict the classes of an image of any size with a model that takes windows.

    image (h, w, 3) -> the plan's size, times each scale, as it is and mirrored
      -> windows, `batch_size` at once -> logits, averaged where windows overlap, and over scales and mirror images
      -> rescaled to the image's own size, one class after another -> the class of the highest logit

At the image's own size, logits are summed in bands of rows, from top to bottom. A row of pixels is final when no window
still to come reaches it: it gets its class, and its logits are dropped. So memory holds one batch of windows and the
logits of one row of windows, (classes, window, w) in float32; twice that with mirrored views, which are added to what
the views before have made final.

Logits that are rescaled are held for the whole image: torch derives the weights of a row from its number in the image,
so that a band by itself would differ in the last bit. With a size of the plan that is not the image's own, or scales
other than 1, memory holds one batch and the logits (classes, h, w) at the plan's size and at the scale in work.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from recyclelora.errors import UserError
from recyclelora.models.plan import Plan, Size

Forward = Callable[[UInt8[Tensor, "b 3 h w"]], Float[Tensor, "b classes h w"]]


@torch.inference_mode()
def classify(
    forward: Forward, image: UInt8[np.ndarray, "h w 3"], plan: Plan, patch: int, device: torch.device | str
) -> UInt8[np.ndarray, "h w"]:
    """The class of each pixel of an RGB image.

    Args:
        forward: windows, whose sides are multiples of `patch` -> logits at their size, both on `device`.
        plan: its window is a multiple of `patch`. If the image is smaller along an axis, the window shrinks to the
            image, which is padded with its edge pixels to a multiple of the patch.

    Raises:
        UserError: logits are NaN or infinite.
    """
    own = image.shape[0], image.shape[1]
    if plan.size(own) == own and tuple(plan.scales) == (1.0,):
        parts = [_highest(band, (band.shape[1], own[1])) for band in _bands(forward, image, plan, patch, device)]
    else:
        parts = [_highest(summed_scores(forward, image, plan, patch, device), own)]
    classes = torch.cat([found for found, _ in parts])
    if wrong := classes.numel() - int(torch.stack([finite for _, finite in parts]).sum()):
        raise UserError(
            f"the scores of {wrong} of {classes.numel()} pixels are NaN or infinite, so they have no class; the "
            "model's weights are damaged or too large: train again with a lower optim.lr"
        )
    return classes.cpu().numpy()


@torch.inference_mode()
def summed_scores(
    forward: Forward, image: UInt8[np.ndarray, "h w 3"], plan: Plan, patch: int, device: torch.device | str
) -> Float[Tensor, "classes h2 w2"]:
    """Logits at the plan's size, averaged where windows overlap and summed over scales and mirror images.

    The sum has its maximum at the same class as the average.
    """
    size = plan.size((image.shape[0], image.shape[1]))
    total: Tensor | None = None
    for scale in plan.scales:
        scaled = max(1, int(size[0] * scale + 0.5)), max(1, int(size[1] * scale + 0.5))
        scores = total if scaled == size else None
        for view in _views(_resized(image, scaled), plan, patch, device):
            scores = _add_view(scores, forward, view, plan.batch_size)
        assert scores is not None
        total = scores if scaled == size else _add_rescaled(total, scores, size)
    assert total is not None
    return total


def passes(size: Size, plan: Plan, patch: int) -> int:
    """How many batches of windows `classify` gives to the model for an image of a size (h, w)."""
    total = 0
    for scale in plan.scales:
        sides = [max(1, int(side * scale + 0.5)) for side in plan.size(size)]
        windows = [_fitting(side, plan.window, patch) for side in sides]
        counts = [
            len(window_starts(max(side, window), window, plan.stride))
            for side, window in zip(sides, windows, strict=True)
        ]
        total += math.ceil(math.prod(counts) / plan.batch_size)
    return total * (1 + plan.flip)


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows start along an axis: every `stride` pixels, the last one at the end of the axis."""
    last = length - window
    return [*range(0, last, stride), last]


@dataclass(frozen=True)
class _View:
    """An image at one scale, padded to at least one window, and the places of the windows in it or its mirror image."""

    pixels: UInt8[Tensor, "3 ph pw"]
    size: Size
    window: Size
    tops: list[int]
    lefts: list[int]
    mirrored: bool

    def windows(self, places: Sequence[tuple[int, int]]) -> UInt8[Tensor, "b 3 height width"]:
        """The windows at these places (top, left) of the image or of its mirror image."""
        height, width = self.window
        if not self.mirrored:
            return torch.stack([self.pixels[:, top : top + height, left : left + width] for top, left in places])
        ends = [(top, self.pixels.shape[2] - left) for top, left in places]
        return torch.stack([self.pixels[:, top : top + height, end - width : end] for top, end in ends]).flip(3)

    def counts(self) -> tuple[Float[Tensor, "h 1"], Float[Tensor, " w"]]:
        """How many windows cover each pixel of the image before mirroring: the product of these."""
        rows = _coverage(self.size[0], self.tops, self.window[0]).to(self.pixels.device)
        columns = _coverage(self.size[1], self.lefts, self.window[1]).to(self.pixels.device)
        return rows[:, None], columns.flip(0) if self.mirrored else columns

    def add(self, rows: Float[Tensor, "classes _ w"], scores: Float[Tensor, "classes _ _"], left: int) -> None:
        """Add the logits of a window to the rows of the image before mirroring that begin at the window's top."""
        scores = scores[:, : rows.shape[1], : self.size[1] - left]
        if self.mirrored:
            left, scores = self.size[1] - left - scores.shape[2], scores.flip(2)
        rows[:, : scores.shape[1], left : left + scores.shape[2]] += scores


def _views(image: UInt8[np.ndarray, "h w 3"], plan: Plan, patch: int, device: torch.device | str) -> list[_View]:
    """The image as it is and, if the plan says so, mirrored."""
    image = np.require(image, requirements=("C", "W"))  # torch refuses negative strides and warns of what is read-only
    return [_make_view(image, plan, patch, device, mirrored) for mirrored in (False, True)[: 1 + plan.flip]]


def _make_view(
    image: UInt8[np.ndarray, "h w 3"], plan: Plan, patch: int, device: torch.device | str, mirrored: bool
) -> _View:
    h, w = image.shape[:2]
    window = _fitting(h, plan.window, patch), _fitting(w, plan.window, patch)
    below, beside = max(0, window[0] - h), max(0, window[1] - w)
    if below or beside:
        left, right = (beside, 0) if mirrored else (0, beside)  # on the right of the image or of its mirror image
        image = np.asarray(cv2.copyMakeBorder(image, 0, below, left, right, cv2.BORDER_REPLICATE), np.uint8)
    pixels = torch.from_numpy(image).permute(2, 0, 1).to(device)
    tops, lefts = (window_starts(pixels.shape[1 + axis], window[axis], plan.stride) for axis in (0, 1))
    return _View(pixels, (h, w), window, tops, lefts, mirrored)


def _add_view(
    total: Float[Tensor, "classes h w"] | None, forward: Forward, view: _View, batch_size: int
) -> Float[Tensor, "classes h w"]:
    """Add the logits of a view, averaged where its windows overlap, to `total` in place."""
    rows, columns = view.counts()
    if total is not None:
        total *= rows * columns  # undone by the division below, which is for this view
    for (top, left), scores in _parts(forward, view, batch_size):
        if total is None:
            total = scores.new_zeros(len(scores), *view.size)
        view.add(total[:, top:], scores, left)
        del scores  # the last of a batch frees it before the next is computed
    assert total is not None
    return total.div_(rows * columns)


def _bands(
    forward: Forward, image: UInt8[np.ndarray, "h w 3"], plan: Plan, patch: int, device: torch.device | str
) -> Iterator[Float[Tensor, "classes _ w"]]:
    """What `_add_view` gives for all views of an image, in bands of rows; the next band overwrites the one before."""
    bands: Iterator[Tensor] | None = None
    for view in _views(image, plan, patch, device):
        bands = _add_view_in_bands(_Rows(bands), forward, view, plan.batch_size)
    assert bands is not None
    return bands


def _add_view_in_bands(
    total: _Rows, forward: Forward, view: _View, batch_size: int
) -> Iterator[Float[Tensor, "classes _ w"]]:
    """As `_add_view`, a band per row of windows; `held` has the rows that these reach, from `first` on."""
    (h, w), first = view.size, 0
    height = min(view.window[0], h)
    rows, columns = view.counts()
    held: Tensor | None = None
    for (top, left), scores in _parts(forward, view, batch_size):
        if held is None:
            held = scores.new_empty(len(scores), height, w)
            total.times(rows[:height] * columns, held)
        if top > first:  # no window to come reaches the rows above
            kept = first + height - top
            yield held[:, : height - kept].div_(rows[first:top] * columns)
            for channel in held:  # one after another, as the rows to move overlap their new place
                channel[:kept] = channel[height - kept :].clone()
            total.times(rows[top + kept : top + height] * columns, held[:, kept:])
            first = top
        view.add(held, scores, left)
        del scores
    assert held is not None
    yield held.div_(rows[first:] * columns)


class _Rows:
    """Rows that come in bands, to be taken in any number; without bands they are 0."""

    def __init__(self, bands: Iterator[Float[Tensor, "classes _ w"]] | None) -> None:
        self.bands = bands
        self.band: Tensor | None = None

    def times(self, counts: Float[Tensor, "rows w"], place: Float[Tensor, "classes rows w"]) -> None:
        """Write the next rows, multiplied by `counts`, into `place`."""
        if self.bands is None:
            place.zero_()
            return
        while len(counts):
            if self.band is None or not self.band.shape[1]:
                self.band = next(self.bands)
            taken = min(len(counts), self.band.shape[1])
            torch.mul(self.band[:, :taken], counts[:taken], out=place[:, :taken])
            self.band, counts, place = self.band[:, taken:], counts[taken:], place[:, taken:]


def _parts(
    forward: Forward, view: _View, batch_size: int
) -> Iterator[tuple[tuple[int, int], Float[Tensor, "classes _ _"]]]:
    """The place (top, left) and the logits of each window, row by row."""
    places = list(product(view.tops, view.lefts))
    for first in range(0, len(places), batch_size):
        batch = places[first : first + batch_size]
        yield from zip(batch, forward(view.windows(batch)).float(), strict=True)


def _add_rescaled(
    total: Float[Tensor, "classes h w"] | None, scores: Float[Tensor, "classes _ _"], size: Size
) -> Float[Tensor, "classes h w"]:
    if total is None:
        total = scores.new_zeros(len(scores), *size)
    for whole, channel in zip(total, scores, strict=True):
        whole += _rescaled(channel, size)
    return total


def _highest(scores: Float[Tensor, "classes _ _"], size: Size) -> tuple[UInt8[Tensor, "h w"], Int64[Tensor, ""]]:
    """The class of the highest logit at another size, and at how many pixels this logit is neither NaN nor infinite.

    Logits are rescaled one class at a time to save memory.
    """
    best = _rescaled(scores[0], size).clone()
    classes = torch.zeros_like(best, dtype=torch.uint8)
    for number in range(1, len(scores)):
        channel = _rescaled(scores[number], size)
        classes.masked_fill_(channel > best, number)
        torch.maximum(best, channel, out=best)  # NaN if one of them is
        del channel  # before the next is rescaled
    return classes, best.isfinite().sum()


def _rescaled(channel: Float[Tensor, "_ _"], size: Size) -> Float[Tensor, "h w"]:
    if tuple(channel.shape) == size:
        return channel
    return F.interpolate(channel[None, None], size, mode="bilinear", align_corners=False)[0, 0]


def _resized(image: UInt8[np.ndarray, "_ _ 3"], size: Size) -> UInt8[np.ndarray, "h w 3"]:
    if image.shape[:2] == size:
        return image
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)


def _coverage(length: int, starts: Sequence[int], window: int) -> Float[Tensor, " length"]:
    count = torch.zeros(length)
    for start in starts:
        count[start : start + window] += 1
    return count


def _fitting(length: int, window: int, patch: int) -> int:
    return min(window, math.ceil(length / patch) * patch)
