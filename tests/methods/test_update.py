"""The updates of a run's layers, which need a finished run."""

import pytest
import torch

from labelled_files import refused
from recyclelora.methods.update import Update
from recyclelora.runs.build import base_of
from recyclelora.runs.predictor import load
from recyclelora.study.updates import layer_updates
from tiny_methods import made_run, tiny_recipe, unsealed


@pytest.mark.parametrize("method", ["recyclelora", "full", "pissa", "qr-lora"])
def test_updates_of_a_run_add_up_to_its_model(method, tmp_path):
    run, _ = made_run(tmp_path / "run", tiny_recipe(method))
    merged, base = load(run.path, device="cpu").segmenter.backbone.model, base_of(run).backbone.model
    updates = layer_updates(run)
    names = list(dict.fromkeys(update.layer for update in updates))
    assert len(names) == 8
    for name in names:
        own = [update for update in updates if update.layer == name]
        before, after = base.get_submodule(name).weight, merged.get_submodule(name).weight
        assert all(torch.equal(update.base, before) for update in own)
        torch.testing.assert_close(before + sum(update.delta for update in own), after, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", ["frozen", "rein"])
def test_methods_that_change_no_weight_are_refused(method, tmp_path):
    run, _ = made_run(tmp_path / "run", tiny_recipe(method))
    refused(lambda: layer_updates(run), str(run.path), f"method {method} does not change the weights")


def test_an_unfinished_run_is_refused(tmp_path):
    run, _ = made_run(tmp_path / "run", tiny_recipe("lora"))
    run.head.unlink()
    refused(lambda: layer_updates(run), "not finished", "--resume")


def test_a_run_without_its_adapter_is_refused(tmp_path):
    run, _ = made_run(tmp_path / "run", tiny_recipe("lora"))
    (run.adapter / "adapter_model.safetensors").unlink()
    refused(lambda: layer_updates(run), run.adapter / "adapter_model.safetensors", "missing", "restore the file")
    unsealed(run)
    refused(lambda: layer_updates(run), run.adapter, "not an adapter for")


def test_a_merged_model_is_refused(tmp_path):
    run, _ = made_run(tmp_path / "run", tiny_recipe("lora"))
    saved = load(run.path, device="cpu").save(tmp_path / "merged")
    refused(lambda: layer_updates(saved), saved.path, "merged", "analyze the run of the training")


def test_the_rank_is_that_of_the_factors():
    weight = torch.zeros(5, 6)
    assert Update("layer", "lora", weight, weight, torch.zeros(5, 2), torch.zeros(2, 6)).rank == 2
    assert Update("layer", "full", weight, weight).rank is None
