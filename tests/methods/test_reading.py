"""A run without hashes is still refused if its files do not say what its recipe says, or hold other tensors."""

import json

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from labelled_files import refused
from recyclelora.methods import METHODS
from recyclelora.runs.predictor import load
from tiny_methods import made_run, tiny_recipe, unsealed

WITH_PEFT = [method for method in METHODS if method not in ("frozen", "full", "rein", "qr-lora")]
SAVING = [method for method in METHODS if method != "frozen"]
CHANGED = {
    "recyclelora": {"alpha": 2.0, "scaling": "sqrt-rank", "r_main": 5, "decomposition": "svd", "peft_type": "LORA"},
    "lora": {"lora_alpha": 9.0, "r": 3, "use_rslora": True, "use_dora": True, "init_lora_weights": "pissa"},
    "pissa": {"lora_alpha": 4.0},
    "soma": {"alpha": 1.0},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A function that gives a run of a method without hashes, and puts back its files."""
    kept = {}

    def get(method):
        if method not in kept:
            run, _ = made_run(tmp_path_factory.mktemp(method) / "run", tiny_recipe(method))
            unsealed(run)
            kept[method] = run, {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()}
        run, files = kept[method]
        run.adapter.mkdir(exist_ok=True)
        for file in run.adapter.iterdir():
            file.unlink()
        for file, content in files.items():
            file.write_bytes(content)
        return run

    return get


@pytest.mark.parametrize("method", METHODS)
def test_a_run_without_hashes_loads(method, made):
    load(made(method).path)


@pytest.mark.parametrize(("method", "key"), [(method, key) for method in CHANGED for key in CHANGED[method]])
def test_a_configuration_other_than_the_recipes_is_refused(method, key, made):
    run = made(method)
    file, value = run.adapter / "adapter_config.json", CHANGED[method][key]
    before = json.loads(file.read_text())
    file.write_text(json.dumps({**before, key: value}))
    parts = [run.adapter, f"adapter_config.json says {key} {value!r}", f"the recipe of this run gives {before[key]!r}"]
    refused(lambda: load(run.path), *parts)


def tensor_files(run):
    return [*sorted(run.adapter.glob("*.safetensors")), run.head]


@pytest.mark.parametrize("method", SAVING)
@pytest.mark.parametrize("damage", ["missing", "unexpected", "NaN", "infinity"])
def test_missing_unexpected_and_non_finite_tensors_are_named(method, damage, made):
    run = made(method)
    for file in tensor_files(run):
        state = load_file(file)
        name = next((name for name in state if "recycle_B0" in name), list(state)[-1])
        changed = dict(state)
        if damage == "missing":
            del changed[name]
        elif damage == "unexpected":
            changed["strange"] = torch.zeros(1)
            name = "strange"
        else:
            name = next(name for name in state if state[name].is_floating_point() and "scale" not in name)
            changed[name] = state[name].clone()
            changed[name].view(-1)[-1] = float("nan" if damage == "NaN" else "-inf")
        save_file(changed, file, {"format": "pt"})
        refused(lambda: load(run.path), file.parent, file.name, name)
        save_file(state, file, {"format": "pt"})
    load(run.path)


@pytest.mark.parametrize("method", WITH_PEFT)
def test_a_lost_adapter_never_becomes_a_request_to_a_model_hub(method, made, monkeypatch):
    run = made(method)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)

    def asked(*_, **__):
        raise AssertionError("the model hub was asked")

    for module in ("peft.config", "peft.utils.save_and_load", "peft.utils.other"):
        for name in ("hf_hub_download", "file_exists"):
            monkeypatch.setattr(f"{module}.{name}", asked, raising=False)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", asked)

    (run.adapter / "adapter_model.safetensors").rename(run.adapter / "adapter_model.bin")
    pickled = "adapter_model.safetensors is missing; adapter_model.bin is a pickle, which is never read"
    refused(lambda: load(run.path), run.adapter, pickled)
    for file in run.adapter.iterdir():
        file.unlink()
    refused(lambda: load(run.path), run.adapter, "adapter_config.json is missing")
    run.adapter.rmdir()
    refused(lambda: load(run.path), run.adapter, "is missing")
    run.adapter.write_text("a file of this name")
    refused(lambda: load(run.path), run.adapter, "is missing")
    run.adapter.unlink()


def test_scores_that_are_nan_or_infinite_are_never_a_class(made):
    model = load(made("recyclelora").path, device="cpu")
    image = np.zeros((40, 56, 3), np.uint8)
    bias = model.segmenter.head.get_parameter(
        next(n for n, _ in model.segmenter.head.named_parameters() if "bias" in n)
    )
    whole = bias.detach().clone()
    for wrong in ("nan", "inf"):
        for number in range(len(bias)):
            bias.data.copy_(whole)[number] = float(wrong)
            refused(lambda: model.predict(image), model.run.path, f"{40 * 56} of {40 * 56} pixels", "NaN or infinite")
    bias.data.copy_(whole)
    assert model.predict(image).max() < len(bias)
