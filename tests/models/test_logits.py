"""What logits say of a pixel, against scipy's softmax and entropy, and torch's interpolation."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import softmax
from scipy.stats import entropy

from recyclelora.models.logits import doubt, highest, probabilities

LOGITS = 4 * torch.randn(7, 10, 13, generator=torch.Generator().manual_seed(0))


def at_size(logits, size):
    return F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0].double().numpy()


@pytest.mark.parametrize("views", [1, 6])
@pytest.mark.parametrize("size", [(10, 13), (23, 20)])
def test_probabilities_confidence_and_entropy_are_those_of_the_softmax_of_the_mean(size, views):
    expected = softmax(at_size(LOGITS, size) / views, axis=0)
    classes, best = highest(LOGITS, size)
    found = doubt(LOGITS, size, best, views, softmax=True)
    np.testing.assert_array_equal(classes, expected.argmax(0))
    np.testing.assert_allclose(probabilities(LOGITS, size, views, softmax=True), expected, atol=1e-6)
    np.testing.assert_allclose(found.confidence, expected.max(0), atol=1e-6)
    np.testing.assert_allclose(found.entropy, entropy(expected, axis=0), atol=2e-6)


@pytest.mark.parametrize("size", [(10, 13), (23, 20)])
def test_masses_are_shares_of_their_sum_however_many_views_they_sum(size):
    masses = LOGITS.clamp(min=0)  # some are 0
    masses[3] += 1e-3
    expected = at_size(masses, size) / at_size(masses, size).sum(0)
    _, best = highest(masses, size)
    found = doubt(masses, size, best, 2, softmax=False)
    np.testing.assert_allclose(probabilities(masses, size, 2, softmax=False), expected, atol=1e-6)
    np.testing.assert_allclose(found.confidence, expected.max(0), atol=1e-6)
    np.testing.assert_allclose(found.entropy, entropy(expected, axis=0), atol=2e-6)


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1.0, 1e4])
@pytest.mark.parametrize("of_logits", [True, False])
def test_extreme_logits_give_finite_doubt(scale, of_logits):
    logits = scale * (LOGITS if of_logits else LOGITS.abs())
    _, best = highest(logits, (10, 13))
    found = doubt(logits, (10, 13), best, 1, softmax=of_logits)
    assert 0 <= found.entropy.min() <= found.entropy.max() <= np.log(7) + 1e-5
    assert 0 <= found.confidence.min() <= found.confidence.max() <= 1
    assert probabilities(logits, (10, 13), 1, softmax=of_logits).isfinite().all()


def test_one_class_is_certain():
    _, best = highest(LOGITS[:1], (10, 13))
    found = doubt(LOGITS[:1], (10, 13), best, 1, softmax=True)
    assert (found.confidence == 1).all()
    assert (found.entropy == 0).all()
