"""One training step of a segmenter, and its optimiser; nothing about files or pictures."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor

from recyclelora.adapter.optim import param_groups
from recyclelora.data.dataset import TrainingSample
from recyclelora.methods import get_method
from recyclelora.models.segmenter import Segmenter
from recyclelora.recipe import Recipe

SEED_STRIDE = 1_000_003  # a prime, so that samples of two seeds seldom get the same key
WARMUP_START = 1e-6
"""The factor of the learning rate at the first step of a warm-up, as in the ACDC settings of Rein and SoMA."""


class SegmentationModule(L.LightningModule):
    """Trains the parameters of `segmenter` that require a gradient.

    Everything random at a step is seeded by the step, so that a resumed training repeats an uninterrupted one.
    """

    def __init__(self, segmenter: Segmenter, recipe: Recipe) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.method = get_method(recipe.method)
        self.optim, self.steps, self.seed = recipe.optim, recipe.steps, recipe.seed
        self.strict_loading = False
        self.averages: dict[str, Tensor] = {}
        self.decays: list[float] = []

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        torch.manual_seed(self.seed + self.global_step * self.trainer.world_size + self.global_rank)
        for group, first in zip(self.trainer.optimizers[0].param_groups, self.decays, strict=True):
            group["weight_decay"] = cosine(self.global_step, self.steps, first, self.optim.final_weight_decay)

    def training_step(self, batch: TrainingSample, batch_idx: int) -> Tensor:
        keys = [self.seed * SEED_STRIDE + number for number in batch["number"].tolist()]
        loss = self.segmenter.loss(batch["image"], batch["labels"], batch["size"], keys)
        self.log("loss", loss, sync_dist=True)
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take a step, then move the averages towards the trained weights, faster in the first steps."""
        super().optimizer_step(*args, **kwargs)
        if self.optim.average:
            step = self.global_step + 1
            weight = 1 - min(self.optim.average, step / (step + 9))
            for name, parameter in self.named_parameters():
                if parameter.requires_grad:
                    value = parameter.detach()
                    self.averages[name] = self.averages.get(name, value).to(value.device).lerp(value, weight)

    def take_averages(self) -> None:
        """Replace the trained weights by their averages; nothing happens if the recipe sets no average."""
        for name, average in self.averages.items():
            self.get_parameter(name).data.copy_(average)

    def configure_optimizers(self) -> Any:
        optim = self.optim
        groups = param_groups(
            self.segmenter, optim.lr, optim.weight_decay, optim.sub_lr_ratio, optim.head_lr, self.method.role
        )
        self.decays = [group["weight_decay"] for group in groups]
        optimizer = torch.optim.AdamW(groups)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, [self._factor(group["name"]) for group in groups])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _factor(self, group: str) -> Callable[[int], float]:
        """The factor of a group's learning rate, as a function of the step."""
        start = self.optim.sub_start * self.steps if group == "sub" else 0
        power, warmup = self.optim.power, self.optim.warmup
        return lambda step: rate_factor(step, self.steps, power, warmup) if step >= start else 0.0

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the trained weights and the factors that the adapters started from, but not the base weights."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        checkpoint["state_dict"] = {
            name: value
            for name, value in checkpoint["state_dict"].items()
            if name in trained or name.startswith("segmenter.head.") or self.method.is_drawn(name)
        }
        if self.averages:
            checkpoint["averages"] = dict(self.averages)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.averages = dict(checkpoint.get("averages", {}))


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
