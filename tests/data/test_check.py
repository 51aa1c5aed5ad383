"""Whole data sets with known faults."""

import dataclasses

import numpy as np
import pytest
from typer.testing import CliRunner

from labelled_files import (
    make_acdc,
    make_camvid,
    make_gtav,
    make_synthia,
    make_town,
    picture,
    refused,
    stored_ids,
    write,
)
from recyclelora.cli import app
from recyclelora.data.check import check as module
from recyclelora.data.check.check import check_data
from recyclelora.data.finding import Pair
from recyclelora.data.opening import BENCHMARKS, open_domain


@pytest.fixture
def rows(monkeypatch):
    """The table of data sets, whose official figures a test may change."""
    table = dict(BENCHMARKS)
    monkeypatch.setattr(module, "BENCHMARKS", table)

    def change(name, **figures):
        table[name] = dataclasses.replace(table[name], **figures)

    return change


@pytest.fixture
def camvid(tmp_path, rows):
    rows("camvid", splits={"train": 3, "val": 3, "test": 3}, size=None)
    root = make_camvid(tmp_path / "camvid", "{split}/images", "{split}/labels", ".jpg")
    counts = {len(list((root / split / "images").iterdir())) for split in ("train", "val", "test")}
    rows("camvid", splits=dict.fromkeys(("train", "val", "test"), counts.pop()))
    assert not counts
    return root


def kinds(part):
    return {kind: problem.count for kind, problem in part.problems.items()}


def test_sound_data_set_has_no_problem_and_the_pixels_of_its_domains(camvid):
    found = check_data(f"camvid={camvid}")
    assert found.sound
    assert [part.name for part in found.parts] == ["train", "val", "test"]
    for part in found.parts:
        domain = open_domain(f"camvid={camvid}", part.split)
        labels = [domain.read(index)[1] for index in range(len(domain))]
        assert part.images == part.official == len(domain)
        expected = np.bincount(np.concatenate(labels, axis=None), minlength=256)
        np.testing.assert_array_equal(part.spread.pixels, expected[:19])
        assert part.spread.ignored == expected[255]
        holding = [sum((label == i).any() for label in labels) for i in range(19)]
        np.testing.assert_array_equal(part.spread.holding, holding)


def test_class_shares_are_of_labelled_and_ignored_of_all_pixels(tmp_path):
    root = tmp_path / "town"
    labels = np.repeat(np.uint8([0, 0, 0, 1, 255, 255, 255, 255]), 8).reshape(8, 8)
    write(root / "images/a.png", picture(8, 8))
    write(root / "labels/a.png", labels)
    spread = check_data(f"folder={root}").spreads()["all"]
    np.testing.assert_allclose(spread.shares[:3], [0.75, 0.25, 0])
    assert spread.ignored_share == 0.5


def test_several_processes_find_what_one_finds(camvid):
    (camvid / "val/images" / sorted(p.name for p in (camvid / "val/images").iterdir())[0]).write_text("broken")
    one, two = check_data(f"camvid={camvid}"), check_data(f"camvid={camvid}", workers=2)
    assert not one.sound
    for first, second in zip(one.parts, two.parts, strict=True):
        assert first.problems == second.problems
        np.testing.assert_array_equal(first.spread.pixels, second.spread.pixels)


def test_all_faults_of_a_folder_are_collected(tmp_path):
    root = make_town(tmp_path / "town")
    images = len(list((root / "images").rglob("*.*")))
    for number in range(5):
        write(root / f"images/extra{number}.png", picture())
    write(root / "labels/lonely.png", np.zeros((24, 32), np.uint8))
    (root / "images/b.png").write_text("this is no image")
    write(root / "images/size.png", picture(10, 10))
    write(root / "labels/size.png", np.full((24, 32), 200, np.uint8))
    [part] = check_data(f"folder={root}").parts
    assert kinds(part) == {
        "image without label": 5,
        "label without image": 1,
        "unreadable file": 1,
        "label of another size than its image": 1,
        "unknown label id 200": 1,
    }
    assert part.images == images + 6
    assert part.official is None
    bare = part.problems["image without label"]
    assert bare.examples == [f"images/extra{number}.png" for number in range(3)]
    assert part.problems["unknown label id 200"].pixels == 24 * 32
    assert part.spread.pixels.sum() + part.spread.ignored == 24 * 32 * (images)  # neither lonely nor unknown ones


def test_number_and_size_are_compared_with_the_official(tmp_path, rows):
    root = make_synthia(tmp_path, count=2)
    [part] = check_data(f"synthia={root}").parts
    assert kinds(part) == {"number of images": 1, "image of another size than 1280 x 760": 2}
    assert part.problems["number of images"].examples == ["2 in RGB/, officially 9,400"]
    rows("synthia", splits={"train": 2}, size=(64, 48))
    assert check_data(f"synthia={root}").sound


def test_labels_may_be_stretched_as_far_as_training_stretches_them(tmp_path, rows):
    root = make_gtav(tmp_path, count=1, size=(64, 48))
    rows("gtav", splits={"train": 1})
    write(root / "labels/00001.png", stored_ids("gtav", 0, (66, 48)))
    assert check_data(f"gtav={root}").sound
    write(root / "labels/00001.png", stored_ids("gtav", 0, (70, 48)))
    assert kinds(check_data(f"gtav={root}").parts[0]) == {"label of another size than its image": 1}


def test_domains_are_parts_and_can_be_chosen(tmp_path, rows):
    root = make_acdc(tmp_path, count=1)
    rows("acdc", size=None, domain_splits={name: {"train": 1, "val": 1} for name in ("fog", "night", "rain", "snow")})
    found = check_data(f"acdc={root}")
    assert found.sound
    assert [part.name for part in found.parts] == [
        f"{split} {domain}" for split in ("train", "val") for domain in ("fog", "night", "rain", "snow")
    ]
    total = sum(part.spread.pixels for part in found.parts if part.split == "val")
    np.testing.assert_array_equal(found.spreads()["val"].pixels, total)
    assert [part.name for part in check_data(f"acdc:fog={root}", ["val"]).parts] == ["val fog"]


def test_missing_split_is_a_problem_and_the_others_are_checked(camvid):
    (camvid / "test").rename(camvid / "elsewhere")
    found = check_data(f"camvid={camvid}")
    assert [part.images > 0 for part in found.parts] == [True, True, False]
    assert "expected test/images/ + test/labels/" in found.parts[2].problems["folders not found"].examples[0]
    assert list(found.spreads()) == ["train", "val"]
    assert check_data(f"camvid={camvid}", ["val"]).sound


def test_repeated_names_and_empty_folders_are_problems(tmp_path):
    root = make_town(tmp_path / "town")
    write(root / "images/b.jpg", picture())
    assert kinds(check_data(f"folder={root}").parts[0]) == {"repeated name": 1}
    for kind in ("images", "labels"):
        (tmp_path / "empty" / kind).mkdir(parents=True)
    assert kinds(check_data(f"folder={tmp_path}/empty").parts[0]) == {"number of images": 1}


def test_pair_that_vanishes_meanwhile_is_a_problem(tmp_path, monkeypatch):
    root = make_town(tmp_path / "town")
    find = module._find

    def with_another(part, row, place):
        find(part, row, place)
        part.pairs.append(Pair("gone", place / "images/gone.png", place / "labels/gone.png"))

    monkeypatch.setattr(module, "_find", with_another)
    assert kinds(check_data(f"folder={root}").parts[0]) == {"unreadable file": 2}


def test_wrong_requests_are_refused(tmp_path):
    refused(lambda: check_data("streets:fog"), "streets is rendered")
    refused(lambda: check_data(f"camvid={tmp_path}/none"), f"{tmp_path}/none: no such folder")
    refused(lambda: check_data(f"camvid={tmp_path}", ["tset"]), "camvid has no split 'tset'", "'test'")
    refused(lambda: check_data(f"camvid={tmp_path}", "tset"), "camvid has no split 'tset'")
    refused(lambda: check_data(f"folder={tmp_path}", ["val"]), "folder has no split 'val'; leave --split out")


def test_command_ends_with_1_if_there_are_problems(camvid, tmp_path):
    page = tmp_path / "page.html"
    arguments = ["data", "check", f"camvid={camvid}", "--workers", "0", "--out", str(page)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "sidewalk" in result.output
    assert "sidewalk" in page.read_text()
    again = CliRunner().invoke(app, arguments)
    assert "--overwrite" in str(again.exception)
    write(camvid / "val/images/another.png", picture())
    result = CliRunner().invoke(app, [*arguments, "--overwrite", "--split", "val"])
    assert result.exit_code == 1
    assert "val/images/another.png" in result.output
    assert "train" not in result.output.split("Share")[0]
    assert "val/images/another.png" in page.read_text()
    wrong = CliRunner().invoke(app, [*arguments[:-1], "page.txt"])
    assert "ending in .html" in str(wrong.exception)
