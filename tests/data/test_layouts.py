import shutil

import pytest

from labelled_files import MAKERS, refused
from recyclelora.data.layouts import Layout, shared_name
from recyclelora.data.opening import open_domain
from recyclelora.data.table import BENCHMARKS


def opened(name, root, split=None):
    return lambda: open_domain(f"{name}={root}", split or BENCHMARKS[name].evaluated)


def move(root, old, new):
    (root / new).parent.mkdir(parents=True, exist_ok=True)
    shutil.move(root / old, root / new)


@pytest.mark.parametrize(
    ("stem", "pattern", "expected"),
    [
        ("a_leftImg8bit", "*_leftImg8bit", "a"),
        ("rgb_0001", "rgb_*", "0001"),
        ("a", "*", "a"),
        ("a_color", "*_labelIds", None),
        ("_labelIds", "*_labelIds", None),
        ("ab", "ab*b", None),
    ],
)
def test_shared_part_of_a_name(stem, pattern, expected):
    assert shared_name(stem, pattern) == expected


def test_folders_are_in_the_words_of_the_data_set(tmp_path):
    layout = Layout("{split}/x/{domain}", "y", splits={"train": "training"})
    assert layout.folders(tmp_path, "train", "fog") == (tmp_path / "training/x/fog", tmp_path / "y")
    assert layout.folders(tmp_path, "val") == (tmp_path / "val/x", tmp_path / "y")
    assert not layout.is_at(tmp_path, "train", "fog")


# Every layout in which a data set is found


@pytest.mark.parametrize(
    ("name", "moves"),
    [
        (
            "cityscapes",
            [("leftImg8bit", "leftImg8bit_trainvaltest/leftImg8bit"), ("gtFine", "gtFine_trainvaltest/gtFine")],
        ),
        ("acdc", [("rgb_anon", "rgb_anon_trainvaltest/rgb_anon"), ("gt", "gt_trainval/gt")]),
        ("mapillary", [("training/v1.2/labels", "training/labels"), ("validation/v1.2/labels", "validation/labels")]),
        ("bdd100k", [("images/10k", "seg/images"), ("labels/sem_seg/masks", "seg/labels")]),
    ],
)
def test_second_layouts(tmp_path, name, moves):
    root = MAKERS[name](tmp_path / "data")
    first = open_domain(f"{name}={root}", "val")
    labels = first.read(1)[1]
    for old, new in moves:
        move(root, old, new)
    if name == "bdd100k":
        for file in (root / "seg/labels").rglob("*.png"):
            file.rename(file.with_name(f"{file.stem}_train_id.png"))
    second = open_domain(f"{name}={root}", "val")
    assert [second.name(i) for i in range(len(second))] == [first.name(i) for i in range(len(second))]
    assert (second.read(1)[1] == labels).all()


# Wrong layouts


@pytest.mark.parametrize("name", MAKERS)
def test_a_root_too_high_or_too_low_is_named(tmp_path, name):
    root = MAKERS[name](tmp_path / "sets" / "mine")
    for wrong in (tmp_path / "sets", tmp_path):
        refused(opened(name, wrong), f"{wrong}: expected ", f"give {root}, which has them")
    inside = next(entry for entry in root.iterdir() if entry.is_dir())
    refused(opened(name, inside), f"{inside}: expected ", f"give {root}, which has them")


def test_error_says_how_to_move_folders_that_lie_apart(tmp_path):
    root = MAKERS["cityscapes"](tmp_path / "cityscapes")
    move(root, "gtFine", "gtFine_trainvaltest/gtFine")
    places = f"move {root}/gtFine_trainvaltest/gtFine/val to {root}/gtFine/val"
    refused(opened("cityscapes", root), places)
    move(root, "leftImg8bit", "a/b/leftImg8bit")
    refused(opened("cityscapes", root), f"move {root}/a/b/leftImg8bit/val to {root}/leftImg8bit/val and {places}")


def test_error_says_to_put_the_parts_of_gtav_together(tmp_path):
    root = MAKERS["gtav"](tmp_path / "gtav")
    move(root, "images", "01_images/images")
    move(root, "labels", "01_labels/labels")
    refused(opened("gtav", root), "images/ + labels/", "found 01_images/, 01_labels/", "the ten parts into one folder")


def test_folders_of_the_same_name_inside_each_other_are_named(tmp_path):
    root = MAKERS["gtav"](tmp_path / "gtav")
    move(root, "images", "inner")
    move(root, "inner", "images/images")
    refused(
        opened("gtav", root), "image without label", f"move the files of {root}/images/images up into {root}/images"
    )


def test_coarse_missing_and_packed_labels_of_cityscapes(tmp_path):
    root = MAKERS["cityscapes"](tmp_path / "cityscapes")
    for file in (root / "gtFine").rglob("*_labelIds.png"):
        file.unlink()
    refused(opened("cityscapes", root), f"{root}/gtFine/val: no labels", "*_gtFine_labelIds", "_color.png")
    shutil.rmtree(root / "gtFine")
    (root / "gtFine_trainvaltest.zip").touch()
    refused(opened("cityscapes", root), "leftImg8bit/val/ + gtFine/val/", "unpack gtFine_trainvaltest.zip")
    (root / "gtCoarse").mkdir()
    refused(opened("cityscapes", root), "coarse labels are not read")


def test_mapillary_of_version_2_is_refused(tmp_path):
    root = MAKERS["mapillary"](tmp_path / "mapillary")
    for split in ("training", "validation"):
        shutil.rmtree(root / split / "v1.2")
    for split in ("train", "val"):
        refused(opened("mapillary", root, split), "v1.2/labels/", "version 2.0, with 124 classes", "version 1.2")


def test_images_of_the_other_part_of_bdd100k(tmp_path):
    root = MAKERS["bdd100k"](tmp_path / "bdd100k")
    move(root, "images/10k", "images/100k")
    refused(opened("bdd100k", root), "images/10k/val/", "bdd100k_images_10k.zip")
