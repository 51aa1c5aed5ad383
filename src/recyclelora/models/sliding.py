"""Predict the classes of an image of any size with a model that takes windows.

    image (h, w, 3) -> the plan's size, times each scale, as it is and mirrored
      -> windows, `batch_size` at once -> logits, averaged where windows overlap, and over scales and mirror images
      -> rescaled to the image's own size, one class after another -> the class of the highest logit

Memory holds the logits (classes, h, w) at the plan's size in float32, one batch of windows and, if the plan has a scale
other than 1, the logits at that scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
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
    scores = summed_scores(forward, image, plan, patch, device)
    return _highest(scores, (image.shape[0], image.shape[1])).cpu().numpy()


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
        resized = _resized(image, scaled)
        scores = total if scaled == size else None
        for mirrored in (False, True)[: 1 + plan.flip]:
            view = _make_view(resized, plan, patch, device, mirrored)
            scores = _add_view(scores, forward, view, plan.batch_size)
        assert scores is not None
        total = scores if scaled == size else _add_rescaled(total, scores, size)
    assert total is not None
    return total


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows start along an axis: every `stride` pixels, the last one at the end of the axis."""
    last = length - window
    return [*range(0, last, stride), last]


@dataclass(frozen=True)
class _View:
    """An image at one scale, mirrored or not, padded to at least one window, and the places of its windows."""

    pixels: UInt8[Tensor, "3 ph pw"]
    size: Size
    window: Size
    tops: list[int]
    lefts: list[int]
    mirrored: bool

    def counts(self) -> Float[Tensor, "h w"]:
        """How many windows cover each pixel of the image before mirroring."""
        rows = _coverage(self.size[0], self.tops, self.window[0])
        counts = (rows[:, None] * _coverage(self.size[1], self.lefts, self.window[1])).to(self.pixels.device)
        return counts.flip(1) if self.mirrored else counts


def _make_view(
    image: UInt8[np.ndarray, "h w 3"], plan: Plan, patch: int, device: torch.device | str, mirrored: bool
) -> _View:
    h, w = image.shape[:2]
    window = _fitting(h, plan.window, patch), _fitting(w, plan.window, patch)
    below, right = max(0, window[0] - h), max(0, window[1] - w)
    seen = np.ascontiguousarray(image[:, ::-1]) if mirrored else image
    padded = cv2.copyMakeBorder(seen, 0, below, 0, right, cv2.BORDER_REPLICATE)
    pixels = torch.from_numpy(padded).permute(2, 0, 1).to(device)
    tops, lefts = (window_starts(pixels.shape[1 + axis], window[axis], plan.stride) for axis in (0, 1))
    return _View(pixels, (h, w), window, tops, lefts, mirrored)


def _add_view(
    total: Float[Tensor, "classes h w"] | None, forward: Forward, view: _View, batch_size: int
) -> Float[Tensor, "classes h w"]:
    """Add the logits of a view, averaged where its windows overlap, to `total` in place."""
    counts = view.counts()
    if total is not None:
        total *= counts  # undone by the division below, which is for this view
    places = list(product(view.tops, view.lefts))
    for first in range(0, len(places), batch_size):
        total = _add_windows(total, forward, view, places[first : first + batch_size])
    assert total is not None
    return total.div_(counts)


def _add_windows(
    total: Float[Tensor, "classes h w"] | None, forward: Forward, view: _View, places: Sequence[tuple[int, int]]
) -> Float[Tensor, "classes h w"]:
    """Add the logits of one batch of windows; a separate function, so that the batch is freed before the next."""
    (height, width), (h, w) = view.window, view.size
    batch = torch.stack([view.pixels[:, top : top + height, left : left + width] for top, left in places])
    scores = forward(batch).float()
    if total is None:
        total = scores.new_zeros(scores.shape[1], h, w)
    for (top, left), part in zip(places, scores, strict=True):
        part = part[:, : h - top, : w - left]
        start = w - left - part.shape[2] if view.mirrored else left
        part = part.flip(2) if view.mirrored else part
        total[:, top : top + part.shape[1], start : start + part.shape[2]] += part
    return total


def _add_rescaled(
    total: Float[Tensor, "classes h w"] | None, scores: Float[Tensor, "classes _ _"], size: Size
) -> Float[Tensor, "classes h w"]:
    if total is None:
        total = scores.new_zeros(len(scores), *size)
    for whole, channel in zip(total, scores, strict=True):
        whole += _rescaled(channel, size)
    return total


def _highest(scores: Float[Tensor, "classes _ _"], size: Size) -> UInt8[Tensor, "h w"]:
    """The class of the highest logit at another size; logits are rescaled one class at a time to save memory.

    Raises:
        UserError: the highest logit of a pixel is NaN or infinite.
    """
    best = _rescaled(scores[0], size)
    classes = torch.zeros_like(best, dtype=torch.uint8)
    for number in range(1, len(scores)):
        channel = _rescaled(scores[number], size)
        classes.masked_fill_(channel > best, number)
        best = torch.maximum(best, channel)  # NaN if one of them is
    finite = best.isfinite()
    if not finite.all():
        wrong = f"{finite.numel() - int(finite.sum())} of {finite.numel()}"
        raise UserError(
            f"the scores of {wrong} pixels are NaN or infinite, so they have no class; the model's weights are damaged "
            "or too large: train again with a lower optim.lr"
        )
    return classes


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
