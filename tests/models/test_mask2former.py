"""Mask2Former against the published head's numbers, and as a head that learns."""

import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import make_reference
from recyclelora import param_groups
from recyclelora.data.labels import IGNORE
from recyclelora.errors import UserError
from recyclelora.models.heads import mask2former
from recyclelora.models.heads.mask2former import Mask2FormerHead, rescaled
from recyclelora.published.names import head_state

SHARED = Path(__file__).parents[2] / "shared" / "data" / "mask2former_reference"
REFERENCE = Path(os.environ.get("RECYCLELORA_MASK2FORMER_REFERENCE", SHARED))
TINY = {
    "width": 32, "queries": 10, "encoder_layers": 2, "decoder_layers": 3, "encoder_feedforward": 64,
    "decoder_feedforward": 96,
}  # fmt: skip
needs_reference = pytest.mark.skipif(not REFERENCE.is_dir(), reason=f"no reference in {REFERENCE}")


def maps(batch=2, channels=48, size=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, channels, size, size, generator=generator) for _ in range(4)]


def head(classes=5, **sizes):
    torch.manual_seed(0)
    return Mask2FormerHead([48] * 4, classes, **{**TINY, "points": 256, **sizes})


def labels_of(counts):
    """Images with so many classes each, as one row of pixels; the rest is not labelled."""
    labels = torch.full((len(counts), 64, 64), IGNORE)
    for image, count in zip(labels, counts, strict=True):
        image[0, :count] = torch.arange(count)
    return labels


@needs_reference
def test_predictions_equal_the_published_heads(monkeypatch):
    stored = load_file(REFERENCE / "tiny_head.safetensors")
    ours = Mask2FormerHead([48] * 4, 19, **TINY).eval()
    state = head_state({name.removeprefix("state."): value for name, value in stored.items()})
    assert set(ours.state_dict()) - set(state) == {"criterion.empty_weight"}
    ours.load_state_dict(state, strict=False)
    monkeypatch.setattr(mask2former, "SCALES", (1.0, 1.0, 1.0, 1.0))  # the stored inputs are rescaled already
    with torch.no_grad():
        for i, (classes, masks) in enumerate(ours.predictions([stored[f"input.{i}"] for i in range(4)])):
            torch.testing.assert_close(classes, stored[f"output.class.{i}"], atol=1e-5, rtol=0)
            torch.testing.assert_close(masks, stored[f"output.mask.{i}"], atol=1e-5, rtol=0)


def test_predictions_logits_and_loss_equal_the_projects_own_reference():
    stored = load_file(make_reference.FILE)
    ours = make_reference.make_head()
    ours.load_state_dict({n.removeprefix("state."): v for n, v in stored.items() if n.startswith("state.")})
    inputs = [stored[f"input.{i}"] for i in range(4)]
    with torch.no_grad():
        for i, (classes, masks) in enumerate(ours.predictions(inputs)):
            torch.testing.assert_close(classes, stored[f"output.class.{i}"], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(masks, stored[f"output.mask.{i}"], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours(inputs, (64, 80)), stored["scores"], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours.loss(inputs, stored["labels"], [3, 4]), stored["loss"], atol=1e-3, rtol=1e-5)


@needs_reference
def test_the_default_sizes_are_the_published_ones():
    lines = (REFERENCE / "full_head_names.txt").read_text().splitlines()
    shapes = dict(line.split(" ", 1) for line in lines if line.strip())
    state = {name: torch.empty(eval(shape), device="meta") for name, shape in shapes.items()}
    with torch.device("meta"):
        ours = Mask2FormerHead([384] * 4, 19).state_dict()
    expected = {name: tuple(value.shape) for name, value in head_state(state).items()}
    assert {n: tuple(v.shape) for n, v in ours.items() if n != "criterion.empty_weight"} == expected


def test_features_are_rescaled_to_four_strides(monkeypatch):
    ours, seen = head(), []
    monkeypatch.setattr(ours.pixel_decoder, "forward", lambda pyramid: seen.extend(pyramid) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ours.predictions(maps())
    assert [tuple(m.shape[-2:]) for m in seen] == [(16, 16), (8, 8), (4, 4), (2, 2)]
    assert torch.equal(seen[2], maps()[2])
    torch.testing.assert_close(seen[0], F.interpolate(maps()[0], (16, 16), mode="bilinear"))


@pytest.mark.parametrize("shape", [(3, 5), (7, 4), (2, 2)])
def test_sides_of_two_patches_or_more_are_rescaled_as_published(shape):
    map_ = torch.randn(1, 3, *shape)
    for scale in (4.0, 2.0, 1.0, 0.5):
        expected = F.interpolate(map_, scale_factor=scale, mode="bilinear", align_corners=False)
        assert torch.equal(rescaled(map_, scale), expected)


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (7, 1)])
def test_half_of_one_patch_is_that_patch(shape):
    map_ = torch.randn(1, 3, *shape)
    wide = map_.repeat_interleave(1 + (shape[0] == 1), 2).repeat_interleave(1 + (shape[1] == 1), 3)
    torch.testing.assert_close(rescaled(map_, 0.5), F.interpolate(wide, scale_factor=0.5, mode="bilinear"))
    assert rescaled(map_, 0.5).shape[-2:] == tuple(max(side // 2, 1) for side in shape)


def test_semantic_logits_are_those_of_the_last_prediction():
    ours = head().eval()
    with torch.no_grad():
        classes, masks = ours.predictions(maps())[-1]
        scores = ours(maps(), (20, 24))
    probability = classes.softmax(-1)[0, :, 3]
    mask = F.interpolate(masks, (20, 24), mode="bilinear")[0].sigmoid()
    torch.testing.assert_close(scores[0, 3], (probability[:, None, None] * mask).sum(0))
    assert scores.shape == (2, 5, 20, 24)


def test_two_images_can_be_memorised():
    labels = torch.zeros(2, 64, 64, dtype=torch.long)
    labels[0, :, 32:], labels[1, 32:] = 1, 2
    labels[:, :4] = IGNORE
    ours, features = head(3), maps()
    optimizer = torch.optim.AdamW(ours.parameters(), 2e-3)
    for step in range(120):
        torch.manual_seed(step)
        optimizer.zero_grad()
        loss = ours.loss(features, labels)
        first = loss.item() if step == 0 else first
        loss.backward()
        optimizer.step()
    assert loss.item() < first / 4
    learnt = ours.eval()(features, (64, 64)).argmax(1)
    assert (learnt == labels)[labels != IGNORE].float().mean() > 0.95


def test_an_image_without_labels_gives_a_finite_loss():
    labels = torch.full((2, 64, 64), IGNORE)
    for ids in (labels, torch.cat([labels[:1], torch.ones(1, 64, 64, dtype=torch.long)])):
        ours = head()
        loss = ours.loss(maps(), ids)
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad.isfinite().all() for p in ours.parameters() if p.grad is not None)


@pytest.mark.parametrize("counts", [[3, 1], [3, 0, 1], [0, 0], [19]])
def test_an_image_without_masks_counts_as_one(counts):
    assert head(19).amounts(labels_of(counts))[0].item() == sum(count or 1 for count in counts)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [([3, 1], 4 + 16 * 0.1), ([3, 0, 1], 4 + 26 * 0.1), ([0, 0], 20 * 0.1), ([19, 2], 12 + 8 * 0.1)],
)
def test_each_class_takes_one_of_the_ten_queries_and_the_others_weigh_a_tenth(counts, expected):
    assert head(19).amounts(labels_of(counts))[1].item() == pytest.approx(expected, rel=1e-6)


def test_the_sum_of_class_weights_is_the_one_that_the_loss_divides_by(monkeypatch):
    ours, sums = head(19), []
    weight_sum = ours.criterion.weight_sum
    monkeypatch.setattr(ours.criterion, "weight_sum", lambda *counts: sums.append(weight_sum(*counts)) or sums[-1])
    ours.loss(maps(3), labels_of([19, 0, 2]), [7, 8, 9])
    assert len(sums) == 1 + 4  # of the labels, and of the pairs that each prediction is matched in
    assert len(set(sums)) == 1


def test_an_image_without_labels_takes_its_share_of_the_mask_losses():
    labels = torch.full((2, 64, 64), IGNORE)
    labels[0] = torch.randint(3, (8, 8)).repeat_interleave(8, 0).repeat_interleave(8, 1)
    ours, masks = head(), len(labels[0].unique())
    ours.weights["loss_cross_entropy"] = 0.0
    one = ours.loss([m[:1] for m in maps()], labels[:1], [7])
    torch.testing.assert_close(ours.loss(maps(), labels, [7, 8]) * (masks + 1), one * masks, atol=1e-3, rtol=1e-5)


def test_the_amounts_of_a_loss_are_a_mean_over_processes(monkeypatch):
    ours, labels, elsewhere = head(), labels_of([3, 0]), torch.tensor([6.0, 11.0])
    expected = ours.loss(maps(), labels, [7, 8], (torch.tensor([4.0, 3 + 17 * 0.1]) + elsewhere) / 2)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda amounts: amounts.add_(elsewhere))
    torch.testing.assert_close(ours.loss(maps(), labels, [7, 8]), expected)


def test_points_depend_only_on_the_keys():
    ours, labels = head(), torch.randint(5, (2, 64, 64), generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = ours.loss(maps(), labels, [7, 8])
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(ours.loss(maps(), labels, [7, 8]), first)
    assert not torch.equal(ours.loss(maps(), labels, [7, 9]), first)
    swapped = ours.loss([m.flip(0) for m in maps()], labels.flip(0), [8, 7])
    torch.testing.assert_close(swapped, first, atol=1e-3, rtol=1e-5)
    torch.manual_seed(0)
    drawn = [ours.loss(maps(), labels).item() for _ in range(2)]
    assert drawn[0] != drawn[1]


def test_autocast_changes_the_loss_by_rounding_only():
    ours, labels = head(), torch.randint(5, (2, 64, 64), generator=torch.Generator().manual_seed(1))
    exact = ours.loss(maps(), labels, [7, 8])
    with torch.autocast("cpu", torch.bfloat16):
        rounded = ours.loss(maps(), labels, [7, 8])
    rounded.backward()
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs() < 0.02 * exact
    assert all(p.grad.isfinite().all() for p in ours.parameters() if p.grad is not None)


def test_a_checkpoint_without_a_head_is_refused():
    with pytest.raises(UserError, match="holds no head"):
        head_state({"backbone.weight": torch.zeros(1)})


def test_norms_positions_and_levels_of_the_published_head_are_not_decayed():
    with torch.device("meta"):
        head = Mask2FormerHead([48] * 4, 5)
    undecayed = next(g for g in param_groups(head, 1e-4, 0.05) if g["name"] == "undecayed")
    chosen = {id(p) for p in undecayed["params"]}
    names = {n for n, p in head.named_parameters() if id(p) in chosen}
    norms = ("norm", "input_projections", "adapter_1.1", "layer_1.1")
    assert {n for n in names if not any(part in n for part in norms)} == {
        "transformer_module.queries_embedder.weight", "transformer_module.level_embed.weight",
    }  # fmt: skip
    assert not any(n.endswith(".0.weight") for n in names)  # convolutions next to their norms
