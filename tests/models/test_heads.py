"""Heads of a segmenter: what their logits come from, and the loss against one computed by hand."""

import math
import subprocess
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

ARGS = {"linear": {}, "concat": {"width": 12, "hidden": 8}, "mask2former": SMALL_HEAD}
UPSCALED = {"linear": 1, "concat": 4}
"""Heads with one logit per class and pixel, and by how much their logits are larger than the feature maps."""
of_maps = pytest.mark.parametrize("name", ARGS)
"""Heads that take feature maps; `eomt`, which joins the backbone's blocks, has tests of its own."""
per_pixel = pytest.mark.parametrize("name", UPSCALED)


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


def make(name, channels, classes):
    torch.manual_seed(0)
    return get_head(name)(channels, classes, **ARGS[name])


@of_maps
def test_logits_stay_in_float32_where_matrices_are_multiplied_in_half_precision(name):
    """So that 256 steps of a half-precision number do not make classes of equal logits."""
    channels = [24] * (4 if get_head(name).PYRAMID else 1)
    head = make(name, channels, 5).eval()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        logits = head(maps(*[(1, 24, 4, 4)] * len(channels)), (64, 64))
    assert logits.dtype == torch.float32
    assert len(logits.unique()) > 5 * 64 * 64 // 2  # of numbers in half precision many would be equal


@of_maps
def test_every_head_implements_the_interface(name):
    head = make(name, [16] * 4, 3)
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


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 1), (2, 2), (1, 5), (3, 3), (3, 2), (5, 4)], ids=str)
@of_maps
def test_images_of_a_few_patches_do_not_depend_on_the_batch(name, shape):
    head = make(name, [16] * 4, 3)
    size = (16 * shape[0], 16 * shape[1])
    features, labels = maps(*[(2, 16, *shape)] * 4), random_labels((2, *size), 3)
    logits = head(features, size)
    for i in range(2):
        torch.testing.assert_close(head([m[i : i + 1] for m in features], size), logits[i : i + 1])
        loss = head.loss([m[i : i + 1] for m in features], labels[i : i + 1], [i])
        assert all(grad.isfinite().all() for grad in torch.autograd.grad(loss, list(head.parameters())))


def unequal_labels():
    """Four images of 16 x 16: two classes in part of it, nothing, seven classes (more than the queries), one class."""
    labels = torch.full((4, 16, 16), IGNORE)
    labels[0, :5, :7], labels[0, 3:5] = 1, 2
    labels[2] = torch.arange(256).view(16, 16) % 7
    labels[3] = 4
    return labels


def loss_and_gradients(head, features, labels, pieces, amounts=None):
    """The sum of the losses of some pieces of a batch, and its gradients."""
    inputs = [m.clone().requires_grad_() for m in features]
    losses = [head.loss([m[own] for m in inputs], labels[own], [5, 6, 7, 8][own], amounts) for own in pieces]
    total = torch.stack(losses).sum()
    return [total, *torch.autograd.grad(total, [*inputs, *head.parameters()], materialize_grads=True)]


@pytest.fixture(params=[torch.float64, torch.float32], ids=str)
def dtype(request):
    """A precision of training; the default type of tensors is put back after the test."""
    before = torch.get_default_dtype()
    yield request.param
    torch.set_default_dtype(before)


@pytest.mark.parametrize("ends", [(1, 2, 3, 4), (2, 4), (1, 4), (4,)], ids=str)
@of_maps
def test_losses_and_gradients_of_parts_add_up_to_those_of_the_batch(name, ends, dtype):
    rounding = 1e-12 if dtype == torch.float64 else 1e-4
    head = make(name, [16] * 4, 7).to(dtype)
    torch.set_default_dtype(dtype)  # after the weights were made in float32, as in a training
    features, labels = [m.to(dtype) for m in maps(*[(4, 16, 4, 4)] * 4)], unequal_labels()
    pieces = [slice(start, end) for start, end in zip((0, *ends), ends, strict=False)]
    amounts = sum(head.amounts(labels[own]) for own in pieces)
    torch.testing.assert_close(amounts, head.amounts(labels), rtol=1e-6, atol=0)
    whole = loss_and_gradients(head, features, labels, [slice(0, 4)])
    split = loss_and_gradients(head, features, labels, pieces, amounts)
    largest = max(gradient.abs().max().item() for gradient in whole[1:])
    torch.testing.assert_close(split[0], whole[0], rtol=rounding, atol=0)
    torch.testing.assert_close(split[1:], whole[1:], rtol=rounding, atol=rounding * largest)
    assert largest > 0


@of_maps
def test_the_loss_is_normalised_by_the_amounts_that_are_given(name):
    head, features, labels = make(name, [16] * 4, 7), maps(*[(4, 16, 4, 4)] * 4), unequal_labels()
    loss, amounts = head.loss(features, labels, [5, 6, 7, 8]), head.amounts(labels)
    assert torch.equal(head.loss(features, labels, [5, 6, 7, 8], amounts), loss)
    torch.testing.assert_close(head.loss(features, labels, [5, 6, 7, 8], 4 * amounts), loss / 4)


@per_pixel
def test_the_amount_of_a_pixel_head_is_the_number_of_labelled_pixels(name):
    assert make(name, [16] * 4, 7).amounts(unequal_labels()).tolist() == [5 * 7 + 2 * 9 + 2 * 256]


COMPILED = """
import sys
import recyclelora
import torch
from recyclelora.models.heads import get_head

def backend(graph, inputs):
    calls.append(graph)
    return graph.forward

for name, sizes in eval(sys.argv[1]).items():
    head, calls = get_head(name)([16] * 4, 3, **sizes), []
    features, labels = [torch.randn(2, 16, 4, 4) for _ in range(4)], torch.randint(3, (2, 64, 64))
    exact = head.loss(features, labels, [7, 8])
    head.compile(backend=backend)
    torch.testing.assert_close(head.loss(features, labels, [7, 8]), exact, atol=1e-3, rtol=1e-5)
    assert calls, name
"""


def test_compiled_heads_give_the_same_loss():
    # In a process of its own: the compiler does not trace functions whose shapes are checked.
    command = [sys.executable, "-c", COMPILED, repr({name: ARGS[name] for name in ARGS})]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


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


@per_pixel
def test_a_new_head_favours_no_class(name):
    head = get_head(name)([48] * 4, 19)
    loss = head.loss(maps(*[(2, 48, 4, 4)] * 4), random_labels((2, 16, 16), 19))
    assert loss.item() == pytest.approx(math.log(19), abs=0.05)


@per_pixel
@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 17), st.integers(1, 17), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_loss_is_the_cross_entropy_of_upsampled_logits_over_labelled_pixels(name, h, w, height, width, seed):
    height, width = max(h, height), max(w, width)
    head = make(name, [6], 4)
    torch.nn.init.normal_(head.classifier.weight)
    features, labels = maps((2, 6, h, w), seed=seed), random_labels((2, height, width), 4, seed)
    expected = cross_entropy(head(features, (UPSCALED[name] * h, UPSCALED[name] * w)), labels)
    assert head.loss(features, labels).item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


@per_pixel
def test_ignored_pixels_change_neither_the_loss_nor_its_gradient(name):
    head, features = make(name, [6], 4), maps((1, 6, 4, 4))
    labels = random_labels((1, 4, 4), 4)
    wider, more = [torch.cat([features[0], 9 * features[0]], 2)], torch.full((1, 8, 4), IGNORE)
    more[:, :4] = labels
    gradients = []
    for inputs, ids in ((features, labels), (wider, more)):
        loss = head.loss(inputs, ids)
        gradients.append((loss, *torch.autograd.grad(loss, list(head.parameters()))))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


@per_pixel
def test_two_processes_have_the_loss_of_one(name, monkeypatch):
    head, features, labels = make(name, [6], 4), maps((3, 6, 4, 4)), random_labels((3, 16, 16), 4)
    labels[0, 4:] = IGNORE
    expected = head.loss(features, labels)
    parts, losses = [slice(0, 1), slice(1, 3)], []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    for own, other in zip(parts, reversed(parts), strict=True):
        elsewhere = (labels[other] != IGNORE).sum()
        monkeypatch.setattr(torch.distributed, "all_reduce", lambda count, others=elsewhere: count.add_(others))
        losses.append(head.loss([m[own] for m in features], labels[own]))
    torch.testing.assert_close(sum(losses) / 2, expected)


@per_pixel
def test_a_batch_without_labelled_pixels_costs_nothing_and_moves_nothing(name):
    head = make(name, [6], 4)
    (features,) = maps((2, 6, 3, 3))
    loss = head.loss([features.requires_grad_()], torch.full((2, 12, 12), IGNORE))
    loss.backward()
    assert loss.item() == 0
    for tensor in (features, *head.parameters()):
        assert not tensor.grad.any()  # NaN would be something


@per_pixel
def test_the_loss_is_computed_in_float32_or_more(name):
    labels = random_labels((2, 12, 12), 4)
    native = (3 * UPSCALED[name], 3 * UPSCALED[name])
    for own, of_loss in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        head, features = make(name, [6], 4).to(own), [m.to(own) for m in maps((2, 6, 3, 3))]
        loss = head.loss(features, labels)
        assert loss.dtype == of_loss
        assert loss.item() == pytest.approx(cross_entropy(head(features, native), labels), rel=1e-5)


@per_pixel
def test_the_loss_falls_on_a_repeated_batch(name):
    head, features = make(name, [16], 3), maps((2, 16, 4, 4))
    labels = random_labels((2, 4, 4), 3)
    optimizer = torch.optim.Adam(head.parameters(), 0.1 / UPSCALED[name])
    before = head.loss(features, labels).item()
    for _ in range(60):
        optimizer.zero_grad()
        head.loss(features, labels).backward()
        optimizer.step()
    assert head.loss(features, labels).item() < 0.2 * before
    learnt = head(features, (4, 4)).argmax(1)
    assert (learnt == labels)[labels != IGNORE].float().mean() > 0.9
