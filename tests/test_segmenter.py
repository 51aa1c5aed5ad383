"""The segmentation model, and a sliding window that leaves no trace where the model has none."""

import copy
import functools
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from labelled_files import picture
from recyclelora.backbone import Backbone
from recyclelora.data.labels import IGNORE
from recyclelora.heads import LinearHead
from recyclelora.segmenter import Segmenter, window_starts
from references import bilinear

CLASSES = 5
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@functools.cache
def tiny_backbone():
    torch.manual_seed(0)
    args = {"img_size": 64, "depth": 2, "embed_dim": 48, "num_heads": 3}
    backbone = Backbone("vit_tiny_patch16_224", "random", model_args=args)
    backbone.mean, backbone.std = MEAN, STD
    return backbone.eval()


def make_segmenter():
    backbone = copy.deepcopy(tiny_backbone())
    head = LinearHead(backbone.channels, CLASSES)
    nn.init.normal_(head.classifier.weight)
    return Segmenter(backbone, head).eval()


class Fake(Segmenter):
    """A model with a patch of any size whose logits are whole numbers, so that their sums are exact."""

    def __init__(self, patch):
        backbone = copy.copy(tiny_backbone())
        backbone.patch_size = patch
        super().__init__(backbone, nn.Identity())
        self.seen = []

    def forward(self, images):
        self.seen.append(tuple(images.shape[-2:]))
        return self.logits(images.permute(0, 2, 3, 1).numpy().astype(np.int64))

    def logits(self, images):
        return F.one_hot(torch.from_numpy(by_colour(images)), CLASSES).permute(0, 3, 1, 2).float()


class ByPlace(Fake):
    """Logits that depend on the colour of a pixel and on where in the window it lies."""

    table = np.random.default_rng(0).integers(0, 10_000, (CLASSES, 64, 64))

    def logits(self, images):
        return torch.from_numpy(self.of(images[0])[None]).float()

    def of(self, window):
        h, w = window.shape[:2]
        return self.table[:, :h, :w] + np.arange(CLASSES)[:, None, None] * (window.sum(-1) % 997)


def by_colour(images):
    """A class from the colour of each pixel alone."""
    return images.astype(np.int64) @ np.array([1, 3, 7]) % CLASSES


def to_batch(image):
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]


@st.composite
def windows(draw):
    """A patch, a window of whole patches, a stride without gaps, and an image smaller or larger than the window."""
    patch = draw(st.sampled_from([1, 2, 4, 7]))
    window = patch * draw(st.integers(-(-4 // patch), 5))
    stride = draw(st.integers(max(1, window // 4), window))
    return patch, window, stride, picture(*draw(st.tuples(*[st.integers(1, 30)] * 2)), draw(st.integers(0, 99)))


# Windows along an axis


@given(st.integers(1, 300), st.integers(0, 300), st.data())
@settings(max_examples=200, deadline=None)
def test_windows_cover_the_axis_in_steps_of_at_most_the_stride(window, beyond, data):
    length, stride = window + beyond, data.draw(st.integers(1, window))
    starts = window_starts(length, window, stride)
    covered = {pixel for start in starts for pixel in range(start, start + window)}
    assert covered == set(range(length))
    assert all(0 < b - a <= stride for a, b in itertools.pairwise(starts))
    assert starts[-1] == length - window
    # As mmsegmentation counts them: https://github.com/open-mmlab/mmsegmentation, EncoderDecoder.slide_inference.
    count = max(length - window + stride - 1, 0) // stride + 1
    assert starts == [min(i * stride, length - window) for i in range(count)]


def test_an_axis_of_one_window_has_one_window():
    assert [window_starts(64, 64, stride) for stride in (1, 43, 64)] == [[0]] * 3


# Prediction


@given(windows())
@settings(max_examples=80, deadline=None)
def test_a_model_of_single_pixels_predicts_the_same_through_every_window(case):
    patch, window, stride, image = case
    given_image, model = image.copy(), Fake(patch)
    predicted = model.predict(image, window, stride)
    assert predicted.dtype == np.uint8
    np.testing.assert_array_equal(predicted, by_colour(image))
    np.testing.assert_array_equal(image, given_image)
    fitting = tuple(min(window, side + -side % patch) for side in image.shape[:2])
    assert set(model.seen) == {fitting}


@given(windows())
@settings(max_examples=60, deadline=None)
def test_overlapping_logits_are_averaged(case):
    patch, window, stride, image = case
    h, w = image.shape[:2]
    height, width = (min(window, side + -side % patch) for side in (h, w))
    model = ByPlace(patch)
    padded = np.pad(image, ((0, max(0, height - h)), (0, max(0, width - w)), (0, 0)), mode="edge").astype(np.int64)
    total = np.zeros((CLASSES, *padded.shape[:2]), np.int64)
    tops = sorted({min(top, padded.shape[0] - height) for top in range(0, padded.shape[0], stride)})
    lefts = sorted({min(left, padded.shape[1] - width) for left in range(0, padded.shape[1], stride)})
    for top in tops:
        for left in lefts:
            place = slice(top, top + height), slice(left, left + width)
            total[:, *place] += model.of(padded[place])
    total = total[:, :h, :w]
    predicted = model.predict(image, window, stride).astype(np.int64)
    # A tie may go either way.
    np.testing.assert_array_equal(np.take_along_axis(total, predicted[None], 0)[0], total.max(0))


@pytest.mark.parametrize(("height", "width", "fitting"), [(64, 64, (64, 64)), (50, 40, (64, 48)), (5, 64, (16, 64))])
def test_one_window_is_the_forward_pass_on_the_image_padded_by_its_edge(height, width, fitting):
    model, image = make_segmenter(), picture(height, width)
    padded = np.pad(image, ((0, fitting[0] - height), (0, fitting[1] - width), (0, 0)), mode="edge")
    with torch.inference_mode():
        expected = model(to_batch(padded))[0, :, :height, :width].argmax(0)
    predicted = model.predict(image, 64, 43)
    np.testing.assert_array_equal(predicted, expected.numpy())
    assert len(np.unique(predicted)) > 1


@pytest.mark.parametrize(
    ("window", "stride", "nearest"),
    [(50, 20, 48), (60, 20, 64), (5, 5, 16), (0, 1, 16), (-16, 1, 16), (64, 0, 64), (64, 65, 64)],
)
def test_a_window_or_stride_that_does_not_fit_is_refused_with_the_nearest(window, stride, nearest):
    message = rf"window {window} must be a multiple of the patch 16 and stride {stride} .* nearest window: {nearest}$"
    with pytest.raises(ValueError, match=message):
        Fake(16).predict(picture(), window, stride)


# Forward pass and loss


class Spy(nn.Module):
    """Stands for a backbone and gives its images back as a feature map."""

    def forward(self, images):
        return [images]


def test_images_are_normalised_by_the_backbones_mean_and_deviation():
    model = make_segmenter()
    model.backbone = Spy()
    images = torch.randint(0, 256, (2, 3, 32, 48), dtype=torch.uint8)
    expected = (images.numpy() / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    np.testing.assert_allclose(model.features(images)[0], expected, atol=1e-5)


def test_logits_are_the_heads_at_the_size_of_the_images():
    model, images = make_segmenter(), torch.stack([to_batch(picture(32, 48, seed))[0] for seed in range(2)])
    with torch.inference_mode():
        logits, coarse = model(images), model.head(model.features(images), (2, 3))
    assert coarse.shape[-2:] == (2, 3)
    np.testing.assert_allclose(logits, bilinear(coarse.numpy(), (32, 48)), atol=1e-4)


def test_the_loss_is_the_heads_and_reaches_the_backbone():
    model, images = make_segmenter(), to_batch(picture(32, 32))
    labels = torch.randint(0, CLASSES, (1, 32, 32))
    labels[0, :4] = IGNORE
    loss = model.loss(images, labels)
    torch.testing.assert_close(loss, F.cross_entropy(model(images), labels, ignore_index=IGNORE))
    loss.backward()
    assert model.head.classifier.bias.grad.any()
    assert model.backbone.model.pos_embed.grad.any()


def test_the_normalisation_is_not_part_of_the_weights():
    assert {name.split(".")[0] for name in make_segmenter().state_dict()} == {"backbone", "head"}
