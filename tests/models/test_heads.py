"""Heads of a segmenter: what their logits come from, and the loss against one computed by hand."""

import math
import sys
import types

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miniatures import SMALL_HEAD
from recyclelora.data.labels import IGNORE
from recyclelora.errors import UserError
from recyclelora.models import heads
from recyclelora.models.heads import HEADS, get_head
from recyclelora.models.heads.head import Head
from recyclelora.models.heads.linear import LinearHead
from references import bilinear


def maps(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def random_labels(shape, classes, seed=0):
    labels = np.random.default_rng(seed).choice([*range(classes), IGNORE], shape)
    return torch.from_numpy(labels.astype(np.int64))


def cross_entropy(logits, labels):
    """Mean over the labelled pixels, from bilinearly upsampled logits, in float64."""
    logits = bilinear(logits.detach().numpy(), labels.shape[-2:])
    losses = [
        np.log(np.exp(logits[b, :, y, x]).sum()) - logits[b, labels[b, y, x], y, x]
        for b, y, x in np.argwhere(labels.numpy() != IGNORE)
    ]
    return np.mean(losses) if losses else 0.0


def test_heads_by_name():
    assert get_head("linear") is LinearHead
    assert (LinearHead.FINAL_NORM, LinearHead.PYRAMID) == (True, False)
    with pytest.raises(UserError, match="unknown head 'liner'; did you mean 'linear'"):
        get_head("liner")


@pytest.mark.parametrize("name", HEADS)
def test_every_head_implements_the_interface(name):
    sizes = SMALL_HEAD if name == "mask2former" else {}
    head = get_head(name)([16] * 4, 3, **sizes)
    assert isinstance(head, Head)
    features = maps(*[(2, 16, 4, 4)] * 4)
    assert head(features, (8, 12)).shape == (2, 3, 8, 12)
    labels = random_labels((2, 16, 16), 3)
    loss = head.loss(features, labels, [5, 6])
    assert loss.shape == ()
    assert torch.equal(loss, head.loss(features, labels, [5, 6]))
    loss.backward()
    assert all(p.grad is not None for p in head.parameters())
    assert head.loss(features, torch.full((2, 16, 16), IGNORE)).isfinite()


def test_a_new_head_is_a_file_and_a_name(monkeypatch):
    module = types.ModuleType("recyclelora.models.heads.mine")
    module.HEAD = type("Mine", (LinearHead,), {})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(heads, "HEADS", (*HEADS, "mine"))
    assert get_head("mine") is module.HEAD


def test_the_logits_are_a_linear_map_of_each_patch_of_the_last_feature_map():
    head = LinearHead([7, 5], 3)
    early, last = maps((2, 7, 8, 8), (2, 5, 3, 4))
    weight, bias = head.classifier.weight[:, :, 0, 0], torch.tensor([0.5, -1.0, 2.0])
    head.classifier.bias.data.copy_(bias)
    expected = torch.einsum("kc,bchw->bkhw", weight, last) + bias[:, None, None]
    torch.testing.assert_close(head([early, last], (3, 4)), expected)


def test_a_new_head_favours_no_class():
    head = LinearHead([48], 19)
    loss = head.loss(maps((2, 48, 4, 4)), random_labels((2, 16, 16), 19))
    assert loss.item() == pytest.approx(math.log(19), abs=0.05)


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 17), st.integers(1, 17), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_loss_is_the_cross_entropy_of_upsampled_logits_over_labelled_pixels(h, w, height, width, seed):
    height, width = max(h, height), max(w, width)
    head = LinearHead([6], 4)
    torch.nn.init.normal_(head.classifier.weight)
    features, labels = maps((2, 6, h, w), seed=seed), random_labels((2, height, width), 4, seed)
    expected = cross_entropy(head(features, features[-1].shape[-2:]), labels)
    assert head.loss(features, labels).item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_ignored_pixels_change_neither_the_loss_nor_its_gradient():
    head, features = LinearHead([6], 4), maps((1, 6, 4, 4))
    labels = random_labels((1, 4, 4), 4)
    wider, more = [torch.cat([features[0], 9 * features[0]], 2)], torch.full((1, 8, 4), IGNORE)
    more[:, :4] = labels
    gradients = []
    for inputs, ids in ((features, labels), (wider, more)):
        loss = head.loss(inputs, ids)
        gradients.append((loss, *torch.autograd.grad(loss, list(head.parameters()))))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_batch_without_labelled_pixels_costs_nothing_and_moves_nothing():
    head = LinearHead([6], 4)
    (features,) = maps((2, 6, 3, 3))
    loss = head.loss([features.requires_grad_()], torch.full((2, 12, 12), IGNORE))
    loss.backward()
    assert loss.item() == 0
    for tensor in (features, *head.parameters()):
        assert not tensor.grad.any()  # NaN would be something


def test_the_loss_is_computed_in_float32():
    head = LinearHead([6], 4).bfloat16()
    features = [m.bfloat16() for m in maps((2, 6, 3, 3))]
    labels = random_labels((2, 12, 12), 4)
    loss = head.loss(features, labels)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(cross_entropy(head(features, (3, 3)), labels), rel=1e-5)


def test_the_loss_falls_on_a_repeated_batch():
    torch.manual_seed(0)
    head, features = LinearHead([16], 3), maps((2, 16, 4, 4))
    labels = random_labels((2, 4, 4), 3)
    optimizer = torch.optim.Adam(head.parameters(), 0.1)
    before = head.loss(features, labels).item()
    for _ in range(60):
        optimizer.zero_grad()
        head.loss(features, labels).backward()
        optimizer.step()
    assert head.loss(features, labels).item() < 0.2 * before
    learnt = head(features, (4, 4)).argmax(1)
    assert (learnt == labels)[labels != IGNORE].float().mean() > 0.9
