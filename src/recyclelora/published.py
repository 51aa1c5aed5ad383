"""Names in the published checkpoints (RecycleLoRA, SoMA, Rein; all trained with mmsegmentation's Mask2Former head)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from recyclelora.errors import UserError

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
        if fused:  # the self-attention's three projections are apart in transformers, the cross-attention's are not
            for projection, part in zip("qkv", value.chunk(3), strict=True):
                converted[f"{fused[1]}.{projection}_proj.{fused[2]}"] = part
        else:
            converted[name] = value
    if not converted:
        raise UserError(f"the checkpoint holds no head: no name starts with {HEAD_PREFIX!r}")
    return converted
