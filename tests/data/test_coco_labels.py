"""Labels are drawn from COCO annotations in the folders in which tools export them."""

import json

import numpy as np
import pytest

from labelled_files import ids, picture, refused, write
from recyclelora.data.check.check import check_data
from recyclelora.data.opening import evaluated_split, manifest, open_domain, parse_spec

CATEGORIES = [{"id": 2, "name": "rail"}, {"id": 7, "name": "train"}]
RECTANGLE = (4, 2, 20, 16)  # left, top, right, bottom


def polygon(left, top, right, bottom):
    return [[left, top, right, top, right, bottom, left, bottom]]


def coco(names, categories=CATEGORIES, size=(32, 24), suffix=".jpg"):
    """An annotation of the first category in every image but the last, and a smaller one of the second over it."""
    images = [{"id": n, "file_name": f"{name}{suffix}", "width": size[0], "height": size[1]} for n, name in
              enumerate(names)]  # fmt: skip
    annotations = []
    for number in range(len(names) - 1):
        outlines = (polygon(8, 4, 12, 9), polygon(*RECTANGLE))
        for category, outline in zip(categories[::-1], outlines, strict=False):
            annotations.append({"id": len(annotations), "image_id": number, "category_id": category["id"],
                                "segmentation": outline})  # fmt: skip
    return {"images": images, "categories": categories, "annotations": annotations}


def expected(first=1, second=2, rest=0):
    labels = np.full((24, 32), rest, np.uint8)
    labels[2:16, 4:20] = first
    labels[4:9, 8:12] = second
    return labels


def put(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))
    return file


def make(root, file, images, names=("a", "b", "c"), **options):
    put(root / file, coco(names, **options))
    for number, name in enumerate(names):
        write(root / images / f"{name}.jpg", picture(seed=number))
    return root


EXPORTS = {  # file of the annotations, folder of the images
    "Roboflow": ({"train": "train/_annotations.coco.json", "val": "valid/_annotations.coco.json"}, "{word}"),
    "CVAT": ({"train": "annotations/instances_train.json", "val": "annotations/instances_val.json"}, "images/{word}"),
    "COCO": ({"train": "annotations/instances_train2017.json", "val": "annotations/instances_val2017.json"},
             "{word}2017"),
    "split folders": ({"train": "train/annotations.json", "val": "val/annotations.json"}, "{word}/images"),
    "CVAT, one set": ({"": "annotations/instances_default.json"}, "images/default"),
    "CVAT, flat": ({"": "annotations/instances_default.json"}, "images"),
    "Label Studio": ({"": "result.json"}, ""),
    "labelme2coco": ({"": "dataset.json"}, "images"),
    "one file": ({"": "annotations.json"}, "images"),
}  # fmt: skip


@pytest.mark.parametrize("tool", EXPORTS)
def test_exports_of_known_tools_are_read(tmp_path, tool):
    files, folder = EXPORTS[tool]
    names = [f"images/{name}" for name in "abc"] if tool == "Label Studio" else list("abc")
    for split, file in files.items():
        word = file.split("/")[0] if tool == "Roboflow" else split
        make(tmp_path, file, folder.format(word=word), names)
    for split in files if "" not in files else ("train", "val", "test"):
        domain = open_domain(f"folder={tmp_path}", split)
        assert manifest(domain) == names
        assert domain.train_space.names == ("background", "rail", "train")
        for index in range(2):
            image, labels = domain.read(index)
            assert image.shape == (24, 32, 3)
            assert (labels == expected()).all()
        assert not domain.read(2)[1].any()
        read = ", ".join(files.values())
        assert domain.notes[0].startswith(f"labels are drawn from {read}; the 3 classes are those of its categories: ")
        assert domain.notes[1] == "pixels without annotation are background (0); " + OVER
        assert domain.notes[2] == f"images without any annotation: {len(files)}"
    assert evaluated_split(parse_spec(f"folder={tmp_path}")) == ("test" if "" in files else "val")
    found = check_data(f"folder={tmp_path}", workers=1)
    assert found.sound
    assert [part.split for part in found.parts] == list(files)
    pixels = np.bincount(expected().ravel()) * 2 + [24 * 32, 0, 0]
    assert found.parts[0].spread.pixels.tolist() == pixels.tolist()


OVER = "a smaller annotation lies over a larger one"


def test_category_that_only_groups_others_is_no_class(tmp_path):
    group = {"id": 0, "name": "Vehicles", "supercategory": "none"}
    members = [{**each, "supercategory": "Vehicles"} for each in CATEGORIES]
    root = make(tmp_path, "annotations.json", "images")
    put(root / "annotations.json", {**coco("abc"), "categories": [group, *members]})
    domain = open_domain(f"folder={root}", "val")
    assert domain.train_space.names == ("background", "rail", "train")
    assert domain.notes[-1] == "'Vehicles' only groups other categories and has no annotation: it is no class"
    content = {**coco("abc"), "categories": [group, *members]}
    content["annotations"][0]["category_id"] = 0
    put(root / "annotations.json", content)
    assert open_domain(f"folder={root}", "val").train_space.names == ("background", "Vehicles", "rail", "train")


@pytest.mark.parametrize("name", ["background", "_background_", "Background"])
def test_category_of_the_background_is_the_background(tmp_path, name):
    root = make(tmp_path, "annotations.json", "images", categories=[{"id": 1, "name": "rail"}, {"id": 9, "name": name}])
    domain = open_domain(f"folder={root}", "val")
    assert domain.train_space.names == ("rail", name)
    assert (domain.read(0)[1] == expected(0, 1, 1)).all()
    assert domain.notes[1].startswith(f"pixels without annotation are {name} (1)")


def test_classes_txt_gives_the_ids_and_says_whether_there_is_a_background(tmp_path):
    root = make(tmp_path, "annotations.json", "images")
    (root / "classes.txt").write_text("sky\ntrain 9 9 9\nrail\n")
    domain = open_domain(f"folder={root}", "val")
    assert domain.train_space.names == ("sky", "train", "rail")
    assert domain.train_space.colours[1] == (9, 9, 9)
    assert (domain.read(0)[1] == expected(2, 1, 255)).all()
    assert domain.notes[0].endswith("; the classes are those of classes.txt")
    assert domain.notes[1].startswith("pixels without annotation are ignored, as classes.txt lists no background; ")
    (root / "classes.txt").write_text("rail\nbackground\ntrain\n")
    assert (open_domain(f"folder={root}", "val").read(0)[1] == expected(0, 2, 1)).all()
    (root / "classes.txt").write_text("rail\nbackground\n")
    refused(lambda: open_domain(f"folder={root}", "val"), root / "classes.txt", "does not list 'train'")


def test_smaller_annotation_lies_over_a_larger_one_and_the_later_over_an_equal_one(tmp_path):
    root = make(tmp_path, "annotations.json", "images")
    content = coco("abc")
    content["annotations"].reverse()
    put(root / "annotations.json", content)
    assert (open_domain(f"folder={root}", "val").read(0)[1] == expected()).all()
    for each in content["annotations"]:
        each["segmentation"] = polygon(*RECTANGLE)
        each["iscrowd"] = 1
    put(root / "annotations.json", content)
    last = {each["image_id"]: each["category_id"] for each in content["annotations"]}
    assert (open_domain(f"folder={root}", "val").read(0)[1] == expected(*[{2: 1, 7: 2}[last[0]]] * 2)).all()


def test_files_that_do_not_fit_together_are_refused(tmp_path):
    root = make(tmp_path, "train/_annotations.coco.json", "train")
    make(root, "valid/_annotations.coco.json", "valid", categories=[{"id": 2, "name": "train"}, {"id": 7, "name": "x"}])
    refused(lambda: open_domain(f"folder={root}", "train"), "valid/_annotations.coco.json: has other categories than")
    put(root / "valid/_annotations.coco.json", coco("abc"))
    put(root / "train/annotations.json", coco("abc"))
    refused(
        lambda: open_domain(f"folder={root}", "train"), "train/annotations.json: holds annotations as", "remove one"
    )
    (root / "train/annotations.json").unlink()
    put(root / "annotations.json", coco("abc"))
    refused(lambda: open_domain(f"folder={root}", "train"), "annotations.json: of no split, while")


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ([], "has no category"),
        ([{"id": 1, "name": "a"}, {"id": 2, "name": "a"}], "two categories are called 'a'"),
        (
            [{"id": n, "name": f"class {n}"} for n in range(255)],
            "has 256 classes with background, expected at most 255",
        ),
    ],
)
def test_categories_that_are_no_list_of_classes_are_refused(tmp_path, categories, message):
    root = make(tmp_path, "annotations.json", "images", categories=categories)
    refused(lambda: open_domain(f"folder={root}", "val"), root / "annotations.json", message)


def test_images_that_are_not_there_or_not_listed_are_named(tmp_path):
    root = make(tmp_path, "annotations.json", "images")
    write(root / "images/extra.jpg", picture())
    with pytest.warns(UserWarning, match=r"1 images beside those that it lists are left out, such as .*/extra\.jpg"):
        assert manifest(open_domain(f"folder={root}", "val")) == ["a", "b", "c"]
    (root / "images/extra.jpg").unlink()
    (root / "images/b.jpg").unlink()
    refused(lambda: open_domain(f"folder={root}", "val"), root / "images/b.jpg", "not there, but listed in")
    assert list(check_data(f"folder={root}").parts[0].problems) == ["images not found"]
    (root / "images/a.jpg").unlink()
    refused(lambda: open_domain(f"folder={root}", "val"), "lists a.jpg, which is not in", f"{root}/images/")
    put(root / "annotations.json", {**coco("abc"), "images": [], "annotations": []})
    refused(lambda: open_domain(f"folder={root}", "val"), "lists no images")


def test_image_of_another_size_than_listed_is_named(tmp_path):
    root = make(tmp_path, "annotations.json", "images")
    write(root / "images/b.jpg", picture(48, 64))
    domain = open_domain(f"folder={root}", "val")
    refused(lambda: domain.read(1), "annotations.json: label of 32 x 24 pixels, but b.jpg has 64 x 48")
    problem = check_data(f"folder={root}").parts[0].problems["label of another size than its image"]
    assert problem.examples == ["annotations.json has 32 x 24, the image 64 x 48 (b.jpg)"]


def test_labels_that_are_pictures_are_read_before_annotations(tmp_path):
    root = make(tmp_path, "annotations.json", "images")
    (root / "labels").mkdir()
    (root / "labels/a.txt").write_text("0 0.5 0.5 0.1 0.1")  # boxes of another tool
    assert (open_domain(f"folder={root}", "val").read(0)[1] == expected()).all()
    for name in "abc":
        write(root / f"labels/{name}.png", ids(classes=19))
    domain = open_domain(f"folder={root}", "val")
    assert (domain.read(0)[1] == ids(classes=19)).all()
    assert domain.notes == ("annotations.json is not read, as there are labels",)


def test_classes_and_files_change_the_fingerprint(tmp_path):
    root = make(tmp_path, "annotations.json", "images")
    first = open_domain(f"folder={root}", "val")
    (root / "classes.txt").write_text("background\nrail\ntrain\n")
    same = open_domain(f"folder={root}", "val")
    (root / "classes.txt").write_text("background\ntrain\nrail\n")
    other = open_domain(f"folder={root}", "val")
    assert first.fingerprint() == same.fingerprint() != other.fingerprint()
    assert first.source.stamp(0) != other.source.stamp(0)
