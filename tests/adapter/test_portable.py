"""Plain PEFT LoRA from an adapter. test_model.py shows in another process that it computes the same."""

import json

import pytest
import torch
from peft import PeftModel, get_peft_model, inject_adapter_in_model

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
