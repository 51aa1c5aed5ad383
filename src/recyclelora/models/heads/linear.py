"""A linear classifier of patch features: the smallest head, which depends most on the features themselves."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from recyclelora.models.heads.head import PixelHead, upsampled


class LinearHead(PixelHead):
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
        return upsampled(self.classifier(features[-1]), size)


HEAD = LinearHead
