"""One training step of a segmenter, and its optimiser; nothing about files or pictures."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor

from recyclelora.data.dataset import TrainingSample
from recyclelora.recipe import OptimSettings
from recyclelora.segmenter import Segmenter
from recyclelora.training.optim import cosine, param_groups, polynomial
from recyclelora.tuner.layer import PREFIX

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

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        torch.manual_seed(self.seed + self.global_step * self.trainer.world_size + self.global_rank)
        decay = cosine(self.global_step, self.steps, self.optim.weight_decay, self.optim.final_weight_decay)
        for group in self.trainer.optimizers[0].param_groups:
            if group["name"] == "other":
                group["weight_decay"] = decay

    def training_step(self, batch: TrainingSample, batch_idx: int) -> Tensor:
        keys = [self.seed * SEED_STRIDE + number for number in batch["number"].tolist()]
        loss = self.segmenter.loss(batch["image"], batch["labels"], batch["size"], keys)
        self.log("loss", loss, sync_dist=True)
        return loss

    def configure_optimizers(self) -> Any:
        groups = param_groups(self.segmenter, self.optim.lr, self.optim.weight_decay, self.optim.sub_lr_ratio)
        optimizer = torch.optim.AdamW(groups)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: polynomial(step, self.steps, self.optim.power)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is trained and what the adapters were drawn from; the base weights stay where they came from."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        checkpoint["state_dict"] = {
            name: value
            for name, value in checkpoint["state_dict"].items()
            if name in trained or f".{PREFIX}" in name or name.startswith("segmenter.head.")
        }
