"""What is trained, and what is left alone."""

import pytest
import torch
from safetensors.torch import load_file

from miniatures import TINY
from recyclelora.backbone import Backbone
from recyclelora.errors import UserError
from recyclelora.methods import attach, merge_saved, save_adapter
from recyclelora.recipe import make_recipe


def backbone():
    torch.manual_seed(0)
    return Backbone(TINY["model"], "random", model_args=TINY["model_args"])


def recipe(**values):
    return make_recipe({"sources": ["streets"], "adapter": {"r_main": 4, "r_sub": 2}, **values})


def test_frozen_trains_nothing_and_saves_nothing(tmp_path):
    model = backbone()
    attach(model, recipe(method="frozen"))
    assert not any(p.requires_grad for p in model.parameters())
    save_adapter(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
    merge_saved(model, recipe(method="frozen"), tmp_path / "adapter")


def test_recyclelora_trains_its_adapters_only():
    model = backbone()
    attach(model, recipe())
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all(".recycle_A_" in name or ".recycle_B_" in name for name in trained)


def test_the_features_do_not_change_at_the_start_and_saving_keeps_what_was_learnt(tmp_path):
    model, bare = backbone(), backbone()
    attach(model, recipe())
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(x)[0], bare(x)[0])
        for name, parameter in model.named_parameters():
            if "recycle_B_main" in name:
                parameter += 0.1
        learnt = model(x)[0]
        assert not torch.allclose(learnt, bare(x)[0], atol=1e-3)
        save_adapter(model, tmp_path / "adapter")
        merge_saved(bare, recipe(), tmp_path / "adapter")
        torch.testing.assert_close(bare(x)[0], learnt, atol=1e-5, rtol=1e-5)
    assert sorted(p.name for p in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors",
    ]  # fmt: skip
    assert load_file(tmp_path / "adapter" / "adapter_model.safetensors")


def test_without_drawing_the_adapter_waits_to_be_loaded():
    model = backbone()
    attach(model, recipe(), draw=False)
    assert model(torch.randn(1, 3, 32, 32))[0].isnan().all()


def test_a_rank_that_does_not_fit_is_the_users_error():
    with pytest.raises(UserError, match=r"vit_tiny_patch16_224: layer 'blocks.0.attn.qkv': r_main \+ r_sub = 60 \+ 2"):
        attach(backbone(), recipe(adapter={"r_main": 60, "r_sub": 2}))


def test_an_adapter_that_is_missing_damaged_or_of_another_model_is_refused(tmp_path):
    with pytest.raises(UserError, match="the adapter of this recyclelora run is missing"):
        merge_saved(backbone(), recipe(), tmp_path / "adapter")
    model = backbone()
    attach(model, recipe())
    save_adapter(model, tmp_path / "adapter")
    wider = Backbone(TINY["model"], "random", model_args={**TINY["model_args"], "embed_dim": 96})
    with pytest.raises(UserError, match=r"no adapter for vit_tiny_patch16_224 \(.*size mismatch"):
        merge_saved(wider, recipe(), tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match="adapter: no adapter for vit_tiny"):
        merge_saved(backbone(), recipe(), tmp_path / "adapter")
