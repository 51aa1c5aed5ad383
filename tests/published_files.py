"""Miniature checkpoints like those of RecycleLoRA and SoMA, written by mmengine."""

import warnings

import numpy as np
import torch

from recyclelora.models.backbone import Backbone
from recyclelora.models.heads.mask2former import Mask2FormerHead

WIDTH, DEPTH, CLASSES = 64, 3, 19
ARGS = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": 1, "patch_size": 16, "img_size": 64}
BASE_ARGS = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": 1, "patch_size": 14, "img_size": 84}
MODEL = "vit_small_patch14_dinov2.lvd142m"
R_MAIN, R_SUB, R_SOMA = 5, 2, 4
HEAD = {"width": 32, "queries": 6, "encoder_layers": 2, "decoder_layers": 3, "encoder_feedforward": 40,
        "decoder_feedforward": 48}  # fmt: skip

# Published name, our name; the first that fits, from the left, is replaced.
HEAD_NAMES = [
    ("pixel_decoder.encoder.layers.N.norms.0", "pixel_decoder.encoder.layers.N.self_attn_layer_norm"),
    ("pixel_decoder.encoder.layers.N.norms.1", "pixel_decoder.encoder.layers.N.final_layer_norm"),
    ("pixel_decoder.encoder.layers.N.ffn.layers.0.0", "pixel_decoder.encoder.layers.N.fc1"),
    ("pixel_decoder.encoder.layers.N.ffn.layers.1", "pixel_decoder.encoder.layers.N.fc2"),
    ("pixel_decoder.input_convs.N.conv", "pixel_decoder.input_projections.N.0"),
    ("pixel_decoder.input_convs.N.gn", "pixel_decoder.input_projections.N.1"),
    ("pixel_decoder.lateral_convs.0.conv", "pixel_decoder.adapter_1.0"),
    ("pixel_decoder.lateral_convs.0.gn", "pixel_decoder.adapter_1.1"),
    ("pixel_decoder.output_convs.0.conv", "pixel_decoder.layer_1.0"),
    ("pixel_decoder.output_convs.0.gn", "pixel_decoder.layer_1.1"),
    ("pixel_decoder.mask_feature", "pixel_decoder.mask_projection"),
    ("pixel_decoder.level_encoding.weight", "pixel_decoder.level_embed"),
    ("transformer_decoder.layers.N.norms.0", "transformer_module.decoder.layers.N.cross_attn_layer_norm"),
    ("transformer_decoder.layers.N.norms.1", "transformer_module.decoder.layers.N.self_attn_layer_norm"),
    ("transformer_decoder.layers.N.norms.2", "transformer_module.decoder.layers.N.final_layer_norm"),
    ("transformer_decoder.layers.N.ffn.layers.0.0", "transformer_module.decoder.layers.N.fc1"),
    ("transformer_decoder.layers.N.ffn.layers.1", "transformer_module.decoder.layers.N.fc2"),
    ("transformer_decoder.layers.N.cross_attn.attn.in_proj", "transformer_module.decoder.layers.N.cross_attn.in_proj"),
    ("transformer_decoder.layers.N.cross_attn.attn.out", "transformer_module.decoder.layers.N.cross_attn.out"),
    ("transformer_decoder.layers.N.self_attn.attn.out_proj", "transformer_module.decoder.layers.N.self_attn.out_proj"),
    ("transformer_decoder.post_norm", "transformer_module.decoder.layernorm"),
    ("query_embed", "transformer_module.queries_embedder"),
    ("query_feat", "transformer_module.queries_features"),
    ("level_embed", "transformer_module.level_embed"),
    ("mask_embed.0", "transformer_module.decoder.mask_predictor.mask_embedder.0.0"),
    ("mask_embed.2", "transformer_module.decoder.mask_predictor.mask_embedder.1.0"),
    ("mask_embed.4", "transformer_module.decoder.mask_predictor.mask_embedder.2.0"),
    ("cls_embed", "class_predictor"),
]


def published_head(head):
    """The state of a head under the published names."""
    state = {n: v for n, v in head.state_dict().items() if n != "criterion.empty_weight"}
    made = {}
    for layer in range(HEAD["decoder_layers"]):
        for kind in ("weight", "bias"):
            attention = f"transformer_module.decoder.layers.{layer}.self_attn"
            parts = [state.pop(f"{attention}.{part}_proj.{kind}") for part in "qkv"]
            made[f"transformer_decoder.layers.{layer}.self_attn.attn.in_proj_{kind}"] = torch.cat(parts)
    for name, value in state.items():
        for theirs, ours in HEAD_NAMES:
            pairs = [(theirs.replace("N", str(n)), ours.replace("N", str(n))) for n in range(9)]
            found = next(((a, b) for a, b in pairs if name.startswith(b)), None)
            if found:
                name = found[0] + name.removeprefix(found[1])
                break
        made[name] = value
    return {f"decode_head.{name}": value for name, value in made.items()} | {
        "decode_head.loss_cls.class_weight": torch.ones(CLASSES + 1)
    }


def random_head(seed=0):
    torch.manual_seed(seed)
    return Mask2FormerHead([WIDTH] * 4, CLASSES, **HEAD).eval()


def base_weights(path, seed=0):
    """Pre-trained weights of patch 14 in the original names, as a file."""
    torch.manual_seed(seed)
    model = Backbone(MODEL, "random", norm=False, model_args=BASE_ARGS).model
    for value in model.parameters():
        torch.nn.init.normal_(value, std=0.2)
    torch.save({**model.state_dict(), "mask_token": torch.zeros(1, WIDTH)}, path)
    return path


def loaded_base(path):
    """The base in the form that the trainings use: patch 16, positions of their size."""
    args = ARGS | {"img_size": 64}
    return Backbone(MODEL, str(path), norm=False, model_args=args, resample="published").model.state_dict()


def recyclelora_state(base, seed=0, merged=False):
    """The published state of a RecycleLoRA training on `base`, and the weights it stands for."""
    generator = np.random.default_rng(seed)
    state = {f"backbone.{name}": value for name, value in loaded_base(base).items()}
    expected = {name.removeprefix("backbone."): value.clone() for name, value in state.items()}
    for block in range(DEPTH):
        for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
            place = f"backbone.blocks.{block}.{layer}"
            weight = state[f"{place}.weight"].double().numpy()
            directions = np.linalg.qr(weight)[0]
            columns = generator.permutation(weight.shape[1])
            residual, whole = weight.copy(), 0
            for which, rank, start in (("main", R_MAIN, 0), ("sub", R_SUB, R_MAIN)):
                up = directions[:, start : start + rank]
                down = np.eye(weight.shape[1])[columns[start : start + rank]]
                residual = residual - up @ down / (R_MAIN + R_SUB)
                up, down = (each + generator.normal(0, 0.1, each.shape) for each in (up, down))
                whole = whole + up @ down / (R_MAIN + R_SUB)
                state[f"{place}.lora_A_{which}"] = torch.tensor(down, dtype=torch.float32)
                state[f"{place}.lora_B_{which}"] = torch.tensor(up, dtype=torch.float32)
            stored = residual + whole if merged else residual
            state[f"{place}.weight"] = torch.tensor(stored, dtype=torch.float32)
            expected[f"blocks.{block}.{layer}.weight"] = torch.tensor(residual + whole, dtype=torch.float32)
    return state | {"backbone.mask_token": torch.zeros(1, WIDTH)}, expected


def soma_state(base, seed=0, blocks=(1, 2)):
    """The published state of a SoMA training of some blocks: trained factors and biases."""
    generator = torch.Generator().manual_seed(seed)
    own = loaded_base(base)
    state = {"backbone.model.mask_token": torch.zeros(1, WIDTH)}
    for block in blocks:
        for layer in ("attn.q", "attn.k", "attn.v", "attn.proj", "mlp.fc1", "mlp.fc2"):
            fused = layer in ("attn.q", "attn.k", "attn.v")
            rows, columns = own[f"blocks.{block}.{'attn.qkv' if fused else layer}.weight"].shape
            rows //= 3 if fused else 1
            shapes = {"lora_A.weight": (R_SOMA, columns), "lora_B.weight": (rows, R_SOMA), "bias": (rows,)}
            for name, shape in shapes.items():
                value = torch.randn(shape, generator=generator)
                state[f"backbone.model.blocks.{block}.{layer}.{name}"] = value
    return state


def save(path, state, prefix="", **more):
    """A file that mmengine itself writes, with the records of a training: losses, settings and times."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mmengine's own
        from mmengine.config import Config
        from mmengine.logging import MessageHub
        from mmengine.runner import save_checkpoint
    hub = MessageHub(f"training {path}")
    for step in range(3):
        hub.update_scalar("train/loss", 1 / (step + 1))
        hub.update_scalar("train/time", torch.tensor(0.5))
    hub.update_info("iter", 40000)
    hub.update_info("cfg", Config({"lr": 1e-4, "stages": [1, 2]})._cfg_dict)
    content = {
        "meta": {"iter": 40000, "epoch": 0, "cfg": "model = dict()"},
        "state_dict": {prefix + name: value for name, value in state.items()},
        "message_hub": hub.state_dict(),
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4}]},
        **more,
    }
    save_checkpoint(content, str(path))
    return path
