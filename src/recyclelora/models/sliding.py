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
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor

from recyclelora.errors import UserError
from recyclelora.models.batches import Batches, Forward
from recyclelora.models.logits import doubt, highest, probabilities, rescaled
from recyclelora.models.plan import Plan, Size
from recyclelora.models.windows import Seen, View, placed, scaled, seen


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
    shown = seen(image, plan, patch, device)
    parts = [_class_of(*part) for part in _final(Batches(forward, plan.batch_size), shown, plan)]
    _check_finite([finite for _, finite in parts], shown.own)
    return torch.cat([classes for classes, _ in parts]).cpu().numpy()


class Classified(NamedTuple):
    """The class of each pixel, its probability (`confidence`), and the entropy of all probabilities in nats."""

    classes: UInt8[np.ndarray, "h w"]
    confidence: Float32[np.ndarray, "h w"]
    entropy: Float32[np.ndarray, "h w"]


@torch.inference_mode()
def classify_with_doubt(
    forward: Forward,
    image: UInt8[np.ndarray, "h w 3"],
    plan: Plan,
    patch: int,
    device: torch.device | str,
    softmax: bool = True,
) -> Classified:
    """As `classify`, with how sure the model is, in the same pass; `softmax` as in `recyclelora.models.logits`.

    It takes 8 bytes a pixel more.
    """
    return classify_seen(Batches(forward, plan.batch_size), seen(image, plan, patch, device), plan, softmax)


@torch.inference_mode()
def classify_seen(batches: Batches, image: Seen, plan: Plan, softmax: bool = True) -> Classified:
    """As `classify_with_doubt`, of an image whose windows may share batches with those of other images."""
    parts = [_doubted(logits, size, plan.views, softmax) for logits, size in _final(batches, image, plan)]
    classes, finite, confidence, entropy = zip(*parts, strict=True)
    _check_finite(finite, image.own)
    return Classified(*(torch.cat(each).cpu().numpy() for each in (classes, confidence, entropy)))


@torch.inference_mode()
def class_probabilities(
    forward: Forward,
    image: UInt8[np.ndarray, "h w 3"],
    plan: Plan,
    patch: int,
    device: torch.device | str,
    softmax: bool = True,
) -> Float32[np.ndarray, "classes h w"]:
    """The probabilities of the classes of each pixel, which take 4 bytes for each class and pixel."""
    found: np.ndarray | None = None
    first = 0
    for logits, size in _final(Batches(forward, plan.batch_size), seen(image, plan, patch, device), plan):
        part = probabilities(logits, size, plan.views, softmax)
        if found is None:
            found = np.empty((len(part), *image.shape[:2]), np.float32)
        found[:, first : first + size[0]] = part.cpu().numpy()
        first += size[0]
    assert found is not None
    return found


def _final(batches: Batches, image: Seen, plan: Plan) -> Iterator[tuple[Float[Tensor, "classes _ _"], Size]]:
    """Summed logits from top to bottom, each part with the size (h, w) of the pixels that it is for."""
    if plan.size(image.own) == image.own and tuple(plan.scales) == (1.0,):
        for band in _bands(batches, image):
            yield band, (band.shape[1], image.own[1])
    else:
        yield _summed(batches, image, plan), image.own


def _class_of(logits: Float[Tensor, "classes _ _"], size: Size) -> tuple[UInt8[Tensor, "h w"], Int64[Tensor, ""]]:
    """The class of each pixel, and at how many pixels its logit is neither NaN nor infinite."""
    classes, best = highest(logits, size)
    return classes, best.isfinite().sum()


def _doubted(
    logits: Float[Tensor, "classes _ _"], size: Size, views: int, softmax: bool
) -> tuple[UInt8[Tensor, "h w"], Int64[Tensor, ""], Float[Tensor, "h w"], Float[Tensor, "h w"]]:
    classes, best = highest(logits, size)
    return classes, best.isfinite().sum(), *doubt(logits, size, best, views, softmax)


def _check_finite(finite: Sequence[Int64[Tensor, ""]], size: Size) -> None:
    pixels = size[0] * size[1]
    if wrong := pixels - int(torch.stack(list(finite)).sum()):
        raise UserError(
            f"the scores of {wrong} of {pixels} pixels are NaN or infinite, so they have no class; the "
            "model's weights are damaged or too large: train again with a lower optim.lr"
        )


@torch.inference_mode()
def summed_scores(
    forward: Forward, image: UInt8[np.ndarray, "h w 3"], plan: Plan, patch: int, device: torch.device | str
) -> Float[Tensor, "classes h2 w2"]:
    """Logits at the plan's size, averaged where windows overlap and summed over scales and mirror images.

    The sum has its maximum at the same class as the average.
    """
    return _summed(Batches(forward, plan.batch_size), seen(image, plan, patch, device), plan)


def _summed(batches: Batches, image: Seen, plan: Plan) -> Float[Tensor, "classes h2 w2"]:
    size = plan.size(image.own)
    total: Tensor | None = None
    for at, views in image.scaled:
        scores = total if at == size else None
        for view in views:
            scores = _add_view(scores, batches, view)
        assert scores is not None
        total = scores if at == size else _add_rescaled(total, scores, size)
    assert total is not None
    return total


def passes(size: Size, plan: Plan, patch: int) -> int:
    """How many batches of windows `classify` gives to the model for an image of a size (h, w)."""
    total = 0
    for scale in plan.scales:
        _, tops, lefts = placed(scaled(plan.size(size), scale), plan, patch)
        total += math.ceil(len(tops) * len(lefts) / plan.batch_size)
    return total * (1 + plan.flip)


def _add_view(total: Float[Tensor, "classes h w"] | None, batches: Batches, view: View) -> Float[Tensor, "classes h w"]:
    """Add the logits of a view, averaged where its windows overlap, to `total` in place."""
    rows, columns = view.counts()
    if total is not None:
        total *= rows * columns  # undone by the division below, which is for this view
    for (top, left), scores in batches.parts(view):
        if total is None:
            total = scores.new_zeros(len(scores), *view.size)
        view.add(total[:, top:], scores, left)
        del scores  # the last of a batch frees it before the next is computed
    assert total is not None
    return total.div_(rows * columns)


def _bands(batches: Batches, image: Seen) -> Iterator[Float[Tensor, "classes _ w"]]:
    """What `_add_view` gives for all views of an image, in bands of rows; the next band overwrites the one before."""
    bands: Iterator[Tensor] | None = None
    for view in image.views:
        bands = _add_view_in_bands(_Rows(bands), batches, view)
    assert bands is not None
    return bands


def _add_view_in_bands(total: _Rows, batches: Batches, view: View) -> Iterator[Float[Tensor, "classes _ w"]]:
    """As `_add_view`, a band per row of windows; `held` has the rows that these reach, from `first` on."""
    (h, w), first = view.size, 0
    height = min(view.window[0], h)
    rows, columns = view.counts()
    held: Tensor | None = None
    for (top, left), scores in batches.parts(view):
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


def _add_rescaled(
    total: Float[Tensor, "classes h w"] | None, scores: Float[Tensor, "classes _ _"], size: Size
) -> Float[Tensor, "classes h w"]:
    if total is None:
        total = scores.new_zeros(len(scores), *size)
    for whole, channel in zip(total, scores, strict=True):
        whole += rescaled(channel, size)
    return total
