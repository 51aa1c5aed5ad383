"""A backbone gives timm's own features, at any size that fits, and says what is wrong otherwise."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from recyclelora.errors import UserError
from recyclelora.models.backbone import LOADING, Backbone, Resampling, pyramid_indices
from recyclelora.models.weights import weights_hash

TINY = {"depth": 2, "embed_dim": 48, "num_heads": 3}
VIT, DINOV2, EVA, BEIT = (
    "vit_tiny_patch16_224",
    "vit_small_patch14_dinov2.lvd142m",
    "eva02_tiny_patch14_336",
    "beit_base_patch16_224",
)
LARGE_DINOV2, LARGE_EVA = "vit_large_patch14_dinov2.lvd142m", "eva02_large_patch14_224.mim_m38m"


def tiny(
    name: str = VIT, weights: str = "random", size: int | None = 64, args: dict[str, Any] = TINY, **kw: Any
) -> Backbone:
    torch.manual_seed(0)
    return Backbone(name, weights, image_size=size, model_args=args, **kw).eval()


def saved(model: torch.nn.Module, path: Path) -> str:
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
    return str(path)


@pytest.mark.parametrize("size", [(64, 64), (32, 96), (160, 48)])
def test_one_map_of_the_last_block_at_every_size_that_fits(size: tuple[int, int]) -> None:
    backbone = tiny()
    maps = backbone(torch.randn(2, 3, *size))
    assert [tuple(m.shape) for m in maps] == [(2, 48, size[0] // 16, size[1] // 16)]
    assert (backbone.patch_size, backbone.channels, backbone.depth) == (16, [48], 2)


@pytest.mark.parametrize("name", [VIT, DINOV2, "vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3"])
def test_the_map_is_timms_forward_features(name: str) -> None:
    backbone = tiny(name, size=None)
    patch = backbone.patch_size
    images = torch.randn(2, 3, 4 * patch, 5 * patch)
    tokens = backbone.model.forward_features(images)[:, backbone.model.num_prefix_tokens :]
    torch.testing.assert_close(backbone(images)[0], tokens.transpose(1, 2).unflatten(2, (4, 5)))


def test_norm_false_leaves_the_final_norm_out() -> None:
    with_norm, without = tiny(), tiny(norm=False)
    images = torch.randn(1, 3, 64, 64)
    raw = without(images)[0]
    assert not torch.allclose(raw, with_norm(images)[0])
    normed = without.model.norm(raw.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(normed, with_norm(images)[0])


def test_indices_choose_blocks_in_the_order_given() -> None:
    images = torch.randn(1, 3, 64, 64)
    first, last = tiny(indices=[0, 1])(images)
    assert not torch.allclose(first, last)
    for got, expected in zip(tiny(indices=[-1, 0, 1, 0])(images), [last, first, last, first], strict=True):
        torch.testing.assert_close(got, expected)


def test_blocks_after_the_last_chosen_one_are_not_run() -> None:
    backbone = tiny(indices=[0])
    backbone.model.blocks[1].register_forward_hook(lambda *_: pytest.fail("block 1 ran"))
    backbone(torch.randn(1, 3, 64, 64))


def test_pyramid_indices() -> None:
    assert pyramid_indices(24) == (7, 11, 15, 23)
    assert pyramid_indices(12) == (3, 5, 7, 11)
    assert all(0 <= i < depth for depth in range(1, 41) for i in pyramid_indices(depth))
    assert len(tiny(indices=pyramid_indices(2))(torch.randn(1, 3, 64, 64))) == 4


@pytest.mark.parametrize("indices", [[], [2], [0, -3]])
def test_indices_outside_the_depth(indices: list[int]) -> None:
    with pytest.raises(UserError, match=r"expected block numbers from 0 to 1"):
        tiny(indices=indices)


def test_a_size_that_is_not_a_multiple_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"70 x 64 pixels.*patch size 16; the nearest are 64 x 64 and 80 x 64"):
        tiny()(torch.randn(1, 3, 70, 64))


def test_a_model_of_fixed_size_names_it() -> None:
    backbone = tiny(BEIT, norm=False)
    assert backbone(torch.randn(1, 3, 64, 64))[0].shape == (1, 48, 4, 4)
    with pytest.raises(UserError, match=r"image of 64 x 96 pixels, but the model accepts only 64 x 64"):
        backbone(torch.randn(1, 3, 64, 96))


def test_a_model_without_final_norm_says_so() -> None:
    with pytest.raises(UserError, match="set norm to false"):
        tiny(EVA, size=56)
    assert tiny(EVA, size=56, norm=False)(torch.randn(1, 3, 70, 56))[0].shape == (1, 48, 5, 4)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("vit_tny_patch16_224", "'vit_tiny_patch16_224'"),
        ("vit_small_patch14_dinov2.lvd", "'vit_small_patch14_dinov2.lvd142m'"),
    ],
)
def test_an_unknown_name_names_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(UserError, match=f"no model of this name; did you mean {hint}"):
        tiny(name)


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224"])
def test_a_model_that_is_not_a_vit(name: str) -> None:
    with pytest.raises(UserError, match=f"{name}: not a plain ViT"):
        Backbone(name, "random")


@pytest.mark.parametrize("key", LOADING)
@pytest.mark.parametrize("weights", ["random", "hub"])
def test_model_args_neither_load_nor_fetch(key: str, weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for called in ("load_weights", "_create"):
        monkeypatch.setattr(f"recyclelora.models.backbone.{called}", lambda *_: pytest.fail("loaded"))
    with pytest.raises(UserError, match=f"model_args has '{key}', which says what is loaded.*remove it"):
        Backbone(VIT, weights, model_args={**TINY, key: "file.pth"})


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_base_weights_that_are_not_finite_are_named(wrong: float, tmp_path: Path) -> None:
    state = Backbone(VIT, "random", model_args=TINY).model.state_dict()
    state["blocks.1.mlp.fc1.bias"][3] = wrong
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"w\.safetensors: NaN or infinity in blocks\.1\.mlp\.fc1\.bias; fetch"):
        Backbone(VIT, str(tmp_path / "w.safetensors"), model_args=TINY)


def test_model_args_that_timm_does_not_accept() -> None:
    with pytest.raises(UserError, match=r"unexpected keyword argument 'widht'.*correct model_args"):
        tiny(args={"widht": 3})


def test_weights_enter_exactly_and_give_the_same_hash(tmp_path: Path) -> None:
    source = tiny()
    torch.manual_seed(1)
    loaded = Backbone(VIT, saved(source.model, tmp_path / "w.safetensors"), image_size=64, model_args=TINY)
    torch.save({"state_dict": source.model.state_dict()}, tmp_path / "w.pth")
    wrapped = Backbone(VIT, str(tmp_path / "w.pth"), image_size=64, model_args=TINY)
    for name, value in source.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value)
    assert source.weights_sha256 == loaded.weights_sha256 == wrapped.weights_sha256
    assert loaded.weights_sha256 == weights_hash(loaded.model.state_dict())
    assert loaded.weights_sha256 != Backbone(VIT, "random", image_size=64, model_args=TINY).weights_sha256
    assert "state_dict" not in loaded.model.pretrained_cfg


def test_a_classifier_in_the_file_is_left_out(tmp_path: Path) -> None:
    classifier = timm.create_model(VIT, img_size=64, num_classes=10, **TINY)
    backbone = tiny(weights=saved(classifier, tmp_path / "w.safetensors"))
    assert not [name for name in backbone.model.state_dict() if name.startswith("head")]


def test_attention_pooling_is_dropped(tmp_path: Path) -> None:
    siglip = timm.create_model("vit_base_patch16_siglip_224", img_size=64, **TINY)
    backbone = tiny("vit_base_patch16_siglip_224", saved(siglip, tmp_path / "w.safetensors"))
    assert not [name for name in backbone.model.state_dict() if name.startswith("attn_pool")]


def test_position_embeddings_of_another_grid_are_resampled(tmp_path: Path) -> None:
    path = saved(tiny().model, tmp_path / "w.safetensors")
    larger = tiny(weights=path, size=128)
    assert larger.model.pos_embed.shape == (1, 1 + 8 * 8, 48)
    images = torch.randn(1, 3, 128, 128)
    torch.testing.assert_close(larger(images)[0], tiny(weights=path)(images)[0])  # once here, at every step there


# Resampling, and the names of the original files


def resizing(old: int, new: int, a: float, antialias: bool) -> np.ndarray:
    """The matrix (new, old) of bicubic interpolation along a line with Keys' constant `a`, pixel centres at halves.

    With antialiasing the kernel widens as the line shrinks, and is cut at the edges and renormalised; without, pixels
    beyond the edges repeat the last one.
    """
    scale = old / new
    wide = max(scale, 1.0) if antialias else 1.0

    def keys(x: float) -> float:
        x = abs(x) / wide
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0

    matrix = np.zeros((new, old))
    for i in range(new):
        centre = (i + 0.5) * scale - 0.5
        for j in range(math.floor(centre - 2 * wide), math.ceil(centre + 2 * wide) + 1):
            if not antialias or 0 <= j < old:
                matrix[i, min(max(j, 0), old - 1)] += keys(j - centre)
    return matrix / matrix.sum(1, keepdims=True)


def both_axes(matrix: np.ndarray, values: torch.Tensor) -> np.ndarray:
    """Values (..., h, w) with the matrix along h and w."""
    return np.einsum("ij,...jk,lk->...il", matrix, values.double().numpy(), matrix)


@pytest.mark.parametrize("size", [64, 160])  # fewer and more patches than the file's
@pytest.mark.parametrize("resample", ["timm", "published"])
def test_patch_kernel_and_positions_follow_the_formula_of_their_name(
    resample: Resampling, size: int, tmp_path: Path
) -> None:
    source = tiny(DINOV2, size=84).model  # patch 14, 6 x 6 patches
    path = saved(source, tmp_path / "w.safetensors")
    model = tiny(DINOV2, path, size, {**TINY, "patch_size": 16}, resample=resample).model
    kernel, positions = source.patch_embed.proj.weight.detach(), source.pos_embed.detach()
    grid = positions[0, 1:].T.unflatten(1, (6, 6))
    if resample == "published":
        expected = both_axes(resizing(14, 16, -0.75, antialias=False), kernel)
        on_grid = both_axes(resizing(6, size // 16, -0.75, antialias=False), grid)
    else:
        one = resizing(14, 16, -0.5, antialias=True)
        up = np.kron(one, one)  # for flattened patches; the kernel w' for which <w', up x> = <w, x> in the mean
        inverse = np.linalg.pinv(up.T)
        flat = np.einsum("ij,ocj->oci", inverse, kernel.double().flatten(2).numpy())
        expected = flat.reshape(*kernel.shape[:2], 16, 16)
        on_grid = both_axes(resizing(6, size // 16, -0.5, antialias=True), grid)
    np.testing.assert_allclose(model.patch_embed.proj.weight.detach().numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(model.pos_embed.detach()[0, 1:].T.flatten(1).numpy(), on_grid.reshape(48, -1), atol=1e-5)
    assert torch.equal(model.pos_embed[:, 0], positions[:, 0])
    assert torch.equal(model.blocks[0].attn.qkv.weight, source.blocks[0].attn.qkv.weight)


def test_weights_of_the_models_own_sizes_are_not_resampled(tmp_path: Path) -> None:
    source = tiny(DINOV2, size=56)
    path = saved(source.model, tmp_path / "w.safetensors")
    assert tiny(DINOV2, path, 56, resample="published").weights_sha256 == source.weights_sha256


def test_positions_without_a_square_grid_are_refused(tmp_path: Path) -> None:
    state = tiny().model.state_dict()
    torch.save({**state, "pos_embed": torch.zeros(1, 1 + 4 * 8, 48)}, tmp_path / "w.pth")
    with pytest.raises(
        UserError, match="33 position embeddings, expected those of a square grid; set resample to timm"
    ):
        tiny(weights=str(tmp_path / "w.pth"), size=96, resample="published")


def original_dinov2(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names in the files of facebookresearch/dinov2: timm's names, a mask token, and registers under another name.

    timm adds the position of the class to its token where there are registers.
    """
    state = {**state, "mask_token": torch.ones(1, 48)}
    if "reg_token" in state:
        state["register_tokens"] = state.pop("reg_token")
        state["pos_embed"] = torch.cat([torch.full((1, 1, 48), 0.5), state["pos_embed"]], dim=1)
        state["cls_token"] = state["cls_token"] - 0.5
    return state


def original_eva02(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names in the files of baaivision/EVA: SwiGLU as w1, w2, w3, norms as ffn_ln, rotations in every block."""
    renamed = {
        "fc1_g": "w1", "fc1_x": "w2", "mlp.fc2": "mlp.w3", "mlp.norm": "mlp.ffn_ln", "q_proj.bias": "q_bias",
        "v_proj.bias": "v_bias",
    }  # fmt: skip
    made = {"mask_token": torch.ones(1, 1, 48), "lm_head.weight": torch.ones(9, 48), "lm_head.bias": torch.ones(9)}
    for name, value in state.items():
        for new, old in renamed.items():
            name = name.replace(new, old)
        made[name.replace("fc_norm.", "norm.")] = value
    return made | {f"blocks.{i}.attn.rope.freqs_cos": torch.ones(16, 16) for i in range(2)}


@pytest.mark.parametrize(
    ("name", "rename", "key"),
    [
        (DINOV2, original_dinov2, None),
        ("vit_small_patch14_reg4_dinov2.lvd142m", original_dinov2, None),
        ("vit_giant_patch14_dinov2.lvd142m", original_dinov2, None),
        ("eva02_large_patch14_224.mim_m38m", original_eva02, "module"),
        ("eva02_base_patch14_224.mim_in22k", original_eva02, "model"),
    ],
)
@pytest.mark.parametrize("resample", ["timm", "published"])
def test_the_names_of_the_original_files_load_like_timms(
    name: str, rename: Any, key: str | None, resample: Resampling, tmp_path: Path
) -> None:
    source = tiny(name, size=84, norm=False).model
    for value in source.parameters():  # the biases are 0 at first, and the gammas all the same
        torch.nn.init.normal_(value)
    renamed = rename(dict(source.state_dict()))
    torch.save({key: renamed} if key else renamed, tmp_path / "original.pth")
    paths = [saved(source, tmp_path / "timm.safetensors"), str(tmp_path / "original.pth")]
    args = {**TINY, "patch_size": 16}
    ours, theirs = (tiny(name, path, 64, args, norm=False, resample=resample).model.state_dict() for path in paths)
    assert ours.keys() == theirs.keys()
    for parameter, value in ours.items():
        torch.testing.assert_close(theirs[parameter], value)


@pytest.mark.parametrize("name", [LARGE_DINOV2, LARGE_EVA])
@pytest.mark.parametrize("resample", ["timm", "published"])
def test_the_published_backbones_at_512_with_patches_of_16(name: str, resample: Resampling, tmp_path: Path) -> None:
    """Depth and sizes are those of the large models, the width is not."""
    narrow = {"embed_dim": 32, "num_heads": 2}
    path = saved(tiny(name, size=None, args=narrow, norm=False).model, tmp_path / "w.safetensors")
    args = {**narrow, "patch_size": 16, "img_size": 512}
    backbone = tiny(name, path, None, args, norm=False, indices=pyramid_indices, resample=resample)
    assert (backbone.depth, backbone.indices, backbone.patch_size) == (24, [7, 11, 15, 23], 16)
    with torch.inference_mode():
        assert [each.shape for each in backbone(torch.randn(1, 3, 512, 512))] == [(1, 32, 32, 32)] * 4


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.pop("norm.weight"), r'Missing key\(s\) in state_dict: "norm.weight"'),
        (lambda s: s.update(extra=torch.zeros(1)), r'Unexpected key\(s\) in state_dict: "extra"'),
        (lambda s: s.update({"norm.bias": torch.zeros(7)}), r"size mismatch for norm.bias.*\[7\].*\[48\]"),
    ],
)
def test_weights_that_do_not_fit_name_the_difference(tmp_path: Path, spoil: Any, message: str) -> None:
    state = tiny().model.state_dict()
    spoil(state)
    path = tmp_path / "w.pth"
    torch.save(state, path)
    with pytest.raises(UserError, match=message) as error:
        tiny(weights=str(path))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_weights_of_another_width_name_the_first_keys_only(tmp_path: Path) -> None:
    path = saved(tiny().model, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"size mismatch for cls_token.*; and \d+ more\); give weights") as error:
        tiny(weights=path, args={**TINY, "embed_dim": 96})
    assert len(str(error.value)) < 1000


def test_weights_that_timm_cannot_convert_name_the_difference(tmp_path: Path) -> None:
    path = saved(tiny(DINOV2, size=56).model, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"Missing key\(s\) in state_dict: reg_token"):
        tiny("vit_small_patch14_reg4_dinov2", path, size=70)


def test_gradient_checkpointing_changes_no_gradient_and_runs_a_block_twice() -> None:
    images = torch.randn(1, 3, 64, 64)
    gradients, runs = [], []
    for checkpointed in (False, True):
        backbone = tiny()
        backbone.set_grad_checkpointing(checkpointed)
        calls: list[int] = []
        backbone.model.blocks[0].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        backbone(images)[0].square().sum().backward()
        gradients.append(backbone.model.blocks[0].attn.qkv.weight.grad)
        runs.append(len(calls))
    torch.testing.assert_close(gradients[0], gradients[1])
    assert runs == [1, 2]


def test_normalisation_is_the_models_own() -> None:
    assert tiny(DINOV2, size=None).mean == (0.485, 0.456, 0.406)
    assert tiny(VIT).std == (0.5, 0.5, 0.5)


def test_a_backbone_with_batch_norms_trains_each_image_by_itself() -> None:
    backbone = Backbone("xcit_nano_12_p8_224", "random", image_size=32, model_args={"depth": 2})
    before = {name: value.clone() for name, value in backbone.named_buffers() if "running" in name}
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    together, alone = backbone.train()(images)[0], [backbone(image[None])[0] for image in images]
    assert backbone.model.blocks.training
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-4)
    assert before
    for name, value in before.items():
        assert torch.equal(backbone.get_buffer(name), value)
