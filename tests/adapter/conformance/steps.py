"""What the checks do: adapt a model, train it, compare it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from conformance.methods import Method
from conformance.models import Kind

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def adapted(method: Method, kind: Kind, dtype: torch.dtype = torch.float32, seed: int = 0, **options: Any) -> PeftModel:
    """The kind's model with a fresh adapter, without dropout."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(kind.build(dtype), config(method, kind, **options)).eval()


def config(method: Method, kind: Kind, **options: Any) -> Any:
    return method.config(**{"target_modules": kind.targets, **kind.options, **options})


def trained(method: Method, kind: Kind, **options: Any) -> PeftModel:
    model = adapted(method, kind, **options)
    train(kind, model)
    return model


def two(method: Method, kind: Kind, first: dict[str, object] | None = None, **second: object) -> PeftModel:
    """A model with two trained adapters, `default` active."""
    model = trained(method, kind, **(first or {}))
    model.add_adapter("second", config(method, kind, **second))
    model.set_adapter("second")
    train(kind, model.eval(), lr=2e-2)
    model.set_adapter("default")
    return model


def loss_of(kind: Kind, model: nn.Module, dtype: torch.dtype = torch.float32) -> Tensor:
    return kind.run(model, dtype).float().square().mean()


def train(
    kind: Kind, model: nn.Module, steps: int = 3, lr: float = 1e-2, dtype: torch.dtype = torch.float32
) -> list[float]:
    """Train what is trainable; the losses before each step."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(kind, model, dtype)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def output(kind: Kind, model: nn.Module, dtype: torch.dtype = torch.float32, **more: Any) -> Tensor:
    with torch.no_grad():
        return kind.run(model, dtype, **more)


def assert_close(found: Tensor, expected: Tensor, **tolerance: float) -> None:
    torch.testing.assert_close(found, expected, **{**CLOSE, **tolerance})


def assert_changed(found: Tensor, before: Tensor) -> None:
    assert not torch.allclose(found, before, rtol=1e-3, atol=1e-4), "the outputs are the same"


def parameters(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def adapter_parameters(method: Method, model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if method.is_adapter(name)}


def gradients(method: Method, kind: Kind, model: nn.Module) -> dict[str, Tensor]:
    """The gradients of an adapter's parameters, all of which have one."""
    model.zero_grad()
    loss_of(kind, model).backward()
    grads = {name.removeprefix("_orig_mod."): p.grad for name, p in adapter_parameters(method, model).items()}
    assert all(grad is not None for grad in grads.values())
    return {name: grad.clone() for name, grad in grads.items()}


def assert_all_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(found[name], value)


@contextmanager
def quiet() -> Iterator[None]:
    """For calls in which PEFT itself reports what it does in a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


REFUSALS = (ValueError, NotImplementedError)


@contextmanager
def works_or_refuses() -> Iterator[None]:
    """What the block does either works or ends in an error that was written for a reader."""
    try:
        yield
    except REFUSALS as error:
        if not str(error).strip():
            raise


@contextmanager
def reported() -> Iterator[None]:
    """What the block does ends in an error that was written for a reader, or at least in a warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        except REFUSALS as error:
            if not str(error).strip():
                raise
            return
    assert caught, "no error and no warning"
