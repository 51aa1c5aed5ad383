"""The schedules of a training step."""

import math

import pytest
import torch

from recyclelora.training.module import cosine, polynomial


def test_schedules():
    assert polynomial(0, 40) == 1
    assert polynomial(40, 40) == polynomial(50, 40) == 0
    assert polynomial(10, 40) == pytest.approx(torch.tensor(0.75).pow(0.9).item())
    assert cosine(0, 40, 0.05, 1e-5) == pytest.approx(0.05)
    assert cosine(40, 40, 0.05, 1e-5) == pytest.approx(1e-5)
    assert cosine(10, 40, 1.0, 0.0) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
