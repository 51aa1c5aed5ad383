"""The adapter as a PEFT method: identities on a small timm ViT."""

import copy
import subprocess
import sys
import warnings

import pytest
import timm
import torch
from peft import PeftModel, get_peft_model, inject_adapter_in_model, set_peft_model_state_dict
from safetensors.torch import load_file

from recyclelora import RecycleLoraConfig, param_groups, to_lora
from recyclelora.adapter import RecycleLoraLayer
from recyclelora.adapter.factors import initial_factors_of_stack, one_hot
from vits import images, tiny_vit, train

DTYPES = [torch.float32, torch.bfloat16]
LR = 3e-3


def adapted(config=None, seed=0, dtype=torch.float32):
    return get_peft_model(tiny_vit(seed, dtype), config or RecycleLoraConfig(r_main=8, r_sub=3))


def trained(config=None, dtype=torch.float32):
    model = adapted(config, dtype=dtype)
    train(model, param_groups(model, LR, 0.05), dtype=dtype)
    return model


def layers(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, RecycleLoraLayer)}


def output(model, dtype=torch.float32):
    with torch.no_grad():
        return model(images(dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("decomposition", ["rrqr", "svd"])
def test_output_is_unchanged_at_the_start_exactly(decomposition, dtype):
    model = adapted(RecycleLoraConfig(r_main=8, r_sub=3, decomposition=decomposition), dtype=dtype)
    assert len(layers(model)) == 8
    assert torch.equal(output(model, dtype), output(tiny_vit(dtype=dtype), dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_base_weights_stay_bit_identical_and_only_adapters_learn(dtype):
    model = trained(dtype=dtype)
    base = tiny_vit(dtype=dtype).state_dict()
    for name, value in model.base_model.model.state_dict().items():
        if "recycle_" not in name:
            assert torch.equal(value, base[name.replace(".base_layer", "")]), name
    for name, parameter in model.named_parameters():
        is_adapter = "recycle_" in name
        assert parameter.requires_grad == is_adapter, name
        assert (parameter.grad is not None) == is_adapter, name
        assert not is_adapter or parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("decomposition", ["rrqr", "svd"])
def test_equals_the_residual_form_of_the_paper(decomposition):
    model = trained(RecycleLoraConfig(r_main=8, r_sub=3, decomposition=decomposition))
    start = layers(adapted(RecycleLoraConfig(r_main=8, r_sub=3, decomposition=decomposition)))
    for name, layer in layers(model).items():

        def factors(of):
            rows = of.recycle_A0["default"] if decomposition == "svd" else None
            A0 = one_hot(of.recycle_index["default"], of.in_features) if rows is None else rows
            A = torch.cat([of.recycle_delta_A_main["default"], of.recycle_delta_A_sub["default"]]) + A0
            B = torch.cat([of.recycle_delta_B_main["default"], of.recycle_delta_B_sub["default"]], 1)
            return (B + of.recycle_B0["default"]).double() @ A.double()

        s = 1 / 11
        W0 = layer.base_layer.weight.double()
        W_res = W0 - s * factors(start[name])
        x = torch.randn(5, layer.in_features)
        expected = x.double() @ (W_res + s * factors(layer)).T + layer.base_layer.bias.double()
        torch.testing.assert_close(layer(x).double(), expected, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(W0, W_res + s * factors(layer), atol=1e-4)


def test_the_residual_of_the_paper_differs_from_the_base_in_the_pivot_columns_only():
    for layer in layers(adapted()).values():
        start = layer.recycle_B0["default"] @ one_hot(layer.recycle_index["default"], layer.in_features)
        assert set(start.abs().sum(0).nonzero().flatten().tolist()) == set(layer.recycle_index["default"].tolist())


def test_svd_factors_are_singular_vectors():
    model = adapted(RecycleLoraConfig(r_main=5, r_sub=2, decomposition="svd"))
    layer = layers(model)["base_model.model.blocks.0.attn.proj"]
    u, s, vt = torch.linalg.svd(layer.base_layer.weight.double(), full_matrices=False)
    wanted = [*range(len(s) - 5, len(s)), 0, 1]
    for i, j in enumerate(wanted):
        pair = torch.outer(layer.recycle_B0["default"][:, i], layer.recycle_A0["default"][i]).double()
        torch.testing.assert_close(pair, torch.outer(u[:, j], vt[j]), atol=1e-5, rtol=0)


LOAD = """
import sys; sys.path.insert(0, sys.argv[1])
import torch
{forbid}
from peft import PeftModel
from vits import images, tiny_vit
model = PeftModel.from_pretrained(tiny_vit(), sys.argv[2], is_trainable={trainable})
with torch.no_grad():
    torch.save(model(images()), sys.argv[3])
assert {check}
"""


def in_another_process(tests, folder, out, forbid="", trainable=False, check="True"):
    script = LOAD.format(forbid=forbid, trainable=trainable, check=check)
    subprocess.run([sys.executable, "-c", script, str(tests), str(folder), str(out)], check=True)
    return torch.load(out)


@pytest.mark.parametrize("trainable", [False, True])
def test_loads_in_another_process_without_factorising(tmp_path, request, trainable):
    model = trained()
    model.save_pretrained(tmp_path / "adapter")
    forbid = (
        "import recyclelora, recyclelora.adapter.model as m, recyclelora.adapter.draw as d\n"
        "def fail(*a): raise AssertionError('factorised on load')\n"
        "m.draw_factors = d.initial_factors = fail"
    )
    loaded = in_another_process(request.path.parents[1], tmp_path / "adapter", tmp_path / "y.pt", forbid, trainable)
    assert torch.equal(loaded, output(model))


def test_plain_lora_computes_the_same_where_recyclelora_is_never_imported(tmp_path, request):
    model = trained()
    to_lora(model, tmp_path / "plain")
    sees_no_package = "sys.modules['recyclelora'] = None  # importing it would fail"
    shim = (request.path.parents[2] / "src/recyclelora/on_import.py").read_text() + "\nensure_torchvision()\n"
    shim = shim.replace("from __future__ import annotations", "")
    loaded = in_another_process(
        request.path.parents[1], tmp_path / "plain", tmp_path / "y.pt", f"{sees_no_package}\n{shim}",
        check="not any(n.startswith('recyclelora.') for n in sys.modules)",
    )  # fmt: skip
    torch.testing.assert_close(loaded, output(model), atol=1e-5, rtol=1e-5)


def test_a_continued_training_equals_one_that_was_not_saved(tmp_path):
    model = trained()
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny_vit(), tmp_path, is_trainable=True)
    for m in (model, again):
        train(m, param_groups(m, LR, 0.05))
    assert torch.equal(output(model), output(again))


def test_an_adapter_that_was_never_loaded_raises(tmp_path):
    model = trained()
    model.save_pretrained(tmp_path)
    config = RecycleLoraConfig.from_pretrained(tmp_path)
    assert config.init_weights is False
    assert model.peft_config["default"].init_weights is True
    fresh = get_peft_model(tiny_vit(), config)
    assert all((layer.recycle_index["default"] == -1).all() for layer in layers(fresh).values())
    for use in (lambda: output(fresh), fresh.merge_adapter, lambda: to_lora(fresh, tmp_path / "plain")):
        with pytest.raises(ValueError, match=r"adapter 'default' has no values: .* init_weights=True"):
            use()
    set_peft_model_state_dict(fresh, load_file(tmp_path / "adapter_model.safetensors"))
    assert torch.equal(output(fresh), output(model))


@pytest.mark.parametrize("dtype", DTYPES)
def test_merging(dtype):
    model = trained(dtype=dtype)
    before = output(model, dtype)
    base = {name: layer.base_layer.weight.clone() for name, layer in layers(model).items()}
    tolerance = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.1, "rtol": 0.1}
    model.merge_adapter()
    torch.testing.assert_close(output(model, dtype), before, **tolerance)
    once = output(model, dtype)
    with pytest.warns(UserWarning, match="already merged"):
        model.merge_adapter()
    assert torch.equal(output(model, dtype), once)
    with model.disable_adapter():
        assert torch.equal(output(model, dtype), output(tiny_vit(dtype=dtype), dtype))
    assert all(torch.equal(layer.base_layer.weight, base[name]) for name, layer in layers(model).items())
    assert torch.equal(output(model, dtype), before)
    with pytest.warns(UserWarning, match="Already unmerged"):
        model.unmerge_adapter()


def test_merge_and_unload_leaves_a_plain_model():
    model = trained()
    before = output(model)
    merged = model.merge_and_unload(safe_merge=True)
    assert not layers(merged)
    assert set(merged.state_dict()) == set(tiny_vit().state_dict())
    torch.testing.assert_close(output(merged), before, atol=1e-5, rtol=1e-5)


def test_safe_merge_refuses_a_broken_adapter():
    model = trained()
    layer = next(iter(layers(model).values()))
    layer.recycle_delta_B_sub["default"].data.fill_(torch.inf)
    with pytest.raises(ValueError, match="adapter 'default' is broken"):
        model.merge_adapter(safe_merge=True)
    assert torch.equal(layer.base_layer.weight, tiny_vit().blocks[0].attn.qkv.weight)


def test_disabled_is_the_original():
    model = trained()
    assert not torch.equal(output(model), output(tiny_vit()))
    with model.disable_adapter():
        assert torch.equal(output(model), output(tiny_vit()))


def test_several_named_adapters(tmp_path):
    model = trained()
    first = output(model)
    model.add_adapter("other", RecycleLoraConfig(r_main=4, r_sub=0, target_modules=["attn.qkv"]))
    assert torch.equal(output(model), first)
    model.set_adapter("other")
    assert torch.equal(output(model), output(tiny_vit()))
    train(model, param_groups(model, LR, 0.05))
    other = output(model)
    model.base_model.set_adapter(["default", "other"])
    assert not torch.equal(output(model), other)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_vit(), tmp_path / "other", adapter_name="mine")
    assert torch.equal(output(loaded), other)
    loaded.load_adapter(tmp_path, "first")
    loaded.set_adapter("first")
    assert torch.equal(output(loaded), first)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT says which adapter becomes active
        model.delete_adapter("other")
    model.set_adapter("default")
    assert torch.equal(output(model), first)
    assert not any("other" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize(("r_main", "r_sub", "absent"), [(8, 0, "_sub"), (0, 3, "_main")])
def test_only_one_adapter(r_main, r_sub, absent, tmp_path):
    model = trained(RecycleLoraConfig(r_main=r_main, r_sub=r_sub))
    assert not any(absent in name for name, _ in model.named_parameters())
    model.save_pretrained(tmp_path)
    assert torch.equal(output(PeftModel.from_pretrained(tiny_vit(), tmp_path)), output(model))


def test_options_take_effect():
    config = RecycleLoraConfig(r_main=4, r_sub=2, layers_to_transform=[1], target_modules=["attn.qkv", "mlp.fc1"])
    assert set(layers(adapted(config))) == {"base_model.model.blocks.1.attn.qkv", "base_model.model.blocks.1.mlp.fc1"}
    assert len(layers(adapted(RecycleLoraConfig(r_main=4, r_sub=2, layers_to_transform=0)))) == 4
    assert len(layers(adapted(RecycleLoraConfig(r_main=4, r_sub=2, exclude_modules=["mlp.fc2"])))) == 6
    assert len(layers(adapted(RecycleLoraConfig(r_main=4, r_sub=2, target_modules=r"blocks\.0\.mlp\..*fc\d")))) == 2
    assert len(layers(adapted(RecycleLoraConfig(r_main=4, r_sub=2, target_modules="all-linear")))) == 8
    doubled = layers(adapted(RecycleLoraConfig(r_main=4, r_sub=2, alpha=2.0)))
    assert {layer.scaling["default"] for layer in doubled.values()} == {2 / 6}
    kept = get_peft_model(tiny_vit(), RecycleLoraConfig(r_main=4, r_sub=2, modules_to_save=["norm"]))
    assert {n.split(".")[3] for n, p in kept.named_parameters() if p.requires_grad and "recycle_" not in n} == {
        "modules_to_save"
    }


def test_injection_without_a_wrapper():
    model = inject_adapter_in_model(RecycleLoraConfig(r_main=4, r_sub=2), tiny_vit())
    assert torch.equal(output(model), output(tiny_vit()))
    assert len(layers(model)) == 8


def test_compiles_in_one_graph():
    model = trained()
    layer = next(iter(layers(model).values()))
    x = torch.randn(2, 5, layer.in_features)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x), atol=1e-6, rtol=1e-6)
    whole = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(output(whole), output(model), atol=1e-5, rtol=1e-5)


def test_deepcopy_is_independent():
    model = trained()
    before = output(model)
    copied = copy.deepcopy(model)
    train(copied, param_groups(copied, LR, 0.05))
    assert torch.equal(output(model), before)
    assert not torch.equal(output(copied), before)


def test_autocast_is_exact_at_the_start_and_gives_float32_gradients():
    model, base = adapted(), tiny_vit()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(output(model), output(base))
        model(images()).float().mean().backward()
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}


def test_gradient_checkpointing_gives_the_same_gradients():
    grads = []
    for checkpointing in (False, True):
        model = adapted()
        model.base_model.model.set_grad_checkpointing(checkpointing)
        model.train()
        model(images()).square().mean().backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name])


@pytest.mark.parametrize(("r_main", "r_sub", "count"), [(32, 0, 12_582_912), (0, 4, 1_572_864), (32, 4, 14_155_776)])
def test_published_parameter_counts_at_dinov2_l(r_main, r_sub, count):
    with torch.device("meta"):
        base = timm.create_model("vit_large_patch14_dinov2", num_classes=0)
    model = get_peft_model(base, RecycleLoraConfig(r_main=r_main, r_sub=r_sub, init_weights=False))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count


@pytest.mark.parametrize("name", ["ViT", "Dinov2", "DINOv3ViT", "CLIPVision", "SiglipVision"])
def test_default_targets_of_transformers_vision_models(name):
    import transformers

    config = getattr(transformers, f"{name}Config")(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=16
    )
    torch.manual_seed(0)
    base = getattr(transformers, f"{name}Model")(config).eval()
    with torch.no_grad():
        before = base(images()).last_hidden_state
    model = get_peft_model(base, RecycleLoraConfig(r_main=4, r_sub=2))
    with torch.no_grad():
        assert torch.equal(model(images()).last_hidden_state, before)
    inside = [n for n, m in base.named_modules() if isinstance(m, torch.nn.Linear) and ".base_layer" not in n]
    assert not [n for n in inside if any(part.isdigit() for part in n.split("."))], "a block's layer was left out"
    assert len(layers(model)) == 12


def test_weights_of_one_shape_on_a_gpu_are_factorised_together(monkeypatch):
    from recyclelora.adapter import draw as tuner

    alone, stacks = layers(adapted()), []

    def stacked(weights, *ranks):
        stacks.append(len(weights))
        return initial_factors_of_stack(weights, *ranks)

    monkeypatch.setattr(tuner, "_is_on_gpu", lambda weight: True)
    monkeypatch.setattr(tuner, "initial_factors_of_stack", stacked)
    together = layers(adapted())
    assert stacks == [2, 2, 2, 2]  # four shapes, two blocks
    for name, layer in together.items():
        assert torch.equal(layer.recycle_index["default"], alone[name].recycle_index["default"])
        torch.testing.assert_close(layer.recycle_B0["default"], alone[name].recycle_B0["default"], atol=1e-6, rtol=0)
    base = tiny_vit()
    base.blocks[1].mlp.fc1.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"layer 'blocks.0.mlp.fc1' or 'blocks.1.mlp.fc1': .*1 NaN or Inf"):
        get_peft_model(base, RecycleLoraConfig(r_main=4, r_sub=2))


@pytest.mark.parametrize("by", ["option", "environment"])
def test_factors_are_taken_from_the_cache_if_asked(monkeypatch, tmp_path, by):
    from recyclelora.adapter import draw as tuner

    monkeypatch.setenv("RECYCLELORA_CACHE", str(tmp_path))
    if by == "environment":
        monkeypatch.setenv("RECYCLELORA_CACHE_FACTORS", "1")
    config = {"r_main": 8, "r_sub": 3, "cache_factors": by == "option"}
    first = adapted(RecycleLoraConfig(**config))
    assert len(list((tmp_path / "factors").iterdir())) == 8
    monkeypatch.setattr(tuner, "initial_factors", None)  # would fail
    again = adapted(RecycleLoraConfig(**config))
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_errors_leave_the_model_unchanged():
    base = tiny_vit()
    with pytest.raises(ValueError, match=r"layer 'blocks.0.attn.qkv': rank 60 \(r_main 40 \+ r_sub 20\) exceeds"):
        get_peft_model(base, RecycleLoraConfig(r_main=40, r_sub=20))
    base.blocks[1].mlp.fc1.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"layer 'blocks.1.mlp.fc1': .*1 NaN or Inf"):
        get_peft_model(base, RecycleLoraConfig(r_main=4, r_sub=2))
    with pytest.raises(TypeError, match=r"'blocks.0.norm1' is a LayerNorm, but RecycleLoRA adapts torch.nn.Linear"):
        get_peft_model(base, RecycleLoraConfig(r_main=4, r_sub=2, target_modules=["norm1"]))
    grouped = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3, groups=2))
    with pytest.raises(TypeError, match="'0' is a Conv2d of 2 groups"):
        get_peft_model(grouped, RecycleLoraConfig(r_main=1, r_sub=1, target_modules=["0"]))
    with pytest.raises(ValueError, match="give `target_modules`"):
        get_peft_model(torch.nn.Sequential(torch.nn.Linear(4, 4)), RecycleLoraConfig(r_main=1, r_sub=1))
    assert not layers(base)


def test_only_layers_of_an_unknown_kind_are_named_in_a_warning():
    base = tiny_vit()
    base.blocks[1].attn.gate = torch.nn.Linear(48, 48)
    with pytest.warns(
        UserWarning, match=r"unknown kind in its blocks are not adapted \(attn.gate\); .* `target_modules`"
    ):
        model = get_peft_model(base, RecycleLoraConfig(r_main=4, r_sub=2))
    assert len(layers(model)) == 8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decomposition": "lu"}, "unknown decomposition 'lu'; known: rrqr, svd"),
        ({"r_main": -1}, "must not be negative"),
        ({"r_main": 0, "r_sub": 0}, "not both 0"),
        ({"alpha": 0.0}, "alpha must be positive"),
    ],
)
def test_bad_configurations(settings, message):
    with pytest.raises(ValueError, match=message):
        RecycleLoraConfig(**settings)


def test_the_adapter_file_holds_only_the_adapter(tmp_path):
    adapted().save_pretrained(tmp_path)
    names = {key.rsplit(".", 1)[-1] for key in load_file(tmp_path / "adapter_model.safetensors")}
    assert names == {
        "recycle_delta_A_main", "recycle_delta_B_main", "recycle_delta_A_sub", "recycle_delta_B_sub",
        "recycle_B0", "recycle_index", "recycle_scale",
    }  # fmt: skip
