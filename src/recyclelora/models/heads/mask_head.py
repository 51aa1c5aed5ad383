"""Mask classification (Cheng et al., NeurIPS 2021): what heads share whose queries each predict a class and a mask.

semantic logits = sum over queries of softmax(classes) without "no object", times sigmoid(masks)

Each class of an image is matched with one query; the loss compares its class, and its mask at sampled points.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

from recyclelora.data.labels import IGNORE
from recyclelora.models.heads.head import Head, mean_over_processes

Prediction = tuple[Float[Tensor, "b queries classes_and_none"], Float[Tensor, "b queries h w"]]
"""Class logits and mask logits of all queries."""


class Loss(Mask2FormerLoss):
    """The loss of transformers, made independent of how a step's images are spread over processes and parts.

    The number of masks and the sum of class weights are those of the whole step, and the points of each image are
    sampled with its own seed.
    """

    def weight_sum(self, matched: int, queries: int) -> float:
        """The sum of the class weights of queries, so many of which are matched; the others weigh as "no object"."""
        return matched + (queries - matched) * float(self.empty_weight[-1])

    def forward(
        self,
        masks: Float[Tensor, "b queries h w"],
        classes: Float[Tensor, "b queries classes_and_none"],
        mask_labels: list[Float[Tensor, "_ H W"]],
        class_labels: list[Int64[Tensor, " _"]],
        amounts: Float[Tensor, "2"],
        seeds: Sequence[int],
    ) -> dict[str, Tensor]:
        """The three terms of one prediction.

        Args:
            amounts: as `MaskHead.amounts`, of the whole step.
            seeds: one seed per image for its points.
        """
        num_masks, weight_sum = amounts
        indices, parts = [], []
        for i, seed in enumerate(seeds):
            with _seeded(seed, masks.device):
                pair = self.matcher(masks[[i]], classes[[i]], mask_labels[i : i + 1], class_labels[i : i + 1])
                parts.append(self.loss_masks(masks[[i]], mask_labels[i : i + 1], pair, num_masks.clamp(min=1)))
            indices += pair
        sums = {name: torch.stack([part[name] for part in parts]).sum() for name in parts[0]}
        own = weight_sum.new_tensor(self.weight_sum(sum(len(j) for _, j in indices), classes[..., 0].numel()))
        mean = self.loss_labels(classes, class_labels, indices)["loss_cross_entropy"]
        return sums | {"loss_cross_entropy": mean * (own / weight_sum)}


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's generators inside the block, and restore them afterwards."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def classes_present(labels: Int64[Tensor, "b h w"]) -> list[Int64[Tensor, " _"]]:
    """The classes of each image."""
    return [ids[ids != IGNORE] for ids in (image.unique() for image in labels)]


class MaskHead(Head):
    """A head of queries.

    Args:
        config: a configuration of transformers with the weights of the losses and the number of points, such as
            `Mask2FormerConfig` or `EomtConfig`.
    """

    SOFTMAX = False

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.weights = {
            "loss_cross_entropy": config.class_weight,
            "loss_mask": config.mask_weight,
            "loss_dice": config.dice_weight,
        }
        self.criterion = Loss(config=config, weight_dict=self.weights)

    @property
    def queries(self) -> int:
        """How many queries there are."""
        return int(self.config.num_queries)

    @property
    @abstractmethod
    def width(self) -> int:
        """The channels of a query."""

    @abstractmethod
    def take_query_contents(self, contents: nn.Module) -> None:
        """Start the queries from `contents.weight`, (queries, width), instead of the head's own table."""

    @abstractmethod
    def predictions(self, features: list[Float[Tensor, "..."]]) -> list[Prediction]:
        """What the loss is computed of; the last is the head's answer."""

    def forward(self, features: list[Float[Tensor, "..."]], size: tuple[int, int]) -> Float[Tensor, "b classes h w"]:
        """Semantic logits, 0 or more; masks are rescaled to `size` before the sigmoid, as published."""
        classes, masks = (part.to(self.precision()) for part in self.predictions(features)[-1])
        masks = F.interpolate(masks, size, mode="bilinear", align_corners=False)
        with torch.autocast(masks.device.type, enabled=False):  # which would multiply in half precision
            return torch.einsum("bqc,bqhw->bchw", classes.softmax(-1)[..., :-1], masks.sigmoid())

    def amounts(self, labels: Int64[Tensor, "b h w"]) -> Float[Tensor, "2"]:
        """The number of masks, and the sum of the queries' class weights.

        An image without a mask counts as one, as in the published Mask2Former. Each class of an image is matched with
        one query, as long as there are queries.
        """
        counts = [len(ids) for ids in classes_present(labels)]
        masks, queries = sum(max(count, 1) for count in counts), self.config.num_queries
        weights = self.criterion.weight_sum(sum(min(count, queries) for count in counts), queries * len(counts))
        return torch.tensor([masks, weights], dtype=self.precision(), device=labels.device)

    def loss(
        self,
        features: list[Float[Tensor, "..."]],
        labels: Int64[Tensor, "b h w"],
        keys: Sequence[int] | None = None,
        amounts: Float[Tensor, "2"] | None = None,
    ) -> Float[Tensor, ""]:
        """Classes, masks and dice of the matched queries, summed over all predictions, in float32 or more.

        Args:
            keys: one number per image, which seeds its sampled points; drawn from torch's generator if not given.
        """
        if amounts is None:
            amounts = mean_over_processes(self.amounts(labels))
        if keys is None:
            keys = torch.randint(2**31, (len(labels),)).tolist()
        present = classes_present(labels)
        predictions = self.predictions(features)
        with torch.autocast(labels.device.type, enabled=False):
            masks = [image == ids[:, None, None] for image, ids in zip(labels, present, strict=True)]
            targets = [mask.to(torch.promote_types(predictions[0][1].dtype, torch.float32)) for mask in masks]
            total: Tensor = targets[0].new_zeros(())
            for layer, (classes, logits) in enumerate(predictions):
                seeds = [(key * len(predictions) + layer) % 2**32 for key in keys]  # the CPU's generator takes 32 bits
                terms = self.criterion(logits.to(total), classes.to(total), targets, present, amounts, seeds)
                total = total + sum(self.weights[name] * value for name, value in terms.items())
        return total
