"""Every changed bit in the files of a run is noticed, or changes nothing; runs without hashes still load."""

import hashlib
import json
import os
import random

import pytest
import torch

from labelled_files import refused
from recyclelora.errors import UserError
from recyclelora.runs.predictor import load
from recyclelora.runs.run import Run, open_finished, open_run
from recyclelora.study.updates import layer_updates
from tiny_methods import made_run, outputs, tiny_recipe, unsealed

FLIPS = int(os.environ.get("RECYCLELORA_FLIPS", "25"))
"""Bits flipped in each file."""
MADE = {
    "recyclelora": {"recipe.yaml", "adapter/adapter_config.json", "adapter/adapter_model.safetensors"},
    "soma": {
        "recipe.yaml", "adapter/adapter_config.json", "adapter/adapter_model.safetensors",
        "adapter/trained.safetensors",
    },
    "full": {"recipe.yaml", "adapter/trained.safetensors"},
    "frozen": {"recipe.yaml"},
}  # fmt: skip


def flipped(content, position):
    changed = bytearray(content)
    changed[position // 8] ^= 1 << position % 8
    return bytes(changed)


@pytest.fixture
def run(tmp_path):
    return made_run(tmp_path / "run", tiny_recipe("recyclelora"))[0]


@pytest.mark.parametrize("method", MADE)
def test_a_run_states_the_hash_of_each_file_that_the_model_depends_on(method, tmp_path):
    run, _ = made_run(tmp_path / "run", tiny_recipe(method))
    hashes = open_run(run.path).hashes
    assert hashes.keys() == MADE[method] | {"head.safetensors"}
    for name, stated in hashes.items():
        assert stated == hashlib.sha256((run.path / name).read_bytes()).hexdigest()
    saved = open_run(load(run.path, device="cpu").save(tmp_path / "saved").path)
    assert saved.hashes.keys() == {"recipe.yaml", "backbone.safetensors", "head.safetensors"}


def test_a_run_that_is_not_finished_states_the_hash_of_its_recipe(run):
    run.write()
    assert open_run(run.path).hashes.keys() == {"recipe.yaml"}


@pytest.mark.parametrize("form", ["recyclelora", "soma", "saved"])
def test_every_flipped_bit_is_noticed_or_harmless(form, tmp_path):
    run, _ = made_run(tmp_path / "run", tiny_recipe("soma" if form == "soma" else "recyclelora"))
    run = load(run.path, device="cpu").save(tmp_path / "saved") if form == "saved" else run
    before = outputs(load(run.path, device="cpu").segmenter)
    rng, noticed = random.Random(0), {}
    for file in sorted(file for file in run.path.rglob("*") if file.is_file()):
        content = file.read_bytes()
        noticed[file.name] = 0
        for _ in range(FLIPS):
            file.write_bytes(flipped(content, rng.randrange(8 * len(content))))
            try:
                open_finished(run.path)
            except UserError as error:
                assert str(file) in str(error)  # noqa: PT017  the other outcome is right as well
                noticed[file.name] += 1
                continue
            after = outputs(load(run.path, device="cpu").segmenter)
            assert all(map(torch.equal, before, after))
        file.write_bytes(content)
    print(form, FLIPS, noticed)
    assert all(count == FLIPS for name, count in noticed.items() if name != "run.json"), noticed
    assert noticed["run.json"] >= FLIPS // 2


def test_other_spaces_in_the_facts_are_harmless(run):
    file = run.path / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()), indent=5, sort_keys=True))
    assert open_finished(run.path).recipe == run.recipe


@pytest.mark.parametrize("key", ["files_sha256", "facts_sha256"])
def test_a_run_that_lost_one_of_its_hashes_is_refused(run, key):
    file = run.path / "run.json"
    facts = json.loads(file.read_text())
    del facts[key]
    file.write_text(json.dumps(facts))
    refused(lambda: open_run(run.path), file, "damaged or changed by hand", "restore the file")


def test_a_changed_setting_is_refused_with_the_file_and_the_fix(run):
    for name in ("recipe.yaml", "adapter/adapter_config.json"):
        file = run.path / name
        whole = file.read_text()
        changed = whole.replace("alpha: 1.0", "alpha: 2.0").replace('"alpha": 1.0', '"alpha": 2.0')
        assert changed != whole
        file.write_text(changed)
        for action in (load, lambda path: layer_updates(Run(path, run.recipe, run.info))):
            refused(lambda: action(run.path), file, "not the file of this run", "run.json says", "restore the file")  # noqa: B023
        file.write_text(whole)
    load(run.path)


def test_a_missing_or_foreign_file_is_refused(run):
    foreign = run.adapter / "trained.safetensors"
    foreign.write_bytes(run.head.read_bytes())
    refused(lambda: load(run.path), foreign, "not a file of this run", "remove the file")
    foreign.unlink()
    (run.adapter / "notes.txt").write_text("mine")
    load(run.path)
    (run.adapter / "adapter_config.json").unlink()
    refused(lambda: load(run.path), run.adapter / "adapter_config.json", "missing", "restore the file")


def test_a_run_of_version_0_1_loads_without_the_check(run):
    before = outputs(load(run.path, device="cpu").segmenter)
    unsealed(run)
    assert open_run(run.path).hashes is None
    assert all(map(torch.equal, before, outputs(load(run.path, device="cpu").segmenter)))
    saved = load(run.path, device="cpu").save(run.path.with_name("saved"))
    unsealed(saved)
    load(saved.path)


def test_a_stop_between_recipe_and_facts_leaves_a_run_that_opens(run, monkeypatch):
    other = Run(run.path, tiny_recipe("recyclelora", workers=1), run.info)
    monkeypatch.setattr(Run, "_seal", lambda *_: (_ for _ in ()).throw(OSError("power cut")))
    with pytest.raises(OSError, match="power cut"):
        other.write()
    assert open_run(run.path).recipe == other.recipe


def test_the_files_are_hashed_once_for_each_load(run, monkeypatch):
    from recyclelora.runs import seal

    seen, untouched = [], seal.file_sha256
    monkeypatch.setattr(seal, "file_sha256", lambda file: seen.append(file) or untouched(file))
    load(run.path)
    names = [file.relative_to(run.path).as_posix() for file in seen]
    assert sorted(set(names)) == sorted(open_run(run.path).hashes)
    assert [name for name in names if names.count(name) > 1] in ([], ["recipe.yaml"] * 2)
