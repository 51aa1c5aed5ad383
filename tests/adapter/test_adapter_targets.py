"""Which layers are adapted: by name, by block, by default, and whether an adapter there has an effect."""

import warnings

import pytest
import timm
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from recyclelora import RecycleLoraConfig
from recyclelora.adapter import RecycleLoraLayer
from recyclelora.adapter.targets import default_targets, matches, target_names
from vits import images, tiny_vit


def adapted_names(model):
    return [name for name, module in model.named_modules() if isinstance(module, RecycleLoraLayer)]


@pytest.mark.parametrize(
    ("key", "blocks", "pattern", "expected"),
    [
        ("layers.0.experts.2.up", [2], None, False),
        ("layers.2.experts.0.up", [2], None, True),
        ("layers.0.experts.2.up", [2], "experts", True),
        ("model.layers.0.experts.2.up", [0], None, True),
        ("layers.1.mlp.2.up", 2, None, False),
        ("layers.1.mlp.2.up", 1, None, True),
        ("encoder.layers.encoder_layer_0.mlp.0.up", [0], ["layers"], False),
        ("blocks.3.up", [3], None, True),
        ("0.blocks.3.up", [3], None, True),
        ("0.blocks.3.up", [0], None, False),
        ("h.11.up", [1], None, False),
        ("stages.1.blocks.3.up", [3], "blocks", True),
        ("stages.1.blocks.3.up", [1], ["nothing", "stages"], True),
        ("stages.1.blocks.3.up", [1], "nothing", False),
        ("head.up", [0], None, False),
        ("layers.7.up", [], None, True),
    ],
)
def test_a_blocks_number_is_the_first_after_a_name(key, blocks, pattern, expected):
    config = RecycleLoraConfig(target_modules=["up"], layers_to_transform=blocks, layers_pattern=pattern)
    assert bool(matches(config, key)) == expected
    if key.startswith("model."):  # where PEFT's own rule applies
        plain = LoraConfig(target_modules=["up"], layers_to_transform=blocks, layers_pattern=pattern)
        from peft.tuners.tuners_utils import check_target_module_exists

        assert bool(check_target_module_exists(plain, key)) == expected


@pytest.mark.parametrize("targets", [None, "all-linear", ["attn.qkv", "mlp.fc1"]])
def test_blocks_are_chosen_with_any_targets(tmp_path, targets):
    config = RecycleLoraConfig(r_main=3, r_sub=1, target_modules=targets, layers_to_transform=[1])
    model = get_peft_model(tiny_vit(), config)
    assert {name.split("blocks.")[1][0] for name in adapted_names(model)} == {"1"}
    model.save_pretrained(tmp_path)
    again = get_peft_model(tiny_vit(), RecycleLoraConfig.from_pretrained(tmp_path))
    assert adapted_names(again) == adapted_names(model)


def test_adapted_layers_are_found_again_by_default():
    model = get_peft_model(tiny_vit(), RecycleLoraConfig(r_main=3, r_sub=1))
    assert default_targets(model.base_model.model) == default_targets(tiny_vit())
    assert target_names(model.base_model.model) == target_names(tiny_vit())


READING = {
    "BEiT": ("beit_base_patch16_224", {"embed_dim": 32, "num_heads": 2, "depth": 2}, 2 * 3),
    "EVA with fused qkv": ("eva_giant_patch14_224", {"embed_dim": 32, "num_heads": 2, "depth": 2}, 2 * 3),
    "Swin V2": ("swinv2_tiny_window8_256", {"embed_dim": 32, "depths": (1, 1), "num_heads": (2, 2)}, 2 * 3),
}


@pytest.mark.parametrize("kind", READING)
def test_layers_whose_weight_is_read_by_their_parent_are_left_out(kind):
    name, sizes, count = READING[kind]
    size = 64 if kind == "Swin V2" else 28 if "EVA" in kind else 32
    torch.manual_seed(0)
    base = timm.create_model(name, num_classes=0, img_size=size, **sizes).eval()
    targets = r".*(attn\.(qkv|proj)|mlp\.fc\d)"
    with pytest.warns(UserWarning, match=r"reads the weights of some layers itself.*qkv"):
        model = get_peft_model(base, RecycleLoraConfig(r_main=3, r_sub=1, target_modules=targets))
    assert len(adapted_names(model)) == count
    assert not any("qkv" in name for name in adapted_names(model))
    model(torch.randn(2, 3, size, size)).square().mean().backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert all(p.grad is not None for p in trained.values())
    with pytest.raises(ValueError, match=r"reads the weights of .*qkv itself"):
        get_peft_model(model.unload(), RecycleLoraConfig(r_main=3, r_sub=1, target_modules=["qkv"]))


def test_qkv_without_biases_of_its_parent_is_adapted():
    """timm's EVA02 and EVA with separate biases call `qkv`."""
    base = timm.create_model(
        "eva_giant_patch14_224", num_classes=0, img_size=28, embed_dim=32, num_heads=2, depth=1, qkv_bias=False
    )
    assert "base_model.model.blocks.0.attn.qkv" in adapted_names(
        get_peft_model(base, RecycleLoraConfig(r_main=3, r_sub=1))
    )


def encoder():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()


@pytest.mark.parametrize("targets", ["all-linear", ["linear1", "linear2", "out_proj"]])
def test_torchs_encoder_uses_adapters_in_inference_too(tmp_path, targets):
    """Its fast path reads the weights itself; so does its attention, always, with the output projection."""
    with pytest.warns(UserWarning, match=r"reads the weights.*layers.\*.self_attn.out_proj"):
        model = get_peft_model(encoder(), RecycleLoraConfig(r_main=3, r_sub=1, target_modules=targets)).eval()
    assert len(adapted_names(model)) == 4
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter += 0.1 * ("delta" in name)
    x = torch.randn(2, 5, 16)
    with torch.inference_mode():
        fast = model(x)
    slow = model(x.requires_grad_())
    torch.testing.assert_close(fast, slow, atol=1e-6, rtol=1e-5)
    model.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from peft import PeftModel

        loaded = PeftModel.from_pretrained(encoder(), tmp_path).eval()
        merged = model.merge_and_unload()
    with torch.inference_mode():
        torch.testing.assert_close(loaded(x), fast)
        torch.testing.assert_close(merged(x), fast, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("targets", [None, "all-linear"])
def test_layers_of_gpt2_are_adapted_as_they_are_stored(targets):
    import transformers

    sizes = {"n_positions": 8, "n_embd": 16, "n_layer": 2, "n_head": 2}
    config = transformers.GPT2Config(vocab_size=20, bos_token_id=None, eos_token_id=None, **sizes)
    base = transformers.GPT2LMHeadModel(config).eval()
    settings = RecycleLoraConfig(r_main=3, r_sub=1, target_modules=targets, fan_in_fan_out=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)  # of transformers, about a property that PEFT reads
        assert len(adapted_names(get_peft_model(base, settings))) == 8


def test_fan_in_fan_out_names_layers_that_are_stored_the_other_way():
    with pytest.warns(UserWarning, match=r"the weights of 8 layers are \(out, in\), first blocks.0.attn.qkv"):
        model = get_peft_model(tiny_vit(), RecycleLoraConfig(r_main=3, r_sub=1, fan_in_fan_out=True))
    assert torch.equal(model(images()), tiny_vit()(images()))
