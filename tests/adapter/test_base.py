"""One suite for every kind of model: attach, step, save, load, merge, portable LoRA."""

import copy
import warnings

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from recyclelora import RecycleLoraConfig, param_groups, to_lora
from recyclelora.adapter import RecycleLoraConv2d, RecycleLoraLayer
from recyclelora.adapter.base import weight_matrix
from vits import images, tiny_vit

bitsandbytes = pytest.importorskip("bitsandbytes", reason="4-bit bases need bitsandbytes")

RANKS = {"r_main": 4, "r_sub": 2}


def vision(name):
    import transformers

    config = getattr(transformers, f"{name}Config")(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=16
    )
    return getattr(transformers, f"{name}Model")(config), images(), lambda out: out.last_hidden_state


def timm_model(name, **sizes):
    import timm

    return timm.create_model(name, num_classes=0, **sizes), images(), lambda out: out


def language(name="Llama", model="ForCausalLM", **sizes):
    import transformers

    common = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "pad_token_id": 0}
    config = getattr(transformers, f"{name}Config")(**common, max_position_embeddings=16, **sizes)
    return getattr(transformers, name + model)(config), torch.arange(20).view(2, 10), lambda out: out[0]


def convolution():
    model = tiny_vit()
    return model, images(), lambda out: out


def convolutions():
    """A stride, a dilation, padding other than zeros, and no bias."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.GELU(),
        nn.Conv2d(8, 10, (3, 2), dilation=2, padding=2, padding_mode="reflect", bias=False), nn.GELU(),
        nn.Conv2d(10, 7, 1),
    )  # fmt: skip
    return model, images(), lambda out: out


def wide_vit():
    """4-bit layers on a CPU need a multiple of 32 outputs."""
    torch.manual_seed(0)
    return timm_model("vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=64, num_heads=2)[0].eval()


def four_bit():
    """A ViT whose linear layers are kept in 4 bits."""
    model = wide_vit()
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                packed = bitsandbytes.nn.Linear4bit(
                    child.in_features, child.out_features, compute_dtype=torch.float32, quant_type="nf4"
                )
                packed.load_state_dict(child.state_dict())
                packed.support_avx512bf16_for_cpu = False  # a kernel in bfloat16, which some processors have
                setattr(module, name, packed.to("cpu"))
    return model, images(), lambda out: out


SAM = {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2, "global_attn_indexes": (1,), "window_size": 2}
EVA = {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 3}
FAMILIES = {
    "timm ViT": (convolution, {}, 8),
    "timm EVA02": (lambda: timm_model("eva02_base_patch14_224", patch_size=16, **EVA), {}, 14),
    "timm SAM": (lambda: timm_model("samvit_base_patch16", neck_chans=8, **SAM), {}, 8),
    "transformers DINOv2": (lambda: vision("Dinov2"), {}, 12),
    "transformers DINOv3": (lambda: vision("DINOv3ViT"), {}, 12),
    "transformers SigLIP": (lambda: vision("SiglipVision"), {}, 12),
    "transformers CLIP": (lambda: vision("CLIPVision"), {}, 12),
    "Llama": (lambda: language(intermediate_size=48, num_key_value_heads=1), {}, 14),
    "Phi-3": (lambda: language("Phi3", intermediate_size=48), {}, 8),
    "OPT": (lambda: language("OPT", ffn_dim=48, word_embed_proj_dim=32), {}, 12),
    "BERT": (lambda: language("Bert", "Model", intermediate_size=48), {}, 12),
    "patch embedding": (convolution, {"target_modules": ["patch_embed.proj"]}, 1),
    "convolutions": (convolutions, {"target_modules": ["0", "2", "4"]}, 3),
    "4-bit ViT": (four_bit, {}, 8),
}


@pytest.fixture(params=FAMILIES)
def family(request):
    """A function that builds the same model anew, its input, a function to its output, the adapter, how many layers."""
    make, settings, count = FAMILIES[request.param]

    def build():
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some families warn about tiny sizes
            model, inputs, result = make()
        return model.eval(), inputs, result

    return build, RecycleLoraConfig(**RANKS, **settings), count, request.param


def output(model, inputs, result):
    with torch.no_grad():
        return result(model(inputs))


def trained(family):
    build, config, _, _ = family
    base, inputs, result = build()
    model = get_peft_model(base, copy.deepcopy(config))
    optimizer = torch.optim.AdamW(param_groups(model, 3e-3, 0.05))
    for _ in range(3):
        optimizer.zero_grad()
        result(model(inputs)).float().square().mean().backward()
        optimizer.step()
    return model, inputs, result


def test_attaching_changes_nothing(family):
    build, config, count, _ = family
    base, inputs, result = build()
    before = output(base, inputs, result)
    model = get_peft_model(base, config)
    assert sum(isinstance(m, RecycleLoraLayer) for m in model.modules()) == count
    assert torch.equal(output(model, inputs, result), before)


def test_a_step_trains_only_the_adapters(family):
    model, inputs, result = trained(family)
    base, *_ = family[0]()
    assert not torch.equal(output(model, inputs, result), output(base, inputs, result))
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("recycle_" in name), name
    with model.disable_adapter():
        assert torch.equal(output(model, inputs, result), output(base, inputs, result))


def test_the_layer_computes_with_the_changed_weight(family):
    model, *_ = trained(family)
    for layer in model.modules():
        if not isinstance(layer, RecycleLoraLayer):
            continue
        matrix = weight_matrix(layer.base_layer)
        base = copy.deepcopy(layer.base_layer)
        changed = matrix.double() + layer.get_delta_weight("default").detach().double().view(matrix.shape)
        if isinstance(layer, RecycleLoraConv2d):
            x = torch.randn(2, base.in_channels, 32, 32)
            base.weight.data = changed.float().view(base.weight.shape)
            expected = base(x)
        else:
            x = torch.randn(5, layer.in_features)
            expected = nn.functional.linear(x, changed.float(), base.bias)
        with torch.no_grad():
            torch.testing.assert_close(layer(x), expected, atol=1e-4, rtol=1e-4)


def test_save_and_load(family, tmp_path):
    model, inputs, result = trained(family)
    model.save_pretrained(tmp_path)
    base, *_ = family[0]()
    loaded = PeftModel.from_pretrained(base, tmp_path)
    assert torch.equal(output(loaded, inputs, result), output(model, inputs, result))


def test_merge(family):
    model, inputs, result = trained(family)
    before = output(model, inputs, result)
    if family[-1] == "4-bit ViT":
        with pytest.raises(ValueError, match=r"Linear4bit cannot take a merged weight.*in full precision"):
            model.merge_and_unload()
        return
    model.merge_adapter()
    torch.testing.assert_close(output(model, inputs, result), before, atol=1e-4, rtol=1e-4)
    model.unmerge_adapter()
    assert torch.equal(output(model, inputs, result), before)
    merged = model.merge_and_unload()
    assert not any(isinstance(m, RecycleLoraLayer) for m in merged.modules())
    torch.testing.assert_close(output(merged, inputs, result), before, atol=1e-4, rtol=1e-4)


def test_portable_lora(family, tmp_path):
    model, inputs, result = trained(family)
    if family[-1] == "convolutions":
        with pytest.raises(ValueError, match="layer '2': PEFT's LoRA of a convolution supports neither dilation"):
            to_lora(model, tmp_path / "plain")
        assert not (tmp_path / "plain").exists()
        return
    to_lora(model, tmp_path / "plain")
    base, *_ = family[0]()
    plain = PeftModel.from_pretrained(base, tmp_path / "plain")
    torch.testing.assert_close(output(plain, inputs, result), output(model, inputs, result), atol=1e-5, rtol=1e-4)


def test_a_4_bit_adapter_merges_into_the_base_in_full_precision(tmp_path):
    """This is what the error on merging into 4 bits advises."""
    model, *_ = trained((four_bit, RecycleLoraConfig(**RANKS), 8, ""))
    model.save_pretrained(tmp_path)
    merged = PeftModel.from_pretrained(wide_vit(), tmp_path).merge_and_unload()
    name = "blocks.0.attn.qkv"
    layer = model.base_model.model.get_submodule(name)
    change = merged.get_submodule(name).weight - wide_vit().get_submodule(name).weight
    torch.testing.assert_close(change, layer.get_delta_weight("default"), atol=1e-6, rtol=0)


def test_a_4_bit_weight_is_read_the_same_after_a_forward_pass_has_repacked_it():
    torch.manual_seed(0)
    packed = bitsandbytes.nn.Linear4bit(64, 96, compute_dtype=torch.float32, quant_type="nf4").to("cpu").eval()
    before = weight_matrix(packed)
    with torch.no_grad():
        packed(torch.randn(2, 64))
    if not getattr(packed.weight.quant_state, "packing_format_for_cpu", False):
        pytest.skip("this processor has no 4-bit kernel of bitsandbytes")
    torch.testing.assert_close(weight_matrix(packed), before, atol=1e-3, rtol=0.01)  # its scales are rounded
