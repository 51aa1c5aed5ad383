"""The initial weights of the published Mask2Former head.

They are those of mmdetection's Mask2FormerHead and MSDeformAttnPixelDecoder, and of mmcv's
MultiScaleDeformableAttention. With fan_in and fan_out of the layer's weight, and w for the head's width:

    normal Xavier      N(0, 2 / (fan_in + fan_out))      both feed-forward networks, the decoder's attention
    the same, fused    N(0, 2 / (w + 3 w))               its q, k and v, which the published head keeps as one matrix
    uniform Xavier     U(±sqrt(6 / (fan_in + fan_out)))  input projections; values and output of deformable attention
    Caffe2's Xavier    U(±sqrt(3 / fan_in))              lateral and output convolutions, mask projection
    a linear layer's   U(±1 / sqrt(fan_in))              class predictor, mask embedder, biases of the feed-forward
                                                         networks
    standard normal    N(0, 1)                           queries, level embeddings
    grid of offsets    see `_grid`                       bias of the sampling offsets of deformable attention

All other weights start at 0, except for the scales of the norms, which start at 1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Generator, Size, Tensor, nn

DIRECTIONS, POINTS = 8, 4
"""The attention heads of deformable attention, each of which looks in its own direction, and the points of each."""


def initialise(head: nn.Module, seed: int) -> None:
    """Give every parameter of a Mask2Former head its published initial weights.

    The values follow from the seed alone. They are drawn on the CPU in float32, in the order of the names, so that
    neither the device, nor the precision, nor what is drawn elsewhere changes them.

    Raises:
        ValueError: the head has a parameter that the published one does not have.
    """
    generator = Generator().manual_seed(seed)
    for name, parameter in sorted(head.named_parameters()):
        rule = next((rule for pattern, rule in _RULES if re.search(pattern, name)), None)
        if rule is None:
            raise ValueError(f"no initial weights are known for the head's {name}")
        if not parameter.is_meta:  # shapes without values
            owner = head.get_submodule(name.rpartition(".")[0])
            layer = getattr(owner, "weight", parameter).shape
            value = torch.empty(parameter.shape, dtype=torch.float32, device="cpu")
            with torch.no_grad():
                parameter.copy_(rule(value, layer, generator))


# Each rule fills a tensor in place and returns it; `layer` is the shape of the weight of the tensor's layer.


def _zeros(value: Tensor, layer: Size, generator: Generator) -> Tensor:
    return value.zero_()


def _ones(value: Tensor, layer: Size, generator: Generator) -> Tensor:
    return value.fill_(1)


def _standard_normal(value: Tensor, layer: Size, generator: Generator) -> Tensor:
    return value.normal_(generator=generator)


def _xavier_normal(value: Tensor, layer: Size, generator: Generator) -> Tensor:
    return nn.init.xavier_normal_(value, generator=generator)


def _fused_xavier_normal(value: Tensor, layer: Size, generator: Generator) -> Tensor:
    fan_out, fan_in = layer
    return value.normal_(0, math.sqrt(2 / (fan_in + 3 * fan_out)), generator=generator)


def _xavier_uniform(value: Tensor, layer: Size, generator: Generator) -> Tensor:
    return nn.init.xavier_uniform_(value, generator=generator)


def _caffe2_xavier(value: Tensor, layer: Size, generator: Generator) -> Tensor:
    bound = math.sqrt(3 / layer[1:].numel())
    return value.uniform_(-bound, bound, generator=generator)


def _linear(value: Tensor, layer: Size, generator: Generator) -> Tensor:
    bound = 1 / math.sqrt(layer[1:].numel())
    return value.uniform_(-bound, bound, generator=generator)


def _grid(value: Float[Tensor, " offsets"], layer: Size, generator: Generator) -> Float[Tensor, " offsets"]:
    """Offsets (x, y) of point 1 to 4 of each level, for each attention head: 1 to 4 steps in the head's direction.

    Head k looks in the direction of the angle 2 pi k / 8, as far as the border of the square around the centre: its
    first point is (1, 0), (1, 1), (0, 1), ... for k = 0, 1, 2, ...
    """
    angles = torch.arange(DIRECTIONS, dtype=torch.float32, device="cpu") * (2 * math.pi / DIRECTIONS)
    ends = torch.stack([angles.cos(), angles.sin()], -1)
    ends = ends / ends.abs().amax(-1, keepdim=True)
    steps = torch.arange(1, POINTS + 1, dtype=torch.float32, device="cpu")
    value.view(DIRECTIONS, -1, POINTS, 2).copy_(ends[:, None, None] * steps[:, None])
    return value


_Rule = Callable[[Tensor, Size, Generator], Tensor]
_RULES: tuple[tuple[str, _Rule], ...] = (  # the first that matches a name
    (r"norm\.weight$|(input_projections\.\d+|adapter_\d+|layer_\d+)\.1\.weight$", _ones),
    (r"(queries_embedder|queries_features|level_embed)\.weight$|level_embed$", _standard_normal),
    (r"sampling_offsets\.bias$", _grid),
    (r"(sampling_offsets|attention_weights)\.weight$", _zeros),
    (r"(value_proj|output_proj|input_projections\.\d+\.0)\.weight$", _xavier_uniform),
    (r"(adapter_\d+\.0|layer_\d+\.0|mask_projection)\.weight$", _caffe2_xavier),
    (r"self_attn\.[qkv]_proj\.weight$", _fused_xavier_normal),
    (r"(fc1|fc2|out_proj)\.weight$|cross_attn\.in_proj_weight$", _xavier_normal),
    (r"(mask_embedder\.\d\.0|class_predictor)\.(weight|bias)$|(fc1|fc2)\.bias$", _linear),
    (r"(^|\.|_)bias$", _zeros),
)
