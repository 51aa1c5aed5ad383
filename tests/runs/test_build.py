"""The model of a recipe: the same for the same seed, on the base weights that it names."""

import pytest
import torch

from labelled_files import refused
from miniatures import TINY
from recyclelora.models.backbone import Backbone, pyramid_indices
from recyclelora.models.heads import HEADS
from recyclelora.runs.build import bare, base_hash, base_of, build
from tiny_methods import NAMES, images, made_run, tiny_recipe


def same(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("head", HEADS)
def test_the_same_seed_gives_the_same_model(head):
    recipe = tiny_recipe("lora", head)
    assert same(build(recipe, 3), build(recipe, 3))
    assert not same(build(recipe, 3), build(tiny_recipe("lora", head, seed=1), 3))


@pytest.mark.parametrize("method", ["recyclelora", "lora", "full"])
def test_the_initial_head_is_the_same_for_every_method(method):
    assert same(build(tiny_recipe(method), 3).head, build(tiny_recipe("frozen"), 3).head)


@pytest.mark.parametrize(
    ("head", "indices", "norm"),
    [("linear", [1], True), ("concat", [0, 0, 0, 1], True), ("mask2former", [0, 0, 0, 1], False)],
)
def test_a_head_says_which_features_it_takes(head, indices, norm):
    backbone = bare(tiny_recipe("frozen", head), 3).backbone
    assert backbone.indices == indices
    assert backbone.norm == norm
    chosen = tiny_recipe("frozen", head, backbone={**TINY, "norm": not norm})
    assert bare(chosen, 3).backbone.norm != norm
    assert list(pyramid_indices(24)) == [7, 11, 15, 23]


def test_sizes_that_do_not_fit_the_patch_are_refused():
    refused(lambda: build(tiny_recipe("lora", crop=40), 3), "crop 40 is not a multiple of the patch 16", "32 or 48")
    window = {"evaluation": {"window": 40}}
    refused(lambda: build(tiny_recipe("lora", **window), 3), "40", "16")
    refused(lambda: build(tiny_recipe("lora", **window, targets=["streets"]), 3), "40", "16")


def test_the_class_count_is_that_of_the_head():
    assert build(tiny_recipe("lora"), 5)(images()).shape == (2, 5, 64, 64)


def test_gradient_checkpointing_is_switched_on():
    recipe = tiny_recipe("lora", backbone={**TINY, "grad_checkpointing": True})
    assert build(recipe, 3).backbone.model.get_base_model().grad_checkpointing
    assert not build(tiny_recipe("lora"), 3).backbone.model.get_base_model().grad_checkpointing


def base_file(path, seed):
    torch.manual_seed(seed)
    torch.save(Backbone(TINY["model"], "random", model_args=TINY["model_args"]).model.state_dict(), path)
    return str(path)


def test_a_run_loads_only_on_its_own_base(tmp_path):
    file = base_file(tmp_path / "base.pth", 5)
    recipe = tiny_recipe("lora", backbone={**TINY, "weights": file})
    run, _ = made_run(tmp_path / "run", recipe)
    assert run.info["weights_sha256"] == base_hash(recipe)
    base = base_of(run)
    assert not base.training
    assert not any(p.requires_grad for p in base.parameters())
    assert same(base.backbone, bare(recipe, len(NAMES)).backbone)

    (tmp_path / "base.pth").rename(tmp_path / "moved.pth")
    refused(lambda: base_of(run), tmp_path / "base.pth", "no such file")
    assert same(base_of(run, str(tmp_path / "moved.pth")), base)
    other = base_file(tmp_path / "other.pth", 6)
    parts = [run.path, run.info["weights_sha256"][:12], other, "give the original weights"]
    refused(lambda: base_of(run, other), *parts)
    refused(lambda: base_of(run, "random"), run.path, "weights 'random'")
