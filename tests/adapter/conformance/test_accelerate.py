"""Models under accelerate: prepared, hooked, offloaded, dispatched."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator, cpu_offload, disk_offload, dispatch_model
from accelerate.hooks import AlignDevicesHook, ModelHook, add_hook_to_module, remove_hook_from_module
from accelerate.state import AcceleratorState
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from conformance.methods import Method
from conformance.models import KINDS, Kind, kinds
from conformance.steps import (
    adapted,
    adapter_parameters,
    assert_changed,
    assert_close,
    config,
    loss_of,
    output,
    quiet,
    train,
    trained,
)

MLP, LLAMA = KINDS["mlp"], KINDS["llama"]
SOME = pytest.mark.parametrize("kind", kinds("mlp", "conv", "llama"), ids=str)


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    """One that knows nothing of those before; accelerate keeps one state for the whole process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("kind", kinds("mlp", "timm"), ids=str)
def test_a_prepared_training_equals_the_plain_one(method: Method, kind: Kind, accelerator: Accelerator) -> None:
    plain, model = adapted(method, kind), adapted(method, kind)
    train(kind, plain, steps=2)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    for _ in range(2):
        optimizer.zero_grad()
        accelerator.backward(loss_of(kind, prepared))
        optimizer.step()
    unwrapped = accelerator.unwrap_model(prepared)
    for name, p in adapter_parameters(method, unwrapped).items():
        assert_close(p, plain.get_parameter(name))


def test_an_accelerators_state_is_saved_and_loaded(method: Method, accelerator: Accelerator, tmp_path: Path) -> None:
    model = accelerator.prepare(adapted(method, MLP))
    before = output(MLP, model)
    accelerator.save_state(tmp_path)
    train(MLP, model)
    assert_changed(output(MLP, model), before)
    accelerator.load_state(tmp_path)
    assert torch.equal(output(MLP, model), before)


class AddOne(ModelHook):
    def post_forward(self, module: nn.Module, output: Tensor) -> Tensor:
        return output + 1


@pytest.mark.parametrize("when", ["before", "after"])
@SOME
def test_a_hook_on_a_base_layer_keeps_its_effect(method: Method, kind: Kind, when: str) -> None:
    plain = adapted(method, kind)
    name = next(iter(method.layers(plain)))
    base = kind.build()
    if when == "before":
        add_hook_to_module(base.get_submodule(name), AddOne())
    model = get_peft_model(base, config(method, kind)).eval()
    layer = method.layers(model)[name].get_base_layer()
    if when == "after":
        add_hook_to_module(layer, AddOne())
    assert_changed(output(kind, model), output(kind, plain))
    remove_hook_from_module(layer)
    assert torch.equal(output(kind, model), output(kind, plain))


@SOME
def test_an_offloading_hook_on_base_layers_gives_the_same(method: Method, kind: Kind) -> None:
    model = trained(method, kind)
    expected = output(kind, model)
    for layer in method.layers(model).values():
        base = layer.get_base_layer()
        held = {name: p.detach().clone() for name, p in base.named_parameters()}
        add_hook_to_module(base, AlignDevicesHook(execution_device="cpu", offload=True, weights_map=held))
        assert base.weight.is_meta
    assert torch.equal(output(kind, model), expected)


@pytest.mark.parametrize("way", ["cpu", "disk"])
@SOME
def test_a_model_offloaded_as_a_whole_gives_the_same(method: Method, kind: Kind, way: str, tmp_path: Path) -> None:
    model = trained(method, kind)
    expected = output(kind, model)
    with quiet():
        cpu_offload(model, "cpu") if way == "cpu" else disk_offload(model, tmp_path, "cpu")
    assert_close(output(kind, model), expected)


DEVICES = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "cpu"}


@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_an_adapter_is_loaded_onto_a_dispatched_model(method: Method, place: str, tmp_path: Path) -> None:
    model = trained(method, LLAMA)
    model.save_pretrained(tmp_path / "adapter")
    devices = {**DEVICES, "model.layers.0": "cpu", "model.layers.1": place}
    with quiet():
        base = dispatch_model(
            LLAMA.build(), devices, main_device="cpu", offload_dir=tmp_path / "base", force_hooks=True
        )
        loaded = PeftModel.from_pretrained(base, tmp_path / "adapter", offload_dir=tmp_path / "peft")
    assert_close(output(LLAMA, loaded), output(LLAMA, model))


def test_a_merged_layer_of_an_offloaded_base_keeps_the_change(method: Method, tmp_path: Path) -> None:
    model = trained(method, LLAMA)
    expected = output(LLAMA, model)
    for layer in method.layers(model).values():
        base = layer.get_base_layer()
        held = {name: p.detach().clone() for name, p in base.named_parameters()}
        add_hook_to_module(base, AlignDevicesHook(execution_device="cpu", offload=True, weights_map=held))
    merged = model.merge_and_unload()
    assert_close(output(LLAMA, merged), expected)
