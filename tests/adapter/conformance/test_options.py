"""The options of a configuration, in the words of LoRA, and their effects."""

import math
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.helpers import disable_input_dtype_casting
from safetensors.torch import load_file
from torch import nn

from conformance.methods import RANK, Method
from conformance.models import KINDS, Kind, kinds
from conformance.steps import (
    adapted,
    adapter_parameters,
    assert_changed,
    assert_close,
    config,
    gradients,
    loss_of,
    output,
    parameters,
    quiet,
    train,
    trained,
)

MLP, LLAMA, TIMM = KINDS["mlp"], KINDS["llama"], KINDS["timm"]
SOME = pytest.mark.parametrize("kind", kinds("mlp", "conv", "gpt2"), ids=str)


def rank_of(method: Method, layer: nn.Module) -> int:
    """The number of directions of an adapter: what all its parameters have in common."""
    sizes = sum(p.numel() for n, p in layer.named_parameters() if method.is_adapter(n))
    w = layer.get_base_layer().weight
    return sizes // (w.shape[0] + w[0].numel())


def scale_of(layer: nn.Module, name: str = "default") -> float:
    return layer.scaling[name]


@pytest.mark.parametrize("rank", [1, 2, 8])
def test_the_rank_decides_the_number_of_parameters(method: Method, rank: int) -> None:
    model = adapted(method, MLP, r=rank)
    assert {rank_of(method, layer) for layer in method.layers(model).values()} == {rank}
    assert torch.equal(output(MLP, model), output(MLP, MLP.build()))


@SOME
def test_alpha_scales_the_delta(method: Method, kind: Kind) -> None:
    one, three = adapted(method, kind), adapted(method, kind, alpha=3 * RANK)
    train(kind, one)
    three.load_state_dict(one.state_dict())
    for name, layer in method.layers(three).items():
        assert_close(layer.get_delta_weight("default"), 3 * method.layers(one)[name].get_delta_weight("default"))
    assert_changed(output(kind, three), output(kind, one))


def test_rank_stabilisation_divides_by_the_root_of_the_rank(method: Method) -> None:
    model = adapted(method, MLP, alpha=6, use_rslora=True)
    assert {scale_of(layer) for layer in method.layers(model).values()} == {6 / math.sqrt(RANK)}
    plain = adapted(method, MLP, alpha=6)
    assert {scale_of(layer) for layer in method.layers(plain).values()} == {6 / RANK}


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ({"lin0": 2}, {"lin0": 2, "lin1": 4}),
        ({"lin1": 8}, {"lin0": 4, "lin1": 8}),
        ({r"lin\d": 3}, {"lin0": 3, "lin1": 3}),
        ({"lin0": 1, "lin1": 2}, {"lin0": 1, "lin1": 2}),
    ],
    ids=str,
)
def test_a_rank_pattern_gives_layers_their_own_rank(method: Method, pattern: dict, expected: dict) -> None:
    model = adapted(method, MLP, rank_pattern=pattern)
    assert {name: rank_of(method, layer) for name, layer in method.layers(model).items()} == expected
    assert {n: scale_of(layer) for n, layer in method.layers(model).items()} == {n: 4 / r for n, r in expected.items()}
    assert torch.equal(output(MLP, model), output(MLP, MLP.build()))


def test_a_rank_pattern_tells_blocks_apart(method: Method) -> None:
    model = adapted(method, TIMM, rank_pattern={r"blocks\.1\.attn\.qkv": 2, r".*fc1": 6})
    ranks = {name: rank_of(method, layer) for name, layer in method.layers(model).items()}
    assert ranks["blocks.1.attn.qkv"] == 2
    assert ranks["blocks.0.attn.qkv"] == RANK
    assert ranks["blocks.0.mlp.fc1"] == ranks["blocks.1.mlp.fc1"] == 6


def test_an_alpha_pattern_gives_layers_their_own_scale(method: Method) -> None:
    model = adapted(method, MLP, alpha=8, alpha_pattern={"lin1": 2})
    assert {name: scale_of(layer) for name, layer in method.layers(model).items()} == {"lin0": 2.0, "lin1": 0.5}


def test_patterns_of_rank_and_alpha_go_together(method: Method) -> None:
    model = adapted(method, MLP, rank_pattern={"lin1": 2}, alpha_pattern={"lin1": 6}, use_rslora=True)
    assert scale_of(method.layers(model)["lin1"]) == pytest.approx(6 / math.sqrt(2))


@pytest.mark.parametrize("name", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_that_matches_nothing_is_reported(method: Method, name: str) -> None:
    with pytest.warns(RuntimeWarning, match=f"{name} keys did not match"):
        adapted(method, MLP, **{name: {"nothing": 2}})


def test_patterns_are_saved_and_loaded(method: Method, tmp_path: Path) -> None:
    model = trained(method, MLP, rank_pattern={"lin1": 2}, alpha_pattern={"lin0": 2})
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(MLP.build(), tmp_path)
    assert torch.equal(output(MLP, loaded), output(MLP, model))
    assert scale_of(method.layers(loaded)["lin0"]) == scale_of(method.layers(model)["lin0"])


@pytest.mark.parametrize(("bias", "expected"), [("none", 0), ("all", 2), ("only", 1)])
def test_biases_are_trained_as_asked_for(method: Method, bias: str, expected: int) -> None:
    model = adapted(method, MLP, bias=bias)  # lin0 is adapted and has a bias, head is not adapted
    trainable = [name for name, p in model.named_parameters() if p.requires_grad and name.endswith("bias")]
    assert len(trainable) == expected
    before = parameters(model)
    train(MLP, model)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert {name for name in changed if not method.is_adapter(name)} == set(trainable)


@pytest.mark.parametrize("bias", ["all", "only"])
def test_trained_biases_are_saved_and_loaded(method: Method, bias: str, tmp_path: Path) -> None:
    with quiet():  # LoRA reports that disabled adapters will not give the base's output
        model = trained(method, TIMM, bias=bias)
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(TIMM.build(), tmp_path)
    saved = {name for name in load_file(tmp_path / "adapter_model.safetensors") if name.endswith("bias")}
    assert len(saved) == (sum(n.endswith("bias") for n, _ in TIMM.build().named_parameters()) if bias == "all" else 8)
    assert torch.equal(output(TIMM, loaded), output(TIMM, model))


def test_an_unknown_bias_is_an_error(method: Method) -> None:
    with pytest.raises((ValueError, NotImplementedError)):
        adapted(method, MLP, bias="sometimes")


def test_two_adapters_with_biases_are_an_error(method: Method) -> None:
    with quiet():
        model = adapted(method, MLP, bias="all")
    with pytest.raises(ValueError, match="bias"):
        model.add_adapter("second", config(method, MLP, bias="all"))


@SOME
def test_dropout_acts_in_training_only(method: Method, kind: Kind) -> None:
    model = trained(method, kind, dropout=0.5)
    before = output(kind, model)
    assert torch.equal(output(kind, model), before)
    model.train()
    torch.manual_seed(0)
    first, second = output(kind, model), output(kind, model)
    assert not torch.equal(first, second)
    assert torch.equal(output(kind, model.eval()), before)


def test_dropout_acts_on_the_adapters_input_alone(method: Method) -> None:
    model = adapted(method, MLP, dropout=0.9).train()
    assert torch.equal(output(MLP, model), output(MLP, MLP.build()))


def test_dropout_keeps_the_delta_on_average(method: Method) -> None:
    model = trained(method, MLP, dropout=0.5, target_modules=["head"])
    expected = output(MLP, model)
    model.train()
    torch.manual_seed(0)
    found = torch.stack([output(MLP, model) for _ in range(400)]).mean(0)
    base = output(MLP, MLP.build())
    assert (found - expected).norm() < 0.2 * (expected - base).norm()


def test_dropout_is_part_of_the_gradients(method: Method) -> None:
    model = trained(method, MLP, dropout=0.5).train()
    torch.manual_seed(0)
    first = gradients(method, MLP, model)
    torch.manual_seed(0)
    again = gradients(method, MLP, model)
    other = gradients(method, MLP, model)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_conv1d_without_the_option_is_handled_or_refused(method: Method) -> None:
    kind = KINDS["gpt2"]
    with quiet():  # LoRA reports that it sets the option itself
        model = get_peft_model(kind.build(), method.config(target_modules=["c_attn"])).eval()
    train(kind, model)
    before = output(kind, model)
    assert_close(output(kind, model.merge_and_unload()), before)


def test_a_linear_layer_with_the_option_for_conv1d_is_handled(method: Method) -> None:
    with quiet():  # LoRA reports that it sets the option itself
        model = adapted(method, MLP, fan_in_fan_out=True)
    train(MLP, model)
    before = output(MLP, model)
    assert_close(output(MLP, model.merge_and_unload()), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", kinds("mlp", "timm"), ids=str)
def test_adapters_stay_in_low_precision_if_asked_for(method: Method, kind: Kind, dtype: torch.dtype) -> None:
    model = get_peft_model(kind.build(dtype), config(method, kind), autocast_adapter_dtype=False).eval()
    assert {p.dtype for p in adapter_parameters(method, model).values()} == {dtype}
    assert torch.equal(output(kind, model, dtype), output(kind, kind.build(dtype), dtype))
    loss_of(kind, model, dtype).backward()
    assert {p.grad.dtype for p in adapter_parameters(method, model).values()} == {dtype}


def test_a_loaded_adapter_stays_in_low_precision_if_asked_for(method: Method, tmp_path: Path) -> None:
    trained(method, MLP).save_pretrained(tmp_path)
    base = MLP.build(torch.bfloat16)
    loaded = PeftModel.from_pretrained(base, tmp_path, autocast_adapter_dtype=False)
    assert {p.dtype for p in adapter_parameters(method, loaded).values()} == {torch.bfloat16}


def test_inputs_of_another_precision_are_cast_unless_disabled(method: Method) -> None:
    layer = method.layers(adapted(method, MLP, torch.bfloat16))["lin0"]
    x = MLP.given(torch.bfloat16)["x"]
    assert layer(x).dtype == torch.bfloat16
    with disable_input_dtype_casting(layer):
        assert layer.cast_input_dtype_enabled is False
        assert layer._cast_input_dtype(x, torch.float32).dtype == torch.bfloat16
    assert layer.cast_input_dtype_enabled is True


def test_disabled_casting_changes_nothing_where_nothing_is_cast(method: Method) -> None:
    model = trained(method, TIMM)
    expected = output(TIMM, model)
    with disable_input_dtype_casting(model):
        assert not any(layer.cast_input_dtype_enabled for layer in method.layers(model).values())
        assert torch.equal(output(TIMM, model), expected)


def test_inference_mode_freezes_the_adapter(method: Method) -> None:
    model = adapted(method, MLP, inference_mode=True)
    assert not any(p.requires_grad for p in model.parameters())


def test_a_target_that_is_tied_to_another_weight_is_reported(method: Method) -> None:
    with pytest.warns(UserWarning, match="tied"):
        adapted(method, KINDS["opt"], target_modules=["q_proj", "lm_head"])
