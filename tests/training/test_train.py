"""Every setting of a recipe changes the result of a training, and every method resumes where it stopped."""

import json
import tempfile

import jaxtyping
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from schedules import of_mmengine

import recyclelora
from labelled_files import refused
from miniatures import SMALL_EOMT, SMALL_HEAD, TINY, write_folder
from recyclelora.methods import METHODS
from recyclelora.models.heads.linear import LinearHead
from recyclelora.recipe import make_recipe
from recyclelora.training.module import SegmentationModule
from recyclelora.training.recorder import RunRecorder
from recyclelora.training.train import decisive, train
from tiny_methods import ADAPTERS

BASE = {
    "backbone": TINY, "adapter": {"r_main": 4, "r_sub": 2}, "crop": 32, "batch_size": 2, "steps": 3, "workers": 0,
    "optim": {"lr": 0.003},
}  # fmt: skip


def trained(out, sources, change):
    values = {**BASE, "sources": sources}
    for key, value in change.items():
        group, _, name = key.rpartition(".")
        if group:
            values[group] = {**values.get(group, {}), name: value}
        else:
            values[key] = value
    run = train(make_recipe(values), out)
    adapter = out / "adapter" / "adapter_model.safetensors"
    return {**load_file(run.path / "head.safetensors"), **(load_file(adapter) if adapter.exists() else {})}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    return [f"folder={write_folder(root / name, seed=seed)}" for seed, name in enumerate(("a", "b"))]


@pytest.fixture(scope="module")
def base(tmp_path_factory, sources):
    return trained(tmp_path_factory.mktemp("base") / "run", sources[:1], {})


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "change",
    [
        {"method": "frozen", "adapter": {}}, {"limit": 1}, {"crop": 48}, {"batch_size": 3}, {"steps": 4},
        {"precision": "bf16-mixed"}, {"seed": 1}, {"backbone.norm": False},
        {"backbone.model_args": {**TINY["model_args"], "depth": 1}},
        {"adapter.r_main": 5}, {"adapter.r_sub": 0}, {"adapter.alpha": 3.0}, {"adapter.decomposition": "svd"},
        {"adapter.target_modules": ["attn.qkv"]}, {"adapter.layers_to_transform": [1]},
        {"optim.lr": 0.001}, {"optim.sub_lr_ratio": 1.0}, {"optim.power": 2.0}, {"optim.weight_decay": 0.5},
        {"optim.final_weight_decay": 0.5}, {"augment.scale": [1.0, 1.0]}, {"augment.cat_max_ratio": 0.55},
        {"augment.flip": 0.0}, {"optim.head_lr": 0.01}, {"optim.average": 0.5}, {"optim.sub_start": 0.5},
        {"adapter.scaling": "sqrt-rank"}, {"augment.photometric": False}, {"precision": "64-true"},
        {"optim.warmup": 2},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_every_setting_changes_the_result(change, base, sources, tmp_path):
    assert not same(base, trained(tmp_path / "run", sources[:1], change))


def test_the_average_moves_by_more_at_first_and_the_sub_adapter_starts_late(sources, tmp_path, monkeypatch):
    heads, rates = [], []
    schedule, average = SegmentationModule.schedule, SegmentationModule.average

    def scheduled(self, step, groups, first):
        schedule(self, step, groups, first)
        rates.append({group["name"]: group["lr"] for group in groups})

    def averaged(self, step):
        heads.append({name: p.detach().clone() for name, p in self.segmenter.head.named_parameters()})
        average(self, step)

    monkeypatch.setattr(SegmentationModule, "schedule", scheduled)
    monkeypatch.setattr(SegmentationModule, "average", averaged)
    trained(tmp_path / "run", sources[:1], {"steps": 4, "optim.average": 0.25, "optim.sub_start": 0.5})
    saved = load_file(tmp_path / "run" / "head.safetensors")
    for name in heads[0]:
        first, second, third, fourth = (head[name] for head in heads)
        expected = first.lerp(second, 9 / 11).lerp(third, 0.75).lerp(fourth, 0.75)
        torch.testing.assert_close(saved[name], expected, atol=1e-7, rtol=1e-6)
    assert [each["sub"] > 0 for each in rates] == [False, False, True, False]
    assert [each["main"] > 0 for each in rates] == [True, True, True, False]
    assert rates[2]["sub"] / rates[2]["main"] == pytest.approx(0.5)


def test_mask2former_is_trained_and_loaded(sources, tmp_path):
    change = {"head": "mask2former", "head_args": SMALL_HEAD, "crop": 64}
    state = trained(tmp_path / "run", sources[:1], change)
    assert any("queries_features" in name for name in state)
    model = recyclelora.load(tmp_path / "run")
    assert model.segmenter.backbone.indices == [0, 0, 0, 1]  # of a backbone of two blocks
    assert model.predict(np.zeros((40, 56, 3), np.uint8)).shape == (40, 56)


def test_a_mask_heads_queries_come_from_reins_tokens(sources, tmp_path):
    change = {"head": "mask2former", "head_args": SMALL_HEAD, "crop": 64, "method": "rein"}
    state = trained(tmp_path / "run", sources[:1], {**change, "adapter": {"tokens": 4, "rank": 2}})
    assert {name for name in state if "queries_features" in name} == {
        f"transformer_module.queries_features.{layer}.{part}"
        for layer in ("each", "all") for part in ("weight", "bias")
    }  # fmt: skip
    segmenter = recyclelora.load(tmp_path / "run").segmenter
    link = segmenter.head.transformer_module.queries_features
    assert link.blocks == tuple(segmenter.backbone.model.blocks)
    of_blocks = load_file(tmp_path / "run" / "adapter" / "trained.safetensors")
    tokens = torch.stack([of_blocks[f"blocks.{i}.rein_A"] @ of_blocks[f"blocks.{i}.rein_B"] for i in range(2)])
    parts = {name.rsplit("queries_features.")[-1]: value for name, value in state.items()}
    Q = tokens @ parts["each.weight"].T + parts["each.bias"]
    Q = torch.cat([Q.amax(0), Q.mean(0), Q[1]], 1) @ parts["all.weight"].T + parts["all.bias"]
    torch.testing.assert_close(link.weight, Q)


@pytest.mark.parametrize(
    "change",
    [
        {"head_args": {"queries": 3}},
        {"head": "mask2former", "head_args": {"querys": 3}},
        {"head": "mask2former", "head_args": {"width": 7}},
    ],
)
def test_sizes_that_a_head_does_not_take_are_refused(change, sources, tmp_path):
    from recyclelora import UserError

    with pytest.raises(UserError, match="does not take head_args"):
        trained(tmp_path / "run", sources[:1], change)


@pytest.mark.parametrize(
    "change", [{"workers": 1}, {"checkpoint_every": 1}, {"evaluation.window": 64}, {"targets": ["streets"]}]
)
def test_these_settings_do_not_change_the_result(change, base, sources, tmp_path):
    assert same(base, trained(tmp_path / "run", sources[:1], change))


HEAD_SIZES = {"linear": {}, "concat": {"width": 12, "hidden": 8}, "mask2former": {**SMALL_HEAD, "width": 64}}
HEAD_SIZES["eomt"] = SMALL_EOMT
"""At a width of 32, Mask2Former has one channel per group of a norm: the gradient of a bias before it is noise."""


@pytest.fixture(scope="module")
def unequal(tmp_path_factory):
    """A source whose images have unequal labels: none in the first, one class in the second, two in the others."""
    root = write_folder(tmp_path_factory.mktemp("unequal"))
    for name, value in (("00", 255), ("01", 0)):
        Image.fromarray(np.full((40, 56), value, np.uint8)).save(root / "labels" / f"{name}.png")
    return [f"folder={root}"]


def losses(run):
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "change",
    [
        *({"head": head, "head_args": sizes} for head, sizes in HEAD_SIZES.items()),
        {"backbone.grad_checkpointing": True},
        {"optim.average": 0.9},
    ],
    ids=lambda change: change.get("head", next(iter(change))),
)
def test_the_parts_of_a_step_train_the_weights_of_the_whole(change, unequal, tmp_path):
    change = {**change, "precision": "64-true", "batch_size": 4, "crop": 64, "steps": 5}
    whole = trained(tmp_path / "1", unequal, change)
    for count in (2, 4):
        parts = trained(tmp_path / f"{count}", unequal, {**change, "accumulate": count})
        assert not same(parts, whole)
        for name, value in whole.items():
            torch.testing.assert_close(parts[name], value, atol=1e-9, rtol=0)
        assert losses(tmp_path / f"{count}") == pytest.approx(losses(tmp_path / "1"), rel=1e-6)


@pytest.mark.parametrize("count", [1, 2])
def test_mixed_precision_leaves_the_amounts_of_a_step_exact(count, unequal, tmp_path, monkeypatch):
    seen, loss = [], LinearHead.loss

    def watched(self, features, labels, keys=None, amounts=None):
        seen.append((amounts.item(), (labels != 255).sum().item()))
        return loss(self, features, labels, keys, amounts)

    monkeypatch.setattr(LinearHead, "loss", watched)
    trained(tmp_path / "run", unequal, {"precision": "bf16-mixed", "batch_size": 4, "accumulate": count})
    assert len(seen) == 3 * count
    for step in range(3):
        amounts, pixels = zip(*seen[step * count : (step + 1) * count], strict=True)
        assert set(amounts) == {sum(pixels)}


def test_mixed_precision_trains_in_parts_to_its_rounding(unequal, tmp_path):
    change = {"precision": "bf16-mixed", "batch_size": 4}
    whole = trained(tmp_path / "1", unequal, change)
    parts = trained(tmp_path / "4", unequal, {**change, "accumulate": 4})
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, atol=1e-3, rtol=0)


def test_a_training_is_resumed_in_other_parts(unequal, tmp_path, monkeypatch):
    values = {**BASE, "sources": unequal, "precision": "64-true", "batch_size": 4, "steps": 4, "checkpoint_every": 2}
    train(make_recipe(values), tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(RunRecorder, "record", cut_at(4))
        with pytest.raises(RuntimeError, match="power cut"):
            train(make_recipe(values), tmp_path / "cut")
    run = train(make_recipe({**values, "accumulate": 4}), tmp_path / "cut", resume=True)
    assert recyclelora.load(run.path).run.recipe.accumulate == 4
    head = load_file(run.path / "head.safetensors")
    for name, value in load_file(tmp_path / "whole" / "head.safetensors").items():
        torch.testing.assert_close(head[name], value, atol=1e-9, rtol=0)


def test_a_training_in_parts_resumes_bitwise(unequal, tmp_path, monkeypatch):
    recipe = make_recipe(
        {**BASE, "sources": unequal, "batch_size": 4, "accumulate": 2, "steps": 4, "checkpoint_every": 2}
    )
    check_that_it_resumes_bitwise(recipe, tmp_path, monkeypatch)


def test_gradient_checkpointing_changes_memory_only(base, sources, tmp_path):
    checkpointed = trained(tmp_path / "run", sources[:1], {"backbone.grad_checkpointing": True})
    for name, value in base.items():
        torch.testing.assert_close(checkpointed[name], value, atol=1e-5, rtol=1e-4)


def test_compiling_changes_rounding_only(base, sources, tmp_path, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # torch's compiler does not trace the checks
    compiled = trained(tmp_path / "run", sources[:1], {"compile": True})
    assert not same(base, compiled)
    for name, value in base.items():
        torch.testing.assert_close(compiled[name], value, atol=1e-4, rtol=1e-3)


def test_a_second_source_is_trained_on(base, sources, tmp_path):
    assert not same(base, trained(tmp_path / "run", sources, {}))


RARE = {"temperature": 0.1, "min_pixels": 700}


@pytest.mark.parametrize(
    "change", [RARE, {**RARE, "temperature": 100.0}, {**RARE, "min_pixels": 600}, {**RARE, "min_crop_ratio": 3.0}]
)
def test_every_setting_of_rare_classes_changes_the_result(change, sources, tmp_path, monkeypatch):
    monkeypatch.setenv("RECYCLELORA_CACHE", str(tmp_path / "cache"))
    before = sources[0] if change == RARE else {"data": sources[0], "rare_classes": RARE}
    after = {"data": sources[0], "rare_classes": change}
    more = {"batch_size": 6}  # so that a draw of each class is among them
    assert not same(trained(tmp_path / "a", [before], more), trained(tmp_path / "b", [after], more))


def test_a_wrong_setting_of_rare_classes_stops_before_anything_is_written(sources, tmp_path, monkeypatch):
    monkeypatch.setenv("RECYCLELORA_CACHE", str(tmp_path / "cache"))
    rare = [{"data": sources[0], "rare_classes": 0.01}]
    refused(lambda: trained(tmp_path / "run", rare, {}), "a: rare_classes: min_pixels is 3000", "lower min_pixels")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (5, 0), (6, 3)])
def test_rates_and_weight_decays_of_a_training_are_those_of_mmengine(steps, warmup, sources, tmp_path, monkeypatch):
    seen, schedule = [], SegmentationModule.schedule

    def watch(self, step, groups, first):
        schedule(self, step, groups, first)
        seen.append({group["name"]: (group["lr"], group["weight_decay"]) for group in groups})

    monkeypatch.setattr(SegmentationModule, "schedule", watch)
    change = {"head": "mask2former", "head_args": SMALL_HEAD, "crop": 64, "steps": steps}
    trained(tmp_path / "run", sources[:1], {**change, "optim.warmup": warmup, "optim.power": 0.9})
    first = {"main": (0.003, 0), "sub": (0.0015, 0), "other": (0.003, 0.05), "undecayed": (0.003, 0)}
    expected = of_mmengine(first.values(), steps, warmup=warmup)
    assert len(seen) == steps
    for found, each in zip(seen, expected, strict=True):
        for name, values in zip(first, each, strict=True):
            assert found[name] == pytest.approx(values, abs=1e-12), name
    if steps > 1:
        assert seen[0]["main"][1] == 0 < seen[-1]["main"][1] < 1e-5
        assert {rate for rate, _ in seen[-1].values()} == {0.0}


def test_the_last_step_changes_no_weight_and_a_single_step_does(sources, tmp_path, monkeypatch):
    before, changed = [], []
    schedule, average = SegmentationModule.schedule, SegmentationModule.average

    def scheduled(self, *args):
        schedule(self, *args)
        before[:] = [p.detach().clone() for p in self.trained().values()]

    def averaged(self, step):
        pairs = zip(before, self.trained().values(), strict=True)
        changed.append(any(not torch.equal(old, new) for old, new in pairs))
        average(self, step)

    monkeypatch.setattr(SegmentationModule, "schedule", scheduled)
    monkeypatch.setattr(SegmentationModule, "average", averaged)
    trained(tmp_path / "three", sources[:1], {"steps": 3})
    trained(tmp_path / "one", sources[:1], {"steps": 1})
    assert changed == [True, True, False, True]


def test_rare_classes_are_decisive_for_a_run_that_is_resumed(sources, tmp_path, monkeypatch):
    monkeypatch.setenv("RECYCLELORA_CACHE", str(tmp_path / "cache"))
    plain = make_recipe({**BASE, "sources": sources[:1]})
    rare = make_recipe({**BASE, "sources": [{"data": sources[0], "rare_classes": RARE}]})
    assert len(decisive(plain)["sources"][0]) == 5  # as in records that do not know of rare classes
    assert decisive(rare)["sources"][0][5] == {**RARE, "min_crop_ratio": 0.5}
    train(rare, tmp_path / "run")
    refused(lambda: train(plain, tmp_path / "run", resume=True), "differs from the given recipe in sources")


def cut_at(last):
    """`RunRecorder.record`, with a power cut at a step."""
    record = RunRecorder.record

    def recorded(self, step, *args):
        if step == last:
            raise RuntimeError("power cut")
        record(self, step, *args)

    return recorded


def check_that_it_resumes_bitwise(recipe, tmp_path, monkeypatch):
    """Train it without a stop, and with one half-way; all tensors of both runs are the same."""
    train(recipe, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(RunRecorder, "record", cut_at(4))
        with pytest.raises(RuntimeError, match="power cut"):
            train(recipe, tmp_path / "cut")
    train(recipe, tmp_path / "cut", resume=True)
    files = sorted(p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*.safetensors"))
    assert len(files) >= (2 if recipe.method == "frozen" else 3)
    for file in files:
        assert same(load_file(tmp_path / "whole" / file), load_file(tmp_path / "cut" / file)), file


RESUMED = ("recyclelora", "frozen", "full", "lora", "rein", "soma")
"""One method of each kind; the others, which share their code, are resumed by `make test-slow`."""


@pytest.mark.parametrize(
    "method", [method if method in RESUMED else pytest.param(method, marks=pytest.mark.slow) for method in METHODS]
)
def test_every_method_resumes_bitwise_with_its_averages(method, sources, tmp_path, monkeypatch):
    recipe = make_recipe(
        {**BASE, "sources": sources[:1], "method": method, "adapter": ADAPTERS[method], "steps": 4}
        | {"checkpoint_every": 2, "optim": {"lr": 0.003, "average": 0.9}}
    )
    check_that_it_resumes_bitwise(recipe, tmp_path, monkeypatch)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_warm_up_and_rare_classes_resume_bitwise(weighted, sources, tmp_path, monkeypatch):
    monkeypatch.setenv("RECYCLELORA_CACHE", str(tmp_path / "cache"))
    weights = [{"weight": 1}, {"weight": 2}] if weighted else [{}, {}]
    recipe = make_recipe(
        {**BASE, "steps": 5, "checkpoint_every": 2, "optim": {"lr": 0.003, "warmup": 3}, "workers": 1}
        | {"sources": [{"data": sources[0], **weights[0]}, {"data": sources[1], "rare_classes": RARE, **weights[1]}]}
    )
    check_that_it_resumes_bitwise(recipe, tmp_path, monkeypatch)


def test_a_recipe_without_sources_is_not_trained(tmp_path):
    refused(lambda: train(make_recipe(BASE), tmp_path / "run"), "sources: at least 1")
    assert not (tmp_path / "run").exists()


def test_a_temporary_folder_with_too_long_a_path_is_refused_for_helping_processes(sources, tmp_path, monkeypatch):
    """Python loses what cannot be handed over, and the training would wait for it without end."""
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    recipe = make_recipe({**BASE, "sources": sources[:1], "workers": 1})
    refused(lambda: train(recipe, tmp_path / "run"), long, "set TMPDIR to a shorter one", "workers to 0")
    assert same(trained(tmp_path / "without", sources[:1], {}), trained(tmp_path / "again", sources[:1], {}))
