"""Several adapters in one model."""

from pathlib import Path

import pytest
import torch
from peft import PeftMixedModel, PeftModel, get_peft_model, get_peft_model_state_dict, inject_adapter_in_model

from conformance.methods import Method, other
from conformance.models import KINDS, Kind, kinds
from conformance.steps import (
    adapted,
    adapter_parameters,
    assert_changed,
    assert_close,
    config,
    output,
    quiet,
    train,
    trained,
    two,
    works_or_refuses,
)

MLP = KINDS["mlp"]
SOME = pytest.mark.parametrize("kind", kinds("mlp", "conv", "gpt2"), ids=str)


def of(method: Method, model: torch.nn.Module, name: str) -> dict[str, torch.nn.Parameter]:
    return {n: p for n, p in adapter_parameters(method, model).items() if f".{name}" in n}


@SOME
def test_an_added_adapter_changes_nothing_until_it_is_set(method: Method, kind: Kind) -> None:
    model, base = trained(method, kind), output(kind, kind.build())
    first = output(kind, model)
    model.add_adapter("second", config(method, kind))
    assert torch.equal(output(kind, model.eval()), first)
    model.set_adapter("second")
    assert torch.equal(output(kind, model), base)
    model.set_adapter("default")
    assert torch.equal(output(kind, model), first)


@SOME
def test_only_the_active_adapter_is_trained(method: Method, kind: Kind) -> None:
    model = two(method, kind)
    assert all(p.requires_grad for p in of(method, model, "default").values())
    assert not any(p.requires_grad for p in of(method, model, "second").values())
    model.set_adapter("second")
    before = output(kind, model)
    model.set_adapter("default")
    train(kind, model)
    model.set_adapter("second")
    assert torch.equal(output(kind, model), before)


@SOME
def test_two_active_adapters_are_added(method: Method, kind: Kind) -> None:
    model = two(method, kind)
    layer = next(iter(method.layers(model).values()))
    deltas = [layer.get_delta_weight(name) for name in ("default", "second")]
    base = layer.get_base_layer().weight.clone()
    model.base_model.set_adapter(["default", "second"])
    both = output(kind, model)
    model.merge_adapter()
    assert_close(layer.get_base_layer().weight, base + sum(deltas))
    assert_close(output(kind, model), both)
    assert model.base_model.active_adapters == ["default", "second"]


@SOME
def test_a_deleted_adapter_leaves_nothing_behind(method: Method, kind: Kind) -> None:
    model = two(method, kind)
    first = output(kind, model)
    model.delete_adapter("second")
    assert not any("second" in name for name in model.state_dict())
    assert "second" not in model.peft_config
    assert torch.equal(output(kind, model), first)
    with pytest.raises(ValueError, match="does not exist"):
        model.delete_adapter("second")


def test_after_the_active_adapter_is_deleted_another_is_active(method: Method) -> None:
    model = two(method, MLP)
    model.set_adapter("second")
    expected = output(MLP, model)
    model.set_adapter("default")
    with pytest.warns(UserWarning, match="active"):
        model.delete_adapter("default")
    assert model.active_adapters == ["second"]
    assert torch.equal(output(MLP, model), expected)


@SOME
def test_a_deleted_name_can_be_used_again(method: Method, kind: Kind) -> None:
    model = two(method, kind)
    model.delete_adapter("second")
    model.add_adapter("second", config(method, kind, r=2))
    model.set_adapter("second")
    assert torch.equal(output(kind, model.eval()), output(kind, kind.build()))
    train(kind, model)
    assert_changed(output(kind, model), output(kind, kind.build()))


@pytest.mark.parametrize("kind", kinds("gpt2", "llama", "opt", "t5", "bert"), ids=str)
def test_default_targets_are_the_same_for_a_second_adapter(method: Method, kind: Kind) -> None:
    with quiet():
        model = adapted(method, kind, target_modules=None)
        model.add_adapter("second", config(method, kind, target_modules=None))
    names = {name.replace("second", "default") for name in of(method, model, "second")}
    assert names == set(of(method, model, "default"))


@pytest.mark.parametrize("targets", ["all-linear", r"lin\d"])
def test_a_pattern_takes_the_same_layers_for_a_second_adapter(method: Method, targets: str) -> None:
    model = adapted(method, MLP, target_modules=targets)
    model.add_adapter("second", config(method, MLP, target_modules=targets))
    names = {name.replace("second", "default") for name in of(method, model, "second")}
    assert names == set(of(method, model, "default"))


def test_adapters_of_different_layers_stand_side_by_side(method: Method) -> None:
    model = trained(method, MLP, target_modules=["lin0"])
    first = output(MLP, model)
    model.add_adapter("second", config(method, MLP, target_modules=["lin1", "head"], r=2))
    assert torch.equal(output(MLP, model.eval()), first)
    model.set_adapter("second")
    assert torch.equal(output(MLP, model), output(MLP, MLP.build()))
    train(MLP, model)
    assert set(method.layers(model)) == {"lin0", "lin1", "head"}
    assert {n.split(".")[2] for n in of(method, model, "second")} == {"lin1", "head"}


def test_a_name_in_use_cannot_be_added(method: Method) -> None:
    with pytest.raises(ValueError, match="already exists"):
        adapted(method, MLP).add_adapter("default", config(method, MLP))


def test_an_adapter_of_another_method_cannot_be_added(method: Method) -> None:
    model = adapted(method, MLP)
    with pytest.raises(ValueError, match="different peft types"):
        model.add_adapter("second", config(other(method), MLP))


def test_a_failed_addition_leaves_the_model_as_it_was(method: Method) -> None:
    model = trained(method, MLP)
    before, names = output(MLP, model), set(model.state_dict())
    with pytest.raises(ValueError, match="not found"):
        model.add_adapter("second", config(method, MLP, target_modules=["nothing"]))
    assert set(model.peft_config) == {"default"}
    assert set(model.state_dict()) == names
    assert torch.equal(output(MLP, model), before)


@pytest.mark.parametrize("rank", [5, 1])
@pytest.mark.parametrize("kind", kinds("mlp", "conv"), ids=str)
def test_injecting_again_under_a_name_replaces_the_adapter(method: Method, kind: Kind, rank: int) -> None:
    model = inject_adapter_in_model(config(method, kind, r=4), kind.build())
    train(kind, model)
    with quiet():
        model = inject_adapter_in_model(config(method, kind, r=rank), model)
    fresh = inject_adapter_in_model(config(method, kind, r=rank), kind.build())
    shapes = {name: p.shape for name, p in model.state_dict().items()}
    assert shapes == {name: p.shape for name, p in fresh.state_dict().items()}
    assert torch.equal(output(kind, model.eval()), output(kind, kind.build()))
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(adapter_parameters(method, model))


def test_each_adapter_is_saved_in_its_folder(method: Method, tmp_path: Path) -> None:
    model = two(method, MLP, r=2)
    first = output(MLP, model)
    model.set_adapter("second")
    second = output(MLP, model)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(MLP.build(), tmp_path)
    loaded.load_adapter(tmp_path / "second", "other name")
    assert torch.equal(output(MLP, loaded), first)
    loaded.set_adapter("other name")
    assert torch.equal(output(MLP, loaded), second)


def test_only_the_selected_adapters_are_saved(method: Method, tmp_path: Path) -> None:
    two(method, MLP).save_pretrained(tmp_path, selected_adapters=["second"])
    assert {p.name for p in tmp_path.iterdir() if p.is_dir()} == {"second"}
    assert not (tmp_path / "adapter_config.json").exists()


def test_a_state_dict_is_of_one_adapter(method: Method) -> None:
    model = two(method, MLP, r=2)
    for name in ("default", "second"):
        values = get_peft_model_state_dict(model, adapter_name=name)
        assert sum(v.numel() for n, v in values.items() if v.is_floating_point()) >= sum(
            p.numel() for p in of(method, model, name).values()
        )
        assert not any("second" in n or "default" in n for n in values)


def test_a_weighted_sum_of_adapters_works_or_is_refused(method: Method) -> None:
    model = two(method, MLP)
    layer = method.layers(model)["lin0"]
    with works_or_refuses():
        model.add_weighted_adapter(["default", "second"], [0.5, 2.0], "sum", combination_type="cat")
        expected = 0.5 * layer.get_delta_weight("default") + 2 * layer.get_delta_weight("second")
        assert_close(layer.get_delta_weight("sum"), expected)


def test_a_mixed_model_works_or_is_refused(method: Method) -> None:
    with works_or_refuses():
        model = get_peft_model(MLP.build(), config(method, MLP), mixed=True).eval()
        assert isinstance(model, PeftMixedModel)
        model.add_adapter("second", config(method, MLP, target_modules=["lin1"]))
        model.set_adapter(["default", "second"])
        assert torch.equal(output(MLP, model), output(MLP, MLP.build()))


def test_which_adapters_are_trained_can_be_chosen(method: Method) -> None:
    model = two(method, MLP)
    model.set_requires_grad("second", True)
    model.set_requires_grad("default", False)
    assert all(p.requires_grad for p in of(method, model, "second").values())
    assert not any(p.requires_grad for p in of(method, model, "default").values())


def test_an_adapter_set_for_inference_is_frozen(method: Method) -> None:
    model = two(method, MLP)
    model.set_adapter("second", inference_mode=True)
    assert model.active_adapters == ["second"]
    assert not any(p.requires_grad for p in model.parameters())
