"""Intersection over union from a confusion matrix over a whole data set, as the Cityscapes evaluator defines it."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from recyclelora.data.labels import IGNORE

PIXELS_AT_ONCE = 2**20
"""How many pixels are counted at once: each takes some 30 bytes meanwhile."""


class ConfusionMatrix:
    """Counts of pixels, row = ground truth, column = prediction, in 64-bit integers.

    Predictions that are no class (`IGNORE`) are counted in an extra last column: such a pixel is missed by its true
    class and claimed by no other.
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.counts: Int64[np.ndarray, "classes classes_and_none"] = np.zeros((classes, classes + 1), np.int64)

    def update(self, truth: UInt8[np.ndarray, "h w"], prediction: UInt8[np.ndarray, "h w"]) -> None:
        """Add one image; pixels whose ground truth is `IGNORE` are dropped.

        Raises:
            ValueError: unequal sizes, or ids that are neither a class nor `IGNORE`.
        """
        if truth.shape != prediction.shape:
            raise ValueError(f"ground truth has size {truth.shape}, prediction {prediction.shape}")
        for name, ids in (("ground truth", truth), ("prediction", prediction)):
            strange = ids[(ids >= self.classes) & (ids != IGNORE)]
            if strange.size:
                raise ValueError(f"{name} holds id {strange[0]}; expected 0..{self.classes - 1} or {IGNORE}")
        rows = max(1, PIXELS_AT_ONCE // max(1, truth.shape[1]))
        for top in range(0, len(truth), rows):
            self._count(truth[top : top + rows], prediction[top : top + rows])

    def _count(self, truth: UInt8[np.ndarray, "h w"], prediction: UInt8[np.ndarray, "h w"]) -> None:
        kept = truth != IGNORE
        columns = np.minimum(prediction[kept].astype(np.int64), self.classes)
        flat = truth[kept].astype(np.int64) * (self.classes + 1) + columns
        self.counts += np.bincount(flat, minlength=self.counts.size).reshape(self.counts.shape)

    def iou(self) -> Float64[np.ndarray, " classes"]:
        """IoU per class, TP / (TP + FP + FN); NaN for a class that is in neither ground truth nor prediction."""
        hits = np.diagonal(self.counts).astype(np.float64)
        union = self.counts.sum(1) + self.counts[:, : self.classes].sum(0) - hits
        iou = np.full(self.classes, np.nan)
        np.divide(hits, union, out=iou, where=union > 0)
        return iou

    def miou(self) -> float:
        """Mean IoU over the classes that occur in ground truth or prediction; NaN if no class occurs."""
        iou = self.iou()
        return float(np.nanmean(iou)) if np.isfinite(iou).any() else float("nan")
