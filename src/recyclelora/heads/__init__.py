"""Segmentation heads: feature maps of the backbone -> scores of the classes, and the loss of their training.

A head is an `nn.Module` with `forward(features, size) -> (b, classes, h, w)` and
`loss(features, labels, keys) -> scalar`, where `keys` number the images for what the loss draws at random.
`FINAL_NORM` says whether it takes features after the backbone's final norm, `PYRAMID` whether it takes those of four
blocks (at 1/3, 1/2, 2/3 and the end) or of the last alone.
"""

from recyclelora.heads.linear import LinearHead
from recyclelora.heads.mask2former import Mask2FormerHead

HEADS = {"linear": LinearHead, "mask2former": Mask2FormerHead}

__all__ = ["HEADS", "LinearHead", "Mask2FormerHead"]
