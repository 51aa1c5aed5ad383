"""Mask2Former (Cheng et al., CVPR 2022) as the published DGSS work uses it, built from transformers' parts.

feature maps of one stride --- rescale ---> strides 4, 8, 16, 32
  --- pixel decoder (deformable attention over strides 8..32) ---> mask features at stride 4
  --- masked-attention decoder, 100 queries ---> one class and one mask per query, before the first layer and after each

semantic logits = sum over queries of softmax(classes) without "no object", times sigmoid(masks)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerLoss,
    Mask2FormerPixelDecoder,
    Mask2FormerTransformerModule,
)

from recyclelora.data.labels import IGNORE
from recyclelora.models.heads.head import Head, check_sizes, mean_over_processes
from recyclelora.models.heads.initial_weights import initialise

SCALES = (4.0, 2.0, 1.0, 0.5)
"""Factors from the stride of the backbone's maps, 16 as published, to strides 4, 8, 16 and 32."""


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
            amounts: as `Mask2FormerHead.amounts`, of the whole step.
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


class _GroupNorm(nn.GroupNorm):
    """Without torch's check for more than one value per group, which one image can fail where two would pass."""

    def forward(self, input: Float[Tensor, "b _ h w"]) -> Float[Tensor, "b _ h w"]:
        """Normalised maps; a group of a single value becomes 0 before scale and bias."""
        return torch.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


def rescaled(map_: Float[Tensor, "b c h w"], scale: float) -> Float[Tensor, "b c H W"]:
    """The map, resized bilinearly as published. A side of one patch, which has no half, is repeated first."""
    if scale == 1:
        return map_
    height, width = (int(side * scale < 1) for side in map_.shape[-2:])
    if height or width:
        map_ = F.pad(map_, (0, width, 0, height), mode="replicate")
    return F.interpolate(map_, scale_factor=scale, mode="bilinear", align_corners=False)


def classes_present(labels: Int64[Tensor, "b h w"]) -> list[Int64[Tensor, " _"]]:
    """The classes of each image."""
    return [ids[ids != IGNORE] for ids in (image.unique() for image in labels)]


class Mask2FormerHead(Head):
    """The published head, with its published sizes and initial weights; see `initial_weights.py` for these.

    Args:
        channels: channels of the four feature maps.
        width: channels of all inner layers, a multiple of the 8 attention heads.
        points: pixels sampled from a mask for its loss.
    """

    FINAL_NORM = False
    PYRAMID = True
    SOFTMAX = False

    def __init__(
        self,
        channels: Sequence[int],
        classes: int,
        width: int = 256,
        queries: int = 100,
        encoder_layers: int = 6,
        decoder_layers: int = 9,
        encoder_feedforward: int = 1024,
        decoder_feedforward: int = 2048,
        points: int = 12_544,
    ) -> None:
        super().__init__()
        check_sizes(
            width=width, queries=queries, encoder_layers=encoder_layers, decoder_layers=decoder_layers,
            encoder_feedforward=encoder_feedforward, decoder_feedforward=decoder_feedforward, points=points,
        )  # fmt: skip
        seed = int(torch.randint(2**63 - 1, (), device="cpu"))  # before the parts, which draw weights themselves
        self.config = config = Mask2FormerConfig(
            num_labels=classes,
            feature_size=width,
            mask_feature_size=width,
            hidden_dim=width,
            num_queries=queries,
            encoder_layers=encoder_layers,
            decoder_layers=decoder_layers + 1,  # transformers also counts the prediction before the first layer
            encoder_feedforward_dim=encoder_feedforward,
            dim_feedforward=decoder_feedforward,
            train_num_points=points,
        )
        self.pixel_decoder = Mask2FormerPixelDecoder(config, feature_channels=list(channels))
        for projection in self.pixel_decoder.input_projections:
            projection[1] = _GroupNorm(projection[1].num_groups, width)
        self.transformer_module = Mask2FormerTransformerModule(in_features=config.feature_size, config=config)
        self.class_predictor = nn.Linear(config.hidden_dim, classes + 1)
        self.weights = {
            "loss_cross_entropy": config.class_weight,
            "loss_mask": config.mask_weight,
            "loss_dice": config.dice_weight,
        }
        self.criterion = Loss(config=config, weight_dict=self.weights)
        initialise(self, seed)

    def take_query_contents(self, contents: nn.Module) -> None:
        """Start the queries from `contents.weight`, (queries, width), instead of the head's own table."""
        self.transformer_module.queries_features = contents

    def predictions(
        self, features: list[Float[Tensor, "b _ _ _"]]
    ) -> list[tuple[Float[Tensor, "b queries classes_and_none"], Float[Tensor, "b queries h w"]]]:
        """Class logits and mask logits (stride 4) before the first decoder layer and after each."""
        pixels = self.pixel_decoder([rescaled(map_, scale) for map_, scale in zip(features, SCALES, strict=True)])
        decoded = self.transformer_module(
            multi_scale_features=pixels.multi_scale_features,
            mask_features=pixels.mask_features,
            output_hidden_states=True,
        )
        classes = [self.class_predictor(hidden.transpose(0, 1)) for hidden in decoded.intermediate_hidden_states]
        return list(zip(classes, decoded.masks_queries_logits, strict=True))

    def forward(
        self, features: list[Float[Tensor, "b _ _ _"]], size: tuple[int, int]
    ) -> Float[Tensor, "b classes h w"]:
        """Semantic logits, 0 or more; masks are rescaled to `size` before the sigmoid, as published."""
        classes, masks = (part.to(self.precision()) for part in self.predictions(features)[-1])
        masks = F.interpolate(masks, size, mode="bilinear", align_corners=False)
        with torch.autocast(masks.device.type, enabled=False):  # which would multiply in half precision
            return torch.einsum("bqc,bqhw->bchw", classes.softmax(-1)[..., :-1], masks.sigmoid())

    def amounts(self, labels: Int64[Tensor, "b h w"]) -> Float[Tensor, "2"]:
        """The number of masks, and the sum of the queries' class weights.

        An image without a mask counts as one, as in the published head. Each class of an image is matched with one
        query, as long as there are queries.
        """
        counts = [len(ids) for ids in classes_present(labels)]
        masks, queries = sum(max(count, 1) for count in counts), self.config.num_queries
        weights = self.criterion.weight_sum(sum(min(count, queries) for count in counts), queries * len(counts))
        return torch.tensor([masks, weights], dtype=self.precision(), device=labels.device)

    def loss(
        self,
        features: list[Float[Tensor, "b _ _ _"]],
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

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the two decoders; the loss stays eager, because its matching runs on the CPU."""
        self.pixel_decoder.compile(*args, **kwargs)
        self.transformer_module.compile(*args, **kwargs)


HEAD = Mask2FormerHead
