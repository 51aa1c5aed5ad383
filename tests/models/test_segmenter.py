"""The segmentation model, and its predictions with a plan."""

import copy
import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from labelled_files import picture
from recyclelora.data.labels import IGNORE
from recyclelora.models.backbone import Backbone
from recyclelora.models.heads.linear import LinearHead
from recyclelora.models.plan import Plan
from recyclelora.models.segmenter import Segmenter
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


def to_batch(image):
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]


# Prediction


@pytest.mark.parametrize(("height", "width", "fitting"), [(64, 64, (64, 64)), (50, 40, (64, 48)), (5, 64, (16, 64))])
def test_one_window_is_the_forward_pass_on_the_image_padded_by_its_edge(height, width, fitting):
    model, image = make_segmenter(), picture(height, width)
    padded = np.pad(image, ((0, fitting[0] - height), (0, fitting[1] - width), (0, 0)), mode="edge")
    with torch.inference_mode():
        expected = model(to_batch(padded))[0, :, :height, :width].argmax(0)
    predicted = model.predict(image, Plan("full", 64, 43))
    np.testing.assert_array_equal(predicted, expected.numpy())
    assert len(np.unique(predicted)) > 1


def test_prediction_follows_the_plan():
    model, image = make_segmenter(), picture(80, 112)
    one = model.predict(image, Plan("full", 64, 43))
    others = [Plan("a", 32, 21), Plan("b", 64, 64), Plan("c", 64, 43, (64, 64)), Plan("d", 64, 43, flip=True)]
    for plan in [*others, Plan("e", 64, 43, scales=(0.5, 1.0))]:
        predicted = model.predict(image, plan)
        assert predicted.shape == (80, 112)
        assert (predicted != one).any(), plan
    np.testing.assert_array_equal(model.predict(image, Plan("f", 64, 43, batch_size=3)), one)


def test_a_mirrored_image_gets_mirrored_classes_where_both_are_averaged():
    model, plan = make_segmenter(), Plan("full, flip", 64, 43, flip=True)
    image = picture(64, 100)
    mirrored = model.predict(np.ascontiguousarray(image[:, ::-1]), plan)[:, ::-1]
    assert (mirrored == model.predict(image, plan)).mean() > 0.999  # ties of rounded sums


# Forward pass and loss


class Spy(nn.Module):
    """Replaces a backbone and returns its images as a feature map."""

    def forward(self, images, joining):
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
