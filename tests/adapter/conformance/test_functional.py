"""Transforms of functions: derivatives of every kind, and compilers."""

from collections.abc import Callable

import pytest
import torch
from peft import get_peft_model_state_dict
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacrev, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from conformance.methods import Method
from conformance.models import KINDS, Kind, kinds
from conformance.steps import adapter_parameters, assert_all_close, assert_close, gradients, loss_of, output, trained

MLP = KINDS["mlp"]
SOME = pytest.mark.parametrize("kind", kinds("mlp", "conv", "gpt2"), ids=str)
Values = dict[str, Tensor]


def in_double(method: Method, kind: Kind) -> nn.Module:
    return trained(method, kind).double()


def function_of(kind: Kind, model: nn.Module) -> Callable[[Values], Tensor]:
    """The loss as a function of the adapter's parameters."""
    inputs = kind.given(torch.float64)

    def loss(values: Values) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):  # the only attention of torch that has all derivatives
            result = functional_call(model, values, (), inputs)
        return (result if isinstance(result, Tensor) else result.logits).square().mean()

    return loss


def adapter(method: Method, model: nn.Module) -> Values:
    return {name: p.detach() for name, p in adapter_parameters(method, model).items()}


def directions(values: Values) -> Values:
    generator = torch.Generator().manual_seed(3)
    return {name: torch.randn(v.shape, generator=generator, dtype=v.dtype) for name, v in values.items()}


def dot(a: Values, b: Values) -> Tensor:
    return sum((a[name] * b[name]).sum() for name in a)


def shifted(values: Values, along: Values, step: float) -> Values:
    return {name: v + step * along[name] for name, v in values.items()}


@SOME
def test_a_functional_call_uses_the_given_values(method: Method, kind: Kind) -> None:
    model = in_double(method, kind)
    loss, values = function_of(kind, model), adapter(method, model)
    assert_close(loss(values), loss_of(kind, model, torch.float64).double())
    changed = shifted(values, directions(values), 0.1)
    assert not torch.isclose(loss(changed), loss(values))


@SOME
def test_the_gradient_is_the_slope(method: Method, kind: Kind) -> None:
    model = in_double(method, kind)
    loss, values = function_of(kind, model), adapter(method, model)
    along, step = directions(values), 1e-5
    slope = (loss(shifted(values, along, step)) - loss(shifted(values, along, -step))) / (2 * step)
    assert_close(dot(grad(loss)(values), along), slope, rtol=1e-6)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
@SOME
def test_forward_mode_gives_the_slope(method: Method, kind: Kind) -> None:
    model = in_double(method, kind)
    loss, values = function_of(kind, model), adapter(method, model)
    along = directions(values)
    assert_close(jvp(loss, (values,), (along,))[1], dot(grad(loss)(values), along), rtol=1e-6)


@SOME
def test_second_derivatives_are_those_of_the_gradient(method: Method, kind: Kind) -> None:
    model = in_double(method, kind)
    loss, values = function_of(kind, model), adapter(method, model)
    along, step = directions(values), 1e-4
    found = grad(lambda v: dot(grad(loss)(v), along))(values)
    up, down = grad(loss)(shifted(values, along, step)), grad(loss)(shifted(values, along, -step))
    for name in values:
        assert_close(found[name], (up[name] - down[name]) / (2 * step), rtol=1e-3, atol=1e-6)


def test_a_penalty_on_the_gradient_can_be_trained(method: Method) -> None:
    model = in_double(method, MLP)
    x = MLP.inputs["x"].double().requires_grad_()
    (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    slope.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in adapter_parameters(method, model).values())


@pytest.mark.parametrize("name", ["lin0", "conv0"])
def test_gradcheck_accepts_the_layer(method: Method, name: str) -> None:
    kind = KINDS["mlp" if name == "lin0" else "conv"]
    model = in_double(method, kind)
    layer = method.layers(model)[name]
    names = [n for n, p in layer.named_parameters() if p.requires_grad]
    values = [layer.get_parameter(n).detach().clone().requires_grad_() for n in names]
    x = kind.given(torch.float64)["x"][:2, ..., :5, :5] if name == "conv0" else kind.given(torch.float64)["x"]

    def call(x: Tensor, *values: Tensor) -> Tensor:
        return functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    arguments = (x.clone().requires_grad_(), *values)
    assert torch.autograd.gradcheck(call, arguments, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, arguments, fast_mode=True)


def test_gradients_of_each_example_are_those_of_single_examples(method: Method) -> None:
    model = in_double(method, MLP)
    values, x = adapter(method, model), MLP.inputs["x"].double()

    def loss(values: Values, row: Tensor) -> Tensor:
        return functional_call(model, values, (row[None],)).square().sum()

    found = vmap(grad(loss), in_dims=(None, 0))(values, x)
    for i, row in enumerate(x):
        for name, expected in grad(loss)(values, row).items():
            assert_close(found[name][i], expected)


def test_models_of_an_ensemble_are_computed_together(method: Method) -> None:
    model = in_double(method, MLP)
    values = adapter(method, model)
    stacked = {name: torch.stack([v, 2 * v]) for name, v in values.items()}
    x = MLP.inputs["x"].double()
    found = vmap(lambda v: functional_call(model, v, (x,)))(stacked)
    assert_close(found[0], functional_call(model, values, (x,)))
    assert_close(found[1], functional_call(model, {n: 2 * v for n, v in values.items()}, (x,)))


def test_a_jacobian_of_the_output_can_be_computed(method: Method) -> None:
    model = in_double(method, MLP)
    x = MLP.inputs["x"].double()[0]
    assert_close(jacrev(model)(x), torch.autograd.functional.jacobian(model, x))


def test_many_gradients_are_computed_in_one_backward_pass(method: Method) -> None:
    model = in_double(method, MLP)
    x = MLP.inputs["x"].double()[:1]
    single = torch.autograd.functional.jacobian(model, x)
    assert_close(torch.autograd.functional.jacobian(model, x, vectorize=True), single)


def test_forward_mode_works_without_a_transform(method: Method) -> None:
    model = in_double(method, MLP)
    x, along = MLP.inputs["x"].double(), torch.ones(3, 12).double()
    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(model(forward_ad.make_dual(x, along))).tangent
    assert_close(found, jvp(model, (x,), (along,))[1])


def test_what_the_backward_pass_needs_can_be_kept_elsewhere(method: Method) -> None:
    model = trained(method, MLP)
    expected = gradients(method, MLP, model)
    model.zero_grad()
    with torch.autograd.graph.save_on_cpu():
        loss = loss_of(MLP, model)
    loss.backward()
    assert_all_close({name: p.grad for name, p in adapter_parameters(method, model).items()}, expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@SOME
def test_a_traced_model_gives_the_same(method: Method, kind: Kind) -> None:
    model = trained(method, kind)
    inputs = tuple(kind.inputs.values())

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model.get_base_model()

        def forward(self, *inputs: Tensor) -> Tensor:
            result = self.model(*inputs)
            return result if isinstance(result, Tensor) else result.logits

    traced = torch.jit.trace(Plain().eval(), inputs, check_trace=False)
    assert_close(traced(*inputs), output(kind, model))


@pytest.mark.parametrize("kind", kinds("mlp", "conv", "timm"), ids=str)
def test_an_exported_model_gives_the_same(method: Method, kind: Kind) -> None:
    model = trained(method, kind)
    exported = torch.export.export(model.get_base_model(), (), kind.inputs)
    assert_close(exported.module()(**kind.inputs).detach(), output(kind, model))


@pytest.mark.parametrize("kind", kinds("mlp", "conv"), ids=str)
def test_a_compiled_model_gives_the_same_gradients(method: Method, kind: Kind) -> None:
    torch.compiler.reset()
    model = trained(method, kind).get_base_model()
    expected = gradients(method, kind, model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_all_close(gradients(method, kind, compiled), expected)


def test_a_compiled_model_follows_the_chosen_adapter(method: Method) -> None:
    torch.compiler.reset()
    model = trained(method, MLP)
    model.add_adapter("second", method.config(target_modules=MLP.targets))
    compiled = torch.compile(model.eval(), backend="eager")
    for name in ("default", "second", "default"):
        model.set_adapter(name)
        assert_close(output(MLP, compiled), output(MLP, model))
    with model.disable_adapter():
        assert_close(output(MLP, compiled), output(MLP, MLP.build()))


def test_a_compiled_models_state_dict_has_the_same_names(method: Method) -> None:
    model = trained(method, MLP)
    expected = get_peft_model_state_dict(model)
    compiled = torch.compile(model, backend="eager")
    found = get_peft_model_state_dict(compiled, unwrap_compiled=True)
    assert found.keys() == expected.keys()
