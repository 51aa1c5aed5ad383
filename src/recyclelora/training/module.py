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

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        torch.manual_seed(self.seed + self.global_step * self.trainer.world_size + self.global_rank)
        decay = cosine(self.global_step, self.steps, self.optim.weight_decay, self.optim.final_weight_decay)
        for group in self.trainer.optimizers[0].param_groups:
            if group["name"] in ("other", "backbone"):
                group["weight_decay"] = decay

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
        optimizer = torch.optim.AdamW(groups)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, [self._factor(group["name"]) for group in groups])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _factor(self, group: str) -> Callable[[int], float]:
        """The factor of a group's learning rate, as a function of the step."""
        start = self.optim.sub_start * self.steps if group == "sub" else 0
        return lambda step: polynomial(step, self.steps, self.optim.power) if step >= start else 0.0

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


def polynomial(step: int, steps: int, power: float = 0.9) -> float:
    """Factor of the learning rate at a step: (1 - step / steps) ** power, as published (arXiv 2603.28142)."""
    return math.pow(1 - min(step, steps) / steps, power)


def cosine(step: int, steps: int, start: float, end: float) -> float:
    """Value of the weight decay at a step: a half cosine from `start` (step 0) to `end` (last step), as published."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(step, steps) / steps))
