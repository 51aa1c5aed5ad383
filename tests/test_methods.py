"""What is trained, and what is left alone."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from miniatures import TINY
from recyclelora.backbone import Backbone
from recyclelora.errors import UserError
from recyclelora.methods import METHODS, attach, merge_saved, save_trained, scale_of
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
    save_trained(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
    assert scale_of(recipe(method="frozen", adapter={"r_main": 4, "alpha": 2.0})) is None
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
        save_trained(model, tmp_path / "adapter")
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
    with pytest.raises(
        UserError, match=r"recyclelora on vit_tiny_patch16_224: layer 'blocks.0.attn.qkv': r_main \+ r_sub = 60 \+ 2"
    ):
        attach(backbone(), recipe(adapter={"r_main": 60, "r_sub": 2}))


def test_an_adapter_that_is_missing_damaged_or_of_another_model_is_refused(tmp_path):
    with pytest.raises(UserError, match="the adapter of this recyclelora run is missing"):
        merge_saved(backbone(), recipe(), tmp_path / "adapter")
    model = backbone()
    attach(model, recipe())
    save_trained(model, tmp_path / "adapter")
    wider = Backbone(TINY["model"], "random", model_args={**TINY["model_args"], "embed_dim": 96})
    with pytest.raises(UserError, match=r"no adapter for vit_tiny_patch16_224 \(.*size mismatch"):
        merge_saved(wider, recipe(), tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match="adapter: no adapter for vit_tiny"):
        merge_saved(backbone(), recipe(), tmp_path / "adapter")


SMALL = {"rein": {"tokens": 6, "rank": 3}, "frozen": {}, "full": {}}
FAMILY = {name: {"r_main": 4, "r_sub": 2} for name in ("recyclelora",)}
FAMILY |= {"recyclelora-main": {"r_main": 4}, "recyclelora-sub": {"r_sub": 2}, **SMALL}


def small(method):
    settings = FAMILY.get(method, {"rank": 4, "alpha": 4.0})
    return make_recipe({"sources": ["streets"], "method": method, "adapter": settings})


def learn(model, steps=3):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 32, 32)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    wanted = torch.randn_like(model(x)[0])
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x)[0] - wanted).square().mean().backward()
        optimizer.step()


def features(model):
    with torch.no_grad():
        return model(torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)))[0]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_starts_as_the_base_learns_and_comes_back_from_its_files(method, tmp_path):
    model, bare = backbone(), backbone()
    start = features(bare)
    attach(model, small(method))
    torch.testing.assert_close(features(model), start, atol=2e-5, rtol=1e-4)
    if method == "frozen":
        return
    learn(model)
    learnt = features(model)
    assert not torch.allclose(learnt, start, atol=1e-3)
    save_trained(model, tmp_path / "adapter")
    del model  # and with it what it keeps of its start
    merge_saved(bare, small(method), tmp_path / "adapter")
    torch.testing.assert_close(features(bare), learnt, atol=5e-5, rtol=1e-3)
    names = [name for name, _ in bare.named_parameters() if "rein_" not in name and "rein_shared" not in name]
    expected = [name for name, _ in backbone().named_parameters()]
    assert [name.replace(".block.", ".") for name in names] == expected  # merged: the base's own layers again


@pytest.mark.parametrize(
    ("method", "trained"),
    [
        ("full", None),
        ("lora", 2 * 4 * (192 + 96 + 240 + 240)),
        ("dora", 2 * 4 * (192 + 96 + 240 + 240) + 2 * (144 + 48 + 192 + 48)),
        ("mica", 2 * 4 * (48 + 48 + 48 + 192)),  # its B is frozen
        ("milora", 2 * 4 * (192 + 96 + 240 + 240)),
        ("soma", 2 * 4 * (192 + 96 + 240 + 240) + 2 * (144 + 48 + 192 + 48)),
        ("rein", 2 * (6 * 3 + 3 * 48) + 2 * (48 * 48 + 48)),
        ("recyclelora", 2 * 6 * (192 + 96 + 240 + 240)),
        ("recyclelora-main", 2 * 4 * (192 + 96 + 240 + 240)),
        ("recyclelora-sub", 2 * 2 * (192 + 96 + 240 + 240)),
    ],
)
def test_what_each_method_trains(method, trained):
    model = backbone()
    whole = sum(p.numel() for p in model.parameters())
    attach(model, small(method))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == (whole if trained is None else trained)


def test_soma_leaves_the_first_third_of_the_blocks_alone():
    model = Backbone(TINY["model"], "random", model_args={**TINY["model_args"], "depth": 6})
    attach(model, small("soma"))
    blocks = {name.split("blocks.")[1].split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert blocks == {"2", "3", "4", "5"}


@pytest.mark.parametrize(
    ("method", "settings", "scale"),
    [
        ("recyclelora", {}, 1 / 36),
        ("recyclelora", {"alpha": 36.0}, 1),
        ("recyclelora", {"scaling": "sqrt-rank"}, 1 / 6),
        ("recyclelora-sub", {}, 1 / 4),
        ("lora", {}, 1),
        ("lora", {"alpha": 1.0}, 1 / 36),
        ("soma", {}, 1),
        ("rein", {}, None),
        ("full", {}, None),
    ],
)
def test_the_scale_of_each_methods_update(method, settings, scale):
    found = scale_of(make_recipe({"sources": ["streets"], "method": method, "adapter": settings}))
    assert found == (None if scale is None else pytest.approx(scale))


@pytest.mark.parametrize("method", ["full", "rein", "soma"])
def test_a_file_of_trained_weights_that_is_missing_or_of_another_model_is_refused(method, tmp_path):
    model = backbone()
    attach(model, small(method))
    save_trained(model, tmp_path / "adapter")
    file = tmp_path / "adapter" / "trained.safetensors"
    state = load_file(file)
    file.unlink()
    with pytest.raises(UserError, match=r"trained.safetensors"):
        merge_saved(backbone(), small(method), tmp_path / "adapter")
    save_file({**state, "strange": torch.zeros(2)}, file)
    with pytest.raises(UserError, match="do not have the same weights: strange"):
        merge_saved(backbone(), small(method), tmp_path / "adapter")
