"""Tokens that join a ViT's last blocks: they change nothing unless they are attended to, and look where they may."""

import pytest
import timm
import torch

from recyclelora.errors import UserError
from recyclelora.models.backbone import Backbone
from recyclelora.models.joining import Joining, check_joining

SMALL = {"depth": 3, "embed_dim": 48, "num_heads": 3}
MODELS = {
    "vit_tiny_patch16_224": {**SMALL, "img_size": 64},
    "vit_small_patch14_reg4_dinov2": {**SMALL, "img_size": 56},
    "vit_base_patch16_siglip_224": {**SMALL, "img_size": 64},  # no class token
    "vit_small_patch16_dinov3": {**SMALL, "img_size": 64},
    "vit_small_patch16_rope_mixed_224": {**SMALL, "img_size": 64},  # a rotary embedding for each block
    "eva02_small_patch14_224": {**SMALL, "img_size": 56},
}


def backbone(name="vit_tiny_patch16_224", **args):
    torch.manual_seed(0)
    norm = "eva02" not in name  # whose final norm comes after pooling
    model = Backbone(name, "random", norm=norm, model_args=args or MODELS[name]).eval()
    for own, parameter in model.named_parameters():
        if "gamma" in own:
            parameter.data.fill_(0.5)  # layer scales start at 1e-5, as if there were no blocks
    return model


def images(model, sides=(4, 6)):
    return torch.randn(2, 3, *(side * model.patch_size for side in sides), generator=torch.Generator().manual_seed(1))


def tokens(count, seed=2):
    return torch.randn(count, 48, generator=torch.Generator().manual_seed(seed))


def joined(model, pixels, own, blocks=2, allowed=None):
    """Map and tokens after the last block; `allowed` are masks of the blocks."""

    def at(number, map_, queries):
        return (allowed[number] if allowed and number < blocks else None), (map_, queries) if number == blocks else ()

    return model(pixels, Joining(own, blocks, at))


@pytest.mark.parametrize("name", MODELS)
def test_without_tokens_the_map_is_the_backbones_own(name):
    model = backbone(name)
    with torch.no_grad():
        map_, queries = joined(model, images(model), tokens(0))
        torch.testing.assert_close(map_, model(images(model))[0])
    assert queries.shape == (2, 0, 48)


@pytest.mark.parametrize("name", MODELS)
def test_tokens_have_no_position(name):
    model, own, order = backbone(name), tokens(5), torch.tensor([3, 0, 4, 2, 1])
    with torch.no_grad():
        map_, queries = joined(model, images(model, (4, 4)), own)
        again, moved = joined(model, images(model, (4, 4)), own[order])
        plain = model(images(model, (4, 4)))[0]
    torch.testing.assert_close(again, map_)
    torch.testing.assert_close(moved, queries[:, order])
    assert (queries[:, 0] - queries[:, 1]).abs().max() > 0.1
    assert (map_ - plain).abs().max() > 1e-4  # the patches attend to them


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3"])
def test_a_token_attends_to_the_patches_that_it_may_and_to_no_others(name):
    model, pixels, seen = backbone(name), images(backbone(name), (4, 4)), []

    def keep(_, args):
        args[0].retain_grad()
        seen.append(args[0])

    model.model.blocks[2].register_forward_pre_hook(keep)
    allowed = torch.rand(2, 5, 4, 4, generator=torch.Generator().manual_seed(3)) < 0.5
    allowed[1, 2] = False  # it attends to the other tokens alone
    prefix = model.model.num_prefix_tokens
    for token in range(5):
        seen.clear()
        _, queries = joined(model, pixels.requires_grad_(), tokens(5), 1, [allowed])
        queries[:, token].square().sum().backward()
        moved = seen[0].grad.abs().sum(-1) > 0
        assert torch.equal(moved[:, prefix : prefix + 16].unflatten(1, (4, 4)), allowed[:, token])
        assert moved[:, :prefix].all()
        assert moved[:, prefix + 16 :].all()


def test_recomputed_blocks_have_the_same_gradients():
    found = []
    for recomputed in (False, True):
        model = backbone()
        model.set_grad_checkpointing(recomputed)
        own = tokens(5).requires_grad_()
        allowed = torch.rand(2, 5, 4, 6, generator=torch.Generator().manual_seed(3)) < 0.5
        map_, queries = joined(model, images(model), own, 2, [allowed, ~allowed])
        (map_.square().sum() + queries.square().sum()).backward()
        found.append([own.grad, *(p.grad for p in model.parameters())])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(
    ("name", "args", "blocks", "parts"),
    [
        ("vit_tiny_patch16_224", {**SMALL, "img_size": 64}, 3, ("last 3 blocks", "has 3", "at most 2")),
        ("beit_base_patch16_224", {"depth": 3}, 2, ("beit_base_patch16_224", "no further tokens", "another head")),
        ("samvit_base_patch16", {"depth": 3}, 2, ("samvit_base_patch16", "no further tokens", "another head")),
    ],
)
def test_models_whose_blocks_take_no_tokens_are_refused(name, args, blocks, parts):
    with torch.device("meta"):
        model = timm.create_model(name, **args)
    with pytest.raises(UserError) as error:
        check_joining(model, name, blocks)
    assert all(part in str(error.value) for part in parts)
