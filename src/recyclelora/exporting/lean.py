"""The same model in fewer operations, for an export that is only used for prediction.

The heads are written for training: they keep what a loss needs, and ask at run time what is known in an export. Here
Mask2Former computes with the same parts and weights, but

    1 x 1 convolutions come before the maps are enlarged: both are linear, so they commute
    deformable attention gets its locations from one product, and sums samples along an axis that lies outermost
    masks that only say where a query may look are computed at the size at which it looks, from rescaled features
    only the last prediction is computed at full size

Results differ by rounding alone.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from recyclelora.models.heads.mask2former import SCALES, Mask2FormerHead, rescaled
from recyclelora.models.segmenter import Segmenter

Grid = Sequence[tuple[int, int]]
"""Height and width of each level."""


def lean(segmenter: Segmenter) -> Segmenter:
    """A model that shares the weights of `segmenter`, and predicts the same in fewer operations."""
    if not isinstance(segmenter.head, Mask2FormerHead):
        return segmenter
    made = copy.copy(segmenter)
    made._modules = {**segmenter._modules, "head": LeanMask2Former(segmenter.head)}
    return made


class LeanMask2Former(nn.Module):
    """The logits of a Mask2Former head; see the top of this file."""

    def __init__(self, head: Mask2FormerHead) -> None:
        super().__init__()
        self.head = head = copy.deepcopy(head).eval()
        pixels = head.pixel_decoder
        levels = [pixels.adapter_1, *pixels.input_projections[::-1]]  # from the finest on, as the feature maps
        self.projections = nn.ModuleList(level[0] for level in levels)
        for level in levels:
            level[0] = nn.Identity()
        for layer in pixels.encoder.layers:
            layer.self_attn = DeformableAttention(layer.self_attn)
        self.mask_projection = pixels.mask_projection
        pixels.mask_projection = nn.Identity()

    def joining(self, keys: Sequence[int] | None = None) -> None:
        """As in a head: nothing of it joins the backbone's blocks."""

    def forward(
        self, features: list[Float[Tensor, "b _ _ _"]], size: tuple[int, int]
    ) -> Float[Tensor, "b classes h w"]:
        """Logits at `size`, as those of the head."""
        maps = [
            rescaled(project(map_), scale)
            for map_, project, scale in zip(features, self.projections, SCALES, strict=True)
        ]
        pixels = self.head.pixel_decoder(maps)
        queries = self._queries(pixels.multi_scale_features, pixels.mask_features)
        masks = F.interpolate(self._masks(queries, pixels.mask_features), size, mode="bilinear", align_corners=False)
        classes = self.head.class_predictor(queries).softmax(-1)[..., :-1]
        logits: Tensor = (classes.transpose(1, 2) @ masks.sigmoid().flatten(2)).unflatten(2, size)
        return logits

    def _queries(
        self, maps: Sequence[Float[Tensor, "b c _ _"]], pixels: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b queries c"]:
        """The queries after the last layer of the decoder, normalised."""
        module = self.head.transformer_module
        decoder, batch = module.decoder, pixels.shape[0]
        positions = [
            module.position_embedder(map_.shape, map_.device, map_.dtype, None).flatten(2).permute(2, 0, 1)
            for map_ in maps
        ]
        keys = [
            (project(map_).flatten(2) + level[:, None]).permute(2, 0, 1)
            for map_, project, level in zip(maps, module.input_projections, module.level_embed.weight, strict=True)
        ]
        small = [F.interpolate(pixels, map_.shape[-2:], mode="bilinear", align_corners=False) for map_ in maps]
        hidden, places = (
            embedding.weight[:, None].expand(-1, batch, -1)
            for embedding in (module.queries_features, module.queries_embedder)
        )
        for number, layer in enumerate(decoder.layers):
            level = number % len(maps)
            unseen = self._unseen(decoder.layernorm(hidden).transpose(0, 1), small[level])
            hidden = layer(hidden, level, None, positions, places, keys, unseen)[0]
        last: Tensor = decoder.layernorm(hidden).transpose(0, 1)
        return last

    def _masks(
        self, queries: Float[Tensor, "b queries c"], pixels: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b queries h w"]:
        """The logits of the masks; the projection of the pixels is applied to the few queries instead."""
        embedded: Tensor = self.head.transformer_module.decoder.mask_predictor.mask_embedder(queries)
        weight, bias = self.mask_projection.weight.flatten(1), self.mask_projection.bias
        flat = embedded @ weight @ pixels.flatten(2) + embedded @ bias[:, None]
        masks: Tensor = flat.unflatten(2, pixels.shape[-2:])
        return masks

    def _unseen(
        self, queries: Float[Tensor, "b queries c"], pixels: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b_heads queries pixels"]:
        """What is added to attention: minus infinity where a query may not look, outside its mask if it has one."""
        outside = self._masks(queries, pixels).flatten(2) < 0
        outside = outside & ~outside.all(-1, keepdim=True)
        added = torch.zeros_like(outside, dtype=pixels.dtype).masked_fill(outside, -torch.inf)
        return added.repeat_interleave(self.head.config.num_attention_heads, 0)


class DeformableAttention(nn.Module):
    """Deformable attention over all pixels of all levels (Zhu et al., ICLR 2021), for images without padding.

    A location lies at reference + offset / size of its level, and `grid_sample` wants 2 location - 1. The factor
    2 / size is a part of the weights here, whose rows are in the order (level, head, point, axis).
    """

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.attention: Any = attention

    def forward(
        self,
        hidden_states: Float[Tensor, "b pixels c"],
        position_embeddings: Float[Tensor, "b pixels c"],
        reference_points: Float[Tensor, "b pixels levels 2"],
        spatial_shapes_list: Grid,
        **_: object,
    ) -> tuple[Float[Tensor, "b pixels c"], None]:
        """What each pixel attends to."""
        own, shapes = self.attention, spatial_shapes_list
        heads, levels, points = own.n_heads, own.n_levels, own.n_points
        batch, pixels, channels = hidden_states.shape
        queries = hidden_states + position_embeddings

        scale = 2 / torch.tensor([[width, height] for height, width in shapes], dtype=queries.dtype)
        parts = (heads, levels, points, 2)
        ordered = [
            (each.unflatten(0, parts) * scale[:, None].view(1, levels, 1, 2, *[1] * (each.ndim - 1)))
            .transpose(0, 1)
            .flatten(0, 3)
            for each in (own.sampling_offsets.weight, own.sampling_offsets.bias)
        ]
        centres = (2 * reference_points - 1)[:, :, :, None].expand(-1, -1, -1, heads * points, -1)
        grids = (F.linear(queries, *ordered) + centres.flatten(2)).view(batch, pixels, levels, heads, points, 2)
        weights = own.attention_weights(queries).view(batch, pixels, heads, levels * points).softmax(-1)
        weights = weights.permute(0, 2, 3, 1).reshape(batch * heads, 1, levels * points, pixels)

        values = own.value_proj(hidden_states).transpose(1, 2).split([height * width for height, width in shapes], 2)
        attended = torch.zeros((), dtype=queries.dtype)
        for level, (value, shape, weight) in enumerate(zip(values, shapes, weights.split(points, 2), strict=True)):
            grid = grids[:, :, level].permute(0, 2, 3, 1, 4).flatten(0, 1)
            maps = value.reshape(batch * heads, channels // heads, *shape)
            sampled = F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
            attended = attended + (sampled * weight).sum(2)
        return own.output_proj(attended.reshape(batch, channels, pixels).transpose(1, 2)), None
