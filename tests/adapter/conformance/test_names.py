"""Modules whose author named them like parts of an adapter."""

import copy
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn

from conformance.methods import Method
from conformance.models import KINDS, Kind
from conformance.steps import adapted, assert_changed, assert_close, output, train, trained

MLP = KINDS["mlp"]


class Names(nn.Module):
    """Names of its own that look like those of an adapter."""

    def __init__(self, prefix: str) -> None:
        super().__init__()
        self.inside, self.last, self.factor = f"{prefix}bin", f"{prefix}B0", f"{prefix}factor"
        self.add_module(self.inside, nn.ModuleDict({"up": nn.Linear(12, 16), "down": nn.Linear(16, 12)}))
        self.add_module(self.last, nn.Linear(12, 5))
        self.register_parameter(self.factor, nn.Parameter(torch.ones(1)))

    def forward(self, x: Tensor) -> Tensor:
        inside = getattr(self, self.inside)
        return getattr(self, self.last)(inside["down"](inside["up"](x).tanh())) * getattr(self, self.factor)


@pytest.fixture
def names(method: Method) -> Kind:
    return Kind("names", lambda: Names(method.prefix), MLP.inputs, ["up", "down"], 2)


def test_modules_named_like_an_adapter_by_their_author_are_not_trained(method: Method, names: Kind) -> None:
    model, base = adapted(method, names), dict(names.build().named_parameters())
    assert set(model.targeted_module_names) == {f"{method.prefix}bin.up", f"{method.prefix}bin.down"}
    assert torch.equal(output(names, model), output(names, names.build()))
    train(names, model)
    assert_changed(output(names, model), output(names, names.build()))
    for name, value in model.unload().named_parameters():
        assert torch.equal(value, base[name]), name


def test_modules_named_like_an_adapter_are_saved_and_merged(method: Method, names: Kind, tmp_path: Path) -> None:
    model = trained(method, names)
    model.save_pretrained(tmp_path)
    held = load_file(tmp_path / "adapter_model.safetensors")
    assert all(".up." in name or ".down." in name for name in held)
    assert torch.equal(output(names, PeftModel.from_pretrained(names.build(), tmp_path)), output(names, model))
    assert_close(output(names, copy.deepcopy(model).merge_and_unload()), output(names, model))


def test_modules_named_base_layer_by_their_author_are_adapted(method: Method) -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base_layer = nn.ModuleDict({"up": nn.Linear(12, 16), "down": nn.Linear(16, 12)})

        def forward(self, x: Tensor) -> Tensor:
            return self.base_layer["down"](self.base_layer["up"](x).tanh())

    torch.manual_seed(0)
    base = nn.Sequential(Wrapper(), nn.Linear(12, 5))
    expected = base(MLP.inputs["x"])
    model = get_peft_model(base, method.config(target_modules=["up", "down"]))
    assert set(model.targeted_module_names) == {"0.base_layer.up", "0.base_layer.down"}
    assert torch.equal(model(MLP.inputs["x"]), expected)
    model(MLP.inputs["x"]).sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
