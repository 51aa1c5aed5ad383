"""A user's own folder is read in each of its arrangements, and refused if it may be meant in two ways."""

import shutil

import numpy as np
import pytest

from labelled_files import ids, make_town, picture, refused, write
from recyclelora.data.check.check import check_data
from recyclelora.data.folder import LABELS, SPLIT_FOLDERS, SUFFIXES
from recyclelora.data.opening import evaluated_split, manifest, open_domain, parse_spec

ARRANGEMENTS = {"outside": "{split}/{kind}", "inside": "{kind}/{split}"}


def make_splits(root, form="outside", words=("train", "val", "test"), labels="labels", suffix=""):
    """A folder with splits; the first image of each has a name of its own."""
    for number, word in enumerate(words):
        for name, seed in ((f"{word}0", number), ("shared", 10 + number)):
            image, label = (ARRANGEMENTS[form].format(split=word, kind=kind) for kind in ("images", labels))
            write(root / image / f"{name}.jpg", picture(seed=seed))
            write(root / label / f"{name}{suffix}.png", ids(classes=19, seed=seed))
    return root


@pytest.mark.parametrize("form", ARRANGEMENTS)
@pytest.mark.parametrize("words", [("train", "val", "test"), ("training", "valid", "testing"), ("train", "validation")])
def test_splits_are_read_from_folders_of_their_names(tmp_path, form, words):
    root = make_splits(tmp_path / "town", form, words)
    for number, (split, word) in enumerate(zip(SPLIT_FOLDERS, words, strict=False)):
        domain = open_domain(f"folder={root}", split)
        assert manifest(domain) == ["shared", f"{word}0"]
        assert (domain.read(1)[1] == ids(classes=19, seed=number)).all()
        first, second = (ARRANGEMENTS[form].format(split=word, kind=kind) for kind in ("images", "labels"))
        assert f"{split} in {first}/ + {second}/" in domain.notes[0]
    assert evaluated_split(parse_spec(f"folder={root}")) == ("test" if len(words) == 3 else "val")
    found = check_data(f"folder={root}")
    assert found.sound
    assert [part.split for part in found.parts] == list(SPLIT_FOLDERS)[: len(words)]
    assert found.notes == open_domain(f"folder={root}", "train").notes


def test_split_that_is_not_there_is_named(tmp_path):
    root = make_splits(tmp_path / "town", words=("train", "val"))
    refused(lambda: open_domain(f"folder={root}", "test"), "no labelled split 'test', only train and val; choose")
    refused(lambda: check_data(f"folder={root}", ["test"]), "folder has no split 'test'")
    assert [part.name for part in check_data(f"folder={root}", ["val"]).parts] == ["val"]
    only = make_splits(tmp_path / "only", words=("train",))
    assert evaluated_split(parse_spec(f"folder={only}")) == "val"
    shutil.rmtree(root / "val/labels")
    refused(lambda: open_domain(f"folder={root}", "val"), "expected val/images/ + val/labels/")


def test_one_set_without_splits_needs_no_line(tmp_path):
    domain = open_domain(f"folder={make_town(tmp_path / 'town')}", "val")
    assert domain.notes == ()
    assert evaluated_split(parse_spec(f"folder={tmp_path / 'town'}")) == "test"
    assert check_data(f"folder={tmp_path / 'town'}").notes == ()


def test_mixed_arrangements_are_refused(tmp_path):
    root = make_splits(make_town(tmp_path / "a"))
    refused(lambda: open_domain(f"folder={root}", "train"), "images are in images/ and in train/images/")
    root = make_splits(make_town(tmp_path / "b"), "inside")
    refused(lambda: open_domain(f"folder={root}", "train"), root / "images", "lies beside the splits train and val")
    root = make_splits(tmp_path / "c", words=("train", "val", "valid"))
    refused(lambda: open_domain(f"folder={root}", "val"), "val/ and valid/ are both the split val; merge them")


def test_empty_folder_of_images_beside_splits_does_not_matter(tmp_path):
    root = make_splits(tmp_path)
    (root / "images").mkdir()
    assert manifest(open_domain(f"folder={root}", "val")) == ["shared", "val0"]


def test_a_single_folder_called_train_among_others_is_no_split(tmp_path):
    root = tmp_path / "stations"
    for name in ("bus/a", "train/b"):
        write(root / f"images/{name}.png", picture())
        write(root / f"labels/{name}.png", ids())
    for split in SPLIT_FOLDERS:
        assert manifest(open_domain(f"folder={root}", split)) == ["bus/a", "train/b"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_labels_may_have_a_suffix(tmp_path, suffix):
    root = make_splits(tmp_path, suffix=suffix)
    domain = open_domain(f"folder={root}", "val")
    assert manifest(domain) == ["shared", "val0"]
    assert (domain.read(0)[1] == ids(classes=19, seed=11)).all()
    assert domain.notes[-1] == f"the label of NAME is NAME{suffix}.png"
    assert check_data(f"folder={root}").sound
    (root / f"val/labels/shared{suffix}.png").unlink()
    refused(lambda: open_domain(f"folder={root}", "val"), "image without label", f"labels/shared{suffix}.png")


def test_two_kinds_of_names_are_refused(tmp_path):
    for labels in (("a_mask", "b"), ("a_mask", "b_gt"), ("a", "b_label", "b_mask")):
        root = tmp_path / "-".join(labels)
        for name in "ab":
            write(root / f"images/{name}.png", picture())
        for name in labels:
            write(root / f"labels/{name}.png", ids())
        refused(lambda root=root: open_domain(f"folder={root}", "val"), "another kind of name", "rename them alike")


def test_images_whose_own_names_end_in_a_suffix_have_plain_labels(tmp_path):
    for name in ("a", "a_mask"):
        write(tmp_path / f"images/{name}.png", picture())
        write(tmp_path / f"labels/{name}.png", ids())
    domain = open_domain(f"folder={tmp_path}", "val")
    assert manifest(domain) == ["a", "a_mask"]
    assert domain.notes == ()


def test_folder_of_labels_may_be_called_masks(tmp_path):
    root = make_splits(tmp_path, labels=LABELS[1])
    domain = open_domain(f"folder={root}", "train")
    assert (domain.read(1)[1] == ids(classes=19, seed=0)).all()
    assert domain.notes[0] == "labels are in masks/"
    (root / "train/labels").mkdir()
    (root / "train/labels/shared.txt").write_text("0 0.5 0.5 0.1 0.1")
    assert open_domain(f"folder={root}", "train").notes[0] == "labels are in masks/; labels/ is not read"
    write(root / "train/labels/shared.png", np.zeros((24, 32), np.uint8))
    write(root / "train/labels/train0.png", np.zeros((24, 32), np.uint8))
    domain = open_domain(f"folder={root}", "train")
    assert domain.notes[0] == "labels are in labels/; masks/ is not read"
    assert not domain.read(0)[1].any()
