"""Training under what trainings do: checkpointing, autocast, in-place operations, unusual inputs, data parallelism."""

import copy
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn

from conformance.methods import Method
from conformance.models import KINDS, Kind, kinds
from conformance.steps import (
    adapted,
    adapter_parameters,
    assert_all_close,
    assert_close,
    gradients,
    loss_of,
    output,
    quiet,
    train,
    trained,
)

MLP, TIMM = KINDS["mlp"], KINDS["timm"]
TRANSFORMERS = kinds("vit", "gpt2", "llama", "t5")


@pytest.mark.parametrize("use_reentrant", [False, True], ids=["plain", "reentrant"])
@pytest.mark.parametrize("kind", TRANSFORMERS, ids=str)
def test_gradient_checkpointing_gives_the_same_gradients(method: Method, kind: Kind, use_reentrant: bool) -> None:
    model = trained(method, kind).train()
    expected = gradients(method, kind, model)
    with quiet():  # of the name, which is going to change
        model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    if use_reentrant and kind.name == "vit":  # it has no embedding whose output could be made to require gradients
        model.get_base_model().vit.embeddings.register_forward_hook(lambda m, args, y: y.requires_grad_())
    elif use_reentrant:
        model.enable_input_require_grads()
    assert_all_close(gradients(method, kind, model), expected)


def test_timms_checkpointing_gives_the_same_gradients(method: Method) -> None:
    model = trained(method, TIMM).train()
    expected = gradients(method, TIMM, model)
    model.get_base_model().set_grad_checkpointing(True)
    assert_all_close(gradients(method, TIMM, model), expected)


@pytest.mark.parametrize("use_reentrant", [False, True], ids=["plain", "reentrant"])
def test_torchs_checkpoint_of_a_layer_gives_the_same_gradients(method: Method, use_reentrant: bool) -> None:
    from torch.utils.checkpoint import checkpoint

    model = trained(method, MLP)
    layer, x = method.layers(model)["lin0"], MLP.inputs["x"].requires_grad_()
    found = []
    for run in (layer, lambda x: checkpoint(layer, x, use_reentrant=use_reentrant)):
        model.zero_grad()
        run(x).square().sum().backward()
        found.append({name: p.grad.clone() for name, p in layer.named_parameters() if p.requires_grad})
    assert_all_close(found[1], found[0])


def test_inputs_that_require_gradients_receive_them(method: Method) -> None:
    model, merged = trained(method, MLP), trained(method, MLP).merge_and_unload()
    grads = []
    for m in (model, merged):
        x = MLP.inputs["x"].detach().clone().requires_grad_()
        m(x).square().sum().backward()
        grads.append(x.grad)
    assert_close(grads[0], grads[1])


@pytest.mark.parametrize("operation", ["add_", "mul_", "relu_", "copy"])
@pytest.mark.parametrize("name", ["lin0", "conv0"])
def test_operations_in_place_after_an_adapted_layer_train(method: Method, name: str, operation: str) -> None:
    kind = KINDS["mlp" if name == "lin0" else "conv"]

    class InPlace(nn.Module):
        def __init__(self, layer: nn.Module, in_place: bool) -> None:
            super().__init__()
            self.layer, self.in_place = layer, in_place

        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x)
            y = y if self.in_place else y + 0
            if operation == "copy":
                y[0] = 1.0
                return y
            if operation == "relu_":
                return torch.relu_(y)
            return getattr(y, operation)(*([1.5] if operation in ("add_", "mul_") else []))

    losses = []
    for in_place in (True, False):
        base = InPlace(getattr(kind.build(), name), in_place)
        torch.manual_seed(0)
        model = get_peft_model(base, method.config(target_modules=["layer"]))
        losses.append(train(kind, model, steps=3))
    assert losses[0] == pytest.approx(losses[1])


def test_an_input_changed_in_place_beforehand_trains(method: Method) -> None:
    model = trained(method, MLP)
    layer = method.layers(model)["lin0"]
    x = MLP.inputs["x"].detach().clone()
    x += 1
    y = layer(x)
    y += 1
    y.sum().backward()
    assert all(p.grad is not None for p in layer.parameters() if p.requires_grad)


@pytest.mark.parametrize("shape", [(12,), (1, 12), (0, 12), (2, 0, 12), (2, 3, 4, 12)], ids=str)
def test_inputs_of_any_shape_pass_and_train(method: Method, shape: tuple[int, ...]) -> None:
    model, base = trained(method, MLP), trained(method, MLP).merge_and_unload()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    y = model(x)
    assert y.shape == (*shape[:-1], 5)
    assert_close(y, base(x))
    y.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in adapter_parameters(method, model).values())


@pytest.mark.parametrize("view", ["transposed", "strided", "expanded"])
def test_inputs_that_are_not_contiguous_give_the_same(method: Method, view: str) -> None:
    model = trained(method, MLP)
    x = torch.randn(12, 6, generator=torch.Generator().manual_seed(2))
    x = {"transposed": x.T, "strided": x.T[::2], "expanded": x[:, :1].T.expand(4, 12)}[view]
    with torch.no_grad():
        assert_close(model(x), model(x.contiguous()))
    model(x).sum().backward()


@pytest.mark.parametrize("kind", kinds("conv"), ids=str)
def test_channels_last_images_give_the_same(method: Method, kind: Kind) -> None:
    model = trained(method, kind)
    before = output(kind, model)
    x = kind.inputs["x"].to(memory_format=torch.channels_last)
    assert_close(model.to(memory_format=torch.channels_last)(x).detach(), before)


def test_an_unbatched_image_gives_the_same(method: Method) -> None:
    model = trained(method, KINDS["conv"])
    layer, x = method.layers(model)["conv0"], KINDS["conv"].inputs["x"]
    assert_close(layer(x[0]), layer(x)[0])


def test_gradients_accumulate_over_steps(method: Method) -> None:
    model = trained(method, MLP)
    once = gradients(method, MLP, model)
    model.zero_grad()
    for _ in range(2):
        loss_of(MLP, model).backward()
    for name, p in adapter_parameters(method, model).items():
        assert_close(p.grad, 2 * once[name])


def test_a_layer_that_is_used_twice_adds_up_its_gradients(method: Method) -> None:
    model = trained(method, MLP)
    x, half = MLP.inputs["x"].detach(), []
    for rows in (x[:1], x[1:]):
        model.zero_grad()
        model(rows).sum().backward()
        half.append({n: p.grad.clone() for n, p in adapter_parameters(method, model).items()})
    model.zero_grad()
    (model(x[:1]).sum() + model(x[1:]).sum()).backward()
    for name, p in adapter_parameters(method, model).items():
        assert_close(p.grad, half[0][name] + half[1][name])


def test_gradients_of_float16_are_scaled(method: Method) -> None:
    model = adapted(method, MLP)
    optimizer = torch.optim.SGD(adapter_parameters(method, model).values(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with torch.autocast("cpu", torch.float16):
        loss = loss_of(MLP, model)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    assert norm.isfinite()
    assert norm > 0


def test_a_moving_average_of_the_model_follows_it(method: Method) -> None:
    model = trained(method, MLP)
    average = torch.optim.swa_utils.AveragedModel(model)
    average.update_parameters(model)
    assert_close(output(MLP, average), output(MLP, model))


def test_data_parallel_training_equals_the_plain_one(method: Method, tmp_path: Path) -> None:
    model = trained(method, MLP)
    plain = copy.deepcopy(model)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(model)
        train(MLP, parallel)
    finally:
        torch.distributed.destroy_process_group()
    train(MLP, plain)
    assert_close(output(MLP, model), output(MLP, plain))


def test_training_mode_is_passed_on_to_every_module(method: Method) -> None:
    model = adapted(method, MLP)
    assert all(m.training for m in model.train().modules())
    assert not any(m.training for m in model.eval().modules())
