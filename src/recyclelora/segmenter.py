"""The segmentation model: normalise -> backbone -> head, and prediction with a sliding window.

uint8 RGB (b, 3, h, w) --- backbone ---> feature maps --- head ---> logits (b, classes, h, w)
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from recyclelora.backbone import Backbone

Size = tuple[int, int]


class Segmenter(nn.Module):
    """Backbone and head as one model of images as they are, uint8 RGB.

    Image sizes must be multiples of the backbone's patch; `predict` takes any size.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.register_buffer("mean", 255 * torch.tensor(backbone.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(backbone.std).view(3, 1, 1), persistent=False)

    def features(self, images: UInt8[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b _ _ _"]]:
        """The backbone's feature maps of normalised images."""
        maps: list[Tensor] = self.backbone((images - self.mean) / self.std)
        return maps

    def forward(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes h w"]:
        scores: Tensor = self.head(self.features(images), images.shape[-2:])
        return scores

    def loss(self, images: UInt8[Tensor, "b 3 h w"], labels: Int64[Tensor, "b h w"]) -> Float[Tensor, ""]:
        """The head's loss on a batch."""
        loss: Tensor = self.head.loss(self.features(images), labels)  # type: ignore[operator]
        return loss

    @torch.inference_mode()
    def predict(self, image: UInt8[np.ndarray, "h w 3"], window: int, stride: int) -> UInt8[np.ndarray, "h w"]:
        """Train ids of one image of any size, by sliding windows whose overlapping logits are averaged.

        Args:
            window: side of the window in pixels, a multiple of the patch. Along an axis on which the image is smaller,
                the window shrinks to the image, padded by its edge pixels to a multiple of the patch.
            stride: distance between windows in pixels, 1..window; the last window ends at the image's edge.

        Raises:
            ValueError: a window that is no multiple of the patch, or a stride that leaves gaps.
        """
        patch = self.backbone.patch_size
        if window % patch or not 1 <= stride <= window:
            raise ValueError(
                f"window {window} must be a multiple of the patch {patch} and stride {stride} lie in 1..window; "
                f"nearest window: {max(1, round(window / patch)) * patch}"
            )
        h, w = image.shape[:2]
        size = _fitting(h, window, patch), _fitting(w, window, patch)
        below, right = max(0, size[0] - h), max(0, size[1] - w)
        padded = cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_REPLICATE)
        images = torch.from_numpy(padded).permute(2, 0, 1)[None].to(self.mean.device)
        logits = self._averaged_logits(images, size, stride)[0, :, :h, :w]
        return logits.argmax(0).to(torch.uint8).cpu().numpy()

    def _averaged_logits(self, images: UInt8[Tensor, "1 3 h w"], size: Size, stride: int) -> Tensor:
        h, w = images.shape[-2:]
        tops, lefts = window_starts(h, size[0], stride), window_starts(w, size[1], stride)
        total: Tensor | None = None
        for top in tops:
            for left in lefts:
                logits = self(images[..., top : top + size[0], left : left + size[1]]).float()
                if total is None:
                    total = logits.new_zeros(1, logits.shape[1], h, w)
                total[..., top : top + size[0], left : left + size[1]] += logits
        assert total is not None
        return total / (_coverage(h, tops, size[0])[:, None] * _coverage(w, lefts, size[1])).to(total.device)


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows start along an axis: every `stride` pixels, the last one at the end of the axis."""
    last = length - window
    return [*range(0, last, stride), last]


def _coverage(length: int, starts: list[int], window: int) -> Float[Tensor, " length"]:
    count = torch.zeros(length)
    for start in starts:
        count[start : start + window] += 1
    return count


def _fitting(length: int, window: int, patch: int) -> int:
    return min(window, math.ceil(length / patch) * patch)
