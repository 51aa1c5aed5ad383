"""The interface of a head, what heads of one logit per class share, and what a loss is normalised by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from recyclelora.data.labels import IGNORE
from recyclelora.models.joining import Joining


class Head(nn.Module, ABC):
    """Turns the backbone's feature maps into logits of the classes, and computes the training loss.

    FINAL_NORM: whether it takes features after the backbone's final norm.
    PYRAMID: whether it takes the features of four blocks (at 1/3, 1/2, 2/3 and the end) or only of the last.
    SOFTMAX: whether the probabilities of a pixel's classes are the softmax of its logits, or their shares of the sum.

    A subclass is called as `Head(channels, classes, **head_args)`; `channels` has one entry per feature map.

    A step's images may be spread over processes, and split into parts. Its loss is normalised by amounts of the whole
    step, which depend on the labels alone; so the losses of the parts add up to the loss of the step.
    """

    FINAL_NORM: ClassVar[bool]
    PYRAMID: ClassVar[bool]
    SOFTMAX: ClassVar[bool] = True

    def joining(self, keys: Sequence[int] | None = None) -> Joining | None:
        """What of the head joins the backbone's last blocks, if anything; its features are then what this returns.

        Args:
            keys: for a loss, one number per image, which seeds the random choices.
        """
        return None

    def begin_step(self, progress: float) -> None:
        """What changes as a training goes on, from 0 at its first step to 1 at its last; nothing in most heads."""
        return

    @abstractmethod
    def forward(
        self, features: list[Float[Tensor, "b _ _ _"]], size: tuple[int, int]
    ) -> Float[Tensor, "b classes h w"]:
        """Logits at `size` = (h, w), in float32 or more; the class of a pixel is the one with the highest logit."""

    @abstractmethod
    def amounts(self, labels: Int64[Tensor, "b h w"]) -> Float[Tensor, " n"]:
        """What the loss of these labels is normalised by, before it is averaged over processes.

        Those of two batches add up to those of both together. They have the precision of the loss.
        """

    @abstractmethod
    def loss(
        self,
        features: list[Float[Tensor, "b _ _ _"]],
        labels: Int64[Tensor, "b h w"],
        keys: Sequence[int] | None = None,
        amounts: Float[Tensor, " n"] | None = None,
    ) -> Float[Tensor, ""]:
        """The loss of a batch or of a part of it, the same however images are spread over processes.

        `IGNORE` pixels do not count.

        Args:
            keys: one number per image, which seeds the random choices of the loss.
            amounts: those of the whole step: the sum over its parts, averaged over the processes. If they are not
                given, the batch is the whole step of this process.
        """

    def precision(self) -> torch.dtype:
        """The type of the loss: that of the weights, in float32 or more."""
        return torch.promote_types(next(self.parameters()).dtype, torch.float32)


LARGEST_SIZE, MOST_LAYERS = 2**16, 100
"""What a head's sizes may be at most; larger ones are mistakes that would fill the memory."""


def check_sizes(**sizes: int) -> None:
    """Refuse sizes of a head that are no whole numbers from 1 on, or absurdly large; names in `_layers` are counts.

    Raises:
        ValueError: a size is wrong; the message names it.
    """
    for name, size in sizes.items():
        most = MOST_LAYERS if name.endswith("_layers") else LARGEST_SIZE
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= most:
            raise ValueError(f"{name} is {size!r}, expected a whole number from 1 to {most:,}")


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of a count over all training processes; `value` itself if there is one process.

    Because gradients are averaged over processes, a sum divided by the mean count equals what one process computes.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def upsampled(logits: Float[Tensor, "b classes _ _"], size: tuple[int, int]) -> Float[Tensor, "b classes h w"]:
    """Logits in float32 or more, rescaled bilinearly to `size` = (h, w)."""
    if logits.dtype != torch.float64:
        logits = logits.float()
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)


class PixelHead(Head):
    """A head with one logit per class and pixel, whose loss is their cross-entropy."""

    def amounts(self, labels: Int64[Tensor, "b h w"]) -> Float[Tensor, "1"]:
        """The number of labelled pixels."""
        return (labels != IGNORE).sum().to(self.precision())[None]

    def loss(
        self,
        features: list[Float[Tensor, "b _ _ _"]],
        labels: Int64[Tensor, "b h w"],
        keys: Sequence[int] | None = None,
        amounts: Float[Tensor, "1"] | None = None,
    ) -> Float[Tensor, ""]:
        """Cross-entropy at the labels' size, averaged over the labelled pixels of the step; 0 if there are none."""
        if amounts is None:
            amounts = mean_over_processes(self.amounts(labels))
        logits = self(features, labels.shape[-2:])
        total = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
        return total / amounts[0].clamp(min=1)
