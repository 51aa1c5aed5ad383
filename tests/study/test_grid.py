"""Many trainings: what is done is not done again, and what went wrong is reported."""

import json
import os
import pty
import subprocess
import sys
import termios
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from cells import cell
from filelock import FileLock

from labelled_files import refused
from miniatures import write_folder
from recyclelora.errors import UserError
from recyclelora.evaluation.bootstrap import DRAWS
from recyclelora.runs.run import open_run
from recyclelora.study import grid
from recyclelora.study.cell import Cell, CellResult, read_cell, read_result
from recyclelora.study.compare import Variant
from recyclelora.study.grid import run_grid
from recyclelora.training.train import train


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data") / "town")


@pytest.fixture(scope="module")
def done(town, tmp_path_factory):
    out = tmp_path_factory.mktemp("grid")
    cells = [cell(town), cell(town, "frozen", 1)]
    return out, cells, run_grid(cells, out, jobs=2)


def test_each_cell_is_trained_scored_and_kept(done):
    out, cells, results = done
    assert [(result.variant, result.seed) for result in results] == [("recyclelora", 0), ("frozen", 1)]
    for each, result in zip(cells, results, strict=True):
        file = out / "cells" / f"{each.name}.json"
        assert isinstance(result, CellResult)
        assert read_result(file) == result
        assert json.loads(file.read_text()) == json.loads(json.dumps(result.to_json()))
        assert result.settings == each.settings()
        assert result.error is None
        (target,) = result.targets
        assert (target.label, target.images, target.split) == ("town", 3, "test")
        assert 0 < target.miou < 1
        assert len(target.resampled) == DRAWS
        assert target.confusion == []
        assert result.step_seconds > 0
        assert 0.1 < result.peak_gib < 8
        assert result.wall_seconds > 3 * result.step_seconds
        assert str(out) not in json.dumps(result.to_json())
        assert (out / "runs" / each.name / "head.safetensors").is_file()
        assert not list((out / "runs" / each.name / "checkpoints").glob("*"))
    assert results[0].scale == pytest.approx(1 / 6)
    assert results[1].scale is None
    assert results[0].parameters["adapters"] > results[1].parameters["adapters"] == 0


def test_nothing_is_done_twice(done, monkeypatch):
    out, cells, results = done
    monkeypatch.setattr(grid, "_make_cell", None)  # would fail
    assert run_grid(cells, out) == results


def test_the_caller_alone_writes_and_one_that_was_killed_repeats_the_scoring_only(town, tmp_path, monkeypatch):
    each = cell(town)
    run = tmp_path / "runs" / each.name

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(grid, "_keep", killed)
        with pytest.raises(KeyboardInterrupt):
            run_grid([each], tmp_path, jobs=1)
    assert not (tmp_path / "cells").exists()
    assert list((run / "checkpoints").glob("*.safetensors"))
    before = (run / "metrics.jsonl").read_bytes(), (run / "head.safetensors").stat().st_mtime_ns
    (result,) = run_grid([each], tmp_path, jobs=1)
    assert before == ((run / "metrics.jsonl").read_bytes(), (run / "head.safetensors").stat().st_mtime_ns)
    assert result.peak_gib is None  # another process trained it
    assert read_cell(each, tmp_path / "cells") == result
    assert not list((run / "checkpoints").glob("*.safetensors"))


def test_after_an_error_what_runs_is_finished_and_kept_and_nothing_is_begun(town, tmp_path):
    cells = [cell(town, crop=33), cell(town, "frozen", steps=200), cell(town, "lora")]
    refused(lambda: run_grid(cells, tmp_path, jobs=2), "crop 33")
    assert [file.name for file in (tmp_path / "cells").iterdir()] == ["frozen--0.json"]
    assert not (tmp_path / "runs" / "lora--0").exists()


def test_a_result_that_cannot_be_kept_is_an_error_like_others(town, tmp_path, monkeypatch):
    cells = [cell(town, "frozen"), cell(town, "frozen", 1)]
    run_grid(cells[:1], tmp_path, jobs=0)
    (tmp_path / "cells" / "frozen--1.json").mkdir()
    refused(lambda: run_grid(cells, tmp_path, jobs=1), "frozen--1.json", "could not be written")


def test_a_process_that_is_about_to_end_is_waited_for(town, tmp_path):
    each = cell(town, "frozen")
    train(each.recipe, tmp_path)
    lock = FileLock(tmp_path / ".lock", thread_local=False)
    lock.acquire()
    refused(lambda: grid._make_cell(each, tmp_path, 1, 0.0), "another process is at work there")
    threading.Timer(0.5, lock.release).start()
    assert grid._make_cell(each, tmp_path, 1, 60.0).error is None


def test_several_devices_are_refused_before_anything_is_written(town, tmp_path):
    refused(
        lambda: run_grid([cell(town, devices=2)], tmp_path / "out"), "recyclelora--0: devices 2, expected 1", "leave"
    )
    assert not (tmp_path / "out").exists()


def test_results_of_other_settings_are_refused(done, town):
    out, _, _ = done
    refused(
        lambda: read_cell(cell(town, steps=9), out / "cells"), "recyclelora--0.json", "steps 3 in place of 9", "--out"
    )


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b"\xff\xfe", "without targets", "a target without label", "without data"]
)
def test_damaged_files_are_refused(done, town, content):
    out, (each, _), (result, _) = done
    values = result.to_json()
    other = {
        "without targets": {**values, "targets": None},
        "a target without label": {**values, "targets": [{}]},
        "without data": {key: value for key, value in values.items() if key != "data"},
    }.get(content)
    broken = out / "broken"
    broken.mkdir(exist_ok=True)
    (broken / f"{each.name}.json").write_bytes(content if isinstance(content, bytes) else json.dumps(other).encode())
    refused(lambda: read_cell(each, broken), "recyclelora--0.json", "damaged", "remove it")


def test_a_training_that_diverges_is_a_result_and_other_errors_stop(town, tmp_path):
    (result,) = run_grid([cell(town, "full", optim={"lr": 1e30})], tmp_path, jobs=0)
    assert "at step 1" in result.error
    assert str(tmp_path) not in result.error
    assert result.targets == ()
    assert read_cell(cell(town, "full", optim={"lr": 1e30}), tmp_path / "cells") == result
    with pytest.raises(UserError, match="crop 33 is not a multiple of the patch"):
        run_grid([cell(town, crop=33)], tmp_path, jobs=0)


def test_settings_of_evaluation_are_those_asked_for_even_where_the_run_is_there(town, tmp_path):
    before = run_grid([cell(town)], tmp_path, jobs=0)
    (tmp_path / "cells" / "recyclelora--0.json").unlink()
    again = cell(town, evaluation={"flip": True, "window": 16})
    (result,) = run_grid([again], tmp_path, jobs=0)
    assert "flip" in result.protocol
    assert result.targets[0].miou != before[0].targets[0].miou
    assert result.peak_gib is None  # it was not trained here


def test_a_run_of_other_settings_that_was_stopped_is_made_anew(town, tmp_path):
    each = cell(town)
    train(cell(town, steps=2).recipe, tmp_path / "runs" / each.name)
    damaged = tmp_path / "runs" / cell(town, "frozen").name
    damaged.mkdir()
    (damaged / "recipe.yaml").write_text("steps: [")
    assert len(run_grid([each, cell(town, "frozen")], tmp_path, jobs=0)) == 2
    assert open_run(tmp_path / "runs" / each.name).recipe.steps == 3


def test_errors_and_divergence_in_another_process(town, tmp_path):
    (result,) = run_grid([cell(town, "full", optim={"lr": 1e30})], tmp_path, jobs=1)
    assert "at step 1" in result.error
    assert read_cell(cell(town, "full", optim={"lr": 1e30}), tmp_path / "cells") == result
    refused(lambda: run_grid([cell(town, crop=33), cell(town, "frozen")], tmp_path, jobs=1), "crop 33")
    assert not (tmp_path / "cells" / "frozen--0.json").exists()  # nothing is begun after an error


def die(*_):
    os._exit(9)


def test_of_a_killed_process_the_trainings_are_named(town, tmp_path, monkeypatch):
    monkeypatch.setattr(grid, "_make_cell", die)
    refused(lambda: run_grid([cell(town)], tmp_path, jobs=1), "recyclelora--0", "a process was killed", "--jobs")


def test_two_processes_in_one_folder_and_two_cells_of_one_name_are_refused(done, town):
    out, cells, _ = done
    with FileLock(out / ".lock"):
        refused(lambda: run_grid(cells, out), str(out), "another process is at work")
    refused(lambda: run_grid([cells[0], cells[0]], out), "recyclelora--0", "every seed once")


def test_results_of_other_weights_or_images_are_not_mixed(done, town):
    out, cells, results = done
    file = out / "cells" / f"{cells[1].name}.json"
    moved = replace(results[1], targets=tuple(replace(s, fingerprint="0" * 64) for s in results[1].targets))
    file.write_text(json.dumps(moved.to_json()))
    refused(lambda: run_grid(cells, out), "images of target town", "recyclelora--0.json", "frozen--1.json")
    file.write_text(json.dumps(results[1].to_json()))
    other = Cell("recyclelora", Variant("x", {"backbone.weights": "hub"}).recipe(cells[0].recipe, 0), cells[0].targets)
    assert "backbone.weights random in place of hub" in other.differences(results[0].settings)


def test_weights_may_differ_between_seeds_only_where_a_seed_draws_them(done):
    _, _, (result, _) = done
    drawn = {"a": result, "b": replace(result, seed=1, weights_sha256="other")}
    grid._check_alike(drawn, Path("cells"))
    hub = {**result.settings, "backbone.weights": "hub"}
    loaded = {name: replace(row, settings=hub) for name, row in drawn.items()}
    refused(lambda: grid._check_alike(loaded, Path("cells")), "base weights", "a.json", "b.json (other)")


def test_training_images_may_differ_between_seeds_only_where_a_seed_draws_them(done):
    _, _, (result, _) = done
    (source,) = result.data
    both = {"a": result, "b": replace(result, seed=1, data=[{**source, "fingerprint": "other"}])}
    refused(lambda: grid._check_alike(both, Path("cells")), "images of town", "a.json", "b.json (other)")
    ((label, name, domain, images, weight),) = result.settings["sources"]
    assert images is None
    some = {**result.settings, "sources": [[label, name, domain, 5, weight]]}
    grid._check_alike({name: replace(row, settings=some) for name, row in both.items()}, Path("cells"))


def test_a_training_that_diverged_is_not_compared_to_the_others(done):
    _, _, (result, _) = done
    diverged = CellResult("full", 0, result.settings, None, error="the loss is nan")
    present = {"base weights of seed 0": result.weights_sha256}
    grid._check_alike({"a": diverged, "b": result, "c": None}, Path("cells"), present)


def test_results_of_other_than_what_is_there_now_are_refused(done):
    out, cells, results = done
    now = {"images of target town": results[0].targets[0].fingerprint}
    assert run_grid(cells, out, present=now) == results
    for what in ("images of target town", "images of town"):
        refused(lambda what=what: run_grid(cells, out, present={what: "new"}), what, "what is there now (new)")


GRID = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[1], str(Path(sys.argv[1]).parent)]
from recyclelora.study.grid import run_grid
from cells import cell
if __name__ == "__main__":
    run_grid([cell(Path(sys.argv[2]))], Path(sys.argv[3]), jobs=1)
"""


@pytest.mark.slow
def test_on_a_terminal_there_is_one_bar_of_all_trainings(town, tmp_path):
    (tmp_path / "grid.py").write_text(GRID)
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    arguments = [tmp_path / "grid.py", Path(__file__).parent, town, tmp_path / "out"]
    process = subprocess.Popen([sys.executable, *map(str, arguments)], stderr=theirs)
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # how a terminal ends
        while read := os.read(ours, 4096):
            shown += read
    os.close(ours)
    assert process.wait() == 0, shown
    assert b"all trainings: 100%" in shown
    for bar in (b"training recyclelora", b"evaluating", b"of the weights"):
        assert bar not in shown


def test_runs_need_not_be_kept(town, tmp_path):
    each = cell(town)
    run_grid([each], tmp_path, jobs=0, keep_runs=False)
    assert not list((tmp_path / "runs" / each.name).rglob("*.safetensors"))
