"""Recipes: published defaults, a round trip through YAML, and errors that say what to write instead."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from labelled_files import refused
from recyclelora.files import shipped_recipes
from recyclelora.methods import METHODS, get_method
from recyclelora.methods.frozen import METHOD as FROZEN
from recyclelora.methods.lora import LoraSettings
from recyclelora.methods.recyclelora import RecycleLoraSettings
from recyclelora.recipe import (
    AugmentSettings,
    BackboneSettings,
    EvaluationSettings,
    OptimSettings,
    Recipe,
    make_recipe,
    read_recipe,
)

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return path

    return write


def test_the_defaults_are_the_published_settings():
    recipe = Recipe(sources=["gta"])
    optim, adapter, augment = recipe.optim, recipe.adapter, recipe.augment
    assert (recipe.method, recipe.crop, recipe.batch_size, recipe.steps) == ("recyclelora", 512, 4, 40_000)
    assert (optim.lr, optim.sub_lr_ratio, optim.power) == (1e-4, 0.5, 0.9)
    assert (optim.weight_decay, optim.final_weight_decay, optim.warmup) == (0.05, 1e-5, 0)
    assert (adapter.r_main, adapter.r_sub, adapter.decomposition) == (32, 4, "rrqr")
    assert (augment.scale, augment.cat_max_ratio, augment.flip, augment.photometric) == ((0.5, 2.0), 0.75, 0.5, True)
    plan = recipe.evaluation.plan("streets", recipe.crop, 16)
    assert (plan.name, plan.window, plan.stride, plan.flip, plan.scales) == ("full", 512, 341, False, (1.0,))
    assert recipe.precision == "32-true"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_of_the_project_is_read(path):
    recipe = read_recipe(path)
    assert make_recipe(yaml.safe_load(recipe.to_yaml())) == recipe
    assert read_recipe(path.stem) == recipe


def test_a_shipped_recipe_is_read_by_name_unless_a_file_has_it(tmp_path, monkeypatch):
    assert {*shipped_recipes()} == {path.stem for path in RECIPES}
    monkeypatch.chdir(tmp_path)
    assert read_recipe("g2cbm", {"steps": "3"}).steps == 3
    (tmp_path / "g2cbm").write_text("sources: [streets]\nsteps: 7")
    assert read_recipe("g2cbm").steps == 7
    refused(lambda: read_recipe("g2cbn"), "g2cbn: no such recipe", "recipes in .: none", "shipped, by name: ", "g2cbm")


def test_another_method_starts_from_its_own_adapters_defaults(write):
    path = write("sources: [streets]\nadapter: {r_main: 8, alpha: 3}")
    assert read_recipe(path, {"steps": "3"}).adapter.r_main == 8
    assert read_recipe(path, {"method": "recyclelora"}).adapter.r_main == 8
    assert read_recipe(path, {"method": "lora"}).adapter.model_dump(exclude_none=True) == {"rank": 36, "alpha": 36}
    both = read_recipe(path, {"adapter.rank": "4", "method": "lora"})
    assert (both.adapter.rank, both.adapter.alpha) == (4, 36)


# Round trip

words = st.text("abäß:#'\" ./_-", max_size=9).map("x".__add__)
positive = st.floats(1e-12, 1e6)
shares = st.floats(0, 1)
some_int = st.integers(1, 10**6)
values = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(-1e6, 1e6) | words
targeted = {
    "target_modules": st.none() | words | st.lists(words, max_size=2),
    "layers_to_transform": st.none() | st.lists(st.integers(0, 40), max_size=3),
}
directions = st.builds(
    RecycleLoraSettings,
    r_main=some_int,
    alpha=positive,
    scaling=st.sampled_from(["rank", "sqrt-rank"]),
    decomposition=st.sampled_from(["rrqr", "svd"]),
    **targeted,
)
methods = st.one_of(
    st.fixed_dictionaries({"method": st.just("recyclelora"), "adapter": directions}),
    st.fixed_dictionaries({"method": st.just("lora"), "adapter": st.builds(LoraSettings, rank=some_int, **targeted)}),
    st.fixed_dictionaries({"method": st.just("frozen"), "adapter": st.just(FROZEN.settings())}),
    st.fixed_dictionaries({"method": st.sampled_from(METHODS)}),
)
others = {
    "sources": st.lists(words, max_size=3),
    "limit": st.none() | some_int,
    "backbone": st.builds(BackboneSettings, weights=words, model_args=st.dictionaries(words, values, max_size=2)),
    "crop": st.integers(1, 8192),
    "optim": st.builds(OptimSettings, lr=positive, final_weight_decay=positive),
    "augment": st.builds(
        AugmentSettings,
        scale=st.tuples(st.floats(1e-12, 16), st.floats(1e-12, 16)).map(sorted).map(tuple),
        flip=shares,
        photometric=st.booleans(),
    ),
    "evaluation": st.builds(EvaluationSettings, window=st.none() | some_int, stride=st.none() | some_int),
    "precision": st.sampled_from(["32-true", "bf16-mixed"]),
    "seed": st.integers(0, 2**31 - 1),
}
recipes = st.builds(lambda method, other: Recipe(**method, **other), methods, st.fixed_dictionaries(others))


@given(recipes)
@settings(max_examples=80, deadline=None)
def test_a_recipe_survives_yaml(tmp_path_factory, recipe):
    path = tmp_path_factory.getbasetemp() / "recipe.yaml"
    path.write_text(recipe.to_yaml())
    assert read_recipe(path) == recipe


def test_all_settings_are_written_in_their_order_whether_given_or_not():
    written = yaml.safe_load(make_recipe({"sources": ["streets"]}).to_yaml())
    assert list(written) == list(Recipe.model_fields)
    assert written["optim"] == OptimSettings().model_dump()


def test_nothing_changes_after_reading():
    recipe = Recipe(sources=["streets"])
    for settings_, name in ((recipe, "seed"), (recipe.optim, "lr")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(settings_, name, 1)


# Values


@pytest.mark.parametrize("text", ["3e-4", "3.0e-4", "0.0003", "'3e-4'"])
def test_a_number_may_be_written_with_and_without_a_point(write, text):
    assert read_recipe(write(f"sources: [streets]\noptim: {{lr: {text}}}")).optim.lr == 3e-4


def plan(dataset="streets", patch=1, crop=96, **evaluation):
    recipe = make_recipe({"sources": ["streets"], "crop": crop, "evaluation": evaluation})
    return recipe.evaluation.plan(dataset, recipe.crop, patch)


def test_window_and_stride_follow_the_crop_unless_they_are_given():
    def sides(**evaluation):
        made = plan(**evaluation)
        return made.window, made.stride

    assert sides() == (96, 64)
    assert sides(window=48) == (48, 32)
    assert sides(stride=5) == (96, 5)
    assert sides(window=1) == (1, 1)


@pytest.mark.parametrize(
    ("dataset", "stride", "name", "window"),
    [
        ("cityscapes", 400, "soma-2048, stride 400", (512, 400)),
        ("acdc", 400, "soma-2048, stride 400", (1024, 400)),
        ("acdc", 683, "soma-2048", (1024, 683)),
        ("acdc", 1024, "soma-2048, stride 1024", (1024, 1024)),
    ],
)
def test_a_stride_may_be_as_long_as_the_protocols_window_whatever_the_crop(dataset, stride, name, window):
    made = plan(dataset, patch=16, crop=224, protocol="soma-2048", stride=stride)
    assert (made.name, (made.window, made.stride)) == (name, window)


def test_all_settings_of_an_evaluation_are_in_its_plan():
    made = plan("cityscapes", 16, protocol="rein-1024", window=64, batch_size=9, flip=True, scales=[0.5, 1])
    assert (made.batch_size, made.flip, made.scales, made.box) == (9, True, (0.5, 1.0), (1024, 512))
    assert made.name == "rein-1024, window 64, flip, scales 0.5 1"


@pytest.mark.parametrize(
    ("key", "text", "read"),
    [
        ("seed", "7", lambda recipe: recipe.seed == 7),
        ("optim.lr", "3e-4", lambda recipe: (recipe.optim.lr, recipe.optim.power) == (3e-4, 0.5)),
        ("adapter.r_sub", "0", lambda recipe: recipe.adapter.r_sub == 0),
        ("sources", "[a, b]", lambda recipe: [source.data for source in recipe.sources] == ["a", "b"]),
        ("limit", "null", lambda recipe: recipe.limit is None),
        ("backbone.model_args.img_size", "64", lambda recipe: recipe.backbone.model_args == {"img_size": 64}),
    ],
)
def test_single_keys_are_set_over_the_file(write, key, text, read):
    path = write("sources: [streets]\nlimit: 3\nseed: 1\noptim: {lr: 1.0, power: 0.5}")
    assert not read(read_recipe(path))
    assert read(read_recipe(path, {key: text}))


# Errors


@pytest.mark.parametrize(
    ("lines", "parts"),
    [
        ("stepps: 3", ["unknown key 'stepps'", "'steps'"]),
        ("optim: {lrr: 1}", ["unknown key 'optim.lrr'", "did you mean 'lr'?"]),
        ("augment: {flipp: 1}", ["unknown key 'augment.flipp'", "'flip'"]),
        (
            "evaluation: {qqqq: 1}",
            ["unknown key 'evaluation.qqqq'", "known: batch_size, blend, flip, protocol, scales"],
        ),
        ("steps: many", ["steps: ", "integer", "'many'"]),
        ("steps: 4.5", ["steps: ", "integer", "4.5"]),
        ("optim: {lr: fast}", ["optim.lr: ", "number", "'fast'"]),
        ("optim: 3", ["optim: ", "found 3"]),
        ("augment: {cat_max_ratio: 1.5}", ["augment.cat_max_ratio: ", "less than or equal to 1", "1.5"]),
        ("batch_size: 0", ["batch_size: ", "greater than 0", "found 0"]),
        ("precision: 16-mixed", ["precision: ", "'32-true', 'bf16-mixed' or '64-true'", "'16-mixed'"]),
        ("method: loora", ["method: ", "unknown method 'loora'", "did you mean 'lora'"]),
        ("method: imported", ["method: ", "unknown method 'imported'"]),
        ("method: lora\nadapter: {r_main: 4}", ["method lora has no r_main; it takes rank, alpha"]),
        ("adapter: {rank: 4}", ["method recyclelora has no rank; it takes r_main, r_sub, alpha"]),
        ("method: rein\nadapter: {target_modules: [a]}", ["method rein has no target_modules; it takes tokens, rank"]),
        ("head: liner", ["unknown head 'liner'", "did you mean 'linear'?"]),
        ("adapter: {r_main: 0, r_sub: 0}", ["adapter: r_main and r_sub must not both be 0"]),
        ("adapter: [32, 4]", ["adapter: expected settings of the method", "[32, 4]"]),
        ("method: lora\nadapter: {rank: many}", ["adapter.rank: ", "integer", "'many'"]),
        ("evaluation: {protocol: soma}", ["evaluation: unknown protocol 'soma'", "'soma-2048'"]),
        ("evaluation: {scales: [1, -1]}", ["evaluation: scales [1.0, -1.0] must be positive"]),
        ("evaluation: {scales: []}", ["evaluation.scales: ", "at least 1 item"]),
        ("evaluation: {stride: 0}", ["evaluation.stride: ", "greater than 0", "found 0"]),
        ("augment: {scale: [2, 0.5]}", ["augment: scale (2.0, 0.5) is not a range of positive numbers"]),
        ("optim: {warmup: -1}", ["optim.warmup: ", "greater than or equal to 0", "-1"]),
        (
            "steps: 200\noptim: {warmup: 200}",
            ["a warmup of 200 steps leaves none of 200 steps", "optim.warmup to fewer"],
        ),
        ("devices: 3", ["batch_size 4 cannot be shared by 3 devices"]),
        ("accumulate: 3", ["accumulate: 4 images per device cannot be split into 3 equal parts"]),
        ("devices: 2\naccumulate: 4", ["accumulate: 2 images per device cannot be split into 4 equal parts"]),
        ("strategy: deepspeed", ["strategy: ", "'ddp' or 'fsdp'", "'deepspeed'"]),
        ("strategy: fsdp\nmethod: full", ["strategy: fsdp", "method full freezes none; set strategy to ddp"]),
        ("accumulate: 0", ["accumulate", "greater than 0"]),
        ("adapter: {decomposition: qr}", ["adapter.decomposition: ", "'rrqr', 'svd' or 'weighted-svd'", "'qr'"]),
    ],
)
def test_wrong_settings_are_named_with_what_was_expected(write, lines, parts):
    path = write(f"sources: [streets]\n{lines}")
    refused(lambda: read_recipe(path), path, *parts)


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("{dat: a}", ["sources.0.data: Field required"]),
        ("{data: a, imges: 3}", ["unknown key 'sources.0.imges'", "did you mean 'images'?"]),
        ("{data: a, images: 0}", ["sources.0.images: ", "greater than 0", "found 0"]),
        ("{data: a, rare_classes: {temprature: 1}}", ["'sources.0.rare_classes.temprature'", "'temperature'?"]),
        ("{data: a, rare_classes: {temperature: 0}}", ["rare_classes.temperature: ", "greater than 0", "found 0"]),
        ("{data: a, rare_classes: -0.1}", ["sources.0.rare_classes.temperature: ", "greater than 0", "found -0.1"]),
        ("{data: a, rare_classes: often}", ["sources.0.rare_classes.temperature: ", "number", "'often'"]),
        ("{data: a, rare_classes: true}", ["sources.0.rare_classes: ", "found True"]),
        (
            "{data: a, rare_classes: {min_pixels: -1}}",
            ["rare_classes.min_pixels: ", "greater than or equal to 0", "-1"],
        ),
        ("{data: a, rare_classes: {min_pixels: 0.5}}", ["sources.0.rare_classes.min_pixels: ", "integer", "0.5"]),
        ("{data: a, rare_classes: {min_crop_ratio: -1}}", ["min_crop_ratio: ", "greater than or equal to 0", "-1"]),
    ],
)
def test_wrong_settings_of_a_source_are_named(write, source, parts):
    path = write(f"sources: [{source}]")
    refused(lambda: read_recipe(path), path, *parts)


@pytest.mark.parametrize("short", ["0.01", "1e-2", "{}", "{temperature: 0.01, min_pixels: 3000}"])
def test_rare_classes_are_those_of_daformer_and_may_be_one_number(write, short):
    rare = read_recipe(write(f"sources: [{{data: a, rare_classes: {short}}}, b]")).sources[0].rare_classes
    assert (rare.temperature, rare.min_pixels, rare.min_crop_ratio) == (0.01, 3000, 0.5)
    recipe = make_recipe({"sources": [{"data": "a", "rare_classes": 3}, "b"]})
    assert [source.rare_classes and source.rare_classes.temperature for source in recipe.sources] == [3, None]
    assert make_recipe(yaml.safe_load(recipe.to_yaml())) == recipe


def test_a_shorter_training_asks_for_a_shorter_warm_up():
    refused(lambda: read_recipe("c2acdc", {"steps": "100"}), "optim: a warmup of 10000 steps leaves none of 100 steps")
    assert read_recipe("c2acdc", {"steps": "100", "optim.warmup": "25"}).optim.warmup == 25


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("sources: streets", ["sources: ", "list", "'streets'"]),
        ("sources: [", ["not valid YAML", "line 1"]),
        ("- streets", ["found list", "expected a mapping", "sources: [...]"]),
        ("", ["expected a mapping"]),
    ],
)
def test_a_file_that_is_not_a_recipe_is_named(write, text, parts):
    path = write(text)
    refused(lambda: read_recipe(path), path, *parts)


def test_a_file_of_bytes_is_not_a_recipe(tmp_path):
    path = tmp_path / "photo.yaml"
    path.write_bytes(b"\xff\xd8\xff\xe0")
    refused(lambda: read_recipe(path), path, "not valid YAML")


def test_a_missing_file_lists_the_recipes_beside_it(tmp_path, write):
    refused(lambda: read_recipe(tmp_path / "other.yaml"), tmp_path / "other.yaml", "no such recipe", "none")
    write("sources: [streets]")
    refused(lambda: read_recipe(tmp_path / "other.yaml"), "mine.yaml")
    refused(lambda: read_recipe(tmp_path / "nowhere" / "other.yaml"), "no such recipe", "none")
    refused(lambda: read_recipe(tmp_path), tmp_path, "no such recipe")


def test_wrong_single_keys_are_named(write):
    path = write("sources: [streets]\nsteps: 5")
    refused(lambda: read_recipe(path, {"optim.lrr": "1"}), "unknown key 'optim.lrr'", "'lr'")
    refused(lambda: read_recipe(path, {"optim.lr": "fast"}), "optim.lr: ", "'fast'")
    refused(lambda: read_recipe(path, {"steps.lr": "1"}), "--set steps.lr", "'steps' is not a group of settings")


def test_errors_in_values_without_a_file_name_a_recipe():
    refused(lambda: make_recipe({"sources": ["streets"], "seed": -1}), "recipe: seed: ", "-1")


def test_a_single_key_that_is_not_yaml_is_named(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("sources: [streets]")
    refused(lambda: read_recipe(path, {"sources": "[a"}), "sources")


@pytest.mark.parametrize("text", ["1", "007", "1e5"])
def test_text_that_could_be_a_number_stays_text_in_the_round_trip(tmp_path, text):
    recipe = make_recipe({"sources": ["streets"]})
    recipe = recipe.model_copy(update={"backbone": recipe.backbone.model_copy(update={"weights": text})})
    path = tmp_path / "a.yaml"
    path.write_text(recipe.to_yaml())
    assert read_recipe(path) == recipe


def test_gaps_and_windows_that_do_not_fit_are_refused_per_data_set():
    refused(lambda: plan(window=32, stride=64), "protocol full: stride 64 leaves gaps between windows of 32", "1 to 32")
    recipe = {"protocol": "soma-2048", "stride": 683}
    assert plan("acdc", **recipe).stride == 683
    refused(lambda: plan("cityscapes", **recipe), "soma-2048: stride 683 leaves gaps between windows of 512")
    refused(lambda: plan(patch=14, window=100), "window 100 is not a multiple of the backbone's patch 14", "98 or 112")


def test_missing_adapter_settings_take_their_methods_defaults():
    def adapter(**values):
        found = make_recipe({"sources": ["streets"], **values}).adapter.model_dump()
        return {key: value for key, value in found.items() if value is not None}

    assert adapter() == {"r_main": 32, "r_sub": 4, "alpha": 1.0, "scaling": "rank", "decomposition": "rrqr"}
    assert adapter(method="recyclelora-sub")["r_main"] == 0
    assert adapter(method="lora", adapter={"rank": 8}) == {"rank": 8, "alpha": 36.0}
    assert adapter(method="rein") == {"tokens": 100, "rank": 16}
    assert adapter(method="frozen") == {}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_settings_of_its_own_with_defaults(method):
    recipe = make_recipe({"method": method})
    assert type(recipe.adapter) is get_method(method).settings
    assert recipe.adapter == get_method(method).settings()
    assert yaml.safe_load(recipe.to_yaml())["adapter"] == recipe.adapter.model_dump()


def test_a_recipe_without_sources_is_valid_but_not_trained():
    recipe = make_recipe({"targets": ["streets:fog"]})
    assert recipe.sources == []
    assert make_recipe(yaml.safe_load(recipe.to_yaml())) == recipe
    refused(recipe.check_sources, "recipe: sources: at least 1 is required", "found []")
    make_recipe({"sources": ["streets"]}).check_sources()


def test_an_infinite_rate_is_refused():
    refused(lambda: make_recipe({"sources": ["streets"], "optim": {"lr": float("inf")}}), "optim.lr")
