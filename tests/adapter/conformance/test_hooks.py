"""What others attach to the base layers of a model, or replace in them, keeps its effect under an adapter."""

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks
from torch.nn.utils import parametrize

from conformance.methods import Method
from conformance.models import KINDS, Kind, kinds
from conformance.steps import adapted, assert_changed, assert_close, config, loss_of, output, quiet, train, trained

MLP = KINDS["mlp"]
LINEAR = pytest.mark.parametrize("kind", kinds("mlp", "conv", "gpt2"), ids=str)


def first_layer(method: Method, model: PeftModel) -> nn.Module:
    return next(iter(method.layers(model).values()))


def base_layer(method: Method, model: PeftModel) -> nn.Module:
    return first_layer(method, model).get_base_layer()


@LINEAR
def test_forward_hooks_of_the_base_layer_are_called(method: Method, kind: Kind) -> None:
    model, seen = trained(method, kind), []
    layer = base_layer(method, model)
    layer.register_forward_pre_hook(lambda module, args: seen.append("before"))
    layer.register_forward_hook(lambda module, args, result: seen.append("after"))
    output(kind, model)
    assert seen == ["before", "after"]


@LINEAR
def test_a_hook_can_replace_the_base_layers_output(method: Method, kind: Kind) -> None:
    model = trained(method, kind)
    before = output(kind, model)
    handle = base_layer(method, model).register_forward_hook(lambda module, args, result: result + 1)
    assert_changed(output(kind, model), before)
    handle.remove()
    assert torch.equal(output(kind, model), before)


def test_a_pre_hook_can_replace_the_base_layers_input(method: Method) -> None:
    model = adapted(method, MLP)
    before = output(MLP, model)
    base_layer(method, model).register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    assert_changed(output(MLP, model), before)


def test_backward_hooks_of_the_base_layer_are_called(method: Method) -> None:
    model, seen = trained(method, MLP), []
    method.layers(model)["lin1"].get_base_layer().register_full_backward_hook(lambda *args: seen.append(1))
    loss_of(MLP, model).backward()
    assert seen == [1]


@LINEAR
def test_hooks_of_the_adapted_layer_are_called(method: Method, kind: Kind) -> None:
    model, seen = trained(method, kind), []
    layer = first_layer(method, model)
    layer.register_forward_pre_hook(lambda module, args: seen.append("before"))
    layer.register_forward_hook(lambda module, args, result: seen.append("after"))
    output(kind, model)
    assert seen == ["before", "after"]


@pytest.mark.parametrize("register", ["register_module_forward_hook", "register_module_forward_pre_hook"])
def test_global_forward_hooks_see_the_base_layer(method: Method, register: str) -> None:
    model, seen = trained(method, MLP), []
    handle = getattr(global_hooks, register)(lambda module, *args: seen.append(module))
    try:
        output(MLP, model)
    finally:
        handle.remove()
    assert base_layer(method, model) in seen


def test_a_global_backward_hook_sees_the_base_layer(method: Method) -> None:
    model, seen = trained(method, MLP), []
    handle = global_hooks.register_module_full_backward_hook(lambda module, *args: seen.append(module))
    try:
        with quiet():  # the inputs need no gradient
            loss_of(MLP, model).backward()
    finally:
        handle.remove()
    assert method.layers(model)["lin1"].get_base_layer() in seen


@LINEAR
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_replaced_forward_of_a_base_layer_is_called(method: Method, kind: Kind, when: str) -> None:
    """Programs that offload or quantise put a function in the place of `forward` of one module."""

    def replace(layer: nn.Module) -> None:
        own = layer.forward
        layer.forward = lambda x: own(x) + 1

    plain = adapted(method, kind)
    name = next(iter(method.layers(plain)))
    base = kind.build()
    if when == "before":
        replace(base.get_submodule(name))
    model = get_peft_model(base, config(method, kind)).eval()
    if when == "after":
        replace(base_layer(method, model))
    assert_changed(output(kind, model), output(kind, plain))
    with model.disable_adapter():
        expected = output(kind, model)
    assert torch.equal(output(kind, model), expected)


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_the_forward_of_a_subclass_of_linear_is_called(method: Method) -> None:
    torch.manual_seed(0)
    base = nn.Sequential(Doubled(12, 16), nn.Linear(16, 5))
    expected = base(MLP.inputs["x"])
    model = get_peft_model(base, method.config(target_modules=["0"]))
    assert torch.equal(model(MLP.inputs["x"]), expected)


def test_a_patched_forward_of_the_class_is_called(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained(method, MLP)
    before, own = output(MLP, model), nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: own(self, x) + 1)
    assert_changed(output(MLP, model), before)


def test_a_weight_that_hooks_store_in_fewer_bits_is_used(method: Method) -> None:
    """As layerwise casting does: float8 in memory, float32 while the layer computes."""
    model = adapted(method, MLP)
    layer = base_layer(method, model)
    expected = adapted(method, MLP)
    stored = layer.weight.data.to(torch.float8_e4m3fn)
    base_layer(method, expected).weight.data = stored.float()
    layer.weight.data = stored

    def widen(module: nn.Module, args: object) -> None:
        module.weight.data = module.weight.data.float()

    def narrow(module: nn.Module, args: object, result: Tensor) -> None:
        module.weight.data = module.weight.data.to(torch.float8_e4m3fn)

    layer.register_forward_pre_hook(widen)
    layer.register_forward_hook(narrow)
    train(MLP, model, steps=1)
    train(MLP, expected, steps=1)
    assert layer.weight.dtype == torch.float8_e4m3fn
    assert torch.equal(output(MLP, model), output(MLP, expected))


def test_a_new_weight_of_the_base_layer_is_used(method: Method) -> None:
    model = adapted(method, MLP)
    before = output(MLP, model)
    layer = base_layer(method, model)
    layer.weight = nn.Parameter(layer.weight.detach() * 2, requires_grad=False)
    assert_changed(output(MLP, model), before)


def test_a_base_weight_that_is_made_trainable_is_trained(method: Method) -> None:
    model = adapted(method, MLP)
    layer = base_layer(method, model)
    layer.weight.requires_grad_(True)
    loss_of(MLP, model).backward()
    assert layer.weight.grad is not None
    reference = MLP.build()
    loss_of(MLP, reference).backward()
    assert_close(layer.weight.grad, reference.lin0.weight.grad)


def test_a_parametrised_base_weight_is_used(method: Method) -> None:
    class Double(nn.Module):
        def forward(self, w: Tensor) -> Tensor:
            return 2 * w

    model = adapted(method, MLP)
    before = output(MLP, model)
    parametrize.register_parametrization(base_layer(method, model), "weight", Double())
    assert_changed(output(MLP, model), before)


def test_a_function_mode_sees_the_base_layers_product(method: Method) -> None:
    class Seen(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            weights.append(args[1] if function is F.linear else None)
            return function(*args, **(kwargs or {}))

    model, weights = trained(method, MLP), []
    with Seen():
        output(MLP, model)
    assert any(weight is base_layer(method, model).weight for weight in weights)
