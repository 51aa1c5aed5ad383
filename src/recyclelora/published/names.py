"""Names and formulas of the published checkpoints (RecycleLoRA, SoMA; with mmsegmentation's Mask2Former head)."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from recyclelora.errors import UserError
from recyclelora.models.heads.mask2former import Mask2FormerHead

HEAD_PREFIX = "decode_head."

_HEAD_RULES = (
    (r"pixel_decoder\.input_convs\.(\d)\.conv", r"pixel_decoder.input_projections.\1.0"),
    (r"pixel_decoder\.input_convs\.(\d)\.gn", r"pixel_decoder.input_projections.\1.1"),
    (r"pixel_decoder\.lateral_convs\.0\.conv", "pixel_decoder.adapter_1.0"),
    (r"pixel_decoder\.lateral_convs\.0\.gn", "pixel_decoder.adapter_1.1"),
    (r"pixel_decoder\.output_convs\.0\.conv", "pixel_decoder.layer_1.0"),
    (r"pixel_decoder\.output_convs\.0\.gn", "pixel_decoder.layer_1.1"),
    (r"pixel_decoder\.mask_feature", "pixel_decoder.mask_projection"),
    (r"pixel_decoder\.level_encoding\.weight", "pixel_decoder.level_embed"),
    (r"(pixel_decoder\.encoder\.layers\.\d+)\.norms\.0", r"\1.self_attn_layer_norm"),
    (r"(pixel_decoder\.encoder\.layers\.\d+)\.norms\.1", r"\1.final_layer_norm"),
    (r"transformer_decoder\.(layers\.\d+)\.norms\.0", r"transformer_module.decoder.\1.cross_attn_layer_norm"),
    (r"transformer_decoder\.(layers\.\d+)\.norms\.1", r"transformer_module.decoder.\1.self_attn_layer_norm"),
    (r"transformer_decoder\.(layers\.\d+)\.norms\.2", r"transformer_module.decoder.\1.final_layer_norm"),
    (r"transformer_decoder\.post_norm", "transformer_module.decoder.layernorm"),
    (r"transformer_decoder\.", "transformer_module.decoder."),
    (r"(cross_attn|self_attn)\.attn\.", r"\1."),
    (r"ffn\.layers\.0\.0", "fc1"),
    (r"ffn\.layers\.1", "fc2"),
    (r"^query_embed", "transformer_module.queries_embedder"),
    (r"^query_feat", "transformer_module.queries_features"),
    (r"^level_embed", "transformer_module.level_embed"),
    (r"^mask_embed\.0", "transformer_module.decoder.mask_predictor.mask_embedder.0.0"),
    (r"^mask_embed\.2", "transformer_module.decoder.mask_predictor.mask_embedder.1.0"),
    (r"^mask_embed\.4", "transformer_module.decoder.mask_predictor.mask_embedder.2.0"),
    (r"^cls_embed", "class_predictor"),
)


def head_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a published head, `decode_head.*`, under the names of `Mask2FormerHead`.

    Raises:
        UserError: the checkpoint holds no such head.
    """
    converted = {}
    for name, value in state.items():
        if not name.startswith(HEAD_PREFIX):
            continue
        name = name.removeprefix(HEAD_PREFIX)
        for pattern, replacement in _HEAD_RULES:
            name = re.sub(pattern, replacement, name)
        fused = re.fullmatch(r"(.*decoder\.layers\.\d+\.self_attn)\.in_proj_(weight|bias)", name)
        if fused:  # transformers keeps q, k and v of the self-attention apart, of the cross-attention not
            for projection, part in zip("qkv", value.chunk(3), strict=True):
                converted[f"{fused[1]}.{projection}_proj.{fused[2]}"] = part
        else:
            converted[name] = value
    if not converted:
        raise UserError(f"the checkpoint holds no head: no name starts with {HEAD_PREFIX!r}")
    return converted


def head_sizes(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """The arguments of `Mask2FormerHead` that fit these weights; those with their published value are left out.

    Raises:
        UserError: a weight that a size is read from is missing.
    """
    try:
        sizes = {
            "width": weights["class_predictor.weight"].shape[1],
            "queries": len(weights["transformer_module.queries_features.weight"]),
            "encoder_layers": _layers(weights, r"pixel_decoder\.encoder\.layers\.(\d+)\."),
            "decoder_layers": _layers(weights, r"transformer_module\.decoder\.layers\.(\d+)\."),
            "encoder_feedforward": len(weights["pixel_decoder.encoder.layers.0.fc1.weight"]),
            "decoder_feedforward": len(weights["transformer_module.decoder.layers.0.fc1.weight"]),
        }
    except KeyError as error:
        raise UserError(f"the head lacks {error}; expected a whole Mask2Former below {HEAD_PREFIX}") from error
    usual = inspect.signature(Mask2FormerHead).parameters
    return {name: value for name, value in sizes.items() if value != usual[name].default}


def _layers(weights: Mapping[str, Tensor], pattern: str) -> int:
    return len({found[1] for name in weights if (found := re.match(pattern, name))})


# Backbones

BACKBONE_PREFIX = {"recyclelora": "backbone.", "soma": "backbone.model."}
HEAD_CHANNELS = 64
"""Channels of an attention head: the same in every DINOv2, and not stored in a checkpoint."""

_DINOV2 = {(384, 12): "small", (768, 12): "base", (1024, 24): "large"}
_BLOCK = re.compile(r"blocks\.(\d+)\.")
_DIFFERENCE = 1e-5
"""A difference above this share of the largest weight is more than rounding."""


@dataclass(frozen=True)
class Converted:
    """Weights under timm's names, and the names of the checkpoint that each was made from."""

    weights: dict[str, Tensor]
    origin: dict[str, list[str]]


def dinov2_of(width: int, depth: int) -> tuple[str, dict[str, int]]:
    """The timm model of a DINOv2 with this width and depth, and its sizes if it is not one of the known models.

    Raises:
        UserError: the width is not a multiple of an attention head's.
    """
    if size := _DINOV2.get((width, depth)):
        return f"vit_{size}_patch14_dinov2.lvd142m", {}
    if width % HEAD_CHANNELS:
        raise UserError(f"a backbone of {width} channels, expected a multiple of {HEAD_CHANNELS}, as in DINOv2")
    sizes = {"embed_dim": width, "depth": depth, "num_heads": width // HEAD_CHANNELS}
    return "vit_small_patch14_dinov2.lvd142m", sizes


def depth_of(names: Iterable[str]) -> int:
    """The number of blocks, from the highest block number in the names of weights; 0 if there is none."""
    return max((int(found[1]) + 1 for name in names if (found := _BLOCK.search(name))), default=0)


def recyclelora_backbone(state: Mapping[str, Tensor], base: Mapping[str, Tensor] | None) -> tuple[Converted, list[str]]:
    """The merged backbone of a RecycleLoRA checkpoint, and the layers whose stored weights were already merged.

    W = W_res + s (B_main A_main + B_sub A_sub), s = 1 / (r_main + r_sub), in float64. A training that is saved in
    evaluation mode stores W instead of W_res; `base`, the pre-trained weights by timm's names, shows which one it is.

    Raises:
        UserError: there are no such factors, one of a pair is missing, or the weights were not trained from `base`.
    """
    prefix = BACKBONE_PREFIX["recyclelora"]
    own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    factors = {name for name in own if re.search(r"\.lora_[AB]_(main|sub)$", name)}
    if not factors:
        raise UserError(f"no factors of RecycleLoRA: no name like {prefix}blocks.0.attn.qkv.lora_A_main")
    weights = {name: value for name, value in own.items() if name not in factors}
    origin = {name: [prefix + name] for name in weights}
    merged = []
    for layer in sorted({name.rpartition(".")[0] for name in factors}):
        pairs = [f"{layer}.lora_{{}}_{which}" for which in ("main", "sub") if f"{layer}.lora_A_{which}" in factors]
        names = [f"{layer}.weight", *(pair.format(side) for pair in pairs for side in "BA")]
        missing = [name for name in names if name not in own] or sorted(
            name for name in factors - set(names) if name.rpartition(".")[0] == layer
        )
        if missing:
            raise UserError(f"incomplete factors at {prefix}{layer}: {', '.join(missing)} has no counterpart")
        rank = sum(len(own[pair.format("A")]) for pair in pairs)
        update = torch.stack([_product(own, pair) for pair in pairs]).sum(0) / rank
        stored = own[f"{layer}.weight"].double()
        if base is not None and _is_merged(stored, update, base[f"{layer}.weight"].double(), rank, layer):
            merged.append(layer)
            update = torch.zeros_like(stored)
        weights[f"{layer}.weight"] = (stored + update).float()
        origin[f"{layer}.weight"] = [prefix + name for name in names]
    return Converted(weights, origin), merged


def _product(own: Mapping[str, Tensor], pair: str) -> Float64[Tensor, "out in"]:
    return own[pair.format("B")].double() @ own[pair.format("A")].double()


def _is_merged(
    stored: Float64[Tensor, "out in"],
    update: Float64[Tensor, "out in"],
    base: Float64[Tensor, "out in"],
    rank: int,
    layer: str,
) -> bool:
    """Whether a stored weight holds the trained update.

    A starts one-hot, so W_res differs from the base W0 in at most `rank` columns. W_res is either the stored weight or
    the stored weight minus the update.
    """
    if stored.shape != base.shape:
        raise UserError(f"{layer}: weights of shape {tuple(stored.shape)}, but {tuple(base.shape)} in --base")
    bound = _DIFFERENCE * base.abs().max()
    as_stored, without = (int(((w - base).abs() > bound).any(0).sum()) for w in (stored, stored - update))
    if 0 < as_stored <= rank:
        return False
    if without <= rank:
        return True
    raise UserError(
        f"{layer}: its weights were not trained from --base: they differ in {as_stored} of {base.shape[1]} columns, "
        f"expected at most {rank}; give the weights that the training started from"
    )


def soma_backbone(state: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> Converted:
    """The merged backbone of a SoMA checkpoint on its base, which has timm's names.

    W = W0 + B A, in float64. The paper has W0 - U_r S_r V_r' + B A, without the r smallest singular triplets of W0; but
    the released code computes the SVD when it builds the model, of random weights, and loads W0 into the frozen weight
    afterwards, so that nothing is missing from it. q, k and v have factors of their own; timm has them in one weight.
    The biases are the checkpoint's.

    Raises:
        UserError: there are no such factors, one is missing, or the shapes are not those of the base.
    """
    prefix = BACKBONE_PREFIX["soma"]
    end = ".lora_A.weight"
    layers = [name.removeprefix(prefix).removesuffix(end) for name in state if name.endswith(end)]
    if not layers:
        raise UserError(f"no factors of SoMA: no name like {prefix}blocks.8.attn.q{end}")
    weights = {name: value.clone() for name, value in base.items()}
    origin: dict[str, list[str]] = {name: [] for name in weights}
    for layer in layers:
        names = [f"{prefix}{layer}.{part}" for part in ("lora_B.weight", "lora_A.weight", "bias")]
        if missing := [name for name in names if name not in state]:
            raise UserError(f"incomplete factors: {', '.join(missing)} missing")
        up, down, bias = (state[name].double() for name in names)
        for kind in ("weight", "bias"):
            place, part = _part(weights, layer, kind)
            made = part.double() + up @ down if kind == "weight" else bias
            if made.shape != part.shape:
                raise UserError(
                    f"{prefix}{layer}: a {kind} of shape {tuple(made.shape)}, but {tuple(part.shape)} in --base; give "
                    "the weights that the training started from"
                )
            part.copy_(made)
            origin[place] += names
    return Converted(weights, origin)


def _part(weights: Mapping[str, Tensor], layer: str, kind: str) -> tuple[str, Tensor]:
    """The timm name and the tensor of a layer's weight or bias; for q, k or v, a view of the fused tensor."""
    fused = re.fullmatch(r"(.*\.attn)\.([qkv])", layer)
    place = f"{fused[1]}.qkv.{kind}" if fused else f"{layer}.{kind}"
    if place not in weights:
        raise UserError(f"{layer}: --base has no {place}; give the weights that the training started from")
    whole = weights[place]
    return place, whole.chunk(3)["qkv".index(fused[2])] if fused else whole
