"""Labelled files are found, read and refused, and images are found for a prediction."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from labelled_files import (
    ids,
    make_camvid,
    make_gtav,
    make_town,
    palette_image,
    picture,
    refused,
    stored_ids,
    write,
)
from recyclelora.data.decoding import read_image
from recyclelora.data.finding import IMAGE_SUFFIXES, find_images
from recyclelora.data.labels import CITYSCAPES
from recyclelora.data.opening import manifest, open_domain


@pytest.fixture
def camvid(tmp_path):
    return make_camvid(tmp_path / "camvid", "{split}/images", "{split}/labels", ".jpg")


@pytest.fixture
def town(tmp_path):
    return make_town(tmp_path / "town")


# Reading


def test_palette_and_one_bit_labels_give_their_indices(town):
    indices = ids(classes=19)
    palette = Image.fromarray(indices).convert("P")
    palette.putdata(indices.ravel().tolist())
    palette.putpalette([value for colour in CITYSCAPES.colours for value in colour])
    palette.save(town / "labels/b.png")
    assert (town / "labels/b.png").read_bytes()[25] == 3  # the PNG colour type of palettes
    domain = open_domain(f"folder={town}", "val")
    assert (domain.read(0)[1] == indices).all()
    write(town / "labels/b.png", indices > 9)
    assert (domain.read(0)[1] == (indices > 9)).all()


def test_grey_and_transparent_images_become_rgb(town):
    grey = ids(classes=256)
    write(town / "images/b.png", grey)
    domain = open_domain(f"folder={town}", "val")
    assert (domain.image(0) == grey[..., None]).all()
    write(town / "images/b.png", np.dstack([picture(), grey]))
    assert (domain.image(0) == picture()).all()


def test_photograph_is_turned_upright(town):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter clockwise
    write(town / "images/b.png", picture(24, 32), exif=exif)
    write(town / "labels/b.png", ids(32, 24))
    image, labels = open_domain(f"folder={town}", "val").read(0)
    assert (image == np.rot90(picture(24, 32), -1)).all()
    assert labels.shape == (32, 24)


def test_links_are_followed_and_hidden_files_left_out(town, tmp_path):
    shutil.move(town / "images/north", tmp_path / "elsewhere")
    (town / "images/north").symlink_to(tmp_path / "elsewhere")
    (town / "images/._b.jpg").write_bytes(b"resource fork")
    (town / "images/notes.md").write_text("not an image")
    assert len(open_domain(f"folder={town}", "val")) == 2


# What can be wrong with files


def test_unknown_layout_names_the_known_and_the_found(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "readme.txt").touch()
    known = "train/images/ + train/labels/ or train/ + trainannot/"
    refused(lambda: open_domain(f"camvid={tmp_path}", "train"), tmp_path, known, "pictures/, readme.txt")
    refused(lambda: open_domain(f"folder={tmp_path}", "train"), tmp_path, "images/ + labels/", "pictures/")
    (tmp_path / "empty").mkdir()
    refused(lambda: open_domain(f"folder={tmp_path}/empty", "train"), tmp_path / "empty", "an empty folder")


def test_image_or_label_without_its_counterpart_is_named(town):
    write(town / "images/c.jpg", picture())
    write(town / "images/d.jpg", picture())
    refused(lambda: open_domain(f"folder={town}", "val"), "c.jpg: image without label (2 of 4", town / "labels/c.png")
    for stem in ("c", "d", "e"):
        write(town / f"labels/{stem}.png", ids())
    refused(lambda: open_domain(f"folder={town}", "val"), "e.png: label without image (1 of 5", town / "images/e")


def test_folder_without_images_and_repeated_names_are_named(town):
    write(town / "images/b.jpg", picture())
    refused(lambda: open_domain(f"folder={town}", "val"), town / "images/b.png", "same name as b.jpg")
    shutil.rmtree(town / "images")
    (town / "images").mkdir()
    refused(lambda: open_domain(f"folder={town}", "val"), town / "images", "no images", ".jpg")


def test_unknown_label_id_is_named_with_its_place(camvid):
    label = ids(classes=11)
    label[3, 5] = label[4, 0] = 37
    path = write(camvid / "val/labels/0001TP_val0.png", label)
    domain = open_domain(f"camvid={camvid}", "val")
    for read in (domain.read, domain.read_scored):
        refused(lambda read=read: read(0), path, "id 37 at row 3, column 5 (2 unknown", "0 to 11 or 255")
    assert len(domain.image(0)) == 24  # an image can be used without its label


def test_unequal_sizes_are_named(town):
    path = write(town / "labels/b.png", ids(12, 16))
    refused(lambda: open_domain(f"folder={town}", "val").read(0), path, "16 x 12", "b.png has 32 x 24")


def test_labels_are_stretched_by_small_shares_only(tmp_path):
    root = make_gtav(tmp_path, size=(40, 40))
    labels = root / "labels/00001.png"
    for width, height in ((42, 40), (38, 42)):
        palette_image(stored_ids("gtav", 0, (width, height))).save(labels)
        assert open_domain(f"gtav={root}", "train").read(0)[1].shape == (40, 40)
    for width, height in ((43, 40), (40, 37), (20, 20)):
        palette_image(stored_ids("gtav", 0, (width, height))).save(labels)
        refused(lambda: open_domain(f"gtav={root}", "train").read(0), labels, f"{width} x {height}", "has 40 x 40")


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.9])
def test_truncated_files_are_refused(town, suffix, kept, capfd):
    (town / "images/b.png").unlink()
    path = write(town / f"images/b{suffix}", picture(200, 200))
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    refused(lambda: open_domain(f"folder={town}", "val").read(0), path, "cannot be read as an image", "replace")
    label = write(town / "labels/b.png", ids(200, 200))
    write(town / f"images/b{suffix}", picture(200, 200))
    label.write_bytes(label.read_bytes()[: int(kept * label.stat().st_size)])
    refused(lambda: open_domain(f"folder={town}", "val").read(0), label, "cannot be read as an image")
    assert not capfd.readouterr().err


def test_damaged_and_missing_files_are_refused(town):
    path = town / "images/b.png"
    domain = open_domain(f"folder={town}", "val")
    content = bytearray(path.read_bytes())
    content[60] ^= 0xFF
    path.write_bytes(content)
    refused(lambda: domain.read(0), path, "cannot be read as an image")
    path.write_text("this is no image")
    refused(lambda: domain.read(0), path, "cannot be read as an image")
    path.unlink()
    refused(lambda: domain.read(0), path, "No such file")


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (picture(), "mode 'RGB' (3 channels)"),
        (np.dstack([picture(), ids()]), "mode 'RGBA' (4 channels)"),
        (ids().astype(np.uint16) * 256, "(16 bits)"),
    ],
)
def test_label_of_another_kind_is_refused(town, array, found):
    path = write(town / "labels/b.png", array)
    refused(
        lambda: open_domain(f"folder={town}", "val").read(0), path, found, "one channel of 8-bit ids", "palette PNG"
    )


def test_image_of_16_bits_is_refused(town):
    path = write(town / "images/b.png", ids().astype(np.uint16) * 256)
    refused(lambda: open_domain(f"folder={town}", "val").read(0), path, "16", "8 bits")


# Images without labels


@pytest.fixture
def photographs(tmp_path):
    """A folder with a sub-folder, a linked folder, a linked file, and hidden files and folders of other programs."""
    for file in ("new/b.png", "new/north/a.jpg", "elsewhere/0001.jpg", "single/c.png"):
        write(tmp_path / file, picture())
    write(tmp_path / "new/.thumbnails/b.png", picture())
    (tmp_path / "new/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "new/c.PNG").symlink_to(tmp_path / "single/c.png")
    for file in ("new/._0001.jpg", "elsewhere/._0001.jpg", "new/.hidden.png", "new/notes.md", "new/Thumbs.db"):
        (tmp_path / file).write_bytes(b"no image")
    return tmp_path


def test_images_are_found_through_links_and_without_hidden_files(photographs):
    new = photographs / "new"
    assert find_images([new]) == {
        "b": new / "b.png",
        "c": new / "c.PNG",
        "linked/0001": new / "linked/0001.jpg",
        "north/a": new / "north/a.jpg",
    }
    assert list(find_images([new])) == ["b", "c", "linked/0001", "north/a"]
    assert find_images([new / "linked"]) == {"0001": new / "linked/0001.jpg"}


def test_images_of_several_places_are_found_in_their_order(photographs):
    found = find_images([photographs / "single/c.png", photographs / "elsewhere", photographs / "new/north"])
    assert list(found) == ["c", "0001", "a"]


def test_an_image_that_is_given_twice_is_taken_once(photographs):
    new = photographs / "new"
    for places in ([new / "b.png", new], [new / "c.PNG", photographs / "single/c.png"]):
        names = [name for place in places for name in find_images([place])]
        assert list(find_images(places)) == list(dict.fromkeys(names))


def test_paths_are_taken_as_users_write_them(photographs, monkeypatch):
    monkeypatch.setenv("HOME", str(photographs))
    for place in ("~/single", "~/single/c.png", "~/singl*", os.fsencode(photographs / "single")):
        assert list(find_images([place]).values()) == [photographs / "single/c.png"]
    refused(lambda: find_images([""]), "an empty path", "the current folder")
    refused(lambda: find_images(["x" * 300]), "x...: cannot be read (File name too long)")


def test_prediction_and_data_sets_find_the_same_files(photographs):
    new = photographs / "new"
    for name in find_images([new]):
        write(photographs / f"labels/{name}.png", ids())
    new.rename(photographs / "images")
    assert manifest(open_domain(f"folder={photographs}", "val")) == [*find_images([photographs / "images"])]


def test_two_images_of_one_name_are_refused(photographs):
    new, other = photographs / "new", photographs / "other"
    write(other / "b.jpg", picture())
    refused(
        lambda: find_images([new, other]),
        other / "b.jpg",
        new / "b.png",
        "same name, b; predict them in",
    )
    write(new / "north/a.png", picture())
    refused(lambda: find_images([new]), new / "north/a.png", "same name as a.jpg", "remove one")


def test_one_place_needs_no_list(photographs):
    one = photographs / "single/c.png"
    assert find_images(one) == find_images(str(one)) == {"c": one}


def test_places_without_images_are_refused(photographs):
    refused(lambda: find_images([photographs / "none"]), photographs / "none", "no such image or folder")
    (photographs / "broken").symlink_to(photographs / "none")
    refused(lambda: find_images([photographs / "broken"]), photographs / "broken", "a link to", "where there is no")
    (photographs / "empty").mkdir()
    (photographs / "empty/._0001.jpg").write_bytes(b"resource fork")
    refused(lambda: find_images([photographs / "empty"]), photographs / "empty", "no images", *IMAGE_SUFFIXES)
    refused(lambda: find_images([]), "no images are given", "give image files")


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
def test_every_suffix_is_found_and_read(tmp_path, suffix):
    found = find_images([write(tmp_path / "images" / f"a{suffix}", picture()).parent])
    assert read_image(found["a"]).shape == (24, 32, 3)
    capital = (tmp_path / "images" / f"a{suffix}").rename(tmp_path / "images" / f"a{suffix.upper()}")
    assert find_images([tmp_path / "images"]) == {"a": capital}
