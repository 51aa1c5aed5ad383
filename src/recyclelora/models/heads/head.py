"""The interface of a head, and what makes a loss independent of how images are spread over processes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch.distributed as dist
from jaxtyping import Float, Int64
from torch import Tensor, nn


class Head(nn.Module, ABC):
    """Turns the backbone's feature maps into logits of the classes, and computes the training loss.

    FINAL_NORM: whether it takes features after the backbone's final norm.
    PYRAMID: whether it takes the features of four blocks (at 1/3, 1/2, 2/3 and the end) or only of the last.

    A subclass is called as `Head(channels, classes, **head_args)`; `channels` has one entry per feature map.
    """

    FINAL_NORM: ClassVar[bool]
    PYRAMID: ClassVar[bool]

    @abstractmethod
    def forward(
        self, features: list[Float[Tensor, "b _ _ _"]], size: tuple[int, int]
    ) -> Float[Tensor, "b classes h w"]:
        """Logits at `size` = (h, w), in float32 or more; the class of a pixel is the one with the highest logit."""

    @abstractmethod
    def loss(
        self,
        features: list[Float[Tensor, "b _ _ _"]],
        labels: Int64[Tensor, "b h w"],
        keys: Sequence[int] | None = None,
    ) -> Float[Tensor, ""]:
        """The loss of a batch, the same however images are spread over processes; `IGNORE` pixels do not count.

        Args:
            keys: one number per image, which seeds the random choices of the loss.
        """


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of a count over all training processes; `value` itself if there is one process.

    Because gradients are averaged over processes, a sum divided by the mean count equals what one process computes.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()
