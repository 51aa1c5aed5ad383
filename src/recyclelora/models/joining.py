"""Tokens of a head that join those of the patches in the last blocks of a ViT, as in EoMT (Kerssies et al., CVPR 2025).

    class and register tokens, patches   --- blocks 0 .. depth - L - 1 --->
    class and register tokens, patches, the head's tokens   --- blocks depth - L .. depth - 1 --->

The tokens come last and have no position: a rotary embedding leaves them as they are.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from recyclelora.errors import UserError

At = Callable[
    [int, Float[Tensor, "b c h w"], Float[Tensor, "b q c"]],
    tuple[Bool[Tensor, "b q h w"] | None, Sequence[Tensor]],
]


@dataclass(frozen=True)
class Joining:
    """What joins the blocks.

    Attributes:
        tokens: the tokens, the same for each image.
        blocks: how many of the last blocks they join.
        at: called before each of these blocks and after the last, with its number from 0 to `blocks`, the map of the
            patches and the tokens, both after the final norm. It returns which patches each token may attend to in the
            block (all of them if None), and what the backbone is to return besides.
    """

    tokens: Float[Tensor, "q c"]
    blocks: int
    at: At


def check_joining(model: nn.Module, name: str, blocks: int) -> None:
    """Refuse a timm ViT whose blocks cannot take more tokens.

    Raises:
        UserError: it has too few blocks, or its blocks take no mask of attention or know the places of the patches.
    """
    depth = len(model.blocks)  # type: ignore[arg-type]
    if not blocks < depth:
        raise UserError(
            f"backbone {name}: the head's tokens join the last {blocks} blocks, but the model has {depth}; set "
            f"head_args.blocks to at most {depth - 1}"
        )
    for block in list(model.blocks)[-blocks:]:  # type: ignore[arg-type]
        takes = inspect.signature(block.forward).parameters
        if "attn_mask" not in takes or "shared_rel_pos_bias" in takes:
            raise UserError(
                f"backbone {name}: its blocks ({type(block).__name__}) take no further tokens, which the head needs; "
                "choose another head, or a ViT such as DINOv2, DINOv3 or EVA02"
            )


def join(model: Any, images: Float[Tensor, "b 3 h w"], joining: Joining, norm: bool) -> list[Tensor]:
    """The outputs of `joining.at`, one after another."""
    first, prefix = len(model.blocks) - joining.blocks, int(getattr(model, "num_prefix_tokens", 0))
    ends = model.forward_intermediates(
        images,
        indices=[first - 1],
        norm=False,
        stop_early=True,
        output_fmt="NLC",
        intermediates_only=True,
        return_prefix_tokens=prefix > 0,
    )
    patches, before = ends[0] if prefix else (ends[0], ends[0][:, :0])
    grid = tuple(model.patch_embed.dynamic_feat_size(images.shape[-2:]))
    own = joining.tokens.to(patches.dtype).expand(images.shape[0], -1, -1)
    x = torch.cat([before, patches, own], 1)
    count, start = own.shape[1], prefix + patches.shape[1]
    rope = _rope(model, grid, count)
    outputs: list[Tensor] = []
    for number in range(joining.blocks + 1):
        normed = model.norm(x) if norm else x
        map_ = normed[:, prefix:start].transpose(1, 2).unflatten(2, grid)
        allowed, found = joining.at(number, map_, normed[:, start:])
        outputs += found
        if number < joining.blocks:
            more: dict[str, Any] = {} if rope is None else {"rope": rope}
            if getattr(model, "rope_mixed", False):
                more["rope"] = rope[first + number]  # type: ignore[index]
            if allowed is not None:
                more["attn_mask"] = _mask(allowed, prefix, x)
            block = model.blocks[first + number]
            x = checkpoint(block, x, use_reentrant=False, **more) if model.grad_checkpointing else block(x, **more)
    return outputs


def _rope(model: Any, grid: tuple[int, ...], count: int) -> Tensor | None:
    """The rotary embedding of the patches, followed by one that leaves `count` tokens as they are: sine 0, cosine 1."""
    if getattr(model, "rope", None) is None:
        return None
    rope: Tensor = model.rope.get_embed(shape=list(grid))
    half = rope.shape[-1] // 2
    still = torch.cat([rope.new_zeros(count, half), rope.new_ones(count, half)], -1)
    return torch.cat([rope, still.expand(*rope.shape[:-2], -1, -1)], -2)


def _mask(allowed: Bool[Tensor, "b q h w"], prefix: int, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b 1 n n"]:
    """What is added to the attention: minus infinity where one of the last tokens may not attend to a patch.

    They always attend to each other, so that no row of the attention is empty.
    """
    b, q, h, w = allowed.shape
    mask = x.new_zeros(b, 1, x.shape[1], x.shape[1])
    mask[:, 0, -q:, prefix : prefix + h * w].masked_fill_(~allowed.flatten(2), float("-inf"))
    return mask
