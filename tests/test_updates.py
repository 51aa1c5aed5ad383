"""Updates of a run's layers, whatever its method, against the merged model."""

import pytest
import torch

from labelled_files import refused
from miniatures import TINY, write_folder
from recyclelora.recipe import make_recipe
from recyclelora.run import base_of, load
from recyclelora.training.fit import train
from recyclelora.updates import layer_updates

METHODS = {
    "recyclelora": {"r_main": 4, "r_sub": 2}, "recyclelora-sub": {"r_sub": 3}, "full": {}, "lora": {"rank": 4},
    "dora": {"rank": 4}, "pissa": {"rank": 4}, "olora": {"rank": 4}, "mica": {"rank": 4}, "soma": {"rank": 4},
}  # fmt: skip


def trained(folder, method, adapter, town, **changes):
    values = {
        "sources": [f"folder={town}"], "method": method, "backbone": TINY, "adapter": adapter, "crop": 32,
        "batch_size": 2, "steps": 2, "workers": 0, "optim": {"lr": 0.01}, **changes,
    }  # fmt: skip
    return train(make_recipe(values), folder)


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data") / "town")


@pytest.mark.parametrize("method", METHODS)
def test_updates_add_up_to_the_merged_weights(method, town, tmp_path):
    run = trained(tmp_path / "run", method, METHODS[method], town)
    merged, base = load(run.path, device="cpu").segmenter.backbone.model, base_of(run).backbone.model
    updates = layer_updates(run)
    names = list(dict.fromkeys(update.layer for update in updates))
    assert len(names) == 8
    for name in names:
        own = [update for update in updates if update.layer == name]
        before, after = base.get_submodule(name).weight, merged.get_submodule(name).weight
        assert all(torch.equal(update.base, before) for update in own)
        torch.testing.assert_close(before + sum(update.delta for update in own), after, atol=1e-5, rtol=1e-4)
        assert sum(update.delta.abs().sum() for update in own) > 0
    roles = {update.role for update in updates}
    assert roles == {"recyclelora": {"main", "sub"}, "recyclelora-sub": {"sub"}}.get(method, {method})
    for update in updates:
        if method == "full":
            assert update.rank is None
        else:
            assert update.A.shape == (update.rank, update.base.shape[1])
            assert update.B.shape == (update.base.shape[0], update.rank)
        assert (update.index is not None) == method.startswith("recyclelora")
        if update.index is not None:
            assert (update.A.gather(1, update.index[:, None]) > 0.9).all()  # started at 1


@pytest.mark.parametrize("method", ["recyclelora", "lora"])
def test_a_patch_embedding_has_an_update_too(method, town, tmp_path):
    targets = {"target_modules": ["attn.qkv", "patch_embed.proj"]}
    run = trained(tmp_path / "run", method, METHODS[method] | targets, town)
    merged = load(run.path, device="cpu").segmenter.backbone.model.patch_embed.proj.weight.flatten(1)
    own = [update for update in layer_updates(run) if update.layer == "patch_embed.proj"]
    torch.testing.assert_close(own[0].base + sum(update.delta for update in own), merged, atol=1e-5, rtol=1e-4)
    assert all(update.B.shape == (len(merged), update.rank) for update in own)


@pytest.mark.parametrize("method", ["frozen", "rein"])
def test_methods_that_change_no_weight_are_refused(method, town, tmp_path):
    adapter = {"tokens": 4, "rank": 2} if method == "rein" else {}
    run = trained(tmp_path / "run", method, adapter, town)
    refused(lambda: layer_updates(run), str(run.path), f"method {method} leaves no change")


def test_an_unfinished_run_is_refused(town, tmp_path):
    run = trained(tmp_path / "run", "lora", {"rank": 4}, town)
    (run.path / "head.safetensors").unlink()
    refused(lambda: layer_updates(run), "not finished", "--resume")
