"""`torch`: a program of `torch.export`, which runs with torch alone.

DIR/model.pt2    images, uint8 (b, 3, window, window), RGB -> logits, float32 (b, classes, window, window)
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from recyclelora.exporting.trained import Scores, Trained

NAME = "model.pt2"


def write(trained: Trained, folder: Path) -> Scores:
    """Write the program, for windows of the plan and any number of them; what is returned computes with the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own parts
        batch = torch.export.Dim("batch")
        program = torch.export.export(
            trained.model.segmenter, (example(trained),), dynamic_shapes=({0: batch},), strict=False
        )
        torch.export.save(program, folder / NAME)
        return trained.scores(torch.export.load(folder / NAME).module())


def example(trained: Trained) -> torch.Tensor:
    """Two windows, (2, 3, window, window): a batch of one would be taken for a size that never changes."""
    side = trained.plan.window
    return torch.zeros(2, 3, side, side, dtype=torch.uint8)
