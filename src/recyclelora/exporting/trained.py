"""What is exported: a trained model, its files, and the plan by which windows are taken from an image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, UInt8

from recyclelora.models import logits as logits_of_pixels
from recyclelora.models.batches import Forward
from recyclelora.models.plan import Plan
from recyclelora.models.sliding import summed_scores
from recyclelora.runs.predictor import Predictor
from recyclelora.runs.run import Run

Scores = Callable[[UInt8[np.ndarray, "h w 3"]], Float[np.ndarray, "classes h w"]]
"""The logits of an RGB image that is at least one window high and wide, averaged where windows overlap."""
Probabilities = Callable[[Float[np.ndarray, "classes h w"]], Float[np.ndarray, "classes h w"]]
"""The probabilities of logits."""


@dataclass(frozen=True)
class Trained:
    """A trained model with its adapters merged, on the CPU.

    files: the run whose folder has the trained weights (see `recyclelora.runs.predictor.trained_files`).
    weights: where the base weights are now, if not where the recipe says.
    """

    model: Predictor
    files: Run
    weights: str | None = None

    @cached_property
    def plan(self) -> Plan:
        """The window and stride for an image at its own size; exports take one view, whose windows all count alike."""
        return replace(self.model.plan(), box=None, flip=False, scales=(1.0,), blend="uniform")

    @property
    def patch(self) -> int:
        """The patch size in pixels."""
        return self.model.segmenter.backbone.patch_size

    def probabilities(self, logits: Float[np.ndarray, "classes h w"]) -> Float[np.ndarray, "classes h w"]:
        """The probabilities of the classes; see `recyclelora.models.logits`."""
        size = logits.shape[1], logits.shape[2]
        found = logits_of_pixels.probabilities(torch.from_numpy(logits), size, 1, self.model.segmenter.head.SOFTMAX)
        return found.numpy()

    def scores(self, forward: Forward | None = None) -> Scores:
        """The logits of an image, by the model or by another function of windows."""
        chosen = forward or self.model.segmenter
        return lambda image: summed_scores(chosen, image, self.plan, self.patch, "cpu").numpy()
