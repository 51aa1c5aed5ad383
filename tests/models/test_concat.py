"""The concatenating head: its logits against a reference, and the effect of its sizes."""

import math

import numpy as np
import pytest
import torch

from recyclelora.models.heads import get_head
from recyclelora.models.heads.concat import ConcatHead
from references import bilinear

SIZES = {"width": 6, "hidden": 5}
CHANNELS = [3, 4, 2, 3]


def maps(height=3, width=4, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, c, height, width, generator=generator) for c in CHANNELS]


def head(classes=3, **sizes):
    """A head whose biases and class logits are not close to 0, as they are at the start."""
    torch.manual_seed(0)
    made = ConcatHead(CHANNELS, classes, **{**SIZES, **sizes})
    for name, parameter in made.named_parameters():
        if name.endswith("bias") or name.startswith("classifier"):
            torch.nn.init.normal_(parameter)
    return made


def doubled(inputs, weight, bias):
    """A transposed convolution of kernel and stride 2: each pixel becomes four, each a linear map of it."""
    b, _, h, w = inputs.shape
    outputs = np.empty((b, len(bias), 2 * h, 2 * w))
    for i in range(2):
        for j in range(2):
            outputs[:, :, i::2, j::2] = np.einsum("bchw,ck->bkhw", inputs, weight[:, :, i, j])
    return outputs + bias[:, None, None]


def test_the_logits_equal_a_reference():
    ours, features = head(), maps()
    state = {name: value.double().numpy() for name, value in ours.state_dict().items()}
    joined = np.concatenate([m.numpy() for m in features], 1).astype(np.float64)
    narrow = np.einsum("kc,bchw->bkhw", state["projection.weight"][:, :, 0, 0], joined)
    hidden = doubled(
        narrow + state["projection.bias"][:, None, None], state["upsampling.weight"], state["upsampling.bias"]
    )
    hidden = hidden * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2))) / 2
    logits = doubled(hidden, state["classifier.weight"], state["classifier.bias"])
    assert logits.shape == (2, 3, 12, 16)  # stride 4 from stride 16
    for size in ((12, 16), (48, 64), (7, 30)):
        expected = torch.from_numpy(bilinear(logits, size)).float()
        torch.testing.assert_close(ours(features, size), expected, atol=1e-4, rtol=1e-4)


def test_it_takes_four_normalised_maps():
    assert get_head("concat") is ConcatHead
    assert (ConcatHead.FINAL_NORM, ConcatHead.PYRAMID) == (True, True)


def test_every_map_and_every_weight_learns():
    ours, features = head(), [m.requires_grad_() for m in maps()]
    ours.loss(features, torch.randint(3, (2, 48, 64))).backward()
    for tensor in (*features, *ours.parameters()):
        assert tensor.grad.abs().sum() > 0


@pytest.mark.parametrize(("size", "layers"), [("width", ("projection", "upsampling")), ("hidden", ("classifier",))])
def test_each_size_is_that_of_its_layer(size, layers):
    usual, wider = head(), head(**{size: 9})
    changed = {n for n, v in wider.state_dict().items() if v.shape != usual.state_dict()[n].shape}
    assert {f"{layer}.weight" for layer in layers} <= changed
    for layer in layers:
        sizes = set(getattr(wider, layer).weight.shape) - set(getattr(usual, layer).weight.shape)
        assert sizes == {9}
    assert not torch.equal(wider(maps(), (8, 8)), usual(maps(), (8, 8)))


@pytest.mark.parametrize("size", SIZES)
def test_sizes_below_one_are_refused(size):
    with pytest.raises(ValueError, match=f"{size} is 0"):
        head(**{size: 0})


def test_a_new_head_keeps_the_scale_of_the_features_before_its_classifier():
    torch.manual_seed(0)
    ours = ConcatHead([48] * 4, 5)
    features = [torch.randn(2, 48, 8, 8) for _ in range(4)]
    narrow = ours.projection(torch.cat(features, 1))
    assert narrow.std().item() == pytest.approx(1, abs=0.1)
    assert ours.upsampling(narrow).std().item() == pytest.approx(1, abs=0.1)


def test_float64_stays_float64():
    ours = head().double()
    logits = ours([m.double() for m in maps()], (48, 64))
    assert logits.dtype == torch.float64
    torch.testing.assert_close(logits.float(), head()(maps(), (48, 64)))
