"""A linear classifier of patch features: the smallest head, which depends most on the features themselves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from recyclelora.data.labels import IGNORE
from recyclelora.models.heads.head import Head, mean_over_processes


class LinearHead(Head):
    """A 1 x 1 convolution on the last feature map, after the backbone's final norm."""

    FINAL_NORM = True
    PYRAMID = False

    def __init__(self, channels: Sequence[int], classes: int) -> None:
        super().__init__()
        self.classifier = nn.Conv2d(channels[-1], classes, 1)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)  # type: ignore[arg-type]

    def forward(
        self, features: list[Float[Tensor, "b _ _ _"]], size: tuple[int, int]
    ) -> Float[Tensor, "b classes h w"]:
        """Logits in float32 or more, rescaled to `size` = (h, w)."""
        logits: Tensor = self.classifier(features[-1])
        if logits.dtype != torch.float64:
            logits = logits.float()
        return F.interpolate(logits, size, mode="bilinear", align_corners=False)

    def loss(
        self,
        features: list[Float[Tensor, "b _ _ _"]],
        labels: Int64[Tensor, "b h w"],
        keys: Sequence[int] | None = None,
    ) -> Float[Tensor, ""]:
        """Cross-entropy, averaged over the labelled pixels (0 if there are none), at the labels' size."""
        logits = self(features, labels.shape[-2:])
        total = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
        return total / mean_over_processes((labels != IGNORE).sum().to(total.dtype)).clamp(min=1)


HEAD = LinearHead
