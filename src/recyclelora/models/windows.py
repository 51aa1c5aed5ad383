"""Windows of an image: where they lie, what they hold, and how their logits are averaged where they overlap.

The plan's `blend` says how. `uniform`, the way of the published protocols, counts all windows alike; the average then
jumps where a window begins or ends. With `hann` a window of n pixels counts, along each axis, by

    w(i) = sin(pi (i + 1/2) / n)^2        a Hann window (Harris, Proceedings of the IEEE 1978), between its zeros

which is almost 0 at its borders, so that there is no jump. No weight is 0: at the edges of the image, where one window
alone sees a pixel, its weight cancels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from recyclelora.models.plan import Blend, Plan, Size

Place = tuple[int, int]
"""Top and left of a window."""


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows start along an axis: every `stride` pixels, the last one at the end of the axis."""
    last = length - window
    return [*range(0, last, stride), last]


def placed(size: Size, plan: Plan, patch: int) -> tuple[Size, list[int], list[int]]:
    """The window for an image of a size (h, w), and where windows start along both axes.

    Along an axis on which the image is shorter than the plan's window, this shrinks to the image, in whole patches.
    """
    height, width = (min(plan.window, math.ceil(side / patch) * patch) for side in size)
    tops, lefts = (
        window_starts(max(side, window), window, plan.stride)
        for side, window in zip(size, (height, width), strict=True)
    )
    return (height, width), tops, lefts


@dataclass(frozen=True, eq=False)
class View:
    """An image at one scale, padded to at least one window, and the places of the windows in it or its mirror image."""

    pixels: UInt8[Tensor, "3 ph pw"]
    size: Size
    window: Size
    tops: list[int]
    lefts: list[int]
    mirrored: bool
    profiles: tuple[Float[Tensor, " height"], Float[Tensor, " width"]]
    weights: Float[Tensor, "height width"] | None

    @cached_property
    def places(self) -> list[Place]:
        """Where the windows lie, row by row."""
        return list(product(self.tops, self.lefts))

    def windows(self, places: Sequence[Place]) -> UInt8[Tensor, "b 3 height width"]:
        """The windows at these places (top, left) of the image or of its mirror image."""
        height, width = self.window
        if not self.mirrored:
            return torch.stack([self.pixels[:, top : top + height, left : left + width] for top, left in places])
        ends = [(top, self.pixels.shape[2] - left) for top, left in places]
        return torch.stack([self.pixels[:, top : top + height, end - width : end] for top, end in ends]).flip(3)

    def counts(self) -> tuple[Float[Tensor, "h 1"], Float[Tensor, " w"]]:
        """The weights of all windows that cover a pixel of the image before mirroring: the product of these."""
        rows = _coverage(self.size[0], self.tops, self.profiles[0]).to(self.pixels.device)
        columns = _coverage(self.size[1], self.lefts, self.profiles[1]).to(self.pixels.device)
        return rows[:, None], columns.flip(0) if self.mirrored else columns

    def add(self, rows: Float[Tensor, "classes _ w"], scores: Float[Tensor, "classes _ _"], left: int) -> None:
        """Add the logits of a window to the rows of the image before mirroring that begin at the window's top."""
        scores = scores[:, : rows.shape[1], : self.size[1] - left]
        height, width = scores.shape[1:]
        weights = None if self.weights is None else self.weights[:height, :width]
        if self.mirrored:
            left, scores = self.size[1] - left - width, scores.flip(2)
            weights = None if weights is None else weights.flip(1)
        place = rows[:, :height, left : left + width]
        if weights is None:
            place += scores
        else:
            place.addcmul_(scores, weights)


class Seen(NamedTuple):
    """An image of any size, and how the model sees it: its views at each scale of the plan, with the size there."""

    image: UInt8[np.ndarray, "h w 3"]
    scaled: list[tuple[Size, list[View]]]

    @property
    def own(self) -> Size:
        """The image's own size."""
        return self.image.shape[0], self.image.shape[1]

    @property
    def views(self) -> list[View]:
        """The views at all scales."""
        return [view for _, views in self.scaled for view in views]


def seen(image: UInt8[np.ndarray, "h w 3"], plan: Plan, patch: int, device: torch.device | str) -> Seen:
    """The image at the plan's size, times each scale, as it is and, if the plan says so, mirrored."""
    size = plan.size((image.shape[0], image.shape[1]))
    sizes = [scaled(size, scale) for scale in plan.scales]
    return Seen(image, [(each, _views(_resized(image, each), plan, patch, device)) for each in sizes])


def scaled(size: Size, scale: float) -> Size:
    """A size times a scale, in whole pixels."""
    return max(1, int(size[0] * scale + 0.5)), max(1, int(size[1] * scale + 0.5))


def _resized(image: UInt8[np.ndarray, "_ _ 3"], size: Size) -> UInt8[np.ndarray, "h w 3"]:
    if image.shape[:2] == size:
        return image
    return np.asarray(cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR), np.uint8)


def _views(image: UInt8[np.ndarray, "h w 3"], plan: Plan, patch: int, device: torch.device | str) -> list[View]:
    image = np.require(image, requirements=("C", "W"))  # torch refuses negative strides and warns of what is read-only
    return [_view(image, plan, patch, device, mirrored) for mirrored in (False, True)[: 1 + plan.flip]]


def _view(
    image: UInt8[np.ndarray, "h w 3"], plan: Plan, patch: int, device: torch.device | str, mirrored: bool
) -> View:
    h, w = image.shape[:2]
    window, tops, lefts = placed((h, w), plan, patch)
    below, beside = max(0, window[0] - h), max(0, window[1] - w)
    if below or beside:
        left, right = (beside, 0) if mirrored else (0, beside)  # on the right of the image or of its mirror image
        image = np.asarray(cv2.copyMakeBorder(image, 0, below, left, right, cv2.BORDER_REPLICATE), np.uint8)
    pixels = torch.from_numpy(image).permute(2, 0, 1).to(device)
    profiles = _profile(window[0], plan.blend), _profile(window[1], plan.blend)
    weights = None if plan.blend == "uniform" else (profiles[0][:, None] * profiles[1]).to(device)
    return View(pixels, (h, w), window, tops, lefts, mirrored, profiles, weights)


def _profile(window: int, blend: Blend) -> Float[Tensor, " window"]:
    """By how much a window counts at each of its pixels, along one axis."""
    if blend == "uniform":
        return torch.ones(window, dtype=torch.float32, device="cpu")
    places = torch.arange(window, dtype=torch.float64, device="cpu") + 0.5
    return torch.sin(torch.pi * places / window).square().float()


def _coverage(length: int, starts: Sequence[int], profile: Float[Tensor, " window"]) -> Float[Tensor, " length"]:
    count = profile.new_zeros(length)
    for start in starts:
        covered = count[start : start + len(profile)]
        covered += profile[: len(covered)]
    return count
