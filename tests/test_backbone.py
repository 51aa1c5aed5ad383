"""A backbone gives timm's own features, at any size that fits, and says what is wrong otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from recyclelora.backbone import Backbone, pyramid_indices
from recyclelora.errors import UserError
from recyclelora.weights import weights_hash

TINY = {"depth": 2, "embed_dim": 48, "num_heads": 3}
VIT, DINOV2, EVA, BEIT = (
    "vit_tiny_patch16_224",
    "vit_small_patch14_dinov2.lvd142m",
    "eva02_tiny_patch14_336",
    "beit_base_patch16_224",
)


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


def test_a_size_that_is_no_multiple_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"70 x 64 pixels.*patch size 16; the nearest are 64 x 64 and 80 x 64"):
        tiny()(torch.randn(1, 3, 70, 64))


def test_a_model_of_fixed_size_names_it() -> None:
    backbone = tiny(BEIT, norm=False)
    assert backbone(torch.randn(1, 3, 64, 64))[0].shape == (1, 48, 4, 4)
    with pytest.raises(UserError, match=r"image of 64 x 96 pixels, but the model takes 64 x 64 only"):
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
def test_a_model_that_is_no_vit(name: str) -> None:
    with pytest.raises(UserError, match=f"{name}: not a plain ViT"):
        Backbone(name, "random")


def test_model_args_that_timm_does_not_take() -> None:
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


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.pop("norm.weight"), r'Missing key\(s\) in state_dict: "norm.weight"'),
        (lambda s: s.update(extra=torch.zeros(1)), r'Unexpected key\(s\) in state_dict: "extra"'),
        (lambda s: s.update({"norm.bias": torch.zeros(7)}), r"size mismatch for norm.bias.*\[7\].*\[48\]"),
    ],
)
def test_weights_that_do_not_fit_name_what(tmp_path: Path, spoil: Any, message: str) -> None:
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


def test_weights_that_timm_cannot_convert_name_what(tmp_path: Path) -> None:
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
