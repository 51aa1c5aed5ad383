"""EoMT against transformers' own model of the same weights, and as a head that learns in any step's parts."""

import copy
import pickle

import numpy as np
import pytest
import torch
from transformers import EomtConfig, EomtForUniversalSegmentation

from recyclelora.errors import UserError
from recyclelora.models.backbone import Backbone
from recyclelora.models.heads.eomt import EomtHead
from recyclelora.models.segmenter import Segmenter

DINO = "vit_small_patch14_reg4_dinov2"
SIZES = {"img_size": 56, "depth": 3, "embed_dim": 48, "num_heads": 3}


def segmenter(classes=5, queries=7, blocks=2, **sizes):
    torch.manual_seed(0)
    backbone = Backbone(DINO, "random", model_args=SIZES)
    for name, parameter in backbone.named_parameters():
        if "gamma" in name:
            parameter.data.fill_(0.5)  # layer scales start at 1e-5, as if there were no blocks
        if "token" in name:
            parameter.data.normal_()
    head = EomtHead(backbone.channels, classes, queries, blocks, points=256, **sizes)
    return Segmenter(backbone, head)


def images(count=2, side=56, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, side, side), generator=generator, dtype=torch.uint8)


def labels(count=2, side=56, seed=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(5, (count, 4, 4), generator=generator).repeat_interleave(14, 1).repeat_interleave(14, 2)


def theirs(model):
    """transformers' EoMT with the weights of a segmenter."""
    config = EomtConfig(
        hidden_size=48, num_hidden_layers=3, num_attention_heads=3, intermediate_size=192, image_size=56, patch_size=14,
        num_register_tokens=4, num_labels=5, num_queries=7, num_blocks=2, num_upscale_blocks=2,
    )  # fmt: skip
    vit, head = model.backbone.model.state_dict(), model.head.state_dict()
    state = {
        "embeddings.cls_token": vit["cls_token"],
        "embeddings.register_tokens": vit["reg_token"],
        "embeddings.position_embeddings.weight": vit["pos_embed"][0],
        "query.weight": head["contents.weight"],
    }
    for own, other in (("patch_embed.proj", "embeddings.patch_embeddings.projection"), ("norm", "layernorm")):
        state |= {f"{other}.{part}": vit[f"{own}.{part}"] for part in ("weight", "bias")}
    for i in range(3):
        own, other = f"blocks.{i}", f"layers.{i}"
        for part in ("weight", "bias"):
            for each, value in zip("qkv", vit[f"{own}.attn.qkv.{part}"].chunk(3), strict=True):
                state[f"{other}.attention.{each}_proj.{part}"] = value
            state[f"{other}.attention.out_proj.{part}"] = vit[f"{own}.attn.proj.{part}"]
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                state[f"{other}.{name}.{part}"] = vit[f"{own}.{name}.{part}"]
        for number in "12":
            state[f"{other}.layer_scale{number}.lambda1"] = vit[f"{own}.ls{number}.gamma"]
    for own, other in (("upsampling", "upscale_block"), ("mask_projection", "mask_head")):
        state |= {name.replace(own, other): value for name, value in head.items() if name.startswith(f"{own}.")}
    state |= {name: value for name, value in head.items() if name.startswith(("class_predictor", "criterion"))}
    made = EomtForUniversalSegmentation(config).eval()
    missing, unknown = made.load_state_dict(state, strict=False)
    assert not unknown
    assert set(missing) <= {"attn_mask_probs"}
    return made


@pytest.mark.parametrize("masked", [False, True])
def test_predictions_equal_those_of_transformers_model(masked):
    ours = segmenter().eval()
    other = theirs(ours)
    ours.head.begin_step(0.0 if masked else 1.0)
    other.attn_mask_probs.fill_(float(masked))
    with torch.no_grad():
        expected = other(pixel_values=(images() - ours.mean) / ours.std)
        found, logits = ours.features(images()), ours(images())
    torch.testing.assert_close(found[-2], expected.class_queries_logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[-1], expected.masks_queries_logits, atol=1e-4, rtol=1e-4)
    assert len(found) == 2
    scores = torch.einsum("bqc,bqhw->bchw", found[-2].softmax(-1)[..., :-1], found[-1].sigmoid())
    coarse = torch.nn.functional.avg_pool2d(logits, 14)
    assert (coarse - torch.nn.functional.adaptive_avg_pool2d(scores, 4)).abs().max() < 0.1 * scores.std()


def test_masks_change_the_predictions():
    ours, found = segmenter().eval(), []
    for progress in (0.0, 1.0):
        ours.head.begin_step(progress)
        with torch.no_grad():
            found.append(ours(images()))
    assert (found[0] - found[1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("progress", "shares", "masked"),
    [
        (0.0, [1, 1, 1], [True, True, True]),
        (0.2, [1, 1, 1], [True, True, True]),
        (0.3, [0.5**0.9, 1, 1], [True, True, True]),
        (0.35, [0.25**0.9, 1, 1], [False, True, True]),
        (0.4, [0, 1, 1], [False, True, True]),
        (0.55, [0, 0.25**0.9, 1], [False, False, True]),
        (0.8, [0, 0, 0], [False, False, False]),
        (1.0, [0, 0, 0], [False, False, False]),
    ],
)
def test_masks_are_annealed_block_after_block(progress, shares, masked):
    head = EomtHead([48], 5, queries=7)
    head.begin_step(progress)
    torch.testing.assert_close(head.shares, torch.tensor(shares, dtype=torch.float32), atol=1e-6, rtol=0)
    assert list(head.masked) == masked
    again = EomtHead([48], 5, queries=7)
    again.load_state_dict(head.state_dict())
    assert list(again.masked) == masked
    assert list(pickle.loads(pickle.dumps(again)).masked) == masked


def where_allowed(model, keys):
    """Where each query may look, by block, in one pass of a loss."""
    found, predict = [], model.head._predict
    model.head._predict = lambda *args: found.append(predict(*args)) or found[-1]
    features = model.features(images(), keys=keys)
    return [allowed for allowed, _ in found], features


def test_a_share_of_the_queries_is_held_to_their_masks():
    model, everywhere = segmenter(queries=200).eval(), []
    inside = None
    for progress in (0.0, 0.375, 1.0):  # 2 blocks: the first in the middle of its turn
        model.head.begin_step(progress)
        allowed, features = where_allowed(copy.deepcopy(model), [3, 4])
        assert len(features) == 6  # before each block and after the last
        everywhere.append([block.flatten(2).all(-1).float().mean().item() for block in allowed[:2]])
        if progress == 0.0:
            inside = allowed
        else:
            assert (allowed[0] | ~inside[0]).all()  # the masks themselves, and more
    assert everywhere[0][0] < 0.2
    assert everywhere[1][0] == pytest.approx(1 - 0.5**0.9, abs=0.12)
    assert everywhere[1][1] < 0.2
    assert everywhere[2] == [1.0, 1.0]


def test_which_queries_are_held_depends_on_the_image_alone():
    model = segmenter(queries=40).eval()
    model.head.begin_step(0.375)
    both, _ = where_allowed(copy.deepcopy(model), [3, 4])
    swapped, _ = where_allowed(copy.deepcopy(model), [4, 3])
    draws = [np.random.default_rng(key).random((2, 40))[0] < 0.5**0.9 for key in (3, 4)]
    for found, (first, second) in ((both, draws), (swapped, draws[::-1])):
        for image, held in enumerate((first, second)):
            free = found[0][image].flatten(1).all(-1)
            assert free[torch.from_numpy(~held)].all()
            assert not free[torch.from_numpy(held)].all()


@pytest.fixture(params=[torch.float64, torch.float32], ids=str)
def dtype(request):
    """A precision of training; the default type of tensors is put back after the test."""
    before = torch.get_default_dtype()
    yield request.param
    torch.set_default_dtype(before)


@pytest.mark.parametrize("ends", [(1, 2, 3), (1, 3)], ids=str)
def test_losses_and_gradients_of_parts_add_up_to_those_of_the_batch(ends, dtype):
    model = segmenter().to(dtype)
    torch.set_default_dtype(dtype)  # after the weights were made in float32, as in a training
    model.head.begin_step(0.375)
    pixels, ids, keys = images(3), labels(3), [5, 6, 7]
    ids[1] = 255
    rounding = 1e-10 if dtype == torch.float64 else 1e-3
    found = []
    for cuts in ((3,), ends):
        model.zero_grad()
        pieces = [slice(start, end) for start, end in zip((0, *cuts), cuts, strict=False)]
        amounts = sum(model.head.amounts(ids[own]) for own in pieces)
        losses = [model.loss(pixels[own], ids[own], keys=keys[own], amounts=amounts) for own in pieces]
        torch.stack(losses).sum().backward()
        found.append([sum(losses).detach(), *(p.grad.clone() for p in model.parameters())])
    largest = max(gradient.abs().max().item() for gradient in found[0][1:])
    torch.testing.assert_close(found[1][0], found[0][0], rtol=rounding, atol=0)
    torch.testing.assert_close(found[1][1:], found[0][1:], rtol=rounding, atol=rounding * largest)
    assert all(gradient.any() for gradient in found[0][1:])


def test_it_learns_a_batch_by_its_queries():
    model, pixels, ids = segmenter(), images(), labels()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    before = model.loss(pixels, ids, keys=[1, 2]).item()
    for step in range(40):
        model.head.begin_step(step / 39)
        optimizer.zero_grad()
        model.loss(pixels, ids, keys=[2 * step, 2 * step + 1]).backward()
        optimizer.step()
    with torch.no_grad():
        right = (model.eval()(pixels).argmax(1) == ids).float().mean()
        assert model.loss(pixels, ids, keys=[1, 2]) < 0.6 * before
    assert right > 0.8


def test_logits_stay_in_float32_where_matrices_are_multiplied_in_half_precision():
    model = segmenter().eval()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        logits = model(images())
    assert logits.dtype == torch.float32
    assert len(logits.unique()) > logits.numel() // 2


@pytest.mark.parametrize(
    ("sizes", "part"),
    [
        ({"queries": 0}, "queries is 0"),
        ({"blocks": 0}, "blocks is 0"),
        ({"upsampling_layers": 1000}, "upsampling_layers is 1000"),
    ],
)
def test_wrong_sizes_are_refused(sizes, part):
    with pytest.raises(ValueError, match=part):
        EomtHead([48], 5, **sizes)


def test_more_blocks_than_the_model_has_are_refused():
    with pytest.raises(UserError, match=r"head_args\.blocks to at most 2"):
        segmenter(blocks=3)
