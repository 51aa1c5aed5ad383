"""Plain PEFT LoRA from an adapter. test_model.py shows in another process that it computes the same."""

import json

import pytest
import torch
from peft import PeftModel, get_peft_model, inject_adapter_in_model
from torch import nn

from recyclelora import RecycleLoraConfig, UserError, param_groups, to_lora
from vits import images, tiny_vit, train

CONFIG = {"r_main": 6, "r_sub": 2}


@pytest.mark.parametrize("decomposition", ["rrqr", "svd"])
@pytest.mark.parametrize("attach", ["get_peft_model", "inject_adapter_in_model"])
def test_plain_lora_computes_the_same(tmp_path, decomposition, attach):
    config = RecycleLoraConfig(decomposition=decomposition, **CONFIG)
    if attach == "get_peft_model":
        model = get_peft_model(tiny_vit(), config)
    else:
        model = inject_adapter_in_model(config, tiny_vit())
    train(model, param_groups(model, 3e-3, 0.05))
    to_lora(model, tmp_path / "plain")
    plain = PeftModel.from_pretrained(tiny_vit(), tmp_path / "plain")
    with torch.no_grad():
        torch.testing.assert_close(plain(images()), model(images()), atol=1e-6, rtol=1e-6)
    settings = json.loads((tmp_path / "plain/adapter_config.json").read_text())
    assert settings["peft_type"] == "LORA"
    assert settings["r"] == 2 * (6 + 2)


@pytest.mark.parametrize("attach", ["get_peft_model", "inject_adapter_in_model"])
def test_modules_trained_as_a_whole_are_saved_too(tmp_path, attach):
    config = RecycleLoraConfig(modules_to_save=["norm"], **CONFIG)
    model = (
        get_peft_model(tiny_vit(), config)
        if attach == "get_peft_model"
        else inject_adapter_in_model(config, tiny_vit())
    )
    train(model, param_groups(model, 3e-3, 0.05))
    to_lora(model, tmp_path / "plain")
    plain = PeftModel.from_pretrained(tiny_vit(), tmp_path / "plain")
    with torch.no_grad():
        torch.testing.assert_close(plain(images()), model(images()), atol=1e-6, rtol=1e-6)


def test_nothing_is_overwritten_unless_asked(tmp_path):
    model = get_peft_model(tiny_vit(), RecycleLoraConfig(**CONFIG))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        to_lora(model, tmp_path)
    to_lora(model, tmp_path, overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_model_without_such_an_adapter_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no RecycleLoRA adapter 'default' in VisionTransformer"):
        to_lora(tiny_vit(), tmp_path)
    model = get_peft_model(tiny_vit(), RecycleLoraConfig(**CONFIG))
    with pytest.raises(ValueError, match="no RecycleLoRA adapter 'other'"):
        to_lora(model, tmp_path, "other")


@pytest.mark.parametrize(
    "settings",
    [
        {"rank_pattern": {"attn.proj": [2, 1], r"blocks\.1\.mlp\.fc1": [3, 0]}},
        {"alpha_pattern": {"mlp.fc2": 5.0}, "use_rslora": True},
        {"bias": "recycle_only"},
        {"bias": "all", "dropout": 0.5},
    ],
    ids=str,
)
def test_options_of_single_layers_and_biases_are_kept(tmp_path, settings):
    model = get_peft_model(tiny_vit(), RecycleLoraConfig(**CONFIG, **settings))
    train(model, param_groups(model, 3e-3, 0.05))
    model.eval()
    to_lora(model, tmp_path / "plain")
    plain = PeftModel.from_pretrained(tiny_vit(), tmp_path / "plain")
    with torch.no_grad():
        assert not torch.allclose(model(images()), tiny_vit()(images()), atol=1e-4)
        torch.testing.assert_close(plain(images()), model(images()), atol=1e-5, rtol=1e-5)
        merged = plain.merge_and_unload()
        torch.testing.assert_close(merged(images()), model(images()), atol=1e-5, rtol=1e-5)


class OddNames(nn.Module):
    """A module whose own names look like those of an adapter."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.recycle_bin = nn.ModuleDict({"fc1": nn.Linear(8, 12), "lora_A": nn.Linear(12, 8)})
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.recycle_bin["lora_A"](self.recycle_bin["fc1"](x).relu()))


def test_names_like_those_of_an_adapter_are_kept(tmp_path):
    config = RecycleLoraConfig(r_main=2, r_sub=1, target_modules=["fc1", "lora_A"], modules_to_save=["head"])
    model = get_peft_model(OddNames(), config)
    x = torch.randn(5, 8)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    model(x).square().mean().backward()
    optimizer.step()
    to_lora(model, tmp_path / "plain")
    plain = PeftModel.from_pretrained(OddNames(), tmp_path / "plain")
    torch.testing.assert_close(plain(x), model(x))
