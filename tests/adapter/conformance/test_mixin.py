"""Adapters through the methods that transformers gives its own models, and PEFT's helpers."""

from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from peft.helpers import check_if_peft_model, rescale_adapter_scale, update_forward_signature
from peft.utils.hotswap import hotswap_adapter
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.integrations import peft as transformers_peft

from conformance.methods import Method
from conformance.models import KINDS, Kind, kinds
from conformance.steps import (
    adapted,
    assert_changed,
    assert_close,
    config,
    output,
    quiet,
    train,
    trained,
    works_or_refuses,
)

MLP, LLAMA = KINDS["mlp"], KINDS["llama"]


@pytest.fixture(autouse=True)
def _any_release(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers 5.24 asks for PEFT 0.22, which is not released; with 0.21 the same calls work."""
    monkeypatch.setattr(transformers_peft, "MIN_PEFT_VERSION", "0.21.0")


SOME = pytest.mark.parametrize("kind", kinds("vit", "gpt2", "t5"), ids=str)


def with_adapter(method: Method, kind: Kind, steps: int = 3) -> PreTrainedModel:
    model = kind.build()
    model.add_adapter(config(method, kind))
    train(kind, model.eval(), steps)
    return model


@SOME
def test_a_model_adds_an_adapter_to_itself(method: Method, kind: Kind) -> None:
    model = with_adapter(method, kind, steps=0)
    assert len(method.layers(model)) == kind.count
    assert torch.equal(output(kind, model), output(kind, kind.build()))
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for n, _ in model.named_parameters() if method.is_adapter(n)
    }


@SOME
def test_a_model_saves_its_adapter_and_loads_it(method: Method, kind: Kind, tmp_path: Path) -> None:
    model = with_adapter(method, kind)
    with quiet():
        model.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_config.json").is_file()
    assert not (tmp_path / "config.json").exists()
    again = kind.build()
    again.load_adapter(str(tmp_path))
    assert torch.equal(output(kind, again.eval()), output(kind, model))


@SOME
def test_a_folder_of_peft_is_loaded_by_a_model(method: Method, kind: Kind, tmp_path: Path) -> None:
    model = trained(method, kind)
    model.save_pretrained(tmp_path)
    plain = kind.build()
    plain.load_adapter(str(tmp_path), adapter_name="mine")
    assert plain.active_adapters() == ["mine"]
    assert torch.equal(output(kind, plain.eval()), output(kind, model))


def test_a_folder_of_a_model_is_loaded_by_peft(method: Method, tmp_path: Path) -> None:
    model = with_adapter(method, LLAMA)
    with quiet():
        model.save_pretrained(tmp_path)
    assert torch.equal(output(LLAMA, PeftModel.from_pretrained(LLAMA.build(), tmp_path)), output(LLAMA, model))


def test_a_models_adapters_are_switched_off_and_on(method: Method) -> None:
    model = with_adapter(method, LLAMA)
    before = output(LLAMA, model)
    model.disable_adapters()
    assert torch.equal(output(LLAMA, model), output(LLAMA, LLAMA.build()))
    model.enable_adapters()
    assert torch.equal(output(LLAMA, model), before)


def test_a_model_switches_between_its_adapters(method: Method) -> None:
    model = with_adapter(method, LLAMA)
    first = output(LLAMA, model)
    with quiet():  # PEFT reports that the model has an adapter already
        model.add_adapter(config(method, LLAMA), "second")
    assert model.active_adapters() == ["second"]
    train(LLAMA, model.eval(), lr=2e-2)
    assert_changed(output(LLAMA, model), first)
    model.set_adapter("default")
    assert torch.equal(output(LLAMA, model), first)
    model.delete_adapter("second")
    assert not any("second" in name for name in model.state_dict())
    with pytest.raises(ValueError, match="already exists"):
        model.add_adapter(config(method, LLAMA), "default")


def test_a_models_adapter_state_dict_is_that_of_the_adapter(method: Method) -> None:
    model = with_adapter(method, LLAMA)
    values = model.get_adapter_state_dict()
    assert values
    assert all(method.is_adapter(name) and "default" not in name for name in values)


def test_the_adapters_folder_alone_names_the_model(method: Method, tmp_path: Path) -> None:
    """The configuration names the folder of the base, and both are loaded by the adapter's folder."""
    LLAMA.build().save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    assert torch.equal(output(LLAMA, base), output(LLAMA, LLAMA.build()))
    model = PeftModel(base, config(method, LLAMA, task_type="CAUSAL_LM")).eval()
    train(LLAMA, model)
    model.save_pretrained(tmp_path / "adapter")
    for auto in (AutoModelForCausalLM, AutoPeftModelForCausalLM):
        loaded = auto.from_pretrained(tmp_path / "adapter").eval()
        assert len(method.layers(loaded)) == LLAMA.count
        assert torch.equal(output(LLAMA, loaded), output(LLAMA, model))


def test_a_loaded_model_can_go_on_training(method: Method, tmp_path: Path) -> None:
    model = trained(method, LLAMA)
    model.save_pretrained(tmp_path)
    plain = LLAMA.build()
    plain.load_adapter(str(tmp_path), is_trainable=True)
    train(LLAMA, plain.eval())
    train(LLAMA, model)
    assert_close(output(LLAMA, plain), output(LLAMA, model))


@pytest.mark.parametrize("rank", [4, 2])
def test_an_adapter_is_swapped_in_place_or_this_is_refused(method: Method, tmp_path: Path, rank: int) -> None:
    first, second = trained(method, MLP), adapted(method, MLP, seed=1, r=rank)
    train(MLP, second, lr=2e-2)
    second.save_pretrained(tmp_path)
    with works_or_refuses():
        hotswap_adapter(first, str(tmp_path), adapter_name="default")
        assert_close(output(MLP, first), output(MLP, second))


def test_the_scale_of_adapters_can_be_changed_or_this_is_refused(method: Method) -> None:
    model = trained(method, MLP)
    before = output(MLP, model)
    with works_or_refuses(), rescale_adapter_scale(model, 0.0):
        assert torch.equal(output(MLP, model), output(MLP, MLP.build()))
    assert torch.equal(output(MLP, model), before)


def test_an_adapters_folder_is_recognised(method: Method, tmp_path: Path) -> None:
    trained(method, MLP).save_pretrained(tmp_path)
    assert check_if_peft_model(str(tmp_path))


def test_the_signature_of_the_base_can_be_taken_over(method: Method) -> None:
    model = trained(method, LLAMA)
    before = output(LLAMA, model)
    update_forward_signature(model)
    assert torch.equal(output(LLAMA, model), before)
