"""`recyclelora runs` lists every run below a folder with its state, also one that is damaged."""

import json
import os
import statistics
import time

import pytest
from another_process import SLOW, started

import recyclelora
from labelled_files import refused
from recyclelora.errors import DivergedError
from recyclelora.recipe import read_recipe
from recyclelora.runs.run import open_run
from recyclelora.training.module import SegmentationModule
from recyclelora.training.recorder import RunRecorder
from recyclelora.training.train import train


def rows(out):
    """The cells of the table, by the run's path."""
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    return {line[0]: line[1:] for line in lines}


def only(folder):
    (run,) = recyclelora.list_runs(folder)
    return run


def test_all_states_are_listed_and_a_damaged_run_too(recipe, tmp_path, command):
    folder = tmp_path / "runs"
    finished, damaged, training = folder / "a", folder / "deep" / "b", folder / "deep" / "c"
    train(read_recipe(recipe), finished)
    train(read_recipe(recipe), damaged)
    (damaged / "run.json").write_text("{")
    with pytest.raises(recyclelora.UserError, match="at step 1"):
        train(read_recipe(recipe, {"optim.lr": "1e30", "method": "lora"}), folder / "d")
    scores = [{"step": step, "seconds": 1.0, "miou": miou, "sources": {}} for step, miou in ((2, 0.1), (4, 0.4321))]
    (finished / "validation.jsonl").write_text("".join(json.dumps(line) + "\n" for line in scores))

    process = started("train", "--recipe", recipe, "--out", training, before=SLOW)
    with process:
        assert process.stdout.readline() == "step\n"
        before = {path: path.stat().st_mtime_ns for path in training.rglob("*")}
        code, out, _ = command("runs", folder)
        assert {path: path.stat().st_mtime_ns for path in training.rglob("*")} == before
        process.kill()
    assert code == 0
    losses = [json.loads(line)["loss"] for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 6
    loss = f"{statistics.fmean(losses):.4f}"
    table = rows(out)
    assert table[str(finished)] == ["recyclelora", "town", "6/6", loss, "43.21", "finished"]
    assert table[str(training)] == ["recyclelora", "town", "0/6", "–", "–", "training"]
    assert table[str(folder / "d")] == ["lora", "town", "0/6", "–", "–", "diverged"]
    assert table[str(damaged)][:5] == ["–"] * 5
    assert table[str(damaged)][5].startswith("run.json: damaged, it is not JSON")
    assert list(table) == sorted(table, key=lambda path: path.split(os.sep))
    assert rows(command("runs", folder)[1])[str(training)][5] == "stopped"  # its lock is left over

    assert (folder / "d" / "diverged.txt").read_text().startswith(f"{folder / 'd'}: the largest weight of ")
    train(read_recipe(recipe), folder / "d", overwrite=True)
    assert not (folder / "d" / "diverged.txt").exists()
    train(read_recipe(recipe), training, resume=True)
    assert [run.state for run in recyclelora.list_runs(folder)] == ["finished", "finished", None, "finished"]


def test_a_diverged_training_that_goes_on_is_no_longer_diverged(recipe, tmp_path, monkeypatch):
    run = tmp_path / "run"

    def diverge(self, *arguments):
        raise DivergedError("the loss is nan at step 1;\nlower optim.lr")

    monkeypatch.setattr(SegmentationModule, "forward", diverge)
    with pytest.raises(DivergedError):
        train(read_recipe(recipe), run)
    assert (run / "diverged.txt").read_text() == "the loss is nan at step 1; lower optim.lr\n"
    assert only(run).state == "diverged"
    process = started("train", "--recipe", recipe, "--out", run, "--resume", before=SLOW)
    with process:
        assert process.stdout.readline() == "step\n"
        assert only(run).state == "training"
        process.kill()
    assert only(run).state == "stopped"


def test_a_stopped_training_shows_how_far_it_came(recipe, tmp_path, monkeypatch):
    record = RunRecorder.record

    def power_cut(self, step, *args):
        if step == 25:
            raise RuntimeError("power cut")
        record(self, step, *args)

    monkeypatch.setattr(RunRecorder, "record", power_cut)
    with pytest.raises(RuntimeError, match="power cut"):
        train(read_recipe(recipe, {"steps": "5000"}), tmp_path / "run")
    found = only(tmp_path / "run")
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert (found.state, found.step, found.steps) == ("stopped", 24, 5000)
    assert found.loss == pytest.approx(statistics.fmean(losses[-20:]))


@pytest.fixture
def trained(recipe, tmp_path):
    return train(read_recipe(recipe), tmp_path / "all" / "run").path


def test_runs_are_found_once_also_over_links(trained, tmp_path):
    (trained / "manifests" / "within").mkdir()
    (trained / "manifests" / "within" / "run.json").write_text("{}")  # no run of its own
    (tmp_path / "other").mkdir()
    trained.rename(tmp_path / "moved")
    (tmp_path / "all" / "again").symlink_to(tmp_path / "moved")
    (tmp_path / "all" / "circle").symlink_to(tmp_path / "all")
    (tmp_path / "all" / "nothing").symlink_to(tmp_path / "none")
    assert [run.path.name for run in recyclelora.list_runs(tmp_path / "all")] == ["again"]
    assert [run.path.name for run in recyclelora.list_runs(tmp_path)] == ["moved"]
    assert only(str(tmp_path / "moved")).path == tmp_path / "moved"


def test_a_folder_without_runs_is_refused(tmp_path, command):
    refused(lambda: recyclelora.list_runs(tmp_path), f"{tmp_path}: no run there or below", "recyclelora train")
    assert command("runs", tmp_path / "none") == (
        1, "", f"error: {tmp_path / 'none'}: no such folder; give the folder that holds your runs\n",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("metrics.jsonl", "{\n", "damaged, line 1 is not JSON"),
        ("metrics.jsonl", '{"step": 1}\n', "line 1 is damaged"),
        ("validation.jsonl", '{"step": 1, "miou": "high"}\n', "the last line is damaged"),
        ("validation.jsonl", '{"step": 1, "miou": 43.0}\n', "the last line is damaged"),
        ("recipe.yaml", "steps: 3\n", "damaged, or not the file of this run"),
        ("run.json", None, "not a run, run.json is missing"),
        ("recipe.yaml", None, "not a run, recipe.yaml is missing"),
        ("adapter/adapter_model.safetensors", None, "missing, but it is a part of this run"),
        (".starting", "", "a training is beginning there, or was stopped while it began"),
    ],
)
def test_what_is_wrong_with_a_run_is_its_state(trained, name, content, error):
    file = trained / name
    file.unlink(missing_ok=True)
    if content is not None:
        file.write_text(content)
    found = only(trained.parent)
    assert (found.path, found.state) == (trained, None)
    assert error in found.error


def test_a_folder_that_cannot_be_read_does_not_hide_the_others(trained, monkeypatch):
    closed = trained.parent / "closed"
    closed.mkdir()
    scan = os.scandir

    def denied(path):
        if path == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", denied)
    first, second = recyclelora.list_runs(trained.parent)
    assert (first.path, first.state, second.state) == (closed, None, "finished")
    assert first.error == f"{closed}: Permission denied; allow it, or choose another place"


def test_a_run_without_metrics_and_scores_has_none(trained):
    (trained / "metrics.jsonl").unlink()
    found = only(trained)
    assert (found.step, found.steps, found.loss, found.miou) == (6, 6, None, None)
    (trained / "validation.jsonl").write_text('{"step": 6, "seconds": 1.0, "miou": null, "sources": {}}\n')
    assert only(trained).miou is None


def test_a_merged_model_is_listed_as_finished(trained, tmp_path):
    recyclelora.load(trained).save(tmp_path / "merged")
    found = only(tmp_path / "merged")
    assert (found.method, found.sources, found.step, found.steps) == ("recyclelora", ("town",), 6, 6)
    assert (found.loss, found.state) == (None, "finished")


def test_long_metrics_are_read_from_their_end(trained):
    lines = [{"step": step, "loss": 2.0 if step > 39_980 else 9.0, "lr": 0.1, "seconds": 1.0} for step in range(40_001)]
    (trained / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    only(trained)
    started_at = time.perf_counter()
    found = only(trained)
    assert time.perf_counter() - started_at < 0.1  # all 40,000 lines take a second
    assert (found.step, found.loss) == (40_000, 2.0)
    assert open_run(trained).finished
