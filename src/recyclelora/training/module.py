"""One training step of a segmenter, and its optimiser; nothing about files or pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor

from recyclelora.data.dataset import TrainingSample
from recyclelora.recipe import OptimSettings
from recyclelora.segmenter import Segmenter
from recyclelora.training.optim import cosine, param_groups, polynomial
from recyclelora.tuner.layer import PREFIX

ADAPTER_PARTS = (f".{PREFIX}", ".lora_")
SEED_STRIDE = 1_000_003  # a prime, so that the samples of two seeds are seldom given the same key


class SegmentationModule(L.LightningModule):
    """Trains what of `segmenter` wants a gradient.

    Everything random at a step is seeded by the step, so that a resumed training repeats an uninterrupted one.
    """

    def __init__(self, segmenter: Segmenter, optim: OptimSettings, steps: int, seed: int) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.optim = optim
        self.steps = steps
        self.seed = seed
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
        """A step, after which the averages move towards what is trained: by more at first, with little to average."""
        super().optimizer_step(*args, **kwargs)
        if self.optim.average:
            step = self.global_step + 1
            weight = 1 - min(self.optim.average, step / (step + 9))
            for name, parameter in self.named_parameters():
                if parameter.requires_grad:
                    value = parameter.detach()
                    self.averages[name] = self.averages.get(name, value).to(value.device).lerp(value, weight)

    def take_averages(self) -> None:
        """Put the averages in place of what was trained last; nothing where the recipe wants no average."""
        for name, average in self.averages.items():
            self.get_parameter(name).data.copy_(average)

    def configure_optimizers(self) -> Any:
        optim = self.optim
        groups = param_groups(self.segmenter, optim.lr, optim.weight_decay, optim.sub_lr_ratio, optim.head_lr)
        optimizer = torch.optim.AdamW(groups)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, [self._factor(group["name"]) for group in groups])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _factor(self, group: str) -> Callable[[int], float]:
        """Of a group's learning rate at a step."""
        start = self.optim.sub_start * self.steps if group == "sub" else 0
        return lambda step: polynomial(step, self.steps, self.optim.power) if step >= start else 0.0

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is trained and what the adapters were drawn from; the base weights stay where they came from."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        checkpoint["state_dict"] = {
            name: value
            for name, value in checkpoint["state_dict"].items()
            if name in trained or name.startswith("segmenter.head.") or any(part in name for part in ADAPTER_PARTS)
        }
        if self.averages:
            checkpoint["averages"] = dict(self.averages)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.averages = dict(checkpoint.get("averages", {}))
