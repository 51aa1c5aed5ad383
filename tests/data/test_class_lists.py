"""A list of classes is read right or refused: never a class that is not one."""

import os
import time
import unicodedata

import pytest

from labelled_files import make_town, refused
from recyclelora.data.classes import read_classes, recoloured
from recyclelora.data.labels import LabelSpace
from recyclelora.data.opening import open_domain
from recyclelora.errors import UserError

TWO = ("ground", "sky")
BLUE = (70, 130, 180)


def test_classes_are_read_with_and_without_colours(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("background 0 0 0\n\n  traffic light\nlane #FF8000\nrail 30\n", encoding="utf-8-sig")
    space = read_classes(path).space
    assert space.names == ("background", "traffic light", "lane", "rail 30")
    assert space.colours[0] == (0, 0, 0)
    assert space.colours[2] == (255, 128, 0)
    assert len(set(space.colours)) == 4


@pytest.mark.parametrize("count", [2, 27, 255])
def test_automatic_colours_are_distinct(tmp_path, count):
    path = tmp_path / "classes.txt"
    # The first automatic colour is taken by hand, so that the automatic ones step aside.
    path.write_text("first 255 255 0\n" + "\n".join(f"class {n}." for n in range(count - 1)))
    space = read_classes(path).space
    assert len(set(space.colours)) == len(space) == count


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"road\nsky\nroad", "line 3 names the class 'road' a second time"),
        (b"road 0 0 256\nsky", "line 1 has the colour '0 0 256'"),
        (b"road\nsky #12345", "line 2 has the colour '#12345'"),
        (b"road", "lists 1 classes, expected 2 to 255"),
        (b"", "lists 0 classes"),
        (b"road\nstra\xdfe", "not UTF-8 text"),
    ],
)
def test_wrong_list_of_classes_is_named(tmp_path, content, message):
    path = tmp_path / "classes.txt"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_classes(path)
    assert str(path) in str(error.value)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


READ = {
    "comment first": (b"# my classes\nground\nsky\n", None),
    "comment without a space": (b"#my classes\nground\nsky\n", None),
    "comment between and at the end": (b"ground\n  # then\nsky\n#", None),
    "comment behind a class": (b"ground # not paved\nsky # blue\n", None),
    "colour and a comment": (b"ground\nsky 70 130 180 # blue\n", BLUE),
    "hexadecimal colour and a comment": (b"ground\nsky #4682b4 # blue\n", BLUE),
    "colour first": (b"ground\n70 130 180 sky\n", BLUE),
    "hexadecimal colour first": (b"ground\n#4682B4 sky\n", BLUE),
    "commas": (b"ground\nsky,70,130,180\n", BLUE),
    "commas and spaces": (b"ground,\nsky, 70, 130, 180\n", BLUE),
    "semicolons": (b"ground;\nsky;70;130;180\n", BLUE),
    "colour first with commas": (b"ground\n70,130,180,sky\n", BLUE),
    "commas only in the colour": (b"ground\nsky 70,130,180\n", BLUE),
    "comma before a hexadecimal colour": (b"ground\nsky,#4682b4\n", BLUE),
    "tabs": (b"ground\nsky\t70\t130\t180\n", BLUE),
    "BOM": (b"\xef\xbb\xbfground\nsky\n", None),
    "BOM before a comment": (b"\xef\xbb\xbf# mine\nground\nsky\n", None),
    "UTF-16": ("ground\nsky\n".encode("utf-16"), None),
    "UTF-16 of the other order": (b"\xfe\xff" + "ground\r\nsky".encode("utf-16-be"), None),
    "line ends of Windows": (b"ground\r\n\r\nsky\r\n", None),
    "line ends of old Macs": (b"ground\rsky\r", None),
}


@pytest.mark.parametrize("name", READ)
def test_a_list_is_read_as_it_is_meant(tmp_path, name):
    content, colour = READ[name]
    path = tmp_path / "classes.txt"
    path.write_bytes(content)
    space = read_classes(path).space
    assert space.names == TWO
    assert colour is None or space.colours[1] == colour


@pytest.mark.parametrize(
    "name",
    [
        "road [/]",
        "[front] sky",
        "C#",
        "rail 30",
        "2 wheeler",
        "traffic light",
        "building;edifice",
        "ton \N{EM DASH} \N{SNOWMAN}",
    ],
)
def test_unusual_names_are_kept_as_written(tmp_path, name):
    path = tmp_path / "classes.txt"
    path.write_text(f"{name}\nsky\n", encoding="utf-8")
    assert read_classes(path).space.names == (name, "sky")


def test_names_are_in_the_composed_form_of_unicode(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text(unicodedata.normalize("NFD", "straße\nfußgänger"), encoding="utf-8")
    assert read_classes(path).space.names == ("straße", unicodedata.normalize("NFC", "fußgänger"))


REFUSED = {
    "Windows-1252": ("straße\nsky".encode("cp1252"), "not UTF-8 text", "save the list of classes as UTF-8"),
    "UTF-16 without a mark": ("ground\nsky".encode("utf-16-le"), "not UTF-8 text", "UTF-8"),
    "all in one line": (b"ground, sky\n", "line 1", "one name per line"),
    "a comma in a name": (b"ground, paved\nsky\n", "line 1", "a comma"),
    "a table with a heading": (b"name,r,g,b\nground,1,2,3\nsky,4,5,6\n", "line 1", "a heading"),
    "a heading in words": (b"name R G B\nground 1 2 3\nsky 4 5 6\n", "line 1", "a heading"),
    "numbers first": (b"0 ground\n1 sky\n", "begins with a number", "leave the numbers out"),
    "numbers and colons": (b"0: ground\n1: sky\n", "begins with a number"),
    "numbers and commas": (b"0,ground\n1,sky\n", "line 1", "a comma"),
    "numbers last": (b"ground: 0\nsky: 1\n", "ends with a number"),
    "numbers first and colours": (b"0 ground 1 2 3\n1 sky 4 5 6\n", "begins with a number"),
    "numbers last without a sign": (b"ground 0\nsky 1\n", "ends with its number"),
    "a heading in one word": (b"name\nground\nsky\n", "begins with 'name', a heading"),
    "a comment of another kind": (b"// mine\nground\nsky\n", "line 1", "a comment begins with `#`"),
    "only a hexadecimal colour": (b"ground\n#4682b4\n", "line 2", "no name"),
    "YAML": (b"- ground\n- sky\n", "begins with a dash"),
    "quotes": (b'"ground"\n"sky"\n', "in quotes"),
    "JSON": (b'["ground",\n"sky"]\n', "holds JSON"),
    "JSON with ids": (b'{"0": "ground",\n"1": "sky"}\n', "holds JSON"),
    "only a colour": (b"ground\n70 130 180\n", "line 2", "no name"),
    "only a number": (b"0\n1\n", "line 1", "no name"),
    "a wrong colour first": (b"ground\n70 130 256 sky\n", "line 2", "has the colour '70 130 256'"),
    "an escape sequence": (b"ground\n\x1b[31msky\n", "line 2", "'\\x1b'"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS", "git lfs pull"),
    "a picture": (b"\x89PNG\r\n\x1a\n", "holds a PNG"),
    "a web page": (b"<!DOCTYPE html>\n<html>\n", "web page"),
    "only comments": (b"# ground\n# sky\n", "lists 0 classes"),
    "256 classes": ("\n".join(f"c{number}." for number in range(256)).encode(), "lists 256 classes", "2 to 255"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_list_of_classes_is_refused(tmp_path, name):
    content, *parts = REFUSED[name]
    path = tmp_path / "classes.txt"
    path.write_bytes(content)
    refused(lambda: read_classes(path), path, *parts)


@pytest.mark.parametrize(
    "name",
    [
        *("Classes.txt", "CLASSES.TXT", "classes.csv", "classes", "class.txt", "clases.txt", "classes.txt.txt"),
        *("classes .txt", "classes.json", "class_names.txt"),
    ],
)
def test_file_that_is_called_almost_classes_txt_is_named(tmp_path, name):
    root = make_town(tmp_path)
    (root / name).write_text("ground\nsky\n")
    refused(lambda: open_domain(f"folder={root}", "val"), root / name, "expected classes.txt", "rename it")
    (root / "classes.txt").write_text("\n".join(f"c{number}." for number in range(19)))
    assert len(open_domain(f"folder={root}", "val").train_space) == 19


@pytest.mark.parametrize("name", ["notes.txt", "licences.txt", "._classes.txt", "palette.txt", "glasses.md"])
def test_other_files_beside_the_images_are_left_alone(tmp_path, name):
    root = make_town(tmp_path)
    (root / name).write_text("ground\nsky\n")
    assert len(open_domain(f"folder={root}", "val").train_space) == 19


@pytest.mark.parametrize("what", ["link", "folder", "pipe", "device"])
def test_list_of_classes_that_is_no_file_is_named_at_once(tmp_path, what):
    root = make_town(tmp_path)
    path = root / "classes.txt"
    if what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    else:
        path.symlink_to({"link": "gone.txt", "device": "/dev/zero"}[what])
    start = time.monotonic()
    refused(lambda: open_domain(f"folder={root}", "val"), path, f"a {what}")
    assert time.monotonic() - start < 1


# Own colours


@pytest.mark.parametrize("text", ["sky 1 2 3", "# mine\n1,2,3 sky\n", "sky #010203\n\n"])
def test_classes_that_are_named_get_their_colours(text, tmp_path):
    (tmp_path / "mine.txt").write_text(text)
    space = LabelSpace(("ground", "sky"), ((9, 9, 9), (8, 8, 8)))
    assert recoloured(space, tmp_path / "mine.txt") == LabelSpace(space.names, ((9, 9, 9), (1, 2, 3)))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ground 1 2 3\nskies 1 2 3", "line 2 names 'skies', which is no class of the model; did you mean 'sky'?"),
        ("sky", "line 1 gives 'sky' no colour"),
        ("sky 1 2 300", "line 1 has the colour '1 2 300'"),
        ("sky 1 2 3\nsky 1 2 4", "line 2 names the class 'sky' a second time"),
        ("# nothing", "no colours, expected lines such as `ground 70 130 180`"),
        ("1 2 3", "line 1 is '1 2 3'"),
    ],
)
def test_wrong_colours_are_refused_with_their_place(text, words, tmp_path):
    (tmp_path / "mine.txt").write_text(text)
    space = LabelSpace(("ground", "sky"), ((9, 9, 9), (8, 8, 8)))
    refused(lambda: recoloured(space, tmp_path / "mine.txt"), tmp_path / "mine.txt", words)
