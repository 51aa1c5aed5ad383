"""Mask2Former (Cheng et al., CVPR 2022) as the published DGSS work uses it, composed of transformers' parts.

feature maps of one stride --- rescale ---> strides 4, 8, 16, 32
  --- pixel decoder (deformable attention over strides 8..32) ---> mask features at stride 4
  --- masked-attention decoder, 100 queries ---> a class and a mask a query, before the first layer and after each

semantic logits = sum over queries of softmax(classes) without "no object", times sigmoid(masks)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerLoss,
    Mask2FormerPixelDecoder,
    Mask2FormerPreTrainedModel,
    Mask2FormerTransformerModule,
)

from recyclelora.data.labels import IGNORE

SCALES = (4.0, 2.0, 1.0, 0.5)
"""From the stride of the backbone's maps, 16 as published, to strides 4, 8, 16 and 32."""


class Loss(Mask2FormerLoss):
    """The loss of transformers, normalised by the masks of all processes' images, as one process would be."""

    def get_num_masks(self, class_labels: list[Tensor], device: torch.device) -> Tensor:
        """Mean number of masks over the processes, at least 1; the published normalisation."""
        count = torch.tensor(float(sum(len(labels) for labels in class_labels)), device=device)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(count)
            count /= dist.get_world_size()
        return count.clamp(min=1)


class Mask2FormerHead(Mask2FormerPreTrainedModel):
    """The published head at its published sizes by default.

    It is a transformers model, so that `post_init` initialises its weights.

    Args:
        channels: of the four feature maps.
        width: channels of everything inside, a multiple of the 8 attention heads.
        points: pixels drawn from a mask for its loss.
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
        super().__init__(
            Mask2FormerConfig(
                num_labels=classes,
                feature_size=width,
                mask_feature_size=width,
                hidden_dim=width,
                num_queries=queries,
                encoder_layers=encoder_layers,
                decoder_layers=decoder_layers + 1,  # transformers counts the prediction before the first layer
                encoder_feedforward_dim=encoder_feedforward,
                dim_feedforward=decoder_feedforward,
                train_num_points=points,
            )
        )
        config = self.config
        self.pixel_decoder = Mask2FormerPixelDecoder(config, feature_channels=list(channels))
        self.transformer_module = Mask2FormerTransformerModule(in_features=config.feature_size, config=config)
        self.class_predictor = nn.Linear(config.hidden_dim, classes + 1)
        self.weights = {
            "loss_cross_entropy": config.class_weight,
            "loss_mask": config.mask_weight,
            "loss_dice": config.dice_weight,
        }
        self.criterion = Loss(config=config, weight_dict=self.weights)
        self.post_init()

    def predictions(
        self, features: list[Float[Tensor, "b _ _ _"]]
    ) -> list[tuple[Float[Tensor, "b queries classes_and_none"], Float[Tensor, "b queries h w"]]]:
        """Class logits and mask logits (stride 4) before the first decoder layer and after each."""
        pyramid = [
            F.interpolate(map_, scale_factor=scale, mode="bilinear", align_corners=False) if scale != 1 else map_
            for map_, scale in zip(features, SCALES, strict=True)
        ]
        pixels = self.pixel_decoder(pyramid)
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
        """Semantic scores, 0 or more: masks are rescaled to `size` before the sigmoid, as published."""
        classes, masks = self.predictions(features)[-1]
        masks = F.interpolate(masks, size, mode="bilinear", align_corners=False)
        return torch.einsum("bqc,bqhw->bchw", classes.softmax(-1)[..., :-1], masks.sigmoid())

    def loss(self, features: list[Float[Tensor, "b _ _ _"]], labels: Int64[Tensor, "b h w"]) -> Float[Tensor, ""]:
        """Classes, masks and dice of the matched queries, summed over all predictions."""
        *earlier, (classes, masks) = self.predictions(features)
        present = [ids[ids != IGNORE] for ids in (image.unique() for image in labels)]
        targets = [(image == ids[:, None, None]).float() for image, ids in zip(labels, present, strict=True)]
        auxiliary = [{"class_queries_logits": c, "masks_queries_logits": m} for c, m in earlier]
        losses = self.criterion(masks, classes, targets, present, auxiliary)
        total = masks.new_zeros(())
        for name, value in losses.items():
            total = total + value * next(weight for term, weight in self.weights.items() if name.startswith(term))
        return total
