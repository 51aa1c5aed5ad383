"""Notices a training that diverges, at the step where it does.

The loss of a step is that of the weights before it, so a loss that is finite says nothing about the weights after it:
both are checked.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils import get_total_norm

from recyclelora.errors import DivergedError
from recyclelora.models.weights import nonfinite

LARGEST = math.sqrt(torch.finfo(torch.float32).max)
"""About 1.8e19: the product of two numbers beyond it is infinite in float32, and so are the scores of the model."""
TIMES, STEPS = 10, 100
"""A loss this many times the first one, for so many steps without a break, is reported."""


def check_step(run: Path, step: int, loss: float, model: nn.Module) -> None:
    """Refuse to go on after a step whose loss is not finite, or that made a trained weight useless.

    Raises:
        DivergedError: the loss is NaN or infinite, or as `check_weights`.
    """
    if not math.isfinite(loss):
        raise DivergedError(f"{run}: the loss is {loss} at step {step}; lower optim.lr")
    check_weights(run, step, model)


def check_weights(run: Path, step: int, model: nn.Module) -> None:
    """Refuse trained weights that are NaN, infinite or beyond `LARGEST`.

    Raises:
        DivergedError: there is one; the message names it.
    """
    trained = {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}
    if not get_total_norm(trained.values(), math.inf) <= LARGEST:  # also if it is NaN
        for name, weight in trained.items():
            largest = weight.abs().max().item()
            if not largest <= LARGEST:
                raise DivergedError(
                    f"{run}: the largest weight of {name} is {largest:.3g} at step {step}; lower optim.lr"
                )


def check_result(run: Path, step: int, model: nn.Module, head: nn.Module) -> None:
    """Refuse to write a result that would not be loaded.

    Raises:
        DivergedError: as `check_weights`, or a buffer of the head is NaN or infinite.
    """
    check_weights(run, step, model)
    if name := nonfinite(head.state_dict()):
        raise DivergedError(f"{run}: {name} of the head holds NaN or infinity at step {step}; lower optim.lr")


class LossWatch:
    """Looks out for a loss that is finite, but far larger than the first one for long.

    first: the loss of the training's first step; the first one that is seen if it is None.
    """

    def __init__(self, first: float | None = None) -> None:
        self.first, self.above = first, 0

    def see(self, loss: float) -> str | None:
        """What is wrong with the losses so far; it is said once, and None otherwise."""
        self.first = loss if self.first is None else self.first
        self.above = self.above + 1 if loss > TIMES * self.first > 0 else 0
        if self.above != STEPS:
            return None
        return (
            f"for {STEPS} steps the loss has been more than {TIMES} times that of the first step (now {loss:.3g}, then "
            f"{self.first:.3g}); the training has probably diverged: lower optim.lr"
        )
