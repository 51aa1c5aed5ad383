"""Many trainings: what is done is not done again, and what went wrong is told."""

import json
import os
import pty
import subprocess
import sys
import termios
from contextlib import suppress
from pathlib import Path

import pytest
from filelock import FileLock

from labelled_files import refused
from miniatures import TINY, write_folder
from recyclelora import grid
from recyclelora.compare import Variant
from recyclelora.errors import UserError
from recyclelora.grid import Cell, read_cell, run_grid
from recyclelora.recipe import make_recipe
from recyclelora.run import open_run
from recyclelora.training.fit import train


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data") / "town")


def cell(town, method="recyclelora", seed=0, **changes):
    adapter = {"r_main": 4, "r_sub": 2} if method == "recyclelora" else {}
    recipe = make_recipe(
        {
            "sources": [f"town:folder={town}"], "method": method, "backbone": TINY, "adapter": adapter, "crop": 32,
            "batch_size": 2, "steps": 3, "workers": 0, "optim": {"lr": 3e-3}, "seed": seed, **changes,
        }
    )  # fmt: skip
    return Cell(method, recipe, (f"town:folder={town}",), limit=3)


@pytest.fixture(scope="module")
def done(town, tmp_path_factory):
    out = tmp_path_factory.mktemp("grid")
    cells = [cell(town), cell(town, "frozen", 1)]
    return out, cells, run_grid(cells, out, jobs=2)


def test_each_cell_is_trained_scored_and_told(done):
    out, cells, results = done
    assert [(result["variant"], result["seed"]) for result in results] == [("recyclelora", 0), ("frozen", 1)]
    for each, result in zip(cells, results, strict=True):
        assert json.loads((out / "cells" / f"{each.name}.json").read_text()) == result
        (target,) = result["targets"]
        assert target["label"] == "town"
        assert target["images"] == 3
        assert 0 < target["miou"] < 1
        assert len(target["resampled"]) == grid.DRAWS
        assert result["step_seconds"] > 0
        assert 0.1 < result["peak_gib"] < 8
        assert result["wall_seconds"] > 3 * result["step_seconds"]
        assert str(out) not in json.dumps(result)
        assert (out / "runs" / each.name / "head.safetensors").is_file()
        assert not list((out / "runs" / each.name / "checkpoints").glob("*"))
    assert results[0]["scale"] == pytest.approx(1 / 6)
    assert results[1]["scale"] is None
    assert results[0]["parameters"]["adapters"] > results[1]["parameters"]["adapters"] == 0


def test_nothing_is_done_twice(done, monkeypatch):
    out, cells, results = done
    monkeypatch.setattr(grid, "_make_cell", None)  # would fail
    assert run_grid(cells, out) == results


def test_places_are_no_part_of_what_a_cell_is(town, tmp_path):
    moved = write_folder(tmp_path / "elsewhere")
    settings = cell(town).settings()
    assert str(town) not in str(settings)
    assert settings == Cell("x", cell(moved).recipe, (f"town:folder={moved}",), limit=3).settings()
    assert cell(town, steps=4).differences(settings) == ["steps 3 in place of 4"]
    assert Cell("x", cell(town).recipe, (f"town:folder={town}",), limit=2).differences(settings)


def test_settings_that_came_later_were_at_their_defaults(town):
    before = cell(town).settings()
    del before["optim.average"], before["adapter.scaling"]
    assert cell(town).differences(before) == []
    assert cell(town, optim={"lr": 3e-3, "average": 0.5}).differences(before) == ["optim.average 0.0 in place of 0.5"]
    assert cell(town).differences({**before, "no.longer": 1}) == ["no.longer 1 in place of None"]


def test_results_of_other_settings_and_damaged_files_are_refused(done, town):
    out, _, _ = done
    refused(
        lambda: read_cell(cell(town, steps=9), out / "cells"), "recyclelora--0.json", "steps 3 in place of 9", "--out"
    )


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b"\xff\xfe", "without targets", "a target without label", "without data"]
)
def test_damaged_files_are_refused(done, town, content):
    out, (each, _), (result, _) = done
    other = {
        "without targets": {**result, "targets": None},
        "a target without label": {**result, "targets": [{}]},
        "without data": {key: value for key, value in result.items() if key != "data"},
    }.get(content)
    broken = out / "broken"
    broken.mkdir(exist_ok=True)
    (broken / f"{each.name}.json").write_bytes(content if isinstance(content, bytes) else json.dumps(other).encode())
    refused(lambda: read_cell(each, broken), "recyclelora--0.json", "damaged", "remove it")


def test_a_training_that_diverges_is_a_result_and_other_errors_stop(town, tmp_path):
    (result,) = run_grid([cell(town, "full", optim={"lr": 1e30})], tmp_path, jobs=0)
    assert "the loss is" in result["error"]
    assert "targets" not in result
    assert read_cell(cell(town, "full", optim={"lr": 1e30}), tmp_path / "cells") == result
    with pytest.raises(UserError, match="crop 33 is no multiple of the patch"):
        run_grid([cell(town, crop=33)], tmp_path, jobs=0)


def test_settings_of_evaluation_are_those_asked_for_even_where_the_run_is_there(town, tmp_path):
    before = run_grid([cell(town)], tmp_path, jobs=0)
    (tmp_path / "cells" / "recyclelora--0.json").unlink()
    again = cell(town, evaluation={"flip": True, "window": 16})
    (result,) = run_grid([again], tmp_path, jobs=0)
    assert "flip" in result["protocol"]
    assert result["targets"][0]["miou"] != before[0]["targets"][0]["miou"]
    assert result["peak_gib"] is None  # it was not trained here


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
    assert "the loss is" in result["error"]
    assert read_cell(cell(town, "full", optim={"lr": 1e30}), tmp_path / "cells") == result
    refused(lambda: run_grid([cell(town, crop=33), cell(town, "frozen")], tmp_path, jobs=1), "crop 33")
    assert not (tmp_path / "cells" / "frozen--0.json").exists()  # nothing is begun after an error


def die(*_):
    os._exit(9)


def test_a_killed_process_is_told_by_the_names_of_its_trainings(town, tmp_path, monkeypatch):
    monkeypatch.setattr(grid, "_make_cell", die)
    refused(lambda: run_grid([cell(town)], tmp_path, jobs=1), "recyclelora--0", "a process was killed", "--jobs")


def test_two_processes_in_one_folder_and_two_cells_of_one_name_are_refused(done, town):
    out, cells, _ = done
    with FileLock(out / ".lock"):
        refused(lambda: run_grid(cells, out), str(out), "another process is at work")
    refused(lambda: run_grid([cells[0], cells[0]], out), "recyclelora--0", "every seed once")


def test_a_result_on_more_targets_serves_for_fewer(done, town):
    out, (each, _), (result, _) = done
    file = out / "cells" / f"{each.name}.json"
    wide = json.loads(file.read_text())
    wide["settings"]["scored.targets"] += ["other:folder"]
    wide["targets"] += [{**wide["targets"][0], "label": "other"}]
    file.write_text(json.dumps(wide))
    found = read_cell(each, out / "cells")
    file.write_text(json.dumps(result))
    assert found["targets"] == result["targets"]


def test_results_of_other_weights_or_images_are_not_mixed(done, town):
    out, cells, results = done
    file = out / "cells" / f"{cells[1].name}.json"
    moved = json.loads(json.dumps(results[1]))
    moved["targets"][0]["fingerprint"] = "0" * 64
    file.write_text(json.dumps(moved))
    refused(lambda: run_grid(cells, out), "images of target town", "recyclelora--0.json", "frozen--1.json")
    file.write_text(json.dumps(results[1]))
    other = Cell("recyclelora", Variant("x", {"backbone.weights": "hub"}).recipe(cells[0].recipe, 0), cells[0].targets)
    assert "backbone.weights random in place of hub" in other.differences(results[0]["settings"])


def test_weights_may_differ_between_seeds_only_where_a_seed_draws_them(done):
    _, _, (result, _) = done
    drawn = {"a": result, "b": {**result, "seed": 1, "weights_sha256": "other"}}
    grid._check_alike(drawn, Path("cells"))
    hub = {**result["settings"], "backbone.weights": "hub"}
    loaded = {name: {**row, "settings": hub} for name, row in drawn.items()}
    refused(lambda: grid._check_alike(loaded, Path("cells")), "base weights", "a.json", "b.json (other)")


def test_training_images_may_differ_between_seeds_only_where_a_seed_draws_them(done):
    _, _, (result, _) = done
    (source,) = result["data"]
    both = {"a": result, "b": {**result, "seed": 1, "data": [{**source, "fingerprint": "other"}]}}
    refused(lambda: grid._check_alike(both, Path("cells")), "images of town", "a.json", "b.json (other)")
    ((label, name, domain, images, weight),) = result["settings"]["sources"]
    assert images is None
    some = {**result["settings"], "sources": [[label, name, domain, 5, weight]]}
    grid._check_alike({name: {**row, "settings": some} for name, row in both.items()}, Path("cells"))


def test_results_of_other_than_what_is_there_now_are_refused(done):
    out, cells, results = done
    now = {"images of target town": results[0]["targets"][0]["fingerprint"]}
    assert run_grid(cells, out, present=now) == results
    for what in ("images of target town", "images of town"):
        refused(lambda what=what: run_grid(cells, out, present={what: "new"}), what, "what is there now (new)")


def test_folders_are_told_apart_by_the_labels_they_have_from_their_names(town, tmp_path):
    one, other = (Cell("x", cell(town).recipe, (f"folder={tmp_path / name}",)) for name in ("one", "other"))
    assert one.settings()["scored.targets"] == ["one:folder"]
    assert other.differences(one.settings()) == ["scored.targets ['one:folder'] in place of ['other:folder']"]


def test_how_many_windows_are_scored_at_once_is_no_other_result(town):
    wide = cell(town, evaluation={"batch_size": 7})
    assert wide.differences(cell(town).settings()) == []
    assert cell(town, evaluation={"flip": True}).differences(cell(town).settings())


GRID = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from recyclelora.grid import run_grid
from test_grid import cell
if __name__ == "__main__":
    run_grid([cell(Path(sys.argv[2]))], Path(sys.argv[3]), jobs=1)
"""


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
    assert b"steps of 1 trainings: 100%" in shown
    for bar in (b"training recyclelora", b"evaluating", b"of the weights"):
        assert bar not in shown


def test_runs_need_not_be_kept(town, tmp_path):
    each = cell(town)
    run_grid([each], tmp_path, jobs=0, keep_runs=False)
    assert not list((tmp_path / "runs" / each.name).rglob("*.safetensors"))
