"""What a training keeps in a checkpoint, and takes back from it.

`recyclelora.runs.checkpoint` reads and writes the files.
"""

from __future__ import annotations

from pathlib import Path

import torch

from recyclelora.errors import UserError
from recyclelora.runs.checkpoint import Checkpoint, write_state
from recyclelora.training.module import SegmentationModule


def save_checkpoint(
    path: Path, step: int, module: SegmentationModule, optimizer: torch.optim.Optimizer, older: Path | None = None
) -> None:
    """Write all that a training needs to go on after a step; the checkpoint that was there becomes `older`.

    Raises:
        DivergedError: a tensor is NaN or infinite.
        UserError: the file cannot be written.
    """
    state = {"step": step, "state_dict": module.kept_state(), "optimizer": optimizer.state_dict()}
    write_state(path, state | ({"averages": dict(module.averages)} if module.averages else {}), older)


def save_best(path: Path, step: int, miou: float, module: SegmentationModule) -> None:
    """Write the weights of a model that is the best so far; a training cannot go on from them.

    Raises:
        DivergedError, UserError: as `save_checkpoint`.
    """
    write_state(path, {"step": step, "miou": miou, "state_dict": module.kept_state()})


def put_back(checkpoint: Checkpoint, module: SegmentationModule, optimizer: torch.optim.Optimizer) -> int:
    """Bring a module and its optimiser to where a checkpoint was written, and return the steps done by then.

    Raises:
        UserError: the checkpoint is of another model.
    """
    state = checkpoint.state
    try:
        if missing := module.kept_state().keys() - state["state_dict"].keys():
            raise KeyError(min(missing))
        module.load_state_dict(state["state_dict"], strict=False)
        optimizer.load_state_dict(state["optimizer"])
        module.averages = dict(state.get("averages", {}))
        return checkpoint.step
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{checkpoint.path}: a checkpoint of another model or version ({reason}); start again with --overwrite"
        ) from error
