"""Saving and loading adapters: folders, state dicts, whole models."""

import io
import json
from pathlib import Path

import pytest
import torch
from peft import (
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file, save_file

from conformance.methods import Method, other
from conformance.models import KINDS, Kind, kinds
from conformance.steps import (
    adapted,
    adapter_parameters,
    assert_changed,
    config,
    output,
    reported,
    train,
    trained,
    works_or_refuses,
)

MLP = KINDS["mlp"]
SOME = pytest.mark.parametrize("kind", kinds("mlp", "conv", "gpt2"), ids=str)
FILE = "adapter_model.safetensors"


def test_a_loaded_adapter_gives_the_same_output(method: Method, kind: Kind, tmp_path: Path) -> None:
    model = trained(method, kind)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(kind.build(), tmp_path)
    assert torch.equal(output(kind, loaded), output(kind, model))
    assert not any(p.requires_grad for p in loaded.parameters())


@SOME
def test_the_file_holds_the_adapter_alone(method: Method, kind: Kind, tmp_path: Path) -> None:
    model = trained(method, kind)
    model.save_pretrained(tmp_path)
    names = set(load_file(tmp_path / FILE))
    assert names == set(get_peft_model_state_dict(model))
    assert all(method.is_adapter(name) for name in names)
    assert not any("default" in name for name in names)


@SOME
def test_a_state_dict_carries_an_adapter_over(method: Method, kind: Kind) -> None:
    model, fresh = trained(method, kind), adapted(method, kind, seed=1)
    result = set_peft_model_state_dict(fresh, get_peft_model_state_dict(model))
    assert not result.unexpected_keys
    assert not any(method.is_adapter(key) for key in result.missing_keys)
    assert torch.equal(output(kind, fresh), output(kind, model))


@SOME
def test_a_state_dict_can_be_written_by_safetensors(method: Method, kind: Kind, tmp_path: Path) -> None:
    model = trained(method, kind)
    save_file(get_peft_model_state_dict(model), tmp_path / "adapter.safetensors")
    fresh = adapted(method, kind, seed=1)
    set_peft_model_state_dict(fresh, load_file(tmp_path / "adapter.safetensors"))
    assert torch.equal(output(kind, fresh), output(kind, model))


@SOME
def test_an_adapter_can_be_loaded_for_more_training(method: Method, kind: Kind, tmp_path: Path) -> None:
    model = trained(method, kind)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(kind.build(), tmp_path, is_trainable=True).eval()
    assert {n for n, p in loaded.named_parameters() if p.requires_grad} == set(adapter_parameters(method, loaded))
    train(kind, model)
    train(kind, loaded)
    assert torch.equal(output(kind, loaded), output(kind, model))


@SOME
def test_low_memory_loading_gives_the_same_output(method: Method, kind: Kind, tmp_path: Path) -> None:
    model = trained(method, kind)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(kind.build(), tmp_path, low_cpu_mem_usage=True)
    assert not any(p.is_meta for p in [*loaded.parameters(), *loaded.buffers()])
    assert torch.equal(output(kind, loaded), output(kind, model))
    loaded.load_adapter(tmp_path, "second", low_cpu_mem_usage=True)
    loaded.set_adapter("second")
    assert torch.equal(output(kind, loaded), output(kind, model))


@SOME
def test_low_memory_injection_waits_for_the_state_dict(method: Method, kind: Kind) -> None:
    model = trained(method, kind)
    values = get_peft_model_state_dict(model)
    values = {name.removeprefix("base_model.model."): value for name, value in values.items()}
    injected = inject_adapter_in_model(config(method, kind), kind.build(), low_cpu_mem_usage=True)
    assert all(p.is_meta for p in adapter_parameters(method, injected).values())
    set_peft_model_state_dict(injected, values, low_cpu_mem_usage=True)
    assert torch.equal(output(kind, injected), output(kind, model))


@SOME
def test_a_state_dict_decides_which_layers_are_adapted(method: Method, kind: Kind) -> None:
    model = trained(method, kind)
    values = get_peft_model_state_dict(model)
    values = {name.removeprefix("base_model.model."): value for name, value in values.items()}
    injected = inject_adapter_in_model(config(method, kind), kind.build(), state_dict=values)
    set_peft_model_state_dict(injected, values)
    assert torch.equal(output(kind, injected), output(kind, model))


def test_a_state_dict_of_other_layers_is_reported(method: Method) -> None:
    values = get_peft_model_state_dict(trained(method, MLP, target_modules=["lin0"]))
    values = {name.removeprefix("base_model.model."): value for name, value in values.items()}
    with reported():
        inject_adapter_in_model(config(method, MLP, target_modules=["lin1"]), MLP.build(), state_dict=values)


@SOME
def test_a_whole_model_is_saved_by_torch(method: Method, kind: Kind) -> None:
    model, file = trained(method, kind), io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert torch.equal(output(kind, torch.load(file, weights_only=False)), output(kind, model))


@SOME
def test_the_models_state_dict_restores_it_strictly(method: Method, kind: Kind) -> None:
    model, fresh = trained(method, kind), adapted(method, kind, seed=1)
    fresh.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(output(kind, fresh), output(kind, model))


@pytest.mark.parametrize("part", ["first", "last", "half"])
def test_a_file_without_some_tensors_is_reported(method: Method, tmp_path: Path, part: str) -> None:
    trained(method, MLP).save_pretrained(tmp_path)
    held = load_file(tmp_path / FILE)
    names = sorted(held)
    left = {"first": names[1:], "last": names[:-1], "half": names[::2]}[part]
    save_file({name: held[name] for name in left}, tmp_path / FILE)
    with reported():
        PeftModel.from_pretrained(MLP.build(), tmp_path)


def test_a_file_of_another_rank_is_refused(method: Method, tmp_path: Path) -> None:
    trained(method, MLP, r=2).save_pretrained(tmp_path)
    model = adapted(method, MLP)
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_adapter(tmp_path, "default")


def test_a_file_of_another_method_beside_an_adapter_is_refused(method: Method, tmp_path: Path) -> None:
    trained(other(method), MLP).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="different peft types"):
        adapted(method, MLP).load_adapter(tmp_path, "second")


@pytest.mark.parametrize("kind", kinds("mlp", "timm", "bert"), ids=str)
def test_modules_to_save_are_trained_saved_and_loaded(method: Method, kind: Kind, tmp_path: Path) -> None:
    model = trained(method, kind, modules_to_save=[kind.head])
    model.save_pretrained(tmp_path)
    head = {name for name in load_file(tmp_path / FILE) if not method.is_adapter(name)}
    assert head == {f"base_model.model.{kind.head}.{part}" for part in ("weight", "bias")}
    loaded = PeftModel.from_pretrained(kind.build(), tmp_path)
    assert torch.equal(output(kind, loaded), output(kind, model))
    assert_changed(output(kind, loaded), output(kind, trained(method, kind)))


def test_an_adapter_in_bfloat16_keeps_its_values(method: Method, tmp_path: Path) -> None:
    model = adapted(method, MLP, torch.bfloat16)
    train(MLP, model, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(MLP.build(torch.bfloat16), tmp_path)
    assert torch.equal(output(MLP, loaded, torch.bfloat16), output(MLP, model, torch.bfloat16))


def test_a_file_of_pickle_is_written_and_read(method: Method, tmp_path: Path) -> None:
    model = trained(method, MLP)
    model.save_pretrained(tmp_path, safe_serialization=False)
    assert (tmp_path / "adapter_model.bin").is_file()
    assert torch.equal(output(MLP, PeftModel.from_pretrained(MLP.build(), tmp_path)), output(MLP, model))


def test_a_saved_configuration_makes_a_usable_fresh_adapter(method: Method, tmp_path: Path) -> None:
    """A folder's configuration with other data is a common start. What it makes is finite, or it is refused."""
    trained(method, MLP).save_pretrained(tmp_path)
    saved = PeftConfig.from_pretrained(tmp_path)
    saved.inference_mode = False
    with works_or_refuses():
        model = get_peft_model(MLP.build(), saved)
        assert output(MLP, model).isfinite().all()


def test_the_saved_configuration_is_the_methods_own(method: Method, tmp_path: Path) -> None:
    model = trained(method, MLP, alpha=3, exclude_modules=["head"], modules_to_save=None)
    model.save_pretrained(tmp_path)
    loaded = PeftConfig.from_pretrained(tmp_path)
    assert type(loaded) is method.config_class
    assert loaded.inference_mode is True
    assert set(loaded.target_modules) == {"lin0", "lin1"}
    assert set(loaded.exclude_modules) == {"head"}
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == loaded.peft_type


def test_a_configuration_goes_through_a_dictionary_and_json(method: Method, tmp_path: Path) -> None:
    given = config(method, MLP, alpha=3)
    as_dict = given.to_dict()
    assert method.config_class.from_peft_type(**as_dict).to_dict() == as_dict
    given.save_pretrained(tmp_path)
    again = method.config_class.from_pretrained(tmp_path)
    kept = {k: v for k, v in as_dict.items() if k not in ("init_weights", "target_modules")}
    assert {k: v for k, v in again.to_dict().items() if k in kept} == kept
    assert set(again.target_modules) == set(given.target_modules)


def test_unknown_keys_of_a_newer_configuration_are_reported(method: Method, tmp_path: Path) -> None:
    model = trained(method, MLP)
    model.save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "from_the_future": 1}))
    with pytest.warns(UserWarning, match="from_the_future"):
        loaded = PeftModel.from_pretrained(MLP.build(), tmp_path)
    assert torch.equal(output(MLP, loaded), output(MLP, model))


def test_a_model_card_is_written(method: Method, tmp_path: Path) -> None:
    trained(method, MLP).save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "library_name: peft" in card


def test_a_merged_model_saves_the_same_adapter(method: Method, tmp_path: Path) -> None:
    model = trained(method, MLP)
    before = get_peft_model_state_dict(model)
    model.merge_adapter()
    model.save_pretrained(tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in load_file(tmp_path / FILE).items())
