"""`torch`: a program of `torch.export`, which runs with torch alone.

DIR/model.pt2    images, uint8 (b, 3, window, window), RGB -> logits, float32 (b, classes, window, window)
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from recyclelora.errors import UserError, explained, shortened
from recyclelora.exporting.trained import Scores, Trained
from recyclelora.files import write_bytes

NAME = "model.pt2"


def write(trained: Trained, folder: Path) -> Scores:
    """Write the program, for windows of the plan and any number of them; what is returned computes with the file."""
    with warnings.catch_warnings(), exporter(trained, "torch.export"):
        warnings.simplefilter("ignore")  # torch warns of its own parts
        batch = torch.export.Dim("batch")
        program = torch.export.export(
            trained.model.segmenter, (example(trained),), dynamic_shapes=({0: batch},), strict=False
        )
        for module in program.graph_module.modules():
            for node in getattr(getattr(module, "graph", None), "nodes", ()):
                node.meta.pop("stack_trace", None)  # the file would name the folders of this computer
        content = io.BytesIO()
        torch.export.save(program, content)  # into a file it would end the process where the disk is full
        write_bytes(folder / NAME, content.getvalue())
        return trained.scores(torch.export.load(folder / NAME).module())


@contextmanager
def exporter(trained: Trained, name: str) -> Iterator[None]:
    """Turn what another program's exporter raises, of whatever kind, into one line that names the model.

    Raises:
        UserError: the exporter cannot write the model.
    """
    try:
        yield
    except Exception as error:
        if explained(error):  # such as a full disk
            raise
        first: BaseException = error
        while first.__cause__ is not None:
            first = first.__cause__
        recipe, reason = trained.model.run.recipe, shortened(" ".join(str(first).split()))
        raise UserError(
            f"{trained.model.run.path}: {name} cannot write {recipe.backbone.model} with the head {recipe.head} "
            f"({type(first).__name__}: {reason}); choose another --format"
        ) from error


def example(trained: Trained) -> torch.Tensor:
    """Two windows, (2, 3, window, window): a batch of one would be taken for a size that never changes."""
    side = trained.plan.window
    return torch.zeros(2, 3, side, side, dtype=torch.uint8)
