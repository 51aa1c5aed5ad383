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
    """The loss of transformers, made independent of how a step's images are spread over processes.

    The number of masks and the sum of class weights are means over processes, and the points of
    each image are sampled with its own seed.
    """

    def get_num_masks(self, class_labels: list[Tensor], device: torch.device) -> Tensor:
        """Mean number of masks over the processes, where an image without any counts as 1, as in the published head."""
        count = torch.tensor(float(sum(max(len(labels), 1) for labels in class_labels)), device=device)
        return mean_over_processes(count).clamp(min=1)

    def loss_labels(
        self, class_queries_logits: Tensor, class_labels: list[Tensor], indices: list[tuple[Tensor, Tensor]]
    ) -> dict[str, Tensor]:
        """Cross-entropy as a sum over the queries, divided by the mean sum of class weights over the processes."""
        losses = super().loss_labels(class_queries_logits, class_labels, indices)
        matched, queries = sum(len(j) for _, j in indices), class_queries_logits[..., 0].numel()
        own = losses["loss_cross_entropy"].new_tensor(matched + (queries - matched) * self.eos_coef)
        return {"loss_cross_entropy": losses["loss_cross_entropy"] * (own / mean_over_processes(own))}

    def forward(
        self,
        masks: Float[Tensor, "b queries h w"],
        classes: Float[Tensor, "b queries classes_and_none"],
        mask_labels: list[Float[Tensor, "_ H W"]],
        class_labels: list[Int64[Tensor, " _"]],
        num_masks: Tensor,
        seeds: Sequence[int],
    ) -> dict[str, Tensor]:
        """The three terms of one prediction; `seeds` has one seed per image for its points."""
        indices, parts = [], []
        for i, seed in enumerate(seeds):
            with _seeded(seed, masks.device):
                pair = self.matcher(masks[[i]], classes[[i]], mask_labels[i : i + 1], class_labels[i : i + 1])
                parts.append(self.loss_masks(masks[[i]], mask_labels[i : i + 1], pair, num_masks))
            indices += pair
        sums = {name: torch.stack([part[name] for part in parts]).sum() for name in parts[0]}
        return sums | self.loss_labels(classes, class_labels, indices)


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


class Mask2FormerHead(Head):
    """The published head, with its published sizes and initial weights; see `initial_weights.py` for these.

    Args:
        channels: channels of the four feature maps.
        width: channels of all inner layers, a multiple of the 8 attention heads.
        points: pixels sampled from a mask for its loss.
    """

    FINAL_NORM = False
    PYRAMID = True

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
        classes, masks = self.predictions(features)[-1]
        masks = F.interpolate(masks, size, mode="bilinear", align_corners=False)
        return torch.einsum("bqc,bqhw->bchw", classes.softmax(-1)[..., :-1], masks.sigmoid())

    def loss(
        self,
        features: list[Float[Tensor, "b _ _ _"]],
        labels: Int64[Tensor, "b h w"],
        keys: Sequence[int] | None = None,
    ) -> Float[Tensor, ""]:
        """Classes, masks and dice of the matched queries, summed over all predictions, in float32 or more.

        Args:
            keys: one number per image, which seeds its sampled points; drawn from torch's generator if not given.
        """
        if keys is None:
            keys = torch.randint(2**31, (len(labels),)).tolist()
        present = [ids[ids != IGNORE] for ids in (image.unique() for image in labels)]
        predictions = self.predictions(features)
        with torch.autocast(labels.device.type, enabled=False):
            masks = [image == ids[:, None, None] for image, ids in zip(labels, present, strict=True)]
            targets = [mask.to(torch.promote_types(predictions[0][1].dtype, torch.float32)) for mask in masks]
            count = self.criterion.get_num_masks(present, labels.device).to(targets[0].dtype)
            total: Tensor = targets[0].new_zeros(())
            for layer, (classes, logits) in enumerate(predictions):
                seeds = [(key * len(predictions) + layer) % 2**32 for key in keys]  # the CPU's generator takes 32 bits
                terms = self.criterion(logits.to(total), classes.to(total), targets, present, count, seeds)
                total = total + sum(self.weights[name] * value for name, value in terms.items())
        return total

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the two decoders; the loss stays eager, because its matching runs on the CPU."""
        self.pixel_decoder.compile(*args, **kwargs)
        self.transformer_module.compile(*args, **kwargs)


HEAD = Mask2FormerHead
