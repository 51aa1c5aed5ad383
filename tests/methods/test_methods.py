"""One suite for every method: how it starts, what it trains, and how it is saved, merged and read back."""

import importlib
import math
import re
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

import recyclelora
import recyclelora.methods
from labelled_files import refused
from miniatures import TINY, write_folder
from recyclelora.adapter.optim import param_groups
from recyclelora.errors import UserError
from recyclelora.methods import METHODS, get_method
from recyclelora.models.backbone import Backbone
from recyclelora.recipe import make_recipe
from recyclelora.runs.build import bare, build
from recyclelora.runs.checkpoint import read_state, write_state
from recyclelora.training.module import SegmentationModule
from recyclelora.training.train import train
from tiny_methods import HEADS, NAMES, learn, outputs, tiny_recipe, unsealed

SAVING = [method for method in METHODS if method != "frozen"]
CHANGING = [method for method in SAVING if method != "rein"]
"""Methods that change the weights of the base."""
EXACT = [method for method in METHODS if method not in ("pissa", "olora", "dora")]
"""Methods that start bit-identical to the base; the others subtract a part of the weight or compute its magnitude."""


def backbone(**args):
    torch.manual_seed(0)
    return Backbone(TINY["model"], "random", model_args={**TINY["model_args"], **args})


def attached(method, **settings):
    """The tiny backbone with a method's adapters, and the method's settings."""
    model, recipe = backbone(), tiny_recipe(method, adapter=settings)
    get_method(method).attach(model, recipe.adapter)
    return model, recipe.adapter


def trained_names(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    """Trained models of each method and head, made once: recipe, saved folder, head, outputs, untrained state."""
    made = {}

    def get(method, head="linear"):
        if (method, head) not in made:
            recipe = tiny_recipe(method, head)
            segmenter = build(recipe, len(NAMES))
            start = {name: value.clone() for name, value in segmenter.state_dict().items()}
            learn(segmenter)
            folder = tmp_path_factory.mktemp(f"{method}-{head}") / "adapter"
            get_method(method).save(segmenter.backbone, folder)
            made[method, head] = recipe, folder, segmenter, start
        return made[method, head]

    return get


# The start


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("method", METHODS)
def test_it_starts_as_the_base(method, head):
    recipe = tiny_recipe(method, head)
    base, model = bare(recipe, len(NAMES)), build(recipe, len(NAMES))
    for found, expected in zip(outputs(model)[:-1], outputs(base)[:-1], strict=True):
        if method in EXACT:
            assert torch.equal(found, expected)
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


LAYERS = 192 + 96 + 240 + 240  # inputs and outputs of a block's layers
BIASES = 144 + 48 + 192 + 48


@pytest.mark.parametrize(
    ("method", "trained"),
    [
        ("recyclelora", 2 * 6 * LAYERS),
        ("recyclelora-main", 2 * 4 * LAYERS),
        ("recyclelora-sub", 2 * 3 * LAYERS),
        ("frozen", 0),
        ("full", None),
        ("lora", 2 * 4 * LAYERS),
        ("dora", 2 * 4 * LAYERS + 2 * BIASES),
        ("pissa", 2 * 4 * LAYERS),
        ("olora", 2 * 4 * LAYERS),
        ("mica", 2 * 4 * (48 + 48 + 48 + 192)),  # its B is frozen
        ("milora", 2 * 4 * LAYERS),
        ("soma", 2 * 4 * LAYERS + 2 * BIASES),
        ("rein", 2 * (4 * 2 + 2 * 48) + 2 * (48 * 48 + 48)),
        ("qr-lora", 2 * 4 * 6),  # one number per direction of each of a block's four layers
    ],
)
def test_how_many_numbers_each_method_trains(method, trained):
    whole = sum(p.numel() for p in backbone().parameters())
    model, _ = attached(method)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == (whole if trained is None else trained)


PARTS = {
    "recyclelora": (".recycle_delta_A_main", ".recycle_delta_B_main", ".recycle_delta_A_sub", ".recycle_delta_B_sub"),
    "recyclelora-main": (".recycle_delta_A_main", ".recycle_delta_B_main"),
    "recyclelora-sub": (".recycle_delta_A_sub", ".recycle_delta_B_sub"),
    "lora": (".lora_A", ".lora_B"),
    "dora": (".lora_A", ".lora_B", ".lora_magnitude"),
    "pissa": (".lora_A", ".lora_B"),
    "olora": (".lora_A", ".lora_B"),
    "mica": (".lora_A",),
    "milora": (".recycle_delta_A_main", ".recycle_delta_B_main"),
    "soma": (".recycle_delta_A_main", ".recycle_delta_B_main", ".base_layer.bias"),
    "rein": (".rein_A", ".rein_B", ".rein_shared."),
    "qr-lora": (".coefficients",),
}


@pytest.mark.parametrize("method", METHODS)
def test_training_changes_only_what_the_method_trains(method, learnt):
    _, _, segmenter, start = learnt(method)
    state = segmenter.state_dict()
    moved = {name for name, value in state.items() if not torch.equal(value, start[name])}
    trained = trained_names(segmenter)
    assert moved <= {name for name, p in segmenter.named_parameters(remove_duplicate=False) if p.requires_grad}
    own = {name.removeprefix("backbone.") for name in trained if name.startswith("backbone.")}
    assert all(name.startswith("head.") for name in trained if not name.startswith("backbone."))
    if method == "full":
        assert own == {name for name, _ in segmenter.backbone.named_parameters()}
    elif method == "frozen":
        assert not own
        assert moved == {"head.classifier.weight", "head.classifier.bias"}
    else:
        assert {part for part in PARTS[method] for name in own if part in name} == set(PARTS[method])
        assert [name for name in own if not any(part in name for part in PARTS[method])] == []
    for part in PARTS.get(method, ()):  # each kind of what is trained learns something
        assert any(part in name for name in moved), part


GROUPS = {"full": {"backbone", "backbone undecayed"}, "frozen": set(), "rein": {"adapter", "backbone"}}
GROUPS |= {"recyclelora": {"main", "sub"}, "recyclelora-main": {"main"}, "recyclelora-sub": {"sub"}}
GROUPS |= {"milora": {"main"}, "soma": {"main", "adapter"}}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("method", METHODS)
def test_the_optimiser_has_each_parameter_once_at_the_rate_of_its_role(method, head, learnt):
    _, _, segmenter, _ = learnt(method, head)
    groups = param_groups(segmenter, 1.0, 0.5, 0.25, 3.0, get_method(method).role)
    names = {id(p): name for name, p in segmenter.named_parameters()}
    found = [names[id(p)] for group in groups for p in group["params"]]
    assert sorted(found) == sorted(trained_names(segmenter))
    rates = {group["name"]: (group["lr"], group["weight_decay"]) for group in groups}
    of_head = {"other", "undecayed"} if head in ("mask2former", "eomt") else {"other"}
    assert rates.keys() == GROUPS.get(method, {"adapter"}) | of_head
    expected = {
        "main": (1.0, 0.0), "sub": (0.25, 0.0), "adapter": (1.0, 0.0), "backbone": (1.0, 0.5),
        "backbone undecayed": (1.0, 0.0), "other": (3.0, 0.5), "undecayed": (3.0, 0.0),
    }  # fmt: skip
    assert rates == {name: expected[name] for name in rates}
    for group in groups:
        inside = {names[id(p)].partition(".")[0] for p in group["params"]}
        assert inside == {"head" if group["name"] in ("other", "undecayed") else "backbone"}


def test_soma_leaves_the_first_third_of_the_blocks_alone():
    model = backbone(depth=6)
    get_method("soma").attach(model, tiny_recipe("soma").adapter)
    blocks = {name.split("blocks.")[1].split(".")[0] for name in trained_names(model)}
    assert blocks == {"2", "3", "4", "5"}


@pytest.mark.parametrize("method", [method for method in SAVING if method not in ("full", "rein")])
def test_layers_are_chosen_by_name_and_block(method):
    model, _ = attached(method, target_modules=["attn.qkv", "mlp.fc2"], layers_to_transform=[1])
    assert {name.split("blocks.")[1].split(".")[0] for name in trained_names(model)} == {"1"}
    assert all(".attn.qkv." in name or ".mlp.fc2." in name for name in trained_names(model))


@pytest.mark.parametrize(
    "method", [method for method in METHODS if method.startswith(("recycle", "qr", "milora", "soma"))]
)
def test_without_factorising_the_adapter_waits_to_be_loaded(method):
    model = backbone()
    get_method(method).attach(model, tiny_recipe(method).adapter, draw=False)
    if method == "qr-lora":
        assert model(torch.randn(1, 3, 32, 32))[0].isnan().all()
    else:
        with pytest.raises(ValueError, match="adapter 'default' has no values"):
            model(torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("recyclelora", {"r_main": 60, "r_sub": 2}, r"layer 'blocks.0.attn.qkv': rank 62 \(r_main 60"),
        ("soma", {"rank": 60}, r"'blocks.0.attn.qkv'.*60"),
        ("qr-lora", {"rank": 60}, r"'blocks.0.attn.qkv'.*60"),
        ("qr-lora", {"target_modules": ["nothing"]}, "no layer of VisionTransformer matches"),
        ("recyclelora", {"target_modules": ["nothing"]}, "nothing"),
        ("lora", {"target_modules": ["nothing"]}, "no layer of VisionTransformer matches"),
        ("qr-lora", {"target_modules": ["norm1"]}, "is a LayerNorm"),
    ],
)
def test_settings_that_do_not_fit_the_model_are_the_users_error(method, settings, message):
    with pytest.raises(UserError, match=f"{method} on vit_tiny_patch16_224: .*{message}"):
        attached(method, **settings)


# Saving and merging


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("method", METHODS)
def test_what_was_learnt_comes_back_from_its_files(method, head, learnt):
    recipe, folder, segmenter, _ = learnt(method, head)
    expected = outputs(segmenter)
    fresh = bare(recipe, len(NAMES))
    base = outputs(fresh)
    if method != "frozen":
        assert not torch.allclose(expected[0], base[0], atol=1e-3)
    names = [name for name, _ in fresh.backbone.named_parameters()]
    get_method(method).merge(fresh.backbone, recipe.adapter, folder)
    get_method(method).link_head(fresh.backbone, fresh.head)
    fresh.head.load_state_dict(segmenter.head.state_dict())
    for found, wanted in zip(outputs(fresh), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=2e-4, rtol=1e-3)
    left = [name.replace(".block.", ".") for name, _ in fresh.backbone.named_parameters() if ".rein_" not in name]
    assert left == names  # the base's own layers again
    kept = {name for name, _ in fresh.backbone.named_parameters() if ".rein_" in name}
    assert bool(kept) == (method == "rein")


WITHOUT_PEFT = ("frozen", "full", "rein")


@pytest.mark.parametrize("method", [method for method in METHODS if method not in WITHOUT_PEFT])
def test_an_adapter_of_peft_computes_what_was_learnt_and_can_be_switched_off(method, learnt):
    recipe, folder, segmenter, _ = learnt(method)
    fresh = bare(recipe, len(NAMES))
    base = outputs(fresh)[0]
    model = get_method(method).adapter(fresh.backbone, recipe.adapter, folder)
    assert isinstance(model, PeftModel)
    torch.testing.assert_close(outputs(fresh)[0], outputs(segmenter)[0], atol=2e-4, rtol=1e-3)
    if method != "soma":  # whose biases stay
        with model.disable_adapter():
            torch.testing.assert_close(outputs(fresh)[0], base)


@pytest.mark.parametrize("method", WITHOUT_PEFT)
def test_a_method_says_that_peft_has_no_adapter_for_it(method, tmp_path):
    call = get_method(method).adapter
    refused(lambda: call(backbone(), tiny_recipe(method).adapter, tmp_path), method, "--format merged")


FILES = {key: ["adapter_config.json", "adapter_model.safetensors"] for key in SAVING}
FILES |= {"soma": ["adapter_config.json", "adapter_model.safetensors", "trained.safetensors"]}
FILES |= {key: ["trained.safetensors"] for key in ("full", "rein", "qr-lora")}


@pytest.mark.parametrize("method", METHODS)
def test_it_saves_its_own_files(method, learnt):
    _, folder, segmenter, _ = learnt(method)
    if method == "frozen":
        assert not folder.exists()
        return
    assert sorted(p.name for p in folder.iterdir()) == FILES[method]
    if (folder / "trained.safetensors").is_file():
        saved = load_file(folder / "trained.safetensors")
        assert not [name for name in saved if "base_model" in name or "base_layer" in name or "lora" in name]
        if method == "full":
            assert saved.keys() == {name for name, _ in segmenter.backbone.model.named_parameters()}


@pytest.mark.parametrize("method", METHODS)
def test_keep_gives_a_bare_backbone_the_form_after_merging(method, learnt):
    recipe, folder, _, _ = learnt(method)
    merged, kept = backbone(), backbone()
    get_method(method).merge(merged, recipe.adapter, folder)
    get_method(method).keep(kept, recipe.adapter)
    assert kept.model.state_dict().keys() == merged.model.state_dict().keys()
    kept.model.load_state_dict(merged.model.state_dict())
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(kept(x)[0], merged(x)[0])


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_holds_what_an_empty_adapter_needs(method, head, learnt, tmp_path):
    recipe, _, segmenter, _ = learnt(method, head)
    module = SegmentationModule(segmenter, recipe)
    kept = module.kept_state()
    of_base = {f"segmenter.backbone.{name}" for name, _ in backbone().named_parameters()}
    stored = {name.replace("base_model.model.", "").replace(".base_layer.", ".") for name in kept}
    stored = {name for name in stored if not name.endswith(".bias")}  # SoMA's are trained
    assert bool(stored & of_base) == (method == "full")
    assert not [name for name in kept if name.endswith(("parametrizations.weight.original", ".base_layer.weight"))]
    write_state(tmp_path / "last.safetensors", {"state_dict": kept})
    other = SegmentationModule(build(recipe, len(NAMES), draw=False), recipe)
    state = read_state(tmp_path / "last.safetensors")["state_dict"]
    assert not other.load_state_dict(state, strict=False).unexpected_keys
    for found, wanted in zip(outputs(other.segmenter), outputs(segmenter), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("method", SAVING)
def test_files_that_are_missing_damaged_or_of_another_model_are_refused(method, learnt, tmp_path):
    recipe, saved, _, _ = learnt(method)
    own, folder = get_method(method), tmp_path / "adapter"

    def merge(model):
        return lambda: own.merge(model, recipe.adapter, folder)

    refused(merge(backbone()), folder, f"the adapter of this {method} run is missing", "train again")
    folder.mkdir()
    content = {file.name: file.read_bytes() for file in saved.iterdir()}
    for name, whole in content.items():
        (folder / name).write_bytes(whole)
    own.merge(backbone(), recipe.adapter, folder)
    wrong = (folder, "not an adapter for vit_tiny_patch16_224", "restore it or train again")
    refused(merge(backbone(embed_dim=96)), *wrong)
    for name, whole in content.items():
        for damage in (None, b"", b"damaged", whole[: len(whole) // 2]):
            (folder / name).unlink()
            if damage is not None:
                (folder / name).write_bytes(damage)
            refused(merge(backbone()), *wrong)
            (folder / name).write_bytes(whole)


@pytest.mark.parametrize("method", [method for method in SAVING if "trained.safetensors" in FILES[method]])
def test_a_file_of_trained_weights_has_to_hold_exactly_those_of_the_model(method, learnt, tmp_path):
    recipe, saved, _, _ = learnt(method)
    own, folder = get_method(method), tmp_path / "adapter"
    folder.mkdir()
    for file in saved.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    file = folder / "trained.safetensors"
    state = load_file(file)
    save_file({**state, "strange": torch.zeros(2)}, file)
    parts = (folder, "trained.safetensors and the model do not have the same weights: strange")
    refused(lambda: own.merge(backbone(), recipe.adapter, folder), *parts)
    missing = sorted(state)[0]
    save_file({name: value for name, value in state.items() if name != missing}, file)
    refused(lambda: own.merge(backbone(), recipe.adapter, folder), folder, f"the same weights: {missing}")


# How the weights changed


@pytest.mark.parametrize("method", CHANGING)
def test_updates_add_up_to_the_merged_weights(method, learnt):
    recipe, folder, _, _ = learnt(method)
    own, base, merged = get_method(method), backbone(), backbone()
    updates = list(own.updates(backbone(), recipe.adapter, folder))
    own.merge(merged, recipe.adapter, folder)
    names = list(dict.fromkeys(update.layer for update in updates))
    assert len(names) == 8
    for name in names:
        mine = [update for update in updates if update.layer == name]
        before, after = base.model.get_submodule(name).weight, merged.model.get_submodule(name).weight
        assert all(torch.equal(update.base, before) for update in mine)
        torch.testing.assert_close(before + sum(update.delta for update in mine), after, atol=1e-5, rtol=1e-4)
        assert sum(update.delta.abs().sum() for update in mine) > 0
    expected = {"recyclelora": {"main", "sub"}, "recyclelora-main": {"main"}, "recyclelora-sub": {"sub"}}
    assert {update.role for update in updates} == expected.get(method, {method})
    ranks = {"recyclelora": {4, 2}, "recyclelora-sub": {3}, "full": {None}, "qr-lora": {6}}
    assert {update.rank for update in updates} == ranks.get(method, {4})
    for update in updates:
        if update.rank is not None:
            assert update.A.shape == (update.rank, update.base.shape[1])
            assert update.B.shape == (update.base.shape[0], update.rank)
        assert (update.index is not None) == method.startswith("recyclelora")
        if update.index is not None:
            assert (update.A.gather(1, update.index[:, None]) > 0.9).all()  # started at 1


WITH_KERNEL = {"target_modules": ["attn.qkv", "patch_embed.proj"]}


@pytest.mark.parametrize(
    "method", ["recyclelora", "recyclelora-main", "recyclelora-sub", "lora", "dora", "milora", "qr-lora"]
)
def test_a_patch_embedding_is_adapted_and_has_an_update_too(method, tmp_path):
    model, settings = attached(method, **WITH_KERNEL)
    own = get_method(method)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
    own.save(model, tmp_path)
    merged, base = backbone(), backbone()
    own.merge(merged, settings, tmp_path)
    after = merged.model.patch_embed.proj.weight.flatten(1)
    updates = [u for u in own.updates(backbone(), settings, tmp_path) if u.layer == "patch_embed.proj"]
    assert torch.equal(updates[0].base, base.model.patch_embed.proj.weight.flatten(1))
    assert updates[0].delta.abs().sum() > 0
    torch.testing.assert_close(updates[0].base + sum(u.delta for u in updates), after, atol=1e-5, rtol=1e-4)
    assert all(u.B.shape == (len(after), u.rank) for u in updates)
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(merged(x)[0], model(x)[0], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("method", ["pissa", "olora", "mica"])
def test_methods_for_linear_layers_only_refuse_a_patch_embedding(method):
    with pytest.raises(UserError, match=f"{method} on vit_tiny_patch16_224: .*{method}"):
        attached(method, **WITH_KERNEL)


@pytest.mark.parametrize("method", ["frozen", "rein"])
def test_methods_that_change_no_weight_have_no_updates(method, learnt):
    recipe, folder, _, _ = learnt(method)
    own = get_method(method)
    refused(lambda: list(own.updates(backbone(), recipe.adapter, folder)), f"method {method} does not change")


@pytest.mark.parametrize("method", CHANGING)
def test_updates_of_files_that_are_missing_or_damaged_are_refused(method, learnt, tmp_path):
    recipe, saved, _, _ = learnt(method)
    own, folder = get_method(method), tmp_path / "adapter"
    refused(lambda: list(own.updates(backbone(), recipe.adapter, folder)), folder, "is missing")
    folder.mkdir()
    for file in saved.iterdir():
        (folder / file.name).write_bytes(file.read_bytes()[:-3])
    refused(lambda: list(own.updates(backbone(), recipe.adapter, folder)), folder, "not an adapter for vit_tiny")


# Settings


@pytest.mark.parametrize(
    ("method", "settings", "scale"),
    [
        ("recyclelora", {}, 1 / 36),
        ("recyclelora", {"alpha": 36.0}, 1),
        ("recyclelora", {"scaling": "sqrt-rank"}, 1 / 6),
        ("recyclelora-main", {}, 1 / 32),
        ("recyclelora-sub", {}, 1 / 4),
        ("lora", {}, 1),
        ("lora", {"alpha": 1.0}, 1 / 36),
        ("dora", {"rank": 8, "alpha": 4.0}, 1 / 2),
        ("pissa", {}, 1),
        ("olora", {}, 1),
        ("mica", {}, 1),
        ("milora", {"rank": 9}, 4),
        ("soma", {}, 1),
        ("soma", {"alpha": 4.0}, 1 / 4),
        ("rein", {}, None),
        ("full", {}, None),
        ("frozen", {}, None),
        ("qr-lora", {}, None),
    ],
)
def test_the_scale_of_each_methods_update(method, settings, scale):
    recipe = make_recipe({"sources": ["streets"], "method": method, "adapter": settings})
    assert get_method(method).scale(recipe.adapter) == (None if scale is None else pytest.approx(scale))


@pytest.mark.parametrize("method", METHODS)
def test_the_scale_is_the_one_that_the_layers_compute_with(method):
    model, settings = attached(method)
    scales = [module.scaling["default"] for module in model.modules() if hasattr(module, "scaling")]
    scale = get_method(method).scale(settings)
    assert scales == ([] if scale is None else pytest.approx([scale] * 8))


COMMON = {"target_modules": None, "layers_to_transform": None}
FAMILY = {"alpha": 1.0, "scaling": "rank", "decomposition": "rrqr", **COMMON}
DEFAULTS = {
    "recyclelora": {"r_main": 32, "r_sub": 4, **FAMILY},  # arXiv 2603.28142
    "recyclelora-main": {"r_main": 32, "r_sub": 0, **FAMILY},
    "recyclelora-sub": {"r_main": 0, "r_sub": 4, **FAMILY},
    "frozen": {},
    "full": {},
    **{key: {"rank": 36, "alpha": 36.0, **COMMON} for key in ("lora", "dora", "pissa", "olora", "mica", "milora")},
    "soma": {"rank": 16, "alpha": 16.0, **COMMON},  # arXiv 2412.04077
    "rein": {"tokens": 100, "rank": 16},  # arXiv 2312.04265
    "qr-lora": {"rank": 128, **COMMON},
}


@pytest.mark.parametrize("method", METHODS)
def test_the_default_settings_of_each_method(method):
    recipe = make_recipe({"sources": ["streets"], "method": method})
    assert type(recipe.adapter) is get_method(method).settings
    assert recipe.adapter.model_dump() == DEFAULTS[method]


@pytest.mark.parametrize("method", METHODS)
def test_settings_of_another_method_are_refused(method):
    strange = "tokens" if method != "rein" else "r_main"
    takes = ", ".join(DEFAULTS[method]) or "no settings"
    values = {"sources": ["streets"], "method": method, "adapter": {strange: 4}}
    refused(lambda: make_recipe(values), f"method {method} has no {strange}; it takes {takes}")


@pytest.mark.parametrize("method", [method for method in METHODS if DEFAULTS[method]])
def test_invalid_values_are_refused(method):
    size = next(key for key in DEFAULTS[method] if DEFAULTS[method][key])
    for value in (-1, math.nan, "many"):
        values = {"sources": ["streets"], "method": method, "adapter": {size: value}}
        refused(lambda values=values: make_recipe(values), f"adapter.{size}", value)


# The registry


def test_each_method_is_one_file_of_its_name():
    for name in METHODS:
        method = get_method(name)
        home = importlib.import_module(f"recyclelora.methods.{name.replace('-', '_')}")
        assert method is home.METHOD
        assert method.name == name
        assert home.__doc__
    assert len(set(METHODS)) == len(METHODS) == 14


def test_an_unknown_method_is_refused_with_the_nearest_known():
    refused(lambda: get_method("recyclora"), "unknown method 'recyclora'", "'recyclelora'")


NORMS = '''
"""Trains the norms of the last blocks: the smallest method that there can be."""

from pydantic import Field

from recyclelora.methods.base import Method, MethodSettings


class NormSettings(MethodSettings):
    last: int = Field(1, gt=0)


class Norms(Method[NormSettings]):
    settings = NormSettings

    def _attach(self, backbone, settings, draw, cache_factors):
        for block in backbone.model.blocks[-settings.last :]:
            block.norm1.requires_grad_(True)

    def _needed(self, backbone, settings):
        first = backbone.depth - settings.last
        return {f"blocks.{i}.norm1.{kind}" for i in range(first, backbone.depth) for kind in ("weight", "bias")}


METHOD = Norms("norms-alone")
'''


def test_a_method_is_added_by_one_file_and_one_name(tmp_path, monkeypatch):
    (tmp_path / "norms_alone.py").write_text(NORMS)
    monkeypatch.setattr(recyclelora.methods, "__path__", [*recyclelora.methods.__path__, str(tmp_path)])
    monkeypatch.setattr(recyclelora.methods, "METHODS", (*METHODS, "norms-alone"))
    values = {
        "sources": [f"folder={write_folder(tmp_path / 'town')}"], "method": "norms-alone", "backbone": TINY,
        "adapter": {"last": 1}, "crop": 32, "batch_size": 2, "steps": 2, "workers": 0, "optim": {"lr": 0.1},
    }  # fmt: skip
    try:
        refused(lambda: make_recipe({**values, "adapter": {"first": 1}}), "norms-alone has no first; it takes last")
        refused(lambda: make_recipe({**values, "adapter": {"last": 0}}), "adapter.last")
        recipe = make_recipe(values)
        model = build(recipe, 3)
        assert {name for name in trained_names(model) if "head" not in name} == {
            "backbone.model.blocks.1.norm1.weight", "backbone.model.blocks.1.norm1.bias",
        }  # fmt: skip
        run = train(recipe, tmp_path / "run")
        assert run.info["parameters"]["adapters"] == 96
        assert load_file(run.adapter / "trained.safetensors").keys() == {
            "blocks.1.norm1.weight", "blocks.1.norm1.bias",
        }  # fmt: skip
        loaded = recyclelora.load(run.path, device="cpu")
        norm = loaded.segmenter.backbone.model.blocks[1].norm1
        assert not torch.allclose(norm.weight, torch.ones(48), atol=1e-3)
        image = torch.randint(256, (40, 56, 3), dtype=torch.uint8).numpy()
        assert loaded.predict(image).shape == (40, 56)
        saved = loaded.save(tmp_path / "merged")
        assert (recyclelora.load(saved.path, device="cpu").predict(image) == loaded.predict(image)).all()
        (run.adapter / "trained.safetensors").unlink()
        unsealed(run)
        refused(lambda: recyclelora.load(run.path), run.adapter, "restore it or train again")
    finally:
        sys.modules.pop("recyclelora.methods.norms_alone", None)
        vars(recyclelora.methods).pop("norms_alone", None)


@pytest.mark.parametrize("name", METHODS)
def test_the_docs_name_the_paper_of_every_method(name):
    table = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
    written = name if name != "recyclelora-sub" else "-sub"  # in the row of recyclelora-main
    (row,) = (line for line in table.splitlines() if line.startswith("| `") and f"`{written}`" in line.split("|")[1])
    for number in re.findall(r"\d{4}\.\d{5}", get_method(name).paper):
        assert number in row or "the paper's ablation" in row
    assert bool(get_method(name).paper) == (name not in ("frozen", "full"))
