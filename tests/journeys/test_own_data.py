"""From a user's own folder to pictures: train, stop, resume, evaluate, predict, load."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import recyclelora
from miniatures import write_folder
from recyclelora.recipe import read_recipe
from recyclelora.runs.checkpoint import read_state
from recyclelora.runs.predict import predict
from recyclelora.study.compare import Variant
from recyclelora.training.recorder import RunRecorder
from recyclelora.training.train import train


def weights(run):
    adapter = run / "adapter" / "adapter_model.safetensors"
    return {**load_file(run / "head.safetensors"), **(load_file(adapter) if adapter.exists() else {})}


def started(*arguments):
    """The command line for a process of its own."""
    return [sys.executable, "-m", "recyclelora", *map(str, arguments)]


def assert_same_weights(a, b):
    a, b = weights(a), weights(b)
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


def test_train_evaluate_predict_load(command, recipe, town, tmp_path):
    run = tmp_path / "run"
    code, out, err = command("train", "--recipe", recipe, "--out", run)
    assert code == 0
    assert [line.split()[0] for line in err.splitlines()] == ["training"]  # the line at the start
    assert "6 steps done" in out
    settings = yaml.safe_load((run / "recipe.yaml").read_text())
    assert settings["optim"] == {"head_lr": None, "sub_start": 0.0, "average": 0.0, "warmup": 0} | {
        "lr": 0.003, "sub_lr_ratio": 0.5, "power": 0.9, "weight_decay": 0.05, "final_weight_decay": 1e-5,
    }  # fmt: skip
    info = json.loads((run / "run.json").read_text())
    assert info["classes"]["names"] == ["ground", "sky"]
    assert info["sources"][0]["images"] == 4
    assert info["versions"]["torch"] == torch.__version__
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4, 5, 6]

    other = write_folder(tmp_path / "other", seed=9, size=(50, 34), classes=("ground", "sky"))
    result_file = tmp_path / "scores.json"
    code, out, err = command(
        "evaluate", run, "--target", f"folder={town}", "--target", f"night:folder={other}", "--out", result_file
    )
    assert (code, err) == (0, "")
    assert "night" in out
    result = json.loads(result_file.read_text())
    assert [t["label"] for t in result["targets"]] == ["town", "night"]
    assert result["mean_miou"] == pytest.approx(np.mean([t["miou"] for t in result["targets"]]))
    assert result["protocol"]["name"] == "full"
    windows = [(t["window"], t["stride"], t["split"]) for t in result["protocol"]["targets"].values()]
    assert windows == [(32, 21, "test")] * 2
    assert result["weights_sha256"] == info["weights_sha256"]
    page = result_file.with_suffix(".html").read_text()
    assert "night" in page
    assert "data:image/png;base64," in page

    code, out, err = command(
        "predict", run, other / "images", town / "images" / "00.jpg", "--out", tmp_path / "pictures"
    )
    assert code == 1  # 00 is the name of an image in both places
    assert "predict them in separate calls" in err
    code, out, err = command("predict", run, other / "images", "--out", tmp_path / "pictures")
    assert (code, err) == (0, "")
    labels = np.asarray(Image.open(tmp_path / "pictures" / "00_labels.png"))
    assert labels.shape == (50, 34)
    drawn = np.asarray(Image.open(tmp_path / "pictures" / "00_overlay.png"))
    assert drawn.shape[0] > 50  # with a legend below
    assert drawn.shape[1:] > (34, 3)
    model = recyclelora.load(run)
    image = np.asarray(Image.open(other / "images" / "00.jpg"))
    assert np.array_equal(model.predict(image), labels)
    assert not any("recycle_" in name for name in model.segmenter.state_dict())
    with pytest.raises(ValueError, match="expected a uint8 RGB image"):
        model.predict(image.astype(np.float32))

    given = tmp_path / "given"
    (given / "north").mkdir(parents=True)
    (given / "linked").symlink_to(other / "images")
    shutil.copy(town / "images" / "00.jpg", given / "north" / "00.jpg")
    (given / "north" / "._00.jpg").write_bytes(b"resource fork")
    code, out, err = command("predict", run, given, "--out", tmp_path / "more")
    assert (code, err) == (0, "")
    assert "written: 10 pictures" in out
    written = {path.relative_to(tmp_path / "more").as_posix() for path in (tmp_path / "more").rglob("*.png")}
    names = ["north/00", *(f"linked/{number:02d}" for number in range(4))]
    assert written == {f"{name}_{kind}.png" for name in names for kind in ("labels", "overlay")}
    assert np.array_equal(np.asarray(Image.open(tmp_path / "more" / "linked" / "00_labels.png")), labels)


def test_the_verbs_are_functions_that_return_objects_and_print_nothing(recipe, town, tmp_path, capfd):
    run = recyclelora.train(recyclelora.read_recipe(recipe, {"steps": "2"}), tmp_path / "run")
    assert run.recipe.steps == 2
    assert run.finished
    target = f"folder={town}"
    result = recyclelora.evaluate(run.path, [target], tmp_path / "scores.json", limit=1)
    assert result.scores[0].images == 1
    assert json.loads((tmp_path / "scores.json").read_text()) == json.loads(json.dumps(result.to_json()))
    unwritten = recyclelora.evaluate(run.path, [target], limit=1)
    assert unwritten.to_json() == result.to_json()
    pictures = predict(run.path, [town / "images"], tmp_path / "pictures").written
    assert sorted(pictures) == sorted((tmp_path / "pictures").glob("*.png"))
    assert len(pictures) == 8
    analysis = recyclelora.analyze([run.path], tmp_path / "analysis.html", [target], images=1)
    assert list(analysis) == ["run"]
    assert json.loads((tmp_path / "analysis.json").read_text()) == analysis
    found = recyclelora.compare(
        run.recipe, ["frozen", Variant("mine", {"adapter.r_sub": 0})], [0], tmp_path / "all", [target], limit=1, jobs=0
    )
    assert list(found.scored) == ["frozen", "mine"]
    assert found.variants["mine"]["difference"]
    assert json.loads((tmp_path / "all/results.json").read_text()) == json.loads(json.dumps(found.to_json()))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("method", ["recyclelora", "frozen"])
@pytest.mark.parametrize("stop_at", [3, 4])
def test_a_stopped_and_resumed_training_ends_bitwise_the_same(recipe, tmp_path, monkeypatch, method, stop_at):
    settings = read_recipe(recipe, {"method": method, "workers": "1"})
    train(settings, tmp_path / "whole")
    untouched = RunRecorder.record

    def power_cut(self, step, *args):
        untouched(self, step, *args)
        if step == stop_at + 1:
            raise RuntimeError("power cut")

    monkeypatch.setattr(RunRecorder, "record", power_cut)
    with pytest.raises(RuntimeError, match="power cut"):
        train(settings, tmp_path / "stopped")
    assert not (tmp_path / "stopped" / "head.safetensors").exists()
    monkeypatch.setattr(RunRecorder, "record", untouched)
    train(settings, tmp_path / "stopped", resume=True)
    assert_same_weights(tmp_path / "whole", tmp_path / "stopped")
    lines = [
        [json.loads(s) for s in (tmp_path / d / "metrics.jsonl").read_text().splitlines()] for d in ("whole", "stopped")
    ]
    assert [(x["step"], x["loss"], x["lr"]) for x in lines[0]] == [(x["step"], x["loss"], x["lr"]) for x in lines[1]]


def test_a_killed_process_leaves_a_run_that_resumes(recipe, tmp_path):
    changes = ["--set", "steps=60", "--set", "checkpoint_every=2"]
    process = subprocess.Popen([*started("train", "--recipe", recipe, "--out", tmp_path / "run"), *changes])
    checkpoint = tmp_path / "run" / "checkpoints" / "last.safetensors"
    deadline = time.monotonic() + 60
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was done before it could be killed"
    settings = read_recipe(recipe, {"steps": "60", "checkpoint_every": "2"})
    train(settings, tmp_path / "run", resume=True)
    train(settings, tmp_path / "whole")
    assert_same_weights(tmp_path / "whole", tmp_path / "run")


def test_resuming_a_finished_run_does_nothing(command, recipe, tmp_path):
    run = tmp_path / "run"
    command("train", "--recipe", recipe, "--out", run)
    before = {p: (p.stat().st_mtime_ns, os.path.getsize(p)) for p in run.rglob("*") if p.is_file()}
    assert command("train", "--recipe", recipe, "--out", run, "--resume")[0] == 0
    assert before == {p: (p.stat().st_mtime_ns, os.path.getsize(p)) for p in run.rglob("*") if p.is_file()}


def test_a_checkpoint_holds_what_is_trained_and_not_the_base(recipe, tmp_path):
    run = train(read_recipe(recipe), tmp_path / "run")
    names = list(read_state(run.checkpoint)["state_dict"])
    assert names
    assert all(".recycle_" in name or name.startswith("segmenter.head.") for name in names)
    parts = [f"recycle_delta_{factor}_{role}" for role in ("main", "sub") for factor in "AB"]
    parts += ["recycle_B0", "recycle_index", "recycle_scale"]
    assert all(any(part in name for name in names) for part in parts)


def test_the_adapter_of_a_run_is_a_peft_adapter(recipe, tmp_path):
    from peft import PeftModel

    from recyclelora.runs.build import build
    from recyclelora.runs.run import open_run

    run = train(read_recipe(recipe), tmp_path / "run")
    bare = build(read_recipe(recipe, {"method": "frozen"}), 2).backbone
    x = torch.randn(1, 3, 32, 32)
    merged = recyclelora.load(run.path).segmenter.backbone
    with torch.no_grad():
        assert not torch.allclose(bare(x)[0], merged(x)[0], atol=1e-4)
        bare.model = PeftModel.from_pretrained(bare.model, run.path / "adapter")
        torch.testing.assert_close(bare(x)[0], merged(x)[0], atol=1e-5, rtol=1e-5)
    assert open_run(run.path).finished
