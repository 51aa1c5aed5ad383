"""What holds for a fresh adapter on every kind of model, and after its first steps."""

import copy
import pickle

import pytest
import torch
from peft import PeftModel

from conformance.methods import Method
from conformance.models import Kind, kinds
from conformance.steps import (
    adapted,
    adapter_parameters,
    assert_changed,
    assert_close,
    loss_of,
    output,
    parameters,
    train,
    trained,
)

SOME = pytest.mark.parametrize("kind", kinds("mlp", "conv", "timm", "gpt2"), ids=str)


def test_a_fresh_adapter_leaves_the_output_unchanged(method: Method, kind: Kind) -> None:
    model, base = adapted(method, kind), kind.build()
    assert isinstance(model, PeftModel)
    assert torch.equal(output(kind, model), output(kind, base))


def test_exactly_the_targeted_layers_are_adapted(method: Method, kind: Kind) -> None:
    model = adapted(method, kind)
    names = method.layers(model)
    assert len(names) == kind.count
    assert all(any(name == t or name.endswith(f".{t}") for t in kind.targets) for name in names)
    assert sorted(model.targeted_module_names) == sorted(names)


@SOME
def test_a_training_step_changes_adapter_parameters_only(method: Method, kind: Kind) -> None:
    model = adapted(method, kind)
    before = parameters(model)
    train(kind, model, steps=1)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert all(method.is_adapter(name) for name in changed)
    for name, p in model.named_parameters():
        assert p.requires_grad == method.is_adapter(name), name
        assert p.requires_grad or p.grad is None, name


@SOME
def test_every_adapter_parameter_is_trained_by_two_steps(method: Method, kind: Kind) -> None:
    model = adapted(method, kind)
    before = parameters(model)
    train(kind, model, steps=2)
    for name, p in adapter_parameters(method, model).items():
        assert not torch.equal(p, before[name]), name


@SOME
def test_the_loss_decreases(method: Method, kind: Kind) -> None:
    model = adapted(method, kind)
    losses = train(kind, model, steps=5, lr=3e-3)
    assert loss_of(kind, model) < losses[0]


@SOME
def test_trainable_parameters_are_counted(method: Method, kind: Kind, capsys: pytest.CaptureFixture[str]) -> None:
    model = adapted(method, kind)
    trainable, total = model.get_nb_trainable_parameters()
    assert trainable == sum(p.numel() for p in adapter_parameters(method, model).values())
    assert total == sum(p.numel() for p in model.parameters())
    model.print_trainable_parameters()
    assert f"trainable params: {trainable:,d}" in capsys.readouterr().out


@SOME
def test_a_deep_copy_is_equal_and_independent(method: Method, kind: Kind) -> None:
    model = trained(method, kind)
    before = output(kind, model)
    copied = copy.deepcopy(model)
    assert torch.equal(output(kind, copied), before)
    train(kind, copied)
    assert torch.equal(output(kind, model), before)
    assert_changed(output(kind, copied), before)


@SOME
def test_a_pickled_model_is_equal(method: Method, kind: Kind) -> None:
    model = trained(method, kind)
    assert torch.equal(output(kind, pickle.loads(pickle.dumps(model))), output(kind, model))


@SOME
def test_a_disabled_adapter_leaves_the_base_as_it_was(method: Method, kind: Kind) -> None:
    model, base = trained(method, kind), output(kind, kind.build())
    after = output(kind, model)
    assert_changed(after, base)
    with model.disable_adapter():
        assert torch.equal(output(kind, model), base)
    assert torch.equal(output(kind, model), after)


@SOME
def test_unloading_gives_the_base_back(method: Method, kind: Kind) -> None:
    base, model = kind.build(), trained(method, kind).unload()
    assert {name: type(m) for name, m in model.named_modules()} == {n: type(m) for n, m in base.named_modules()}
    for name, value in base.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@SOME
def test_a_model_cast_as_a_whole_runs_and_trains(method: Method, kind: Kind, dtype: torch.dtype) -> None:
    model = trained(method, kind)
    expected = output(kind, model)
    model.to(dtype)
    found = output(kind, model, dtype)
    assert found.dtype == dtype
    tolerance = {} if dtype == torch.float64 else {"rtol": 0.1, "atol": 0.1}
    assert_close(found.double(), expected.double(), **tolerance)
    loss_of(kind, model, dtype).backward()
    assert all(p.grad.isfinite().all() for p in adapter_parameters(method, model).values())


@SOME
def test_autocast_runs_and_gives_float32_gradients(method: Method, kind: Kind) -> None:
    model, base = adapted(method, kind), kind.build()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(output(kind, model), output(kind, base))
        loss_of(kind, model).backward()
    grads = [p.grad for p in adapter_parameters(method, model).values()]
    assert all(grad is not None and grad.dtype == torch.float32 for grad in grads)


@SOME
def test_a_base_in_bfloat16_has_its_output_unchanged(method: Method, kind: Kind) -> None:
    model = adapted(method, kind, torch.bfloat16)
    assert torch.equal(output(kind, model, torch.bfloat16), output(kind, kind.build(torch.bfloat16), torch.bfloat16))
    assert {p.dtype for p in adapter_parameters(method, model).values()} == {torch.float32}
    train(kind, model, steps=1, dtype=torch.bfloat16)


@SOME
def test_the_representation_names_the_adapted_layers(method: Method, kind: Kind) -> None:
    model = adapted(method, kind)
    assert model.get_base_model() is model.base_model.model
    assert repr(model).count(f"{method.name}.") >= 1
    assert all(repr(layer).startswith(f"{method.name}.") for layer in method.layers(model).values())


@SOME
def test_the_status_describes_the_adapter(method: Method, kind: Kind) -> None:
    model = adapted(method, kind)
    status, layers = model.get_model_status(), model.get_layer_status()
    assert status.enabled is True
    assert status.active_adapters == ["default"]
    assert status.merged_adapters == []
    assert status.requires_grad == {"default": True}
    assert status.num_adapter_layers == len(layers) == kind.count
    assert status.trainable_params == model.get_nb_trainable_parameters()[0]
    assert status.peft_types == {"default": model.peft_config["default"].peft_type}
