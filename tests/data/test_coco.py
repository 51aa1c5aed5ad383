"""COCO JSON is read as it is exported, and each fault in it is named with its annotation."""

import copy
import json

import numpy as np
import pytest

from labelled_files import refused
from recyclelora.data.coco import read_coco

SQUARE = [2, 1, 7, 1, 7, 4, 2, 4]
CONTENT = {
    "images": [{"id": 4, "file_name": "north/a.jpg", "width": 9, "height": 7}, {"id": "b", "file_name": "b.png",
                "width": 8, "height": 8}],
    "categories": [{"id": 0, "name": "road  users", "supercategory": "none"},
                   {"id": 3, "name": "car", "supercategory": "road  users"},
                   {"id": 1, "name": "person", "supercategory": "person"}],
    "annotations": [
        {"id": 11, "image_id": 4, "category_id": 3, "segmentation": [SQUARE], "iscrowd": 0},
        {"id": 12, "image_id": 4, "category_id": 1, "segmentation": {"counts": "01>2F0000000;NB", "size": [7, 9]}},
    ],
}  # fmt: skip


def stored(tmp_path, content=CONTENT):
    path = tmp_path / "annotations.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_images_categories_and_annotations_are_read(tmp_path):
    coco = read_coco(stored(tmp_path))
    assert list(coco.images) == ["north/a", "b"]
    image = coco.images["north/a"]
    assert (image.file, image.height, image.width) == ("north/a.jpg", 7, 9)
    assert [each.category for each in image.annotations] == [3, 1]
    assert [int(each.mask(7, 9).pixels.sum()) for each in image.annotations] == [15, 17]
    assert coco.images["b"].annotations == []
    assert coco.categories == {0: "road users", 3: "car", 1: "person"}
    assert coco.parents == {0}  # `person` is above itself, as in COCO, and groups nothing else
    assert coco.used == {1, 3}


def test_file_is_read_again_when_it_has_changed(tmp_path):
    path = stored(tmp_path)
    first = read_coco(path)
    assert read_coco(path) is first
    stored(tmp_path, {**CONTENT, "annotations": []})
    assert not read_coco(path).used


WRONG = {
    "annotations.0.segmentation": [
        ([], "annotation 11: has no segmentation, as in files for detection"),
        (None, "annotation 11: has no segmentation"),
        (SQUARE, "annotation 11: has the polygon 2, expected a list of x, y"),
        ([[1, 2, 3, 4]], "annotation 11: has the polygon [1, 2, 3, 4], expected"),
        ([[1, 2, 3, 4, 5, 6, 7]], "at least three points"),
        ([[1, 2, 3, 4, 5, float("nan")]], "annotation 11: has the polygon"),
        ([[1, 2, 3, 4, 5, "six"]], "annotation 11: has the polygon"),
        ([[0, 0, 0.5, 0, 0.5, 1]], "all coordinates are 0 to 1, expected pixels"),
        ({"counts": [63], "size": [9, 7]}, "annotation 11: its run lengths have the size [9, 7], expected [7, 9]"),
        ({"counts": [64], "size": [7, 9]}, "annotation 11: its run lengths cover 64 pixels, expected 63"),
    ],
    "annotations.1.image_id": [(5, "annotation 12: belongs to the image 5, which is not listed"), ([4], "image_id is")],
    "annotations.0.category_id": [(2, "annotation 11: has the category 2, which is not listed"), (None, "category_id")],
    "annotations.0": [(7, "annotation number 0 in the list: image_id is None")],
    "images.1.id": [(4, "image 4, b.png: has the name or the id of another"), (None, "image None: id is None")],
    "images.1.file_name": [("north/a.png", "image 'b', north/a.png: has the name"), ("", "file_name is ''")],
    "images.1.width": [(None, "image 'b': width is None"), (0, "width is 0, expected a number of pixels")],
    "categories.2.id": [(3, "category 3: has the id of 'car' as well")],
    "categories.1.name": [(5, "category 3: name is 5, expected a text")],
    "categories.1": [("car", "category number 1 in the list: id is None")],
    "categories": [({}, "has no list 'categories', expected COCO JSON")],
}


@pytest.mark.parametrize(("place", "value", "message"), [(k, v, m) for k, cases in WRONG.items() for v, m in cases])
def test_each_fault_is_named(tmp_path, place, value, message):
    content = copy.deepcopy(CONTENT)
    if "0 to 1" in message:
        del content["annotations"][1]
    *above, last = [int(part) if part.isdigit() else part for part in place.split(".")]
    entry = content
    for part in above:
        entry = entry[part]
    entry[last] = value
    path = stored(tmp_path, content)
    refused(lambda: read_coco(path), path, message)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"shapes": []}', "[" * 100_000])
def test_other_files_are_refused(tmp_path, text):
    path = stored(tmp_path, text)
    refused(lambda: read_coco(path), path, "JSON")


def test_paths_of_windows_are_read(tmp_path):
    content = copy.deepcopy(CONTENT)
    content["images"][0]["file_name"] = "north\\a.jpg"
    assert read_coco(stored(tmp_path, content)).images["north/a"].file == "north/a.jpg"


def test_masks_of_one_annotation_do_not_depend_on_the_form(tmp_path):
    content = copy.deepcopy(CONTENT)
    counts = [0, 1, 14, 3, 4, 3, 4, 3, 4, 3, 4, 3, 15, 1, 1]
    content["annotations"][0]["segmentation"] = {"counts": counts, "size": [7, 9]}
    one, other = read_coco(stored(tmp_path, content)).images["north/a"].annotations
    assert (one.mask(7, 9).pixels == other.mask(7, 9).pixels).all()
    assert isinstance(one.mask(7, 9).pixels, np.ndarray)
