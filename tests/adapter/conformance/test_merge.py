"""Merging adapters into the base weights, and undoing it."""

import copy

import pytest
import torch
from peft import get_peft_model

from conformance.methods import Method
from conformance.models import KINDS, Kind, kinds
from conformance.steps import adapted, assert_changed, assert_close, output, quiet, train, trained

MLP = KINDS["mlp"]
SOME = pytest.mark.parametrize("kind", kinds("mlp", "conv", "gpt2"), ids=str)


def weights(method: Method, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: layer.get_base_layer().weight.detach().clone() for name, layer in method.layers(model).items()}


def test_a_merged_model_is_a_plain_model_with_the_same_output(method: Method, kind: Kind) -> None:
    model, base = trained(method, kind), kind.build()
    before = output(kind, model)
    merged = model.merge_and_unload()
    assert type(merged) is type(base)
    assert {name: type(m) for name, m in merged.named_modules()} == {n: type(m) for n, m in base.named_modules()}
    assert merged.state_dict().keys() == base.state_dict().keys()
    assert_close(output(kind, merged), before)


@SOME
def test_merging_and_unmerging_restores_weights_and_output(method: Method, kind: Kind) -> None:
    model = trained(method, kind)
    before, held = output(kind, model), weights(method, model)
    model.merge_adapter()
    assert_close(output(kind, model), before)
    assert all(layer.merged for layer in method.layers(model).values())
    assert any(not torch.equal(w, held[name]) for name, w in weights(method, model).items())
    model.unmerge_adapter()
    assert not any(layer.merged for layer in method.layers(model).values())
    for name, w in weights(method, model).items():
        assert_close(w, held[name])
    assert_close(output(kind, model), before)


@SOME
def test_the_merged_weight_is_the_base_plus_the_delta(method: Method, kind: Kind) -> None:
    model = trained(method, kind)
    held = weights(method, model)
    deltas = {name: layer.get_delta_weight("default").detach() for name, layer in method.layers(model).items()}
    model.merge_adapter(safe_merge=True)
    for name, w in weights(method, model).items():
        assert w.shape == held[name].shape == deltas[name].shape
        assert_close(w, held[name] + deltas[name])


@SOME
def test_disabling_a_merged_adapter_gives_the_base_back(method: Method, kind: Kind) -> None:
    model = trained(method, kind)
    before = output(kind, model)
    model.merge_adapter()
    with model.disable_adapter():
        assert_close(output(kind, model), output(kind, kind.build()))
    assert_close(output(kind, model), before)


@SOME
def test_a_merged_model_keeps_biases_buffers_and_other_parameters(method: Method, kind: Kind) -> None:
    model, base = trained(method, kind), kind.build().state_dict()
    adapted_weights = {f"{name}.weight" for name in method.layers(model)}
    for name, value in model.merge_and_unload().state_dict().items():
        assert name in adapted_weights or torch.equal(value, base[name]), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("kind", kinds("mlp", "conv"), ids=str)
def test_a_base_of_another_precision_keeps_it_when_merged(method: Method, kind: Kind, dtype: torch.dtype) -> None:
    model = adapted(method, kind, dtype)
    train(kind, model, steps=2, dtype=dtype)
    before = output(kind, model, dtype)
    merged = model.merge_and_unload()
    assert {p.dtype for p in merged.parameters()} == {dtype}
    loose = {} if dtype == torch.float64 else {"rtol": 0.05, "atol": 0.05}
    assert_close(output(kind, merged, dtype), before, **loose)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_a_cast_between_merging_and_unmerging_is_kept(method: Method, dtype: torch.dtype) -> None:
    model = trained(method, MLP)
    held = weights(method, model)
    model.merge_adapter()
    model.to(dtype)
    model.unmerge_adapter()
    for name, w in weights(method, model).items():
        assert w.dtype == dtype
        assert_close(w.double(), held[name].double(), rtol=0.02, atol=0.02)
    assert output(MLP, model, dtype).dtype == dtype


def test_a_copy_of_a_merged_model_can_be_unmerged(method: Method) -> None:
    model = trained(method, MLP)
    before, held = output(MLP, model), weights(method, model)
    model.merge_adapter()
    copied = copy.deepcopy(model)
    copied.unmerge_adapter()
    for name, w in weights(method, copied).items():
        assert_close(w, held[name])
    assert_close(output(MLP, copied), before)
    assert all(layer.merged for layer in method.layers(model).values())


def test_merging_twice_and_unmerging_twice_only_warns(method: Method) -> None:
    model = trained(method, MLP)
    before, held = output(MLP, model), weights(method, model)
    model.merge_adapter()
    with pytest.warns(UserWarning, match="already merged"):
        model.merge_adapter()
    assert_close(output(MLP, model), before)
    model.unmerge_adapter()
    with pytest.warns(UserWarning, match="Already unmerged"):
        model.unmerge_adapter()
    for name, w in weights(method, model).items():
        assert_close(w, held[name])


def test_a_safe_merge_of_a_broken_adapter_changes_nothing(method: Method) -> None:
    model = trained(method, MLP)
    held = weights(method, model)
    for name, p in model.named_parameters():
        if method.is_adapter(name) and ".lin0." in name:
            p.data.fill_(torch.inf)
    with pytest.raises(ValueError, match="broken"):
        model.merge_adapter(safe_merge=True)
    for name, w in weights(method, model).items():
        assert torch.equal(w, held[name])


def test_a_chosen_adapter_is_merged(method: Method) -> None:
    model = trained(method, MLP)
    model.add_adapter("second", method.config(target_modules=MLP.targets))
    model.set_adapter("second")
    train(MLP, model, lr=2e-2)
    second = output(MLP, model)
    model.set_adapter("default")
    first = output(MLP, model)
    merged = copy.deepcopy(model).merge_and_unload(adapter_names=["second"])
    assert_close(output(MLP, merged), second)
    assert_changed(first, second)


def test_a_second_adapter_can_be_merged_after_the_first(method: Method) -> None:
    model = trained(method, MLP)
    model.add_adapter("second", method.config(target_modules=MLP.targets))
    model.set_adapter("second")
    train(MLP, model, lr=2e-2)
    held = weights(method, model)
    model.base_model.set_adapter(["default", "second"])
    both = output(MLP, model)
    model.merge_adapter(adapter_names=["default"])
    with quiet():  # PEFT reports that one is merged already
        model.merge_adapter(adapter_names=["default", "second"])
    assert_close(output(MLP, model), both)
    model.unmerge_adapter()
    for name, w in weights(method, model).items():
        assert_close(w, held[name])


def test_a_merged_adapter_is_reported_by_the_status(method: Method) -> None:
    model = trained(method, MLP)
    model.merge_adapter()
    assert model.get_model_status().merged_adapters == ["default"]
    model.unmerge_adapter()
    assert model.get_model_status().merged_adapters == []


def test_merging_keeps_a_tied_weight_tied(method: Method) -> None:
    kind = KINDS["gpt2"]
    merged = trained(method, kind).merge_and_unload()
    assert merged.lm_head.weight is merged.transformer.wte.weight


def test_a_merged_model_can_be_adapted_again(method: Method) -> None:
    merged = trained(method, MLP).merge_and_unload()
    with quiet():  # PEFT reports a configuration that is left from before
        again = get_peft_model(merged, method.config(target_modules=MLP.targets)).eval()
    before = output(MLP, again)
    assert torch.equal(before, output(MLP, again.unload()))


def test_merged_modules_to_save_are_the_trained_ones(method: Method) -> None:
    model = trained(method, MLP, modules_to_save=["head"])
    before = output(MLP, model)
    merged = model.merge_and_unload()
    assert type(merged.head) is torch.nn.Linear
    assert_close(output(MLP, merged), before)


def test_merging_in_inference_mode_gives_the_same_output(method: Method) -> None:
    model = trained(method, MLP)
    before = output(MLP, model)
    with torch.inference_mode():
        model.merge_adapter()
        assert_close(MLP.run(model), before)
