"""Files of adapters: those of version 0.1, which held A and B themselves, and files that do not fit."""

import pytest
import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file

from recyclelora import RecycleLoraConfig, param_groups
from recyclelora.adapter import RecycleLoraLayer
from recyclelora.adapter.factors import one_hot
from vits import images, tiny_vit, train

FILE = "adapter_model.safetensors"


def trained(**settings):
    model = get_peft_model(tiny_vit(), RecycleLoraConfig(**({"r_main": 6, "r_sub": 2} | settings)))
    train(model, param_groups(model, 3e-3, 0.05))
    return model


def output(model):
    with torch.no_grad():
        return model(images())


def as_version_0_1(model):
    """The tensors as version 0.1 saved them."""
    held = {}
    for key, layer in model.named_modules():
        if isinstance(layer, RecycleLoraLayer):
            start = [layer.recycle_B0["default"]]
            index = dict(layer.recycle_index.items()).get("default")
            rows = layer.recycle_A0["default"] if index is None else one_hot(index, layer.in_features)
            held[f"{key}.recycle_B0"] = start[0]
            held[f"{key}.recycle_A0" if index is None else f"{key}.recycle_index"] = rows if index is None else index
            first = 0
            for role in ("main", "sub"):
                D_A = getattr(layer, f"recycle_delta_A_{role}")
                if "default" in D_A:
                    part = slice(first, first + len(D_A["default"]))
                    held[f"{key}.recycle_A_{role}"] = rows[part] + D_A["default"]
                    D_B = getattr(layer, f"recycle_delta_B_{role}")["default"]
                    held[f"{key}.recycle_B_{role}"] = start[0][:, part] + D_B
                    first = part.stop
    return {key: value.detach().contiguous() for key, value in held.items()}


@pytest.mark.parametrize("ranks", [(6, 2), (6, 0), (0, 2)])
@pytest.mark.parametrize("decomposition", ["rrqr", "svd"])
def test_adapters_of_version_0_1_are_loaded(tmp_path, decomposition, ranks):
    model = trained(decomposition=decomposition, r_main=ranks[0], r_sub=ranks[1])
    model.save_pretrained(tmp_path)
    save_file(as_version_0_1(model), tmp_path / FILE)
    loaded = PeftModel.from_pretrained(tiny_vit(), tmp_path)
    torch.testing.assert_close(output(loaded), output(model), atol=1e-6, rtol=1e-6)


PARTS = ("recycle_delta_A_main", "recycle_delta_B_sub", "recycle_B0", "recycle_index", "recycle_scale")


@pytest.mark.parametrize("missing", PARTS)
def test_a_file_without_a_part_is_refused(tmp_path, missing):
    model = trained()
    model.save_pretrained(tmp_path)
    held = {key: value for key, value in load_file(tmp_path / FILE).items() if not key.endswith(missing)}
    save_file(held, tmp_path / FILE)
    with pytest.raises(ValueError, match=rf"lacks 8 of 56 tensors, first .*{missing}.* only its trained tensors"):
        PeftModel.from_pretrained(tiny_vit(), tmp_path)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"decomposition": "svd"}, "lacks 8 of 56 tensors, first .*recycle_index"),
        ({"alpha": 2.0}, r"has the scale 0.25 at .*, but the adapter in the model has 0.125: load it under a name"),
        ({"scaling": "sqrt-rank"}, "has the scale 0.35"),
        ({"target_modules": ["attn.qkv", "attn.proj", "mlp.fc1"]}, "lacks 14 of 56 tensors, first .*fc2"),
        ({"r_sub": 0}, "lacks 16 of 56 tensors, first .*_sub"),
    ],
)
def test_another_adapter_is_not_loaded_onto_a_name_in_use(tmp_path, other, message):
    trained(**other).save_pretrained(tmp_path)
    model = trained()
    before = output(model)
    with pytest.raises(ValueError, match=message):
        model.load_adapter(tmp_path, "default")
    assert torch.equal(output(model), before)
    model.load_adapter(tmp_path, "other")
    model.set_adapter("other")
    assert torch.equal(output(model), output(PeftModel.from_pretrained(tiny_vit(), tmp_path)))


def test_a_file_with_more_layers_than_the_model_is_refused(tmp_path):
    trained().save_pretrained(tmp_path)
    model = trained(target_modules=["attn.qkv"])
    with pytest.raises(ValueError, match=r"has 42 tensors for which the model has no place, first .*attn.proj"):
        model.load_adapter(tmp_path, "default")


def test_a_scale_in_bfloat16_is_the_same_scale():
    model = trained()
    held = get_peft_model_state_dict(model.bfloat16())
    set_peft_model_state_dict(model, held)
