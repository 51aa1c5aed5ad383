"""A light decoder of four feature maps: larger than a linear classifier, and a small part of Mask2Former.

four maps of one stride, (b, c, h, w) each
  --- concatenate the channels ---> 4 c --- 1 x 1 convolution ---> width
  --- transposed convolution 2 x 2 ---> hidden, (2 h, 2 w) --- GELU
  --- transposed convolution 2 x 2 ---> logits of the classes, (4 h, 4 w) --- rescale ---> the wanted size

From stride 16 the logits come at stride 4, as the masks of Mask2Former do.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from recyclelora.models.heads.head import PixelHead, check_sizes, upsampled


class ConcatHead(PixelHead):
    """Two learned upsamplings by 2 of four concatenated feature maps.

    The backbone's final norm is applied to every map, because the head has no norms that would bring the maps to one
    scale: in a DINOv2-S the outputs of the last block are 15 to 50 times as large as those of the three before, and
    would outweigh them. `backbone.norm` in a recipe changes this.

    Args:
        channels: channels of the four feature maps.
        width: channels after the 1 x 1 convolution.
        hidden: channels between the two transposed convolutions.

    Raises ValueError for a size that is no whole number from 1 on, or absurdly large.
    """

    FINAL_NORM = True
    PYRAMID = True

    def __init__(self, channels: Sequence[int], classes: int, width: int = 256, hidden: int = 128) -> None:
        super().__init__()
        check_sizes(width=width, hidden=hidden)
        self.projection = nn.Conv2d(sum(channels), width, 1)
        self.upsampling = nn.ConvTranspose2d(width, hidden, 2, stride=2)
        self.classifier = nn.ConvTranspose2d(hidden, classes, 2, stride=2)
        # Each pixel of an output sees each input channel once, so the first two layers keep the scale of the features.
        # The small last one makes a new head favour no class.
        nn.init.normal_(self.projection.weight, std=sum(channels) ** -0.5)
        nn.init.normal_(self.upsampling.weight, std=width**-0.5)
        nn.init.normal_(self.classifier.weight, std=0.01)
        for layer in (self.projection, self.upsampling, self.classifier):
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(
        self, features: list[Float[Tensor, "b _ h_ w_"]], size: tuple[int, int]
    ) -> Float[Tensor, "b classes h w"]:
        """Logits in float32 or more, rescaled to `size` = (h, w)."""
        reduced = self.projection(torch.cat(features, 1))
        return upsampled(self.classifier(F.gelu(self.upsampling(reduced))), size)


HEAD = ConcatHead
