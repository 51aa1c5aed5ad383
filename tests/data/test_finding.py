"""Every file of a data set is found under its own name, and what is in the way is named."""

import errno
import os
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from labelled_files import MAKERS, ids, make_town, picture, refused, write
from recyclelora.data.check.check import check_data
from recyclelora.data.decoding import read_image
from recyclelora.data.finding import find_images
from recyclelora.data.opening import manifest, open_domain


def kinds(root, name="folder"):
    return {
        kind: problem.count for part in check_data(f"{name}={root}").parts for kind, problem in part.problems.items()
    }


# Names


@pytest.mark.parametrize("forms", [("NFD", "NFC"), ("NFC", "NFD"), ("NFD", "NFD")])
def test_names_match_in_both_forms_of_unicode(tmp_path, forms):
    for kind, form in zip(("images", "labels"), forms, strict=True):
        file = tmp_path / kind / unicodedata.normalize(form, "süd") / f"{unicodedata.normalize(form, 'straße_ü')}.png"
        write(file, picture() if kind == "images" else ids())
    assert manifest(open_domain(f"folder={tmp_path}", "val")) == ["süd/straße_ü"]
    assert list(find_images([tmp_path / "images"])) == ["süd/straße_ü"]
    assert "label without image" not in kinds(tmp_path)


def test_one_name_in_two_forms_in_one_folder_is_refused(tmp_path):
    for form in ("NFC", "NFD"):
        write(tmp_path / "images" / f"{unicodedata.normalize(form, 'ü')}.png", picture())
    refused(lambda: find_images([tmp_path / "images"]), "same name", "remove one")


@pytest.mark.parametrize(("name", "labels"), [("gtav", "labels"), ("synthia", "GT/LABELS"), ("urbansyn", "ss")])
def test_labels_that_other_toolkits_left_there_are_left_alone(tmp_path, name, labels):
    root = MAKERS[name](tmp_path)
    before = open_domain(f"{name}={root}", "train")
    for file in list((root / labels).iterdir()):
        write(file.with_name(f"{file.stem}_labelTrainIds.png"), np.full((48, 64), 18, np.uint8))
    after = open_domain(f"{name}={root}", "train")
    assert manifest(after) == manifest(before)
    for index in range(len(before)):
        assert (after.read(index)[1] == before.read(index)[1]).all()
    assert "label without image" not in kinds(root, name)


def test_resource_forks_of_macos_are_left_out_of_a_prediction_as_of_training(tmp_path):
    root = make_town(tmp_path)
    for file in ("images/._b.png", "labels/._b.png", "images/north/._a.png"):
        (root / file).write_bytes(b"\0\x05\x16\x07")
    assert list(find_images([root / "images"])) == manifest(open_domain(f"folder={root}", "val")) == ["b", "north/a"]
    assert kinds(root) == {}


# What is no file


@pytest.mark.parametrize("kind", ["images", "labels"])
@pytest.mark.parametrize("what", ["dangling link", "pipe", "device", "folder"])
def test_what_is_no_file_is_named_before_anything_is_read(tmp_path, kind, what):
    root = make_town(tmp_path)
    path = root / kind / "b.png"
    path.unlink()
    if what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    else:
        path.symlink_to({"dangling link": "gone.png", "device": "/dev/zero"}[what])
    start = time.monotonic()
    refused(lambda: open_domain(f"folder={root}", "val"), path, what.split()[-1])
    assert kinds(root) == {"folder or link in the way" if what == "folder" else "unreadable file": 1}
    if kind == "images":
        read = lambda: read_image(find_images([root / "images"])["b"])  # noqa: E731  a prediction goes on with others
        refused(read, path, what.split()[-1])
        assert what == "folder" or refused(lambda: find_images([path]), path, what.split()[-1])
    assert time.monotonic() - start < 1


def test_link_to_a_folder_above_is_named(tmp_path):
    root = make_town(tmp_path)
    (root / "images/north/again").symlink_to(root / "images")
    refused(lambda: find_images([root / "images"]), "north/again: a link to a folder above it", "remove the link")
    refused(lambda: open_domain(f"folder={root}", "val"), "north/again: a link to a folder above it")


def test_two_links_to_one_folder_are_two_folders(tmp_path):
    write(tmp_path / "elsewhere/a.png", picture())
    (tmp_path / "images").mkdir()
    for name in ("east", "west.png"):
        (tmp_path / "images" / name).symlink_to(tmp_path / "elsewhere")
    assert list(find_images([tmp_path / "images"])) == ["east/a", "west.png/a"]


# Turned images


def turned(root, orientation, size):
    """One image that its EXIF data turn, with a label of the size (rows, columns)."""
    exif = Image.Exif()
    exif[0x112] = orientation
    stored = size if orientation < 5 else size[::-1]
    write(root / "images/a.png", picture(*stored), exif=exif)
    write(root / "labels/a.png", ids(*size))
    return root


@pytest.mark.parametrize(
    ("orientation", "size"),
    [*((way, (24, 32)) for way in (2, 3, 4)), *((way, (24, 24)) for way in range(2, 9))],
)
def test_image_that_is_turned_without_its_label_is_named(tmp_path, orientation, size):
    root = turned(tmp_path, orientation, size)
    parts = (f"orientation {orientation}", "nothing turns its label", "save the image as it lies over its label")
    refused(lambda: open_domain(f"folder={root}", "val").read(0), root / "images/a.png", *parts)
    assert kinds(root) == {"image turned without its label": 1}


@pytest.mark.parametrize("orientation", [1, 5, 6, 7, 8])
def test_label_whose_size_shows_that_it_lies_upright_is_read(tmp_path, orientation):
    root = turned(tmp_path, orientation, (24, 32))
    image, labels = open_domain(f"folder={root}", "val").read(0)
    assert image.shape[:2] == labels.shape == (24, 32)
    assert kinds(root) == {}


# Files of other kinds


@pytest.mark.parametrize(("suffix", "kind"), [(".HEIC", "HEIC"), (".mp4", "video"), (".gif", "GIF")])
def test_files_of_other_kinds_in_the_place_of_images_are_named(tmp_path, suffix, kind):
    content = {"HEIC": b"\0\0\0\x18ftypheic", "video": b"\0\0\0\x20ftypisom", "GIF": b"GIF89a"}[kind]
    root = make_town(tmp_path)
    (root / "images/b.png").unlink()
    path = root / "images" / f"b{suffix}"
    path.write_bytes(content)
    refused(lambda: open_domain(f"folder={root}", "val"), "label without image", f"found b{suffix} (a {kind})")
    refused(lambda: find_images([root / "images/b.png"]), "no such image or folder")
    refused(lambda: read_image(find_images([path])["b"]), path, f"holds a {kind}", "expected PNG, JPEG")
    (root / "images/north/a.png").unlink()
    refused(lambda: find_images([root / "images"]), "no images", f"found b{suffix}")


LEFT_OUT = {
    "a.heic": (b"\0\0\0\x18ftypheic", "a HEIC"),
    "b.avif": (b"\0\0\0\x1cftypavif", "an AVIF"),
    "c.MP4": (b"\0\0\0\x20ftypisom\xff", "a video"),
    "d.gif": (b"GIF89a\x20\0\x80", "a GIF"),
    "e.jfif": (b"\xff\xd8\xff\xe0", "a JPEG"),
    "f": (b"\x89PNG\r\n\x1a\n", "a PNG"),
    "g.zip": (b"PK\x03\x04\x14\0\xff", "a ZIP archive"),
}


def test_pictures_of_other_kinds_beside_images_are_named(tmp_path):
    write(tmp_path / "photos/x.png", picture())
    for name, content in {"notes.txt": b"BMW and other cars", "Thumbs.db": b"\xd0\xcf\x11\xe0", ".a.heic": b""}.items():
        (tmp_path / "photos" / name).write_bytes(content)
    assert list(find_images([tmp_path / "photos"])) == ["x"]  # without a warning, which a test would take as an error
    for name, (content, _) in LEFT_OUT.items():
        write(tmp_path / name / "x.png", picture())
        (tmp_path / name / "north").mkdir()
        (tmp_path / name / "north" / name).write_bytes(content)
        with pytest.warns(UserWarning, match="left out") as warned:
            assert list(find_images([tmp_path / name])) == ["x"]
        [message] = [str(warning.message) for warning in warned]
        assert message.startswith(
            f"{tmp_path / name}: 1 of its files left out, as their names do not end in .bmp, .jpeg"
        )
        assert f": north/{name} ({LEFT_OUT[name][1]}); save them as such images" in message


def test_many_files_that_are_left_out_are_counted(tmp_path):
    write(tmp_path / "x.png", picture())
    for number in range(7):
        (tmp_path / f"{number}.gif").write_bytes(LEFT_OUT["d.gif"][0])
    with pytest.warns(UserWarning, match=r"7 of its files .* 0.gif \(a GIF\), .* 4.gif \(a GIF\) and 2 more; save"):
        find_images([tmp_path])
    with pytest.warns(UserWarning, match="7 of its files"):
        find_images([tmp_path, write(tmp_path / "y/single.png", picture())])


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    """Python passes over it without a word."""
    write(tmp_path / "a.png", picture(8, 8))
    write(tmp_path / "north" / "b.png", picture(8, 8))
    scan = os.scandir

    def closed(place):
        if Path(place).name == "north":
            raise PermissionError(errno.EACCES, "Permission denied", str(place))
        return scan(place)

    monkeypatch.setattr(os, "scandir", closed)  # permissions do not keep an administrator out
    refused(lambda: find_images([tmp_path]), tmp_path / "north", "cannot be read (Permission denied)", "allow reading")


# Patterns


@pytest.fixture
def album(tmp_path):
    for name in ("a.jpg", "b.png", "north/c.jpg", "north/deep/d.jpg", "x[1].jpg", "x1.jpg"):
        write(tmp_path / "album" / name, picture(8, 8))
    (tmp_path / "album" / "notes.txt").write_text("mine")
    return tmp_path / "album"


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.jpg", ["a", "x1", "x[1]"]),
        ("*", ["a", "b", "x1", "x[1]"]),
        ("**/*.jpg", ["a", "north/c", "north/deep/d", "x1", "x[1]"]),
        ("**", ["a", "b", "north/c", "north/deep/d", "x1", "x[1]"]),
        ("n*", ["north/c", "north/deep/d"]),
        ("n*/?.jpg", ["north/c"]),
        ("[ab].*", ["a", "b"]),
        ("x[1].jpg", ["x[1]"]),  # a file of this name, and no pattern
    ],
)
def test_patterns_give_names_relative_to_their_fixed_part(pattern, names, album):
    found = find_images([album / pattern])
    assert sorted(found) == sorted(names)
    assert all(file.is_file() for file in found.values())


def test_a_pattern_below_a_folder_with_a_bracket_in_its_name(tmp_path):
    write(tmp_path / "a[1]" / "b.png", picture(8, 8))
    write(tmp_path / "a1" / "c.png", picture(8, 8))
    assert list(find_images([tmp_path / "a[1]" / "*.png"])) == ["b"]


def test_a_pattern_that_nothing_matches_is_named(album):
    refused(lambda: find_images([album / "*.tif"]), album / "*.tif", "no images match", "found no file")
    refused(lambda: find_images([album / "*.txt"]), "no images match", "notes.txt")
    refused(lambda: find_images([album / "none.jpg"]), "none.jpg: no such image or folder")
    write(album / "a.png", picture(8, 8))
    refused(lambda: find_images([album / "a.*"]), "same name")


def test_files_of_other_suffixes_are_taken_if_asked_for(album):
    (album / "clip.MP4").write_bytes(b"\0\0\0\x20ftypisom")
    with pytest.warns(UserWarning, match=r"clip\.MP4 \(a video\)"):
        find_images([album])
    assert "clip" in find_images([album], frozenset({".jpg", ".png", ".mp4"}))
