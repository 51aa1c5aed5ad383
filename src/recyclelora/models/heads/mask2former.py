"""Mask2Former (Cheng et al., CVPR 2022) as the published DGSS work uses it, built from transformers' parts.

feature maps of one stride --- rescale ---> strides 4, 8, 16, 32
  --- pixel decoder (deformable attention over strides 8..32) ---> mask features at stride 4
  --- masked-attention decoder, 100 queries ---> one class and one mask per query, before the first layer and after each

The loss and the semantic logits are those of `mask_head.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerPixelDecoder,
    Mask2FormerTransformerModule,
)

from recyclelora.models.heads.head import check_sizes
from recyclelora.models.heads.initial_weights import initialise
from recyclelora.models.heads.mask_head import MaskHead, Prediction

SCALES = (4.0, 2.0, 1.0, 0.5)
"""Factors from the stride of the backbone's maps, 16 as published, to strides 4, 8, 16 and 32."""


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


class Mask2FormerHead(MaskHead):
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
        check_sizes(
            width=width, queries=queries, encoder_layers=encoder_layers, decoder_layers=decoder_layers,
            encoder_feedforward=encoder_feedforward, decoder_feedforward=decoder_feedforward, points=points,
        )  # fmt: skip
        seed = int(torch.randint(2**63 - 1, (), device="cpu"))  # before the parts, which draw weights themselves
        config = Mask2FormerConfig(
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
        super().__init__(config)
        self.pixel_decoder = Mask2FormerPixelDecoder(config, feature_channels=list(channels))
        for projection in self.pixel_decoder.input_projections:
            projection[1] = _GroupNorm(projection[1].num_groups, width)
        self.transformer_module = Mask2FormerTransformerModule(in_features=config.feature_size, config=config)
        self.class_predictor = nn.Linear(config.hidden_dim, classes + 1)
        initialise(self, seed)

    @property
    def width(self) -> int:
        return int(self.config.hidden_dim)

    def take_query_contents(self, contents: nn.Module) -> None:
        self.transformer_module.queries_features = contents

    def predictions(self, features: list[Float[Tensor, "b _ _ _"]]) -> list[Prediction]:
        """Class logits and mask logits (stride 4) before the first decoder layer and after each."""
        pixels = self.pixel_decoder([rescaled(map_, scale) for map_, scale in zip(features, SCALES, strict=True)])
        decoded = self.transformer_module(
            multi_scale_features=pixels.multi_scale_features,
            mask_features=pixels.mask_features,
            output_hidden_states=True,
        )
        classes = [self.class_predictor(hidden.transpose(0, 1)) for hidden in decoded.intermediate_hidden_states]
        return list(zip(classes, decoded.masks_queries_logits, strict=True))

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the two decoders; the loss stays eager, because its matching runs on the CPU."""
        self.pixel_decoder.compile(*args, **kwargs)
        self.transformer_module.compile(*args, **kwargs)


HEAD = Mask2FormerHead
