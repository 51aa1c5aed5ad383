"""One step of an adapted layer: values, gradients, and what is kept for the backward pass."""

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import nn

from recyclelora import RecycleLoraConfig
from recyclelora.adapter import RecycleLoraLayer
from recyclelora.adapter.factors import one_hot
from recyclelora.adapter.step import adapted_linear
from saved import saved_bytes
from vits import images, tiny_vit

RANKS = (3, 2)
SCALE = 0.3


def inputs(form, bias=True, dtype=torch.float64, batch=(2, 5), n=9, m=7):
    """x, W0, b, B0, A0 and the differences D_A_main, D_A_sub, D_B_main, D_B_sub."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    r = sum(RANKS)
    A0 = torch.randperm(n, generator=generator)[:r] if form == "rrqr" else draw(r, n)
    A = [part.clone().requires_grad_() for part in (0.3 * draw(r, n)).split(RANKS)]
    B = [part.clone().requires_grad_() for part in (0.3 * draw(m, r)).split(RANKS, 1)]
    x = draw(*batch, n).requires_grad_()
    return x, draw(m, n), draw(m).requires_grad_() if bias else None, draw(m, r), A0, *A, *B


def residual_form(x, weight, bias, B0, A0, *differences):
    """W_res x + s B A x, of plain operations."""
    dense = A0 if A0.is_floating_point() else one_hot(A0, x.shape[-1], x.dtype)
    A, B = dense + torch.cat(differences[:2]), B0 + torch.cat(differences[2:], 1)
    return F.linear(x, weight + SCALE * (B @ A - B0 @ dense), bias)


def fused(x, weight, bias, B0, A0, *differences):
    return adapted_linear(x, weight, bias, SCALE, B0, A0, *differences)


@pytest.mark.parametrize("form", ["rrqr", "svd"])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_the_residual_form(form, bias):
    arguments = inputs(form, bias)
    y, expected = fused(*arguments), residual_form(*arguments)
    torch.testing.assert_close(y, expected, atol=1e-12, rtol=1e-12)
    trained = [a for a in arguments if a is not None and a.requires_grad]
    grad = torch.randn_like(y)
    for a, b in zip(torch.autograd.grad(y, trained, grad), torch.autograd.grad(expected, trained, grad), strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("form", ["rrqr", "svd"])
def test_gradients_are_those_of_finite_differences(form):
    assert torch.autograd.gradcheck(fused, inputs(form))


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("form", ["rrqr", "svd"])
def test_the_backward_pass_can_itself_be_differentiated(form, frozen):
    """Also with a frozen adapter, where only the input has a gradient."""
    arguments = inputs(form, batch=(2, 3), n=6, m=5)
    if frozen:
        arguments = [a if i in (0, 2) or a is None else a.detach() for i, a in enumerate(arguments)]
    assert torch.autograd.gradgradcheck(fused, arguments)


@pytest.mark.parametrize("batch", [(), (6,), (2, 3)])
def test_the_output_may_be_changed_in_place(batch):
    arguments = inputs("rrqr", batch=batch)
    y = fused(*arguments)
    y += 1
    y.relu_().sum().backward()
    expected = torch.autograd.grad((residual_form(*arguments) + 1).relu().sum(), arguments[5])
    torch.testing.assert_close(arguments[5].grad, expected[0], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("batch", [(), (6,), (2, 3, 4), (0, 3)])
def test_any_number_of_dimensions(batch):
    arguments = inputs("rrqr", batch=batch)
    y = fused(*arguments)
    assert y.shape == (*batch, 7)
    y.sum().backward()
    assert arguments[0].grad.shape == (*batch, 9)


def test_an_input_in_another_order_of_memory():
    x, *rest = inputs("rrqr")
    turned = x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    torch.testing.assert_close(fused(turned, *rest), fused(x, *rest))


def test_an_input_without_gradient_gets_none():
    x, weight, bias, *rest = inputs("rrqr")
    y = fused(x.detach(), weight, bias.detach(), *rest)
    y.sum().backward()
    assert all(factor.grad is not None for factor in rest[2:])


@pytest.mark.parametrize("autocast", [False, True])
def test_the_gradient_of_the_input_is_the_bases_own_at_the_start(autocast):
    x, weight, _, B0, A0, *_ = inputs("rrqr", dtype=torch.float32)
    D_A = [torch.zeros(r, 9, requires_grad=True) for r in RANKS]
    D_B = [torch.zeros(7, r, requires_grad=True) for r in RANKS]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y, base = fused(x, weight, None, B0, A0, *D_A, *D_B), F.linear(x, weight)
    assert torch.equal(y, base)
    grad = torch.randn_like(y)
    assert torch.equal(torch.autograd.grad(y, x, grad)[0], torch.autograd.grad(base, x, grad)[0])


def test_low_precision_loses_nothing_of_a_small_change():
    """The change of the output after a small step, in bfloat16 autocast, against float64."""
    x, weight, _, B0, A0, *_ = inputs("rrqr", dtype=torch.float64, batch=(64,), n=48, m=32)
    step = torch.Generator().manual_seed(1)
    A = [1e-3 * torch.randn(r, 48, generator=step, dtype=torch.float64) for r in RANKS]
    B = [1e-3 * torch.randn(32, r, generator=step, dtype=torch.float64) for r in RANKS]
    zero = torch.zeros_like(weight)
    exact = fused(x, zero, None, B0, A0, *A, *B)
    with torch.autocast("cpu", torch.bfloat16):
        low = fused(
            *(t.float() if t is not None and t.is_floating_point() else t for t in (x, zero, None, B0, A0, *A, *B))
        )
    assert low.dtype == torch.bfloat16
    assert (low.double() - exact).norm() / exact.norm() < 0.01


@pytest.mark.parametrize("autocast", [False, True])
def test_mixed_precisions_give_gradients_of_the_parameters_own(autocast):
    x, weight, bias, B0, A0, *factors = inputs("rrqr", dtype=torch.float32)
    if not autocast:  # a base in bfloat16, adapters in float32
        x, weight, bias = (t.detach().bfloat16().requires_grad_() for t in (x, weight, bias))
    weight.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = fused(x, weight, bias, B0, A0, *factors)
    assert y.dtype == torch.bfloat16
    y.float().square().mean().backward()
    for t in (x, bias, *factors):
        assert t.grad.dtype == t.dtype
    expected = residual_form(
        *(t.detach().double() if t.is_floating_point() else t for t in (x, weight, bias, B0, A0, *factors))
    )
    torch.testing.assert_close(y.double(), expected, atol=0.1, rtol=0.05)


@pytest.mark.parametrize("precision", ["float32", "bf16 autocast"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_it_keeps_no_more_than_a_plain_lora_of_the_same_rank(precision, checkpointing):
    ours = get_peft_model(tiny_vit(), RecycleLoraConfig(r_main=8, r_sub=3))
    plain = get_peft_model(
        tiny_vit(), LoraConfig(r=11, target_modules=r"blocks\..*\.(qkv|proj|fc1|fc2)", lora_dropout=0.0)
    )
    found = []
    for model in (ours, plain):
        model.train()
        model.base_model.model.set_grad_checkpointing(checkpointing)

        def run(model=model):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision != "float32"):
                return model(images()).float().square().mean()

        found.append(saved_bytes(model, run))
    assert 0 < found[0] <= found[1]


def test_compiled_it_keeps_no_more_than_a_plain_lora_and_gives_the_same_gradients():
    """The compiler, too, keeps no result that depends only on the factors."""

    def mlp():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(48, 96), nn.GELU(), nn.Linear(96, 48))

    ours = get_peft_model(mlp(), RecycleLoraConfig(r_main=8, r_sub=3, target_modules=["0", "2"]))
    plain = get_peft_model(mlp(), LoraConfig(r=11, target_modules=["0", "2"]))
    trained = [p for p in ours.parameters() if p.requires_grad]
    with torch.no_grad():
        for p in trained:
            p += 0.01
    x = torch.randn(20, 48)
    expected = torch.autograd.grad(ours(x).square().mean(), trained)
    found = []
    for model in (ours, plain):
        torch.compiler.reset()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager_decomp_partition")
        compiled(x).square().mean().backward()
        found.append(saved_bytes(model, lambda compiled=compiled: compiled(x).square().mean()))
    for p, gradient in zip(trained, expected, strict=True):
        torch.testing.assert_close(p.grad, gradient, atol=1e-6, rtol=1e-4)
    # CUDA builds of torch keep one vector of the total rank, 11 numbers in float32, more.
    assert 0 < found[0] <= found[1] + 4 * 11


def test_what_is_not_a_plain_linear_layer_is_left_to_the_base():
    """A trained or hooked base, or another kind of layer, is called and not computed here."""
    torch.manual_seed(0)
    x = torch.randn(3, 8, requires_grad=True)
    model = get_peft_model(nn.Sequential(nn.Linear(8, 6)), RecycleLoraConfig(r_main=2, r_sub=1, target_modules=["0"]))
    layer = model.base_model.model[0]
    assert isinstance(layer, RecycleLoraLayer)
    with torch.no_grad():
        layer.recycle_delta_B_main["default"] += 0.1
    plain = model(x)
    layer.base_layer.weight.requires_grad_(True)
    trained = model(x)
    torch.testing.assert_close(trained, plain)
    trained.sum().backward()
    assert layer.base_layer.weight.grad is not None
    layer.base_layer.weight.requires_grad_(False)
    handle = layer.base_layer.register_forward_hook(lambda module, inputs, output: output + 1)
    torch.testing.assert_close(model(x), plain + 1)
    handle.remove()
    torch.testing.assert_close(model(x), plain)
