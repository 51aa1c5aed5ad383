"""How the trainings of runs changed the weights of their base, and the runs of which that cannot be said."""

import pytest
import torch
from cells import cell

from labelled_files import refused
from miniatures import write_folder
from recyclelora.runs.build import base_of
from recyclelora.runs.predictor import load
from recyclelora.study.updates import layer_updates
from recyclelora.training.train import train


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data") / "town")


@pytest.fixture(scope="module")
def run(town, tmp_path_factory):
    return train(cell(town).recipe, tmp_path_factory.mktemp("runs") / "ours")


def test_base_and_updates_make_the_trained_weights(run):
    trained, base = (model.backbone.model for model in (load(run.path, device="cpu").segmenter, base_of(run)))
    updates = layer_updates(run)
    layers = list(dict.fromkeys(update.layer for update in updates))
    assert [(update.layer, update.role) for update in updates] == [
        (layer, role) for layer in layers for role in ("main", "sub")
    ]
    for layer in layers:
        both = [update for update in updates if update.layer == layer]
        start = base.get_submodule(layer).weight
        assert all(torch.equal(update.base, start) for update in both)
        found = trained.get_submodule(layer).weight
        torch.testing.assert_close(found, start + sum(update.delta for update in both), atol=1e-5, rtol=1e-4)
        assert not torch.allclose(found, start, atol=1e-6)


def test_runs_whose_updates_are_not_known_are_refused(run, town, tmp_path):
    merged = load(run.path, device="cpu").save(tmp_path / "merged")
    refused(lambda: layer_updates(merged), merged.path, "merged", "the run of the training")
    for method in ("frozen", "rein"):
        other = train(cell(town, method, steps=1).recipe, tmp_path / method)
        refused(lambda other=other: layer_updates(other), other.path, method)
    other.head.unlink()
    refused(lambda: layer_updates(other), other.path, "not finished", "--resume")
