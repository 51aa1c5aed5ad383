"""What a training is by its settings, and its result in a file."""

import json
from dataclasses import replace

import pytest
from cells import cell, result

from labelled_files import refused
from miniatures import write_folder
from recyclelora.evaluation.scores import Scores
from recyclelora.study.cell import Cell, CellResult, read_cell, read_result

DONE = replace(
    result("recyclelora", 0, {"town": 0.4, "void": None}, wall_seconds=12.5),
    threads=1,
    versions={"python": "3.11"},
    weights_sha256="a" * 64,
    data=[{"label": "town", "images": 4, "fingerprint": "f"}],
    final_loss=0.5,
)


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data") / "town")


# Settings


def test_places_are_no_part_of_what_a_cell_is(town, tmp_path):
    moved = write_folder(tmp_path / "elsewhere")
    settings = cell(town).settings()
    assert str(town) not in str(settings)
    assert settings == Cell("x", cell(moved).recipe, (f"town:folder={moved}",), limit=3).settings()
    assert cell(town, steps=4).differences(settings) == ["steps 3 in place of 4"]
    assert Cell("x", cell(town).recipe, (f"town:folder={town}",), limit=2).differences(settings)


def test_a_limit_by_label_is_a_setting(town):
    by_label = replace(cell(town), limit={"town": 3})
    assert by_label.settings()["scored.limit.town"] == 3
    assert by_label.differences(by_label.settings()) == []
    assert by_label.differences(json.loads(json.dumps(by_label.settings()))) == []
    assert replace(by_label, limit={"town": 2}).differences(by_label.settings()) == [
        "scored.limit.town 3 in place of 2"
    ]
    assert by_label.differences(cell(town).settings())
    assert cell(town).differences(by_label.settings())


def test_settings_that_came_later_were_at_their_defaults(town):
    before = cell(town).settings()
    del before["optim.average"], before["adapter.scaling"]
    assert cell(town).differences(before) == []
    assert cell(town, optim={"lr": 3e-3, "average": 0.5}).differences(before) == ["optim.average 0.0 in place of 0.5"]
    assert cell(town).differences({**before, "no.longer": 1}) == ["no.longer 1 in place of None"]


def test_folders_are_told_apart_by_the_labels_they_have_from_their_names(town, tmp_path):
    one, other = (Cell("x", cell(town).recipe, (f"folder={tmp_path / name}",)) for name in ("one", "other"))
    assert one.settings()["scored.targets"] == ["one:folder"]
    assert other.differences(one.settings()) == ["scored.targets ['one:folder'] in place of ['other:folder']"]


def test_how_many_windows_are_scored_at_once_is_no_other_result(town):
    wide = cell(town, evaluation={"batch_size": 7})
    assert wide.differences(cell(town).settings()) == []
    assert cell(town, evaluation={"flip": True}).differences(cell(town).settings())


def test_the_name_of_the_files_is_the_variants_with_the_seed(town):
    assert Cell("lora s=1/36", cell(town, seed=7).recipe, ()).name == "lora_s=1_36--7"


# Results


def test_a_result_survives_json_without_the_confusion_of_its_scores():
    assert CellResult.from_json(json.loads(json.dumps(DONE.to_json(), allow_nan=False))) == DONE
    counted = replace(DONE, targets=(Scores("town", 3, "f", 0.4, {"sky": 0.4}, [[1, 2]], [0.4], "test"),))
    (target,) = counted.to_json()["targets"]
    assert list(target) == ["label", "images", "fingerprint", "miou", "iou", "resampled", "split"]
    back = CellResult.from_json(counted.to_json())
    assert back == replace(counted, targets=(replace(counted.targets[0], confusion=[]),))
    assert "error" not in counted.to_json()


def test_a_training_that_diverged_is_settings_and_an_error_in_json():
    diverged = result("full", 1, {}, "the loss is nan at step 3", versions={"python": "3.11"}, threads=2)
    values = json.loads(json.dumps(diverged.to_json(), allow_nan=False))
    assert set(values) == {"variant", "seed", "settings", "scale", "threads", "versions", "error", "wall_seconds"}
    assert CellResult.from_json(values) == diverged
    assert CellResult.from_json(values).targets == ()


def test_a_file_that_lacks_what_came_later_is_read():
    values = DONE.to_json()
    for key in ("wall_seconds", "final_loss"):
        del values[key]
    assert CellResult.from_json(values) == replace(DONE, wall_seconds=None, final_loss=None)


@pytest.mark.parametrize(
    "change",
    [
        {"targets": None}, {"targets": [{}]}, {"settings": None}, {"settings": "text"},
        {"strange": 1},
        *({key: "left out"} for key in ("variant", "settings", "targets", "data", "parameters", "weights_sha256")),
    ],
    ids=str,
)  # fmt: skip
def test_damaged_results_are_refused_in_one_line(tmp_path, change):
    values = {key: value for key, value in {**DONE.to_json(), **change}.items() if value != "left out"}
    file = tmp_path / "a--0.json"
    file.write_text(json.dumps(values))
    message = refused(lambda: read_result(file), file, "damaged", "remove it to have it made again")
    assert message.count("a--0.json") == 1


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"null", b"\xff\xfe"])
def test_files_that_hold_something_else_are_refused_in_one_line(tmp_path, content):
    file = tmp_path / "a--0.json"
    file.write_bytes(content)
    message = refused(lambda: read_result(file), file, "damaged", "remove it to have it made again")
    assert message.count("a--0.json") == 1


def test_a_cell_is_read_if_it_is_there_and_of_the_same_settings(town, tmp_path):
    each = cell(town)
    assert read_cell(each, tmp_path) is None
    made = replace(DONE, settings=each.settings(), targets=DONE.targets[:1])
    (tmp_path / f"{each.name}.json").write_text(json.dumps(made.to_json()))
    assert read_cell(each, tmp_path) == made
    refused(lambda: read_cell(cell(town, steps=9), tmp_path), f"{each.name}.json", "steps 3 in place of 9", "--out")


def test_a_result_on_more_targets_serves_for_fewer(town, tmp_path):
    each = cell(town)
    settings = each.settings()
    settings["scored.targets"] = [*settings["scored.targets"], "void:folder"]
    made = replace(DONE, settings=settings)
    (tmp_path / f"{each.name}.json").write_text(json.dumps(made.to_json()))
    assert read_cell(each, tmp_path) == replace(made, targets=made.targets[:1])
    wider = replace(each, targets=(*each.targets, f"void:folder={town}", f"more:folder={town}"))
    refused(lambda: read_cell(wider, tmp_path), "scored.targets", "more:folder")
