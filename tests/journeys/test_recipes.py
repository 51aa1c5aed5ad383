"""Every recipe on miniature data in the true formats: two steps of training, and the scores on its targets."""

import json

import pytest

from labelled_files import MAKERS
from miniatures import SMALL_HEAD, TINY
from recyclelora.data.opening import parse_spec
from recyclelora.recipe import read_recipe
from recyclelora.runs.run import open_run
from recyclelora.training.train import train

GTAV, CITYSCAPES = ("gtav", 12403), ("cityscapes", None)
PUBLISHED = {  # sources and images of each, r_sub, targets, crop, padding, steps of the warm-up
    "g2cbm": ([GTAV], 4, ["cityscapes", "bdd100k", "mapillary-half"], 512, "image", 0),
    "gs2cbm": ([GTAV, ("synthia", None)], 4, ["cityscapes", "bdd100k", "mapillary-half"], 512, "normalised", 0),
    "gsu2cbm": (
        [GTAV, ("synthia", None), ("urbansyn", None)], 4, ["cityscapes", "bdd100k", "mapillary-half"], 512,
        "normalised", 0,
    ),
    "c2bm": ([CITYSCAPES], 2, ["bdd100k", "mapillary-half"], 512, "image", 0),
    "c2acdc": ([CITYSCAPES], 2, ["acdc"] * 4, 1024, "normalised", 10_000),
}  # fmt: skip


@pytest.fixture
def recipes(request):
    return request.config.rootpath / "recipes"


def miniature(recipe):
    """The recipe with a tiny backbone, a crop of 64 pixels and two images per source."""
    values = recipe.model_dump(mode="json")
    for source in values["sources"]:
        source["images"] = source["images"] and 2
    model_args = {**TINY["model_args"], "img_size": 64}
    return type(recipe).model_validate(
        values
        | {"backbone": {**values["backbone"], **TINY, "model_args": model_args}, "adapter": {"r_main": 8, "r_sub": 2}}
        | {"head_args": SMALL_HEAD if recipe.head == "mask2former" else {}, "crop": 64, "batch_size": 2, "steps": 2}
        | {"workers": 0, "limit": values["limit"] and 2, "evaluation": {"window": 64}}
        | {"optim": {**values["optim"], "warmup": min(1, values["optim"]["warmup"])}}
    )


def test_every_recipe_is_tried(recipes):
    assert {path.stem for path in recipes.glob("*.yaml")} == {*PUBLISHED, "streets"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_settings(name, recipes):
    recipe = read_recipe(recipes / f"{name}.yaml")
    sources, r_sub, targets, crop, pad, warmup = PUBLISHED[name]
    assert [(parse_spec(s.data).name, s.images) for s in recipe.sources] == sources
    assert not any(s.rare_classes for s in recipe.sources)
    assert (recipe.adapter.r_main, recipe.adapter.r_sub, recipe.adapter.alpha) == (32, r_sub, 1)
    assert [parse_spec(target).name for target in recipe.targets] == targets
    assert (recipe.crop, recipe.augment.pad, recipe.head, recipe.head_args) == (crop, pad, "mask2former", {})
    assert recipe.backbone.model == "vit_large_patch14_dinov2.lvd142m"
    assert recipe.backbone.model_args == {"patch_size": 16, "img_size": crop}
    assert recipe.backbone.resample == "published"
    assert (recipe.steps, recipe.batch_size, recipe.precision, recipe.evaluation.protocol) == (
        40_000, 4, "32-true", "soma-2048",
    )  # fmt: skip
    assert recipe.optim.model_dump() == {
        "lr": 1e-4, "head_lr": None, "sub_lr_ratio": 0.5, "sub_start": 0.0, "power": 0.9, "weight_decay": 0.05,
        "final_weight_decay": 1e-5, "average": 0.0, "warmup": warmup,
    }  # fmt: skip
    assert recipe.augment.model_dump(exclude={"pad"}) == {
        "scale": (0.5, 2.0), "cat_max_ratio": 0.75, "flip": 0.5, "photometric": True,
    }  # fmt: skip


@pytest.mark.parametrize("name", [*PUBLISHED, "streets"])
def test_every_recipe_trains_and_is_scored(name, recipes, tmp_path, monkeypatch, command):
    recipe = read_recipe(recipes / f"{name}.yaml")
    monkeypatch.setenv("RECYCLELORA_DATA", str(tmp_path))
    wanted = {parse_spec(spec).name for spec in [*(s.data for s in recipe.sources), *recipe.targets]}
    for data_set in sorted(wanted - {"streets"}):
        MAKERS[data_set](tmp_path / data_set.removesuffix("-half"), size=(128, 96))
    run = train(miniature(recipe), tmp_path / "run")
    assert [json.loads(line)["step"] for line in run.metrics.read_text().splitlines()] == [1, 2]
    listed = [path.read_text().split() for path in sorted(run.manifests.iterdir())]
    info = open_run(run.path).info
    sources = [source["images"] for source in [*info["sources"], *info.get("validation", ())]]
    assert [len(names) for names in listed] == sources
    target = () if recipe.targets else ("--target", "streets:fog")
    code, _, err = command("evaluate", run.path, *target, "--limit", 1, "--out", tmp_path / "scores.json")
    assert (code, err) == (0, "")
    result = json.loads((tmp_path / "scores.json").read_text())
    assert len(result["targets"]) == len(recipe.targets or target[1:])
    assert all(0 <= target["miou"] <= 1 for target in result["targets"])


def test_a_users_folder_is_trained_on_with_its_rare_classes(town, recipe, tmp_path, monkeypatch, command):
    monkeypatch.setenv("RECYCLELORA_CACHE", str(tmp_path / "cache"))

    def train_with(rare, *more):
        sources = f"sources=[{{data: 'town:folder={town}', rare_classes: {rare}}}]"
        return command("train", "--recipe", recipe, "--out", tmp_path / "run", "--set", sources, *more)

    code, _, err = train_with("0.01")
    assert code == 1
    assert "town: rare_classes: min_pixels is 3000, but no image holds more than" in err
    assert not (tmp_path / "run").exists()
    code, _, err = train_with("{temperature: 0.1, min_pixels: 50}", "--set", "workers=2")
    assert code == 0
    assert [line.split()[0] for line in err.splitlines()] == ["training"]  # the line at the start
    assert len(list((tmp_path / "cache" / "class-counts").iterdir())) == 1
    (source,) = open_run(tmp_path / "run").recipe.sources
    assert source.rare_classes.model_dump() == {"temperature": 0.1, "min_pixels": 50, "min_crop_ratio": 0.5}
