"""How much of a training survives low precision, compared with plain LoRA in the same run.

The measure is the change of the model, in float64: how far the trained adapter moves the outputs. Its relative error is
taken against the same training in float32, on a base that has the same, rounded weights.
"""

from dataclasses import replace
from functools import cache

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn

from conformance.methods import LORA, Method
from conformance.models import KINDS, Kind
from conformance.steps import config

STEPS = 20
WAYS = ("base in bfloat16", "all in bfloat16", "cast to bfloat16 afterwards")
KIND = {name: replace(KINDS[name], inputs={"x": torch.randn(size, generator=torch.Generator().manual_seed(5))})
        for name, size in {"mlp": (64, 12), "timm": (16, 3, 32, 32)}.items()}  # fmt: skip
"""With more examples than can be learnt in so few steps: a training that has converged hides what it has lost."""


def rounded(kind: Kind) -> nn.Module:
    return kind.build(torch.bfloat16).float()


def train(kind: Kind, model: nn.Module, lr: float, dtype: torch.dtype) -> None:
    """Learn to give a fixed, random output."""
    wanted = torch.randn(kind.run(model, dtype).shape, generator=torch.Generator().manual_seed(2))
    trained, eps = [p for p in model.parameters() if p.requires_grad], 1e-4 if dtype == torch.float16 else 1e-8
    optimizer = torch.optim.Adam(trained, lr=lr, eps=eps)
    for _ in range(STEPS):
        optimizer.zero_grad()
        (kind.run(model, dtype).float() - wanted).square().mean().backward()
        optimizer.step()


@cache
def change(method: Method, name: str, lr: float, way: str | None) -> Tensor:
    """The change of the outputs by a training, in float64."""
    kind, dtype = KIND[name], torch.bfloat16 if way in WAYS[:2] else torch.float32
    base = kind.build(torch.bfloat16) if way == "base in bfloat16" else rounded(kind)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = get_peft_model(base, config(method, kind)).eval()
    train(kind, model.to(dtype) if way == "all in bfloat16" else model, lr, dtype)
    if way == "cast to bfloat16 afterwards":
        model.to(torch.bfloat16)
    with torch.no_grad():
        return kind.run(model.double(), torch.float64) - kind.run(rounded(kind).double(), torch.float64)


def error(method: Method, name: str, lr: float, way: str) -> float:
    exact = change(method, name, lr, None)
    return float((change(method, name, lr, way) - exact).norm() / exact.norm())


TRAININGS = [("mlp", 1e-4), ("mlp", 1e-3), ("mlp", 1e-2), ("timm", 1e-4), ("timm", 1e-3)]
RATES = pytest.mark.parametrize(("name", "lr"), TRAININGS)
"""At 1e-2 the ViT learns all its examples by heart."""


@RATES
@pytest.mark.parametrize("way", WAYS)
def test_a_training_loses_at_most_twice_what_loras_loses(method: Method, name: str, way: str, lr: float) -> None:
    assert error(method, name, lr, way) <= 2 * error(LORA, name, lr, way)


@RATES
def test_a_training_on_a_base_in_bfloat16_is_that_in_float32(method: Method, name: str, lr: float) -> None:
    assert error(method, name, lr, "base in bfloat16") < 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_small_step_survives_a_cast_and_back(method: Method, dtype: torch.dtype) -> None:
    """A trained adapter keeps its change of the model, within the precision it is cast to."""
    kind = KIND["mlp"]
    model = get_peft_model(kind.build(), config(method, kind)).eval()
    train(kind, model, 1e-4, torch.float32)
    x, base = kind.given(torch.float64), kind.build().double()
    with torch.no_grad():
        before = model.double()(**x) - base(**x)
        model.float().to(dtype).double()
        base.float().to(dtype).double()
        after = model(**x) - base(**x)
    assert (after - before).norm() < 0.1 * before.norm()


def test_the_update_of_a_bfloat16_layer_is_summed_in_full(method: Method) -> None:
    """The adapter's part is computed in float32 and added once, so that the layer is as exact as its output allows."""
    kind = KIND["mlp"]
    model = get_peft_model(kind.build(torch.bfloat16), config(method, kind)).eval()
    train(kind, model, 1e-2, torch.bfloat16)
    layer, x = method.layers(model)["lin0"], kind.given(torch.bfloat16)["x"]
    with torch.no_grad():
        found = layer(x).double()
        w = layer.get_base_layer().weight.double() + layer.get_delta_weight("default").double()
        exact = x.double() @ w.T + layer.get_base_layer().bias.double()
    assert (found - exact).abs().max() < 2**-7 * exact.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_step_in_low_precision_moves_the_model(method: Method, dtype: torch.dtype) -> None:
    kind = KIND["mlp"]
    model = get_peft_model(kind.build(), config(method, kind)).eval().to(dtype)
    start = kind.run(model, dtype).detach()
    train(kind, model, 1e-3, dtype)
    assert not torch.equal(kind.run(model, dtype), start)
    assert kind.run(model, dtype).isfinite().all()
