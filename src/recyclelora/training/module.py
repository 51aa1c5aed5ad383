"""What one step of a training computes: the loss of a batch, rates and weight decays, and averages of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from recyclelora.adapter.optim import param_groups
from recyclelora.data.dataset import TrainingSample
from recyclelora.methods import get_method
from recyclelora.models.heads.head import mean_over_processes
from recyclelora.models.segmenter import Segmenter
from recyclelora.recipe import Recipe
from recyclelora.runs.build import kept_names

SEED_STRIDE = 1_000_003  # a prime, so that samples of two seeds seldom get the same key
WARMUP_START = 1e-6
"""The factor of the learning rate at the first step of a warm-up, as in the ACDC settings of Rein and SoMA."""


class SegmentationModule(nn.Module):
    """Trains the parameters of `segmenter` that require a gradient.

    Steps count from 0. Everything random at a step is seeded by the step, so that a resumed training repeats an
    uninterrupted one.
    """

    def __init__(self, segmenter: Segmenter, recipe: Recipe) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.method = get_method(recipe.method)
        self.optim, self.steps, self.seed = recipe.optim, recipe.steps, recipe.seed
        self.averages: dict[str, Tensor] = {}

    def forward(self, batch: TrainingSample, amounts: Sequence[float] | None = None) -> Float[Tensor, ""]:
        """The loss of a batch; that of a part of it if `amounts` has those of the whole batch.

        The losses of the parts add up to that of the batch, to rounding, and so do their gradients. Only dropout, an
        option of some methods and timm models, is drawn anew for each part, and so differs.
        """
        keys = [self.seed * SEED_STRIDE + number for number in batch["number"].tolist()]
        labels, of_step = batch["labels"], None
        if amounts is not None:
            of_step = torch.tensor(amounts, dtype=self.segmenter.head.precision(), device=labels.device)
        return self.segmenter.loss(batch["image"], labels, batch["size"], keys, of_step)

    def amounts(self, labels: Int64[Tensor, "b h w"]) -> list[float]:
        """What the loss of a step is normalised by, from the labels that this process has of it; see `Head.amounts`.

        All processes have to call it together. These are numbers, because Fabric rounds tensors that are given to
        `forward` to bfloat16 if the precision is mixed.
        """
        amounts: list[float] = mean_over_processes(self.segmenter.head.amounts(labels)).tolist()
        return amounts

    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW with the groups of the recipe, before any schedule."""
        optim = self.optim
        groups = param_groups(
            self.segmenter, optim.lr, optim.weight_decay, optim.sub_lr_ratio, optim.head_lr, self.method.role
        )
        return torch.optim.AdamW(groups)

    def schedule(self, step: int, groups: list[dict[str, Any]], first: list[dict[str, float]]) -> None:
        """Set the rate and the weight decay of each group of parameters for a step, and what else depends on it.

        Args:
            first: `lr` and `weight_decay` of each group as the optimiser was made.
        """
        for group, start in zip(groups, first, strict=True):
            late = group["name"] == "sub" and step < self.optim.sub_start * self.steps
            factor = 0.0 if late else rate_factor(step, self.steps, self.optim.power, self.optim.warmup)
            group["lr"] = start["lr"] * factor
            group["weight_decay"] = cosine(step, self.steps, start["weight_decay"], self.optim.final_weight_decay)
        self.segmenter.head.begin_step(step / (self.steps - 1) if self.steps > 1 else 1.0)

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def average(self, step: int) -> None:
        """Move the averages towards the weights after a step, faster in the first steps; see `OptimSettings`."""
        if self.optim.average:
            weight = 1 - min(self.optim.average, (step + 1) / (step + 10))
            for name, parameter in self.trained().items():
                value = parameter.detach()
                self.averages[name] = self.averages.get(name, value).to(value.device).lerp(value, weight)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """While it lasts, the weights are those that would be the result now: their averages, if there are any."""
        before = {name: self.get_parameter(name).detach().clone() for name in self.averages}
        self.take_averages()
        try:
            yield
        finally:
            for name, value in before.items():
                self.get_parameter(name).data.copy_(value)

    def take_averages(self) -> None:
        """Replace the trained weights by their averages; nothing happens if the recipe sets no average."""
        for name, average in self.averages.items():
            self.get_parameter(name).data.copy_(average)

    def kept_state(self) -> dict[str, Tensor]:
        """What a checkpoint holds; see `recyclelora.runs.build.kept_names`."""
        kept = {f"segmenter.{name}" for name in kept_names(self.segmenter, self.method.name)}
        return {name: value for name, value in self.state_dict().items() if name in kept}


def rate_factor(step: int, steps: int, power: float = 0.9, warmup: int = 0) -> float:
    """Factor of the learning rate at a step, 0 at the last one, `steps` - 1; as mmengine's LinearLR and PolyLR.

    Over the first `warmup` steps it rises linearly from `WARMUP_START` to 1. Over the others it is
    (1 - i / (n - 1)) ** power at the i-th of n, as in the published work; if there is only one, it is 1.
    """
    if step < warmup:
        return WARMUP_START + (1 - WARMUP_START) * step / max(1, warmup - 1)
    last = steps - warmup - 1
    return math.pow(1 - min(step - warmup, last) / last, power) if last > 0 else 1.0


def cosine(step: int, steps: int, start: float, end: float) -> float:
    """Weight decay at a step: a half cosine from `start` to `end`, as mmengine's CosineAnnealingParamScheduler.

    It would reach `end` only at `steps`, one after the last step. A group without weight decay, whose `start` is 0, is
    raised to `end`, as in the published work.
    """
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(step, steps) / steps))
