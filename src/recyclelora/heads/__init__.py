"""Segmentation heads: feature maps of the backbone -> logits, and the loss of their training.

A head is an `nn.Module` with `forward(features) -> logits (b, classes, h, w)`, at whatever size it works in, and
`loss(features, labels) -> scalar`; `FINAL_NORM` says whether it takes features after the backbone's final norm.
"""

from recyclelora.heads.linear import LinearHead

HEADS = {"linear": LinearHead}

__all__ = ["HEADS", "LinearHead"]
